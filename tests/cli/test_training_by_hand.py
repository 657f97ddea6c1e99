"""What piat-train writes, against the same run by hand: no optimizer, no hook and no average of the library."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.checkpoint import Checkpoints
from piat_jax.cli import errors, train
from piat_jax.core.rng import named_key
from piat_jax.data import load
from piat_jax.data.batching import epoch_permutation
from piat_jax.experiment import run_training
from piat_jax.models import create

EPOCHS, STEPS, BATCH, TRAIN, TEST = 3, 2, 8, 20, 24
RATES = (0.4, 0.4, 0.1)  # of the epochs 1, 2, 3
OPTIONS = {
    "dataset.train_examples": TRAIN,
    "dataset.test_examples": TEST,
    "batch_size": BATCH,
    "seed": 3,
    "model.options.width": 2,
    "model.options.stage_sizes": "1",
    "optimizer.lr_epochs": "0,2,3",
    "optimizer.lr_values": "0.4,0.4,0.1",
    "optimizer.momentum": 0.7,
    "optimizer.weight_decay": 0.05,
    "optimizer.max_norm": 0.3,
    "average.decay": 0.3,
    "piat.a": 1,
    "piat.b": 2,
    "piat.c": 2,
    "piat.d": 6,
    "piat.first_epoch": 2,
    "evaluation.every_epochs": 1,
    "evaluation.attacks": "clean",
    "evaluation.select": "clean",
    "log.tensorboard": "false",
}


def command(folder, epochs, *more):
    fields = [f"--config.{name}={value}" for name, value in {**OPTIONS, "epochs": epochs}.items()]
    return [f"--workdir={folder}", "--config=configs/embedded.py:standard+ema+piat", *fields, *more]


def mixed(weight, before, now):
    return jax.tree.map(lambda b, n: weight * b + (1 - weight) * n, before, now)


def by_hand(net, images, labels):
    """Weights, velocity and average after the last epoch; the networks are pairs of weights and statistics."""

    @jax.jit
    def gradient(params, stats, x, y):
        def loss(params):
            logits, after = net.apply(params, stats, x, train=True)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
            return -jnp.mean(picked), after

        return jax.grad(loss, has_aux=True)(params)

    key = jax.random.key(3)
    params, stats = net.init(named_key(key, "init"), images[:1])
    anchor, velocity = (params, stats), jax.tree.map(jnp.zeros_like, params)
    average, averaged = None, 0
    for epoch, rate in enumerate(RATES):
        order = epoch_permutation(jax.random.fold_in(named_key(key, "shuffle"), epoch), TRAIN)
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            g, stats = gradient(params, stats, images[batch], labels[batch])
            norm = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(g))))
            assert norm > 0.3  # or max_norm would do nothing
            velocity = jax.tree.map(lambda v, g, w: 0.7 * v + 0.3 / norm * g + 0.05 * w, velocity, g, params)  # noqa: B023
            params = jax.tree.map(lambda w, v: w - rate * v, params, velocity)  # noqa: B023
            # The first state is a copy; then the weight of the past rises as SEAT's.
            weight = min(0.3, (averaged + 1) / (averaged + 10))
            average = (params, stats) if average is None else mixed(weight, average, (params, stats))
            averaged += 1
        n = epoch + 2
        params, stats = anchor = mixed((n + 2) / (2 * n + 6), anchor, (params, stats))
    return anchor, velocity, average


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_hand") / "run"
    assert errors.run(train.main, command(folder, EPOCHS)) == 0
    return folder


def test_the_written_weights_are_those_computed_by_hand(folder, monkeypatch):
    data = load("embedded", train_examples=TRAIN, test_examples=TEST)
    images, labels = jnp.asarray(data.train.images) / 255, jnp.asarray(data.train.labels)
    net = create("small_resnet", num_classes=10, width=2, stage_sizes=(1,), stem_stride=2)
    (params, stats), velocity, average = by_hand(net, images, labels)

    # What a resumed run would go on from.
    resumed = []
    monkeypatch.setattr(run_training, "fit", lambda state, *arguments, **options: resumed.append(state))
    assert errors.run(train.main, command(folder, EPOCHS, "--resume")) == 0
    (state,) = resumed
    assert (int(state.step), int(state.epoch), int(state.average.count)) == (6, 3, 6)
    found = {
        "weights": (state.params, state.model_state),
        "anchor": tuple(state.anchor),
        "average": tuple(state.average.variables),
        "evaluated": tuple(Checkpoints(folder / "checkpoints").load_variables("last", state.variables)),
        "velocity": next(leaf for leaf in jax.tree.leaves(state.opt_state, is_leaf=_is_trace) if _is_trace(leaf)).trace,
    }
    expected = {
        "weights": (params, stats),
        "anchor": (params, stats),
        "average": average,
        "evaluated": average,
        "velocity": velocity,
    }
    for name, tree in expected.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found[name], tree)

    # And what is evaluated during training is the average.
    logits, _ = net.apply(*average, jnp.asarray(data.test.images) / 255, train=False)
    top = np.sort(np.asarray(logits))[:, -2:]
    sure = top[:, 1] - top[:, 0] > 1e-3
    correct = np.argmax(np.asarray(logits), axis=-1) == data.test.labels
    last = _metrics(folder)[-1]["test_clean"] * TEST
    assert abs(last - correct.sum()) <= np.sum(~sure) + 1e-6


def _is_trace(node):
    return hasattr(node, "trace") and hasattr(node, "_fields")


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_logged_learning_rate_is_that_of_the_epoch(folder):
    assert [record["learning_rate"] for record in _metrics(folder)] == pytest.approx(RATES)


def test_an_average_that_is_mostly_its_first_state_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_training, "fit", lambda *arguments, **options: None)

    def told(method, **options):
        fields = [f"--config.{name.replace('__', '.')}={value}" for name, value in options.items()]
        small = [f"--config.{name}={value}" for name, value in OPTIONS.items() if name.partition(".")[0] != "average"]
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        arguments = [f"--workdir={target}", f"--config=configs/embedded.py:{method}", *small, *fields]
        assert errors.run(train.main, arguments) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "of the average" in line]

    # 0.95^(2 * 12 - 1) is .31; warmed up nothing is left of the first.
    plain = {"epochs": 12, "average__decay": 0.95, "average__warmup": "false"}
    assert told("ema", **plain) == [
        "note: at the end, 31 % of the average still comes from the weights after step 1, the first of its 24 states; "
        "a --config.average.decay below 0.95 forgets sooner"
    ]
    assert told("ema", epochs=12, average__decay=0.95) == []
    assert told("seat", epochs=12) == told("swa", epochs=3) == []
    # Epochs 8 to 11 of 12 are the fourth part: four states.
    (line,) = told("fawa", epochs=12, average__start=2 / 3, dataset__validation_examples=10)
    assert "68 % of the average still comes from the weights after epoch 9, the first of its 4" in line
    (line,) = told("rebat", epochs=12)
    assert "after step 13, the first of its 12 states; a --config.rebat.decay below 0.99" in line
