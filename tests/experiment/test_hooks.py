"""Which hooks run after which epoch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.averaging import averaged
from piat_jax.core.types import TrainState, Variables
from piat_jax.data import Split
from piat_jax.experiment import hooks
from piat_jax.experiment.config import load as read_config

NOTHING = Split(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32))


def state():
    fields = {"opt_state": (), "objective_state": ()}
    return TrainState(step=jnp.int32(0), epoch=jnp.int32(0), params={"w": jnp.ones(2)}, model_state={}, **fields)


@pytest.mark.parametrize(("method", "fields", "expected"), [
    ("swa", {"average.start": "0.5"}, [3, 4]),  # before its start it is no average, and keeps the running statistics
    ("swa", {"average.start": "0"}, [1, 2, 3, 4]),
    ("piat", {"piat.batch_stats": "recompute"}, [1, 2, 3, 4]),
    ("piat+swa", {"average.start": "0.75", "piat.batch_stats": "recompute"}, [1, 2, 3, 4, 4]),
    ("ema+piat", {}, []),
])  # fmt: skip
def test_statistics_are_estimated_anew_where_they_are_asked_for(method, fields, expected, monkeypatch):
    config = read_config(f"configs/embedded.py:{method}", {"epochs": "4", **fields})
    seen = []

    def recomputed(config, net, images, get, put):
        return lambda state, epoch: (seen.append(int(epoch)), put(state, Variables(get(state).params, {})))[1]

    monkeypatch.setattr(hooks, "_recomputed", recomputed)
    after = hooks.start(config, state())
    for epoch in range(1, 5):
        for hook in hooks.epoch_end(config, config.build_model(10), NOTHING.images, 10, NOTHING):
            after = hook(after, epoch)
    assert seen == expected


@pytest.mark.parametrize(("method", "name"), [("swa", ""), ("ema+swa", "swa")])
def test_what_is_estimated_anew_is_the_average_s(method, name, monkeypatch):
    def anew(net, variables, images, *, momentum):
        return variables._replace(model_state={"mean": jnp.float32(5)})

    monkeypatch.setattr(hooks, "recompute_batch_stats", anew)
    group = name or "average"
    experiment = read_config(f"embedded:{method}", {f"{group}.start": "0", "batch_size": "2"})
    before = dataclasses.replace(state(), model_state={"mean": jnp.float32(1)})
    after = hooks.start(experiment, before)
    for hook in hooks.epoch_end(experiment, experiment.build_model(10), jnp.asarray(NOTHING.images), 10, NOTHING):
        after = hook(after, jnp.int32(1))
    assert averaged(after, name).model_state["mean"] == 5
    assert after.model_state["mean"] == 1
    if name:
        assert averaged(after).model_state["mean"] == 1
