import dataclasses
import json
import os
import resource
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from piat_jax import checkpoint
from piat_jax.checkpoint import Checkpoints
from piat_jax.core.checks import InputError
from piat_jax.core.types import TrainState, Variables
from piat_jax.objectives import WrapperState
from piat_jax.objectives.cfa import ClassRates
from piat_jax.objectives.las import Strategy
from piat_jax.objectives.rebat import MovingAverage


def make(value=0.0, width=3):
    params = {"layer": {"kernel": jnp.full((2, width), value), "bias": jnp.zeros(width, jnp.bfloat16)}}
    return TrainState(
        step=jnp.int32(7),
        epoch=jnp.int32(2),
        params=params,
        model_state={"batch_stats": {"mean": jnp.full(width, value)}},
        opt_state=optax.sgd(0.1, momentum=0.9).init(params),
        objective_state=(),
        anchor=Variables(params, {}),
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_state_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = make(1.5)
    checkpoints.save("last", state, {"epoch": 2, "scores": {"test_pgd20": 0.5}})
    same(checkpoints.load_state("last", make()), state)
    same(checkpoints.load_variables("last", jax.eval_shape(lambda: make().variables)), state.variables)
    assert checkpoints.info("last")["scores"] == {"test_pgd20": 0.5}


def test_a_state_without_anchor(tmp_path):
    state = dataclasses.replace(make(2.0), anchor=None)
    Checkpoints(tmp_path).save("best", state, {"epoch": 1})
    same(Checkpoints(tmp_path).load_state("best", dataclasses.replace(make(), anchor=None)), state)


def test_the_states_of_wrappers_are_read_as_earlier_versions_saved_them(tmp_path):
    counts = {"robust": jnp.arange(3), "total": jnp.arange(3) + 4, "rate": jnp.ones(3), "counted": jnp.ones(3, bool)}
    las = {name: {"w": jnp.full(2, number)} for number, name in enumerate(("params", "model_state", "momentum"))}
    average = {"params": {"w": jnp.full(2, 5.0)}, "model_state": {"mean": jnp.full(3, 6.0)}, "started": jnp.array(True)}
    old = {"own": (), "inner": {"own": average, "inner": {"own": counts, "inner": {"own": las, "inner": ()}}}}
    Checkpoints(tmp_path).save("last", dataclasses.replace(make(1.0), objective_state=old), {"epoch": 2})
    new = WrapperState(
        (),
        WrapperState(MovingAverage(**average), WrapperState(ClassRates(**counts), WrapperState(Strategy(**las), ()))),
    )
    like = dataclasses.replace(make(), objective_state=jax.tree.map(jnp.zeros_like, new))
    same(Checkpoints(tmp_path).load_state("last", like).objective_state, new)


def test_a_save_replaces_its_predecessor_only(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", make(1.0), {"epoch": 1})
    for epoch in (1, 2, 3):
        checkpoints.save("last", make(10.0 * epoch), {"epoch": epoch})
    # Of "last" the one before is kept too, lest the newest be damaged.
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["1", "2"]
    assert checkpoints.info("best")["epoch"] == 1
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 30
    assert float(checkpoints.load_state("best", make()).params["layer"]["kernel"][0, 0]) == 1


def test_the_same_epoch_may_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0), {"epoch": 5})
    checkpoints.save("last", make(2.0), {"epoch": 5})
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 2


def test_discard(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", make(), {"epoch": 1})
    assert "best" in checkpoints
    checkpoints.discard("best")
    checkpoints.discard("best")
    assert "best" not in checkpoints


def test_an_average_is_evaluated_and_training_goes_on_from_the_weights(tmp_path):
    state, checkpoints = make(), Checkpoints(tmp_path)
    average = jax.tree.map(lambda leaf: leaf + 1, state.variables)
    checkpoints.save("last", state, {"epoch": 1}, average)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load_variables("last", state.variables), average)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load_state("last", state).variables, state.variables)
    # The state's own weights are not saved twice.
    checkpoints.save("best", state, {"epoch": 1}, state.variables)
    assert not checkpoints.info("best")["separate"]


def test_further_averages_are_evaluated_by_their_names(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state, main, slow = make(1.0), make(2.0).variables, make(3.0).variables
    like = jax.eval_shape(lambda: make().variables)
    for save in (checkpoints.save, lambda name, *rest: checkpoints.save_async(*rest)):
        save("last", state, {"epoch": 1}, main, {"slow": slow})
        same(checkpoints.load_variables("last", like), main)
        same(checkpoints.load_evaluated("last", like, average="slow")[0], slow)
        with pytest.raises(InputError, match="has no further average 'swa'; there is slow"):
            checkpoints.load_evaluated("last", like, average="swa")
    checkpoints.save("last", state, {"epoch": 1}, main)
    with pytest.raises(InputError, match="has no further average 'slow'; there is none"):
        checkpoints.load_evaluated("last", like, average="slow")


def test_a_damaged_further_average_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("best", make(1.0), {"epoch": 1}, make(2.0).variables, {"slow": make(3.0).variables})
    checkpoints.save("last", make(1.0), {"epoch": 2})
    flip(
        max((path for path in (tmp_path / "best/0/evaluated_slow").rglob("*") if path.is_file()), key=os.path.getsize),
        9,
    )
    restored = checkpoints.restore(make())
    assert "best/damaged-0" in restored.damaged[0]


def test_another_model_is_refused_with_the_first_difference(tmp_path):
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    message = r"of another model: model_state/batch_stats/mean is \(3,\) there and \(4,\) in this config"
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path).load_state("last", make(width=4))
    more = make().variables._replace(params={**make().params, "more": jnp.zeros(1)})
    with pytest.raises(InputError, match=r"params/more is absent there and \(1,\) in this config"):
        Checkpoints(tmp_path).load_variables("last", more)


def test_a_missing_checkpoint_names_what_there_is(tmp_path):
    with pytest.raises(InputError, match="no checkpoint 'best'; there is none"):
        Checkpoints(tmp_path).info("best")
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    with pytest.raises(InputError, match="no checkpoint 'best'; there is last"):
        Checkpoints(tmp_path).load_state("best", make())


def test_a_damaged_checkpoint_is_named(tmp_path):
    Checkpoints(tmp_path).save("last", make(), {"epoch": 1})
    for path in (tmp_path / "last" / "0" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"checkpoint .*last/0 cannot be read: .*; nothing else was saved"):
        Checkpoints(tmp_path).load_variables("last", make().variables)
    Checkpoints(tmp_path).save("best", make(), {"epoch": 1})
    with pytest.raises(InputError, match=r"checkpoint .*last/0 cannot be read: .*; 'best' exists too"):
        Checkpoints(tmp_path).load_variables("last", make().variables)


@pytest.mark.parametrize("read", [1, 2])  # of the description, of the weights
def test_what_is_loaded_may_be_replaced_meanwhile(read, tmp_path, monkeypatch):
    training, evaluation = Checkpoints(tmp_path), Checkpoints(tmp_path)
    training.save("best", make(1.0), {"epoch": 1})
    real, reads = evaluation._read, []

    def replaced_first(*arguments):
        reads.append(1)
        if len(reads) == read:
            training.save("best", make(2.0), {"epoch": 2})
        return real(*arguments)

    monkeypatch.setattr(evaluation, "_read", replaced_first)
    variables, info = evaluation.load_evaluated("best", make().variables)
    assert (float(variables.params["layer"]["kernel"][0, 0]), info["epoch"]) == (2, 2)
    assert len(reads) == read + 2


def test_a_save_that_was_cut_off_leaves_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0), {"epoch": 1})
    # What orbax leaves when it is killed while it writes: a folder of a temporary name.
    (tmp_path / "last" / "2.orbax-checkpoint-tmp-123").mkdir()
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 1
    checkpoints.save("last", make(2.0), {"epoch": 2})
    assert float(checkpoints.load_state("last", make()).params["layer"]["kernel"][0, 0]) == 2
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["0", "1"]


def value(state):
    return float(state.params["layer"]["kernel"][0, 0])


def test_what_is_saved_behind_is_the_state_at_the_time_of_the_call(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    # Large enough to be written long after the steps that overwrite its buffers.
    state = dataclasses.replace(make(1.0, width=1_000_000), opt_state=())
    state = dataclasses.replace(state, anchor=Variables(jax.tree.map(jnp.copy, state.params), {}))
    average = jax.tree.map(lambda leaf: leaf + 0.5, state.variables)
    for epoch in (1, 2, 3):
        checkpoints.save_async(state, {"epoch": epoch}, average, best=epoch == 2)
        handed_in = state
        for _ in range(5):
            state = step(state)
        assert handed_in.params["layer"]["kernel"].is_deleted()
    for name, expected in (("last", 11.0), ("best", 6.0)):
        saved = checkpoints.load_state(name, state)
        for leaf in (*jax.tree.leaves(saved.variables), *jax.tree.leaves(saved.anchor)):
            assert set(np.unique(leaf)) <= {expected, expected - 1}  # the bias and the step began elsewhere
        assert checkpoints.info(name)["epoch"] == {"last": 3, "best": 2}[name]
    assert float(checkpoints.load_variables("best", state.variables).params["layer"]["kernel"][0, 0]) == 1.5


def test_best_is_what_was_best_and_survives_what_follows(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch, best in enumerate((True, False, True, False, False, False), 1):
        checkpoints.save_async(make(float(epoch)), {"epoch": epoch}, best=best)
    same(checkpoints.load_state("best", make()), make(3.0))
    same(checkpoints.load_state("last", make()), make(6.0))
    assert len(list((tmp_path / "best").iterdir())) == 1


def test_one_best_after_another_is_done_without_anyone_waiting(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save_async(make(float(epoch)), {"epoch": epoch}, best=True)
        assert checkpoints._pending.exception(timeout=60) is None


def test_a_process_killed_before_it_marked_the_best_does_so_when_it_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_async(make(1.0), {"epoch": 1}, best=True)
    checkpoints.save_async(make(2.0), {"epoch": 2}, best=True)
    checkpoints.wait()
    shutil.rmtree(tmp_path / "best")
    restored = Checkpoints(tmp_path).restore(make())
    assert (restored.info["epoch"], restored.damaged) == (2, ())
    same(checkpoints.load_state("best", make()), make(2.0))


def damage(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_run_goes_on_from_the_newest_that_can_be_read_and_says_so(tmp_path):
    assert Checkpoints(tmp_path).restore(make()) is None
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        checkpoints.save_async(make(float(epoch)), {"epoch": epoch}, best=epoch == 1)
    checkpoints.wait()
    # Which is newest does not depend on a clock.
    os.utime(tmp_path / "last" / "1", (4e9, 4e9))
    assert Checkpoints(tmp_path).restore(make()).info["epoch"] == 3
    damage(tmp_path / "last" / "2")
    restored = Checkpoints(tmp_path).restore(make())
    same(restored.state, make(2.0))
    assert restored.info["epoch"] == 2
    (told,) = restored.damaged
    assert "last/2 cannot be read: " in told
    assert told.endswith("set aside as last/damaged-2")
    # It is saved again under a number of its own, and the damaged one counts no more.
    checkpoints.save("last", make(3.0), {"epoch": 3})
    assert Checkpoints(tmp_path).restore(make()).info["epoch"] == 3
    for path in (tmp_path / "last").iterdir():
        damage(path)
    restored = Checkpoints(tmp_path).restore(make())  # best
    assert (restored.info["epoch"], len(restored.damaged)) == (1, 2)
    damage(tmp_path / "best")
    with pytest.raises(InputError, match="holds no readable checkpoint"):
        Checkpoints(tmp_path).restore(make())


def test_a_full_disk_is_told_at_the_next_call_and_what_was_saved_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0, width=100_000), {"epoch": 1})
    rng = np.random.default_rng(0)
    full = dataclasses.replace(make(width=100_000), objective_state=jnp.asarray(rng.normal(size=(1000, 1000))))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # bytes: a longer file cannot be written
    try:
        checkpoints.save_async(full, {"epoch": 2})
        with pytest.raises(InputError, match=r"last/1 cannot be written: .*; what was saved before is kept"):
            checkpoints.save_async(full, {"epoch": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Checkpoints(tmp_path).info("last")["epoch"] == 1
    checkpoints.save("last", make(4.0), {"epoch": 4})
    assert Checkpoints(tmp_path).info("last")["epoch"] == 4


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(InputError, match="/proc/nowhere/last/0 cannot be written"):
        Checkpoints("/proc/nowhere").save("last", make(), {"epoch": 1})


def flip(path, place, bit=0):
    """One bit of a file, in a file of its own: others may be links to it."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)


def array_file(save):
    """The file that holds most of the weights."""
    return max(
        (path for path in (save / "variables").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def test_one_flipped_bit_anywhere_in_the_arrays_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)}
    state = dataclasses.replace(make(), params=params, opt_state=(), anchor=None)
    checkpoints.save("last", state, {"epoch": 1})
    same(checkpoints.load_variables("last", state.variables), state.variables)
    path = array_file(tmp_path / "last" / "0")
    size = path.stat().st_size
    for place in rng.integers(size, size=20):
        bit = int(rng.integers(8))
        flip(path, place, bit)
        with pytest.raises(InputError, match=r"cannot be read: variables/.* is not what was written: its checksum"):
            checkpoints.load_variables("last", state.variables)
        flip(path, place, bit)  # back


def test_a_flipped_bit_makes_a_run_go_on_from_the_save_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        checkpoints.save_async(make(float(epoch)), {"epoch": epoch}, best=epoch == 1)
    checkpoints.wait()
    flip(array_file(tmp_path / "last" / "2"), -20)
    flip(array_file(tmp_path / "best" / "0"), -20)
    restored = Checkpoints(tmp_path).restore(make())
    same(restored.state, make(2.0))
    assert [line.rpartition("set aside as ")[2] for line in restored.damaged] == ["last/damaged-2", "best/damaged-0"]
    assert "best" not in Checkpoints(tmp_path)


@pytest.mark.parametrize("part", ["training", "info", "_METADATA", "checksums.json"])
def test_every_file_of_a_save_is_checked(tmp_path, part):
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2):
        checkpoints.save("last", make(float(epoch)), {"epoch": epoch})
    save = tmp_path / "last" / "1"
    folder = save / part if (save / part).is_dir() else save
    flip(max(path for path in folder.rglob("*" if folder != save else part) if path.is_file()), 3)
    restored = Checkpoints(tmp_path).restore(make())
    assert (restored.info["epoch"], len(restored.damaged)) == (1, 1)


def test_a_save_whose_checksums_are_lost_does_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", make(1.0), {"epoch": 1})
    (tmp_path / "last" / "0" / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"cannot be read: checksums\.json is missing"):
        checkpoints.load_state("last", make())


def test_saves_of_a_version_without_checksums_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_checksums", lambda folder: None)

    def without(info):
        return json.dumps({key: value for key, value in info.items() if key != "checksums"})

    monkeypatch.setattr(checkpoint, "json", types.SimpleNamespace(dumps=without, loads=json.loads))
    Checkpoints(tmp_path).save("last", make(3.0), {"epoch": 1})
    assert not list(tmp_path.rglob("checksums.json"))
    same(Checkpoints(tmp_path).restore(make()).state, make(3.0))
