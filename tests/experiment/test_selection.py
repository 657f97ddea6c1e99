import jax.numpy as jnp
import pytest

from piat_jax.core.types import TrainState
from piat_jax.experiment import Run
from piat_jax.experiment.config import load as read_config
from piat_jax.experiment.selection import how_measured, resumed

FIELDS = {"evaluation.attacks": "clean,pgd20"}


def config_with(**fields):
    return read_config(
        "configs/embedded.py:piat", FIELDS | {f"evaluation.{name}": str(fields[name]) for name in fields}
    )


def record(epoch, score):
    return {"epoch": epoch, "test_pgd20": score, "test_clean": 0.9 - score}


@pytest.fixture
def run(tmp_path):
    """A run's folder, and a function that saves an epoch in it."""
    run = Run(tmp_path)
    run.open(config_with())
    checkpoints = run.checkpoints
    parts = {name: {} for name in ("model_state", "opt_state", "objective_state")}
    state = TrainState(step=jnp.int32(0), epoch=jnp.int32(0), params={"w": jnp.zeros(2)}, **parts)

    def save(name, epoch, score, **info):
        checkpoints.save(name, state, {"epoch": epoch, "scores": record(epoch, score), **info})

    return run, checkpoints, lambda: checkpoints.restore(state), save


def test_what_a_score_depends_on():
    base = how_measured(config_with())
    assert base["score"] == "test_pgd20"
    for changed in ({"eps": 0.2}, {"norm": "l2"}, {"step_size": 0.5}, {"restarts": 2}, {"precision": "default"}):
        assert how_measured(config_with(**changed)) != base
    for free in ({"batch_size": 7}, {"every_epochs": 3}, {"final_attacks": "clean"}):
        assert how_measured(config_with(**free)) == base
    assert how_measured(config_with(select="clean")) == how_measured(config_with(select="clean", eps=0.2)) != base
    held_out = read_config("configs/embedded.py:piat", {"dataset.validation_examples": "100"})
    assert how_measured(held_out)["score"] == "validation_pgd20"


def test_a_run_of_an_older_version_says_by_its_config_how_its_best_was_chosen(run):
    run, _, restore, save = run
    save("best", 2, 0.4)
    save("last", 3, 0.3)
    records = [record(1, 0.2), record(2, 0.4), record(3, 0.3)]
    same = resumed(config_with(), run, restore(), records)
    assert (same.stays, same.take(4, record(4, 0.4)), same.take(5, record(5, 0.41))) == (False, False, True)
    for other in (config_with(eps=0.01), config_with(select="clean")):
        selection = resumed(other, run, restore(), records)
        assert selection.stays
        assert not selection.take(4, {"test_pgd20": 1.0, "test_clean": 1.0})
    # The last save of such a session says it, whatever the config says by then.
    run.open(config_with(eps=0.01))
    save("last", 4, 0.9, selection=selection.best)
    assert resumed(config_with(eps=0.01), run, restore(), [*records, record(4, 0.9)]).stays
    assert not resumed(config_with(), run, restore(), [*records, record(4, 0.9)]).stays


@pytest.mark.parametrize("older", [False, True])
def test_a_best_that_will_be_made_again_is_removed_only_where_it_will_be(run, older):
    run, checkpoints, restore, save = run
    measured = how_measured(config_with())
    chosen = [
        {} if older else {"selection": {"measured": measured, "epoch": e, "score": s}} for e, s in ((2, 0.4), (1, 0.2))
    ]
    save("best", 2, 0.4, **chosen[0])
    save("last", 1, 0.2, **chosen[1])
    other = resumed(config_with(eps=0.01), run, restore(), [record(1, 0.2)])
    assert other.stays
    assert "best" in checkpoints
    again = resumed(config_with(), run, restore(), [record(1, 0.2)])
    assert "best" not in checkpoints
    assert (again.take(2, record(2, 0.2)), again.take(2, record(2, 0.4))) == (False, True)


def test_the_note_names_what_differs(run):
    run, checkpoints, restore, save = run
    save("best", 2, 0.4)
    save("last", 2, 0.4)
    note = resumed(config_with(eps=0.01), run, restore(), [record(2, 0.4)]).note()
    assert "of epoch 2, was chosen under other settings (eps: 0.1 -> 0.01)" in note
    assert note.endswith("so it stays the best")
    assert resumed(config_with(), run, restore(), [record(2, 0.4)]).note() == ""
    checkpoints.discard("best")
    anew = resumed(config_with(eps=0.01), run, restore(), [record(2, 0.4)])
    assert (anew.note(), anew.take(3, record(3, 0.1))) == ("", True)
