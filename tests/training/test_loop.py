import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.averaging import PIAT, RationalWeight
from piat_jax.checkpoint import Checkpoints
from piat_jax.objectives import NMSE
from piat_jax.objectives.base import objective
from piat_jax.training import Position, StopTraining, fit, init_state, run_epoch, train_steps
from piat_jax.training.stopping import Interrupted


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def train(problem, state, epochs, **options):
    return fit(
        state,
        problem.objective,
        problem.examples,
        key=problem.key,
        recipe=problem.recipe,
        epochs=epochs,
        epoch_end=[problem.piat],
        **options,
    )


def test_piat_interpolates_with_the_weights_the_epoch_started_from(problem):
    start = jax.tree.map(jnp.copy, problem.state().variables)
    fast, _ = run_epoch(
        problem.state(),
        problem.objective,
        problem.examples,
        key=problem.key,
        recipe=problem.recipe,
        epochs=3,
        steps_per_chunk=9,
    )
    weight = 2 / 11  # lambda_1
    expected = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, start, fast.variables)
    trained = train(problem, problem.state(), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), trained.variables, expected)
    same(trained.anchor, trained.variables)
    same(trained.opt_state, fast.opt_state)


def test_the_second_epoch_starts_from_the_interpolated_weights(problem):
    one = train(problem, problem.state(), 1)
    variables = jax.tree.map(jnp.copy, one.variables)
    fast, _ = run_epoch(
        one, problem.objective, problem.examples, key=problem.key, recipe=problem.recipe, epochs=3, steps_per_chunk=9
    )
    weight = float(RationalWeight()(2))
    expected = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, variables, fast.variables)
    two = train(problem, problem.state(), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), two.variables, expected)


def test_resuming_after_any_epoch_equals_not_stopping(problem, tmp_path):
    checkpoints = {}

    def save(state, record):
        checkpoints[record.epoch] = Checkpoints(tmp_path / str(record.epoch))
        checkpoints[record.epoch].save("last", state, {"epoch": record.epoch})

    whole = train(problem, problem.state(), 3, on_epoch=save)
    for epoch, saved in checkpoints.items():
        resumed = train(problem, saved.load_state("last", problem.state()), 3)
        assert int(resumed.epoch) == 3, epoch
        same(jax.tree.leaves(whole), jax.tree.leaves(resumed))


class Stopper:
    """Asks to stop when it is asked for the n-th time; `calls` counts how often it was."""

    def __init__(self, n):
        self.n, self.calls = n, 0

    def __call__(self):
        self.calls += 1
        return self.calls == self.n


def test_stopping_anywhere_and_going_on_equals_not_stopping(problem, tmp_path):
    def record(state, epoch):
        records.append((epoch.epoch, dict(epoch.train), dict(epoch.scores)))

    def evaluate(state, epoch):
        return {"test_bias": float(state.params["linear"]["dense"]["bias"][0])}

    def cut_off(state, epoch):
        raise Interrupted

    records, never = [], Stopper(0)
    options = {"steps_per_chunk": 1, "on_epoch": record}
    whole = train(problem, problem.state(), 2, evaluate=evaluate, should_stop=never, **options)
    assert never.calls == 2 * 3  # before each of two epochs, and after all of their three steps but the last
    expected, places = records[:], []
    stops = [{"should_stop": Stopper(n), "evaluate": evaluate} for n in range(1, 7)] + [{"evaluate": cut_off}]
    for number, stop in enumerate(stops):
        records.clear()
        with pytest.raises(StopTraining) as caught:
            train(problem, problem.state(), 2, **stop, **options)
        checkpoints = Checkpoints(tmp_path / str(number))
        checkpoints.save("last", caught.value.state, {"epoch": 0, "position": caught.value.position._asdict()})
        restored = checkpoints.restore(problem.state())
        position = Position(**restored.info["position"])
        places.append((position.epoch, position.steps))
        resumed = train(problem, restored.state, 2, evaluate=evaluate, position=position, **options)
        same(jax.tree.leaves(resumed), jax.tree.leaves(whole))
        assert records == expected
    assert places == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (1, 3)]


def test_the_order_of_an_epochs_end_and_what_each_sees(problem):
    events = []

    def evaluate(state, epoch):
        events.append(("evaluate", epoch, int(state.epoch), np.asarray(state.params["linear"]["dense"]["bias"])))
        return {"test_clean": 0.5} if epoch == 2 else {}

    def on_epoch(state, record):
        events.append(("record", record.epoch, int(state.epoch), np.asarray(state.params["linear"]["dense"]["bias"])))
        assert dict(record.scores) == ({"test_clean": 0.5} if record.epoch == 2 else {})
        assert record.images_per_second > 0
        assert set(record.train) == {"loss", "regularizer", "clean_accuracy", "adversarial_accuracy"}

    def mark(state, epoch):
        events.append(("hook", int(epoch), int(state.epoch), None))
        state.params["linear"]["dense"]["bias"] = jnp.full(3, float(epoch))
        return state

    fit(
        problem.state(),
        problem.objective,
        problem.examples,
        key=problem.key,
        recipe=problem.recipe,
        epochs=2,
        epoch_end=[mark],
        evaluate=evaluate,
        on_epoch=on_epoch,
    )
    assert [event[:3] for event in events] == [
        (name, epoch, epoch) for epoch in (1, 2) for name in ("hook", "evaluate", "record")
    ]
    for name, epoch, _, bias in events:
        if name != "hook":
            np.testing.assert_array_equal(bias, np.full(3, epoch))


def test_a_finished_run_does_nothing(problem):
    state = dataclasses.replace(problem.state(), epoch=jnp.int32(2))
    before = train_steps._cache_size()
    assert all(jax.tree.leaves(jax.tree.map(lambda after, start: after is start, train(problem, state, 2), state)))
    assert train_steps._cache_size() == before


def test_no_epoch_after_the_first_compiles(problem):
    counts = []
    hook = jax.jit(PIAT(), donate_argnums=0)
    fit(
        problem.state(),
        problem.objective,
        problem.examples,
        key=problem.key,
        recipe=problem.recipe,
        epochs=3,
        epoch_end=[hook],
        on_epoch=lambda state, record: counts.append((train_steps._cache_size(), hook._cache_size())),
    )
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][1] == 1


def test_an_objective_may_return_one_array_twice_and_the_weights_themselves(problem):
    """Each buffer of a state is given away in every step, so each has to be there once."""

    @objective
    class Sharing(NMSE):
        def init(self, variables, images, *, key):
            zero = jnp.zeros(3)
            return {"one": zero, "other": zero, "weights": variables.params}

    method = Sharing(model=problem.objective.model, attack=problem.objective.attack)
    state = init_state(method, problem.recipe.optimizer, jnp.zeros((1, 8, 8, 1)), key=problem.key)
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    jax.tree.map(np.testing.assert_array_equal, state.objective_state["weights"], state.params)
