"""The benchmark: PyTorch's side computes what ours does, and the command writes what it promises."""

import contextlib
import functools
import gc
import importlib.util
import json
import time
import weakref
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.throughput import benchmark
from piat_jax.attacks import bind, pgd
from piat_jax.benchmark import measure as command
from piat_jax.benchmark import ours as benchmark_ours
from piat_jax.benchmark.interleaved import Case, Measured, Work, measure
from piat_jax.benchmark.ours import NETWORKS, Network
from piat_jax.cli import errors
from piat_jax.cli.arguments import parse
from piat_jax.cli.benchmark import new_flags
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.norms import random_in_ball
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.types import Batch, TrainState
from piat_jax.models import LinenModel, ResNet
from piat_jax.objectives import NMSE
from piat_jax.objectives.base import objective
from piat_jax.training import sgd, train_step

BATCH, SIZE, CLASSES = 8, 8, 5
ATTACK = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}
MU, RATE, MOMENTUM, DECAY = 5.0, 0.1, 0.9, 5e-4
# Not narrower: with fewer channels than a vector holds (8 with AVX2), oneDNN's gradient of a strided 1x1 convolution in
# channels_last is wrong and overwrites memory (oneDNN issue 6035; PyTorch 2.13).
NET = {"width": 16, "stage_sizes": (1, 1)}


@objective
class Watched(NMSE):
    """NMSE whose state after a step is the adversarial images."""

    def after_step(self, variables, objective_state, batch, aux, context):
        return batch.images


class Ours:
    """A network, a batch, and what our step makes of them."""

    def __init__(self):
        self.net = LinenModel(ResNet(num_classes=CLASSES, **NET))
        pixels = np.random.default_rng(0).uniform(size=(BATCH, SIZE, SIZE, 3))
        self.batch = Batch(jnp.asarray(pixels, jnp.float32), jnp.arange(BATCH) % CLASSES, jnp.arange(BATCH))
        key, zero = jax.random.key(0), jnp.int32(0)
        self.variables = self.net.init(key, self.batch.images[:1])
        self.start = self.begin(named_key(jax.random.fold_in(named_key(key, "step"), 0), "attack"))
        method = Watched(model=self.net, attack=bind(pgd, **ATTACK), mu=MU)
        optimizer = sgd(RATE, momentum=MOMENTUM, weight_decay=DECAY)
        opt_state = optimizer.init(self.variables.params)
        state = TrainState(step=zero, epoch=zero, opt_state=opt_state, objective_state=(), **self.variables._asdict())
        step = jax.jit(lambda state, batch: train_step(method, optimizer, state, batch, key=key, epochs=1))
        self.state, metrics = step(state, self.batch)
        self.adversarial, self.loss = np.asarray(self.state.objective_state), float(metrics["loss"])

    def begin(self, key):
        """Where the attack of the step starts."""
        keys, shape = example_keys(key, self.batch.indices), self.batch.images.shape[1:]
        noise = jax.jit(lambda keys: random_in_ball(keys, ATTACK["eps"], shape, "linf", jnp.float32))(keys)
        return jnp.clip(self.batch.images + noise, 0, 1)


class Theirs:
    """The same network with the same weights in PyTorch, and its step on the same batch from the same start."""

    def __init__(self, ours):
        import torch

        from experiments.autoattack import torch_model
        from experiments.throughput import torch_train

        self.module = torch_model.load(torch_model.ResNet(CLASSES, channels_last=True, **NET), ours.variables)
        self.train, self.leaves = torch_train, torch_model._leaves
        self.logits_fn = torch_train.make_logits_fn(self.module, torch.float32, compiled=False)
        images = (torch.tensor(np.array(x)).permute(0, 3, 1, 2) for x in (ours.batch.images, ours.start))
        self.batch = *images, torch.tensor(np.array(ours.batch.labels)).long()
        self.elements = {}  # of each channel of a BatchNorm's input
        for path, layer in self.module.named_modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.register_forward_hook(
                    lambda layer, x, y, path=path: self.elements.update({path: y[:, 0].numel()})
                )

    def step(self):
        """The adversarial images and the loss; weights and statistics are then the module's."""
        optimizer = self.train.sgd(self.module, learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        images, loss = self.train.train_step(self.module, self.logits_fn, optimizer, *self.batch, mu=MU, **ATTACK)
        return images.numpy().transpose(0, 2, 3, 1), loss.item()

    def correct(self):
        """Which images PGD leaves correct."""
        return self.train.correct_under_pgd(self.module, self.logits_fn, *self.batch, **ATTACK).numpy()

    def variable(self, path):
        """A weight or statistic, running variances as ours would be: PyTorch's are unbiased, n / (n - 1) larger."""
        value = self.module.state_dict()[path].numpy()
        if not path.endswith("running_var"):
            return value
        kept, n = 0.9**2, self.elements[path.rpartition(".")[0]]  # of the initial 1, after two forwards
        return (value - kept) * (n - 1) / n + kept


def test_pytorch_takes_the_same_step():
    pytest.importorskip("torch")
    ours = Ours()
    theirs = Theirs(ours)
    correct = theirs.correct()
    images, loss = theirs.step()
    # A gradient that is next to nothing may have the other sign: such a pixel is off by a step or more.
    flipped = np.abs(images - ours.adversarial) > 1e-5
    assert flipped.sum() <= 0.002 * flipped.size
    assert np.abs(images - np.asarray(ours.start)).max() > ATTACK["eps"]
    assert loss == pytest.approx(ours.loss, abs=1e-5)
    for path, value in theirs.leaves(ours.state.params):
        np.testing.assert_allclose(theirs.variable(path), value, atol=5e-6, err_msg=path)
    # Tight: in the other order of the forwards a mean is off by a hundredth of what clean and adversarial differ in.
    for path, value in theirs.leaves(ours.state.model_state["batch_stats"]):
        np.testing.assert_allclose(theirs.variable(path), value, atol=1e-6, err_msg=path)
    logits = jax.jit(lambda variables, x: make_logits_fn(ours.net, variables)(x))(ours.variables, ours.adversarial)
    np.testing.assert_array_equal(correct, logits.argmax(1) == ours.batch.labels)


def test_a_graph_keeps_what_it_reads(monkeypatch):
    torch = pytest.importorskip("torch")
    from experiments.throughput.torch_train import as_cuda_graph

    # Of a GPU, what recording takes; replaying changes nothing.
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    module = torch.nn.Linear(2, 1).requires_grad_(False)  # else the output would keep the weights
    weights, replay = weakref.ref(module.weight), as_cuda_graph(functools.partial(module), torch.ones(3, 2))
    del module
    gc.collect()
    assert weights() is not None
    assert replay(torch.zeros(3, 2)).shape == (3, 1)


def test_a_graph_is_recorded_when_it_is_first_called(monkeypatch):
    """So that the first run, which is timed, has the compiling."""
    torch = pytest.importorskip("torch")
    from experiments.throughput import torch_side

    recorded = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_side, "as_cuda_graph", lambda fn, *examples: recorded.append(len(examples[0])) or fn)
    images, labels = torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.zeros(5)
    step = torch_side._recorded(lambda *given: given, Case(what="train", batch=2), images, labels)
    assert recorded == []
    assert [step(1, 2, 3), step(4, 5, 6)] == [(1, 2, 3), (4, 5, 6)]
    assert recorded == [2]


def write(case, name, most):
    """A side that writes into the file `case.model` when it works, and breaks down after so many times."""
    done, held = 0, b"x" * (64 * 2**20 if name == "a" else 0)

    def run(times):
        nonlocal done
        if done == most:
            raise SystemExit(1)
        done += 1
        with open(case.model, "a") as file:
            file.write(f"{name}{times}\n")

    return Work(run, units=2.0, device_memory=lambda: None, about={"name": name, "held": len(held)})


def first_side(case):
    return write(case, "a", most=100)


def second_side(case):
    return write(case, "b", most=4)


def test_sides_take_turns_and_one_that_fails_is_missing(tmp_path):
    log = tmp_path / "log"
    measured = measure({"a": first_side, "b": second_side}, Case(what="train", model=str(log)), rounds=3, seconds=0)
    # Each warms up by two times; then they alternate until the second breaks down.
    assert log.read_text().split() == ["a1", "a1", "b1", "b1", "a1", "b1", "a1", "b1", "a1"]
    ((name, side),) = measured.items()
    assert (name, side.about) == ("a", {"name": "a", "held": 64 * 2**20})
    assert side.peak_memory == pytest.approx(64 * 2**20, rel=0.1)
    assert len(side.rates) == 3
    assert min(side.rates) > 0


def call(*arguments):
    return errors.run(benchmark.main, ["--ours_only", *arguments])


def measure_here(sides, case, *, rounds, seconds):
    """As `measure`, in this process, which has imported everything."""
    work = sides["ours"](case)
    work.run(1)
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        work.run(2)
        rates.append(2 * work.units / (time.perf_counter() - began))
    return {"ours": Measured(rates, 1.0, 2**20, work.about)}


def test_the_command_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "measure", measure_here)
    tiny = {"width": 2, "stage_sizes": (1,), "stem_stride": 1}
    monkeypatch.setitem(NETWORKS, "small", Network("small_resnet", (8, 8, 1), tiny))
    arguments = ("--models=small", "--batches=8", "--steps=2", f"--out={tmp_path}")
    assert call(*arguments, "--what=train,evaluate,square") == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["what"], row["steps"]) for row in rows] == [("train", 2), ("evaluate", 4), ("square", 2)]
    # The stem and two more convolutions, 3 x 3 and without what lies outside: 22 of 24 places by 22 of 24.
    forward = 2 * 22 * 22 * (1 * 2 + 2 * 2 + 2 * 2)
    for row, line, forwards in zip(rows, printed, (10, 9, 3)):
        assert (row["model"], row["batch"], row["dtype"]) == ("small", 8, "float32")
        assert set(row) >= {"device", "started", "commit"}
        assert {"python", "jax", "flax"} <= set(row["versions"])
        assert 1 < row["flops_per_image"] / forward / forwards < 1.3  # BatchNorm and ReLU are counted too
        assert row["matrix_flops_per_second"] > 1e9
        (side,) = row["sides"].values()
        rate = side["images_per_second"]
        assert len(rate["rounds"]) == 5
        assert rate["min"] <= rate["median"] <= rate["max"]
        assert side["ours_over_this"] == 1
        assert side["flops_per_second"] == pytest.approx(row["flops_per_image"] * rate["median"])
        assert side["fraction_of_matrix_rate"] == side["flops_per_second"] / row["matrix_flops_per_second"]
        assert f"| {row['what']} | small | 8 | float32 | {row['steps']} | ours | {rate['median']:.4g} |" in line
        assert line in (tmp_path / "results.md").read_text().splitlines()


def test_the_evaluation_is_shared_by_a_device_for_each_core(monkeypatch):
    tiny = {"width": 2, "stage_sizes": (1,), "stem_stride": 1}
    monkeypatch.setitem(NETWORKS, "small", Network("small_resnet", (8, 8, 1), tiny))
    asked, shared = [], []
    monkeypatch.setattr(benchmark_ours, "use_one_device_a_core", lambda: asked.append(True))
    monkeypatch.setattr(benchmark_ours, "correct_under_attack", lambda *_, mesh, **options: shared.append(mesh.size))
    benchmark_ours.prepare(Case(what="evaluate", model="small", batch=8, steps=2)).run(2)
    assert asked == [True]
    assert shared == [jax.device_count()] * 2


def fake_measure(sides, case, **timing):
    """Ours at 10 to 14 images a second, the others at half of that; no model of batch 128 works."""
    if case.batch == 128:
        return {}
    about = {
        "device": "H100",
        "started": "2030-01-02T03:04:05",
        "commit": "abc",
        "versions": {"jax": "1.2"},
        "forward_flops": 5.0,
    }
    rates = [14.0, 10.0, 12.0, 13.0, 11.0]
    return {
        name: Measured([rate / (1 if name == "ours" else 2) for rate in rates], 3.0, 5 * 2**20, about) for name in sides
    }


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """The command's `run` with two sides that were never measured, into a folder."""
    monkeypatch.setattr(command, "measure", fake_measure)

    def run(*arguments):
        values = new_flags()
        parse(values, [*arguments, f"--out={tmp_path}"], "")
        command.run(values, {"ours": first_side, "pytorch": second_side})
        return tmp_path

    return run


def test_rows_are_appended_and_the_table_has_all(faked, capsys):
    faked("--models=resnet18", "--batches=512", "--dtype=bfloat16", "--what=train")
    out = faked("--models=small,resnet18", "--batches=64,128", "--what=autoattack,square,evaluate")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    names = ["apgd-ce", "apgd-t", "fab-t", "square", "evaluate"]
    assert [row["what"] for row in rows] == ["train", *names * 2]
    assert [row["steps"] for row in rows] == [10, *[10, 10, 10, 10, 20] * 2]
    assert rows[0]["flops_per_image"] == 26 * 5
    assert rows[0]["sides"]["pytorch"]["ours_over_this"] == 2
    table = (out / "results.md").read_text().splitlines()
    cells = "bfloat16 | 10 | pytorch | 6 | 5..7 | 5 | 2.00 | 3.0 | 5 | 7.8e-10 | 6500.0% |"
    assert table[3] == f"| H100 | 2030-01-02 | 1.2 | train | resnet18 | 512 | {cells}"
    assert {line.count("|") for line in table} == {len(command.COLUMNS) + 1}
    # What no accelerator has measured yet is there, empty.
    assert len(table) == 2 + 2 * len(rows) + len(command.PLANNED) - 1
    assert "evaluate of resnet18, batch 128, failed" in capsys.readouterr().out
    rows[0]["sides"]["pytorch"]["compile_seconds"] = None  # as in rows whose graphs were recorded before the first run
    assert "| 2.00 |  | 5 |" in command.table(rows[:1])


def test_no_case_is_begun_when_time_is_up(faked, capsys):
    out = faked("--models=small", "--batches=64", "--what=train", "--minutes=0")
    assert not (out / "results.jsonl").exists()
    assert "--minutes=0 are over: train of small, batch 64, is left out" in capsys.readouterr().out


def test_forwards_are_those_of_the_attacks():
    counts = {what: command.forwards(what, 100) for what in (*command.AUTOATTACK, "evaluate", "train")}
    expected = {"apgd-ce": 202, "apgd-t": 202, "fab-t": 301, "square": 101, "evaluate": 201, "train": 206}
    assert counts == expected
    assert command.forwards("train", 10) == 10 * 2 + 2 * 3


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--models=resnet19", "models='resnet19' is unknown; did you mean 'resnet18'?"),
        ("--what=trian", "what='trian' is unknown; did you mean 'train'?"),
        ("--what=", "what is empty; give at least one"),
        ("--dtype=float16", "dtype='float16' is unknown; did you mean 'bfloat16'?"),
        ("--batches=64,1", "batches='1' must be whole numbers from 2 on, such as 64,128"),
        ("--batches=x", "batches='x' must be whole numbers from 2 on, such as 64,128"),
        ("--rounds=4", "rounds=4 must be at least 5"),
        ("--steps=0", "steps=0 must be at least 1"),
        ("--seconds=-1", "seconds=-1.0 must be at least 0"),
        ("--out=setup.cfg", "out='setup.cfg' is a file; give a folder"),
        ("--round=9", "Unknown command line flag 'round'. Did you mean: rounds ?"),
        ("extra", "unexpected argument 'extra'; fields are set as --config.FIELD=VALUE"),
    ],
)
def test_bad_flags_are_refused(flag, message, capsys):
    assert call(flag) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_says_so(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(command, "run", lambda values, sides: asked.append(list(sides)))
    assert errors.run(benchmark.main, []) == 0
    assert asked == [["ours"]]
    assert capsys.readouterr().out == "torch is not installed: only this library is measured\n"
