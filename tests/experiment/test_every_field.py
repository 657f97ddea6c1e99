"""Every field of every config changes what it describes: the commands are run with and without it, up to the training.

What stands around the training is replaced by recorders: the data, `fit`, the attack's evaluation, what is saved.
Fields are found in the configs, so a new one that nothing reads fails here.
"""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.averaging import AVERAGES, Gated
from piat_jax.core.nested import leaves
from piat_jax.core.types import TrainState, Variables
from piat_jax.data import Dataset, Split
from piat_jax.data.records import RecordImages, Records
from piat_jax.evaluation import AutoAttack, Judged
from piat_jax.experiment import Run, config, data, evaluation, run_evaluation, run_training
from piat_jax.experiment.console import TrainingConsole
from piat_jax.experiment.experiment import OF_ENCODED, Experiment
from piat_jax.experiment.fields import DatasetFields
from piat_jax.objectives import METHODS, WRAPPERS
from piat_jax.training import EpochRecord
from piat_jax.training.progress import TrainingProgress
from piat_jax.training.streaming import Stream

FILES = config.names()
# Where one configuration has the field: a method for most, so that attack, average and PIAT are all there.
FIRST = "pgd_at+awp+seat+piat"
NOTHING = {  # in piat-train
    "method": "chosen after the config's name, and refused as a field",
    "evaluation.final_attacks": "of piat-evaluate, which has a test of its own below",
}
# Whose networks have attention.
VIT = "cifar10_vit_b"
# What a field needs to matter, by how its name begins.
AROUND = {
    "dataset.policy_": {"dataset.policy": "randaugment"},
    "dataset.extra_fraction": {"dataset.extra": "x.npz"},
    "dataset.extra_weights": {"dataset.extra": ("x.npz", "y.npz")},
    "dataset.extra_smoothing": {"dataset.extra": "x.npz"},
    **{
        f"dataset.{name}": {"dataset.image_size": 8, "dataset.name": "a/folder"}
        for name in ("resize", "resizing", "interpolation", "crop_scale", "workers", "on_bad_image", "test_list")
    },
    "dataset.image_size": {"dataset.name": "a/folder"},
    "model.mean": {"model.mean": (0.5,) * 3, "model.std": (0.5,) * 3},
    "model.std": {"model.mean": (0.5,) * 3, "model.std": (0.5,) * 3},
    "optimizer.lr_unit": {"optimizer.lr_epochs": (0.0, 0.25, 0.5, 0.75, 1.0)},
    "attack.sparsity": {"attack.norm": "l1", "attack.eps": 12.0},
    "objective.smoothing_over": {"objective.label_smoothing": 0.1},
    "kd.": {"kd.standard": "a", "kd.robust": "b"},
    "hat.": {"hat.standard": "a"},
    "evaluation.attack_precision": {"evaluation.attacks": ("clean", "pgd20", "aa")},
    "evaluation.union_eps": {"evaluation.attacks": ("clean", "pgd20", "aa-l1")},
}
# Values of text, and of what has to fit together; the first that is not the default is taken. Others are halved,
# counted up or negated.
OTHER = {
    "nonfinite": ["skip"],
    "dataset.name": ["cifar100"],
    "dataset.data_dir": ["elsewhere"],
    "dataset.padding_mode": ["reflect"],
    "dataset.policy": ["autoaugment"],
    "dataset.extra": ["x.npz"],
    "dataset.resize": [8],
    "dataset.image_size": [8],
    "dataset.resizing": ["both"],
    "dataset.test_list": ["list.txt"],
    "dataset.interpolation": ["bicubic"],
    "dataset.on_bad_image": ["skip"],
    "dataset.extra_weights": [(2.0, 1.0)],
    "model.name": ["preact_resnet18"],
    "model.dtype": ["bfloat16"],
    "model.bn_groups": [2],
    "model.weights": ["w.npz"],
    "batch_size": [16],
    "microbatches": [2],
    "optimizer.name": ["adamw"],
    "optimizer.schedule": ["cosine"],
    "optimizer.weight_decay_on": ["matrices"],
    "optimizer.lr_unit": ["shares"],
    "optimizer.lr_every": ["step"],
    "optimizer.lr_anneal": ["linear"],
    "optimizer.eps": [0.1],
    "attack.name": ["cw"],
    "attack.norm": ["l2"],
    "attack.start": ["none"],
    "attack.keep": ["best"],
    "attack.l2_rule": ["trades", "exact"],
    "objective.attack_batch_norm": ["train", "eval"],
    "objective.smoothing_over": ["all"],
    "objective.attack_loss": ["cross_entropy"],
    "objective.clean_forwards": [1, 2],
    "piat.c": [2.0],
    "piat.batch_stats": ["recompute"],
    "piat.momentum": ["reset"],
    "log.to": [("wandb",)],
    "evaluation.attacks": [("clean", "pgd20", "pgd7")],
    "evaluation.select": ["clean"],
    "evaluation.norm": ["l2"],
    "evaluation.precision": ["default"],
    "evaluation.attack_precision": ["tensorfloat32"],
    "rpat.alpha_from": ["beta-"],
    "rpat.scale": ["paper"],
    "rpat.distance": ["kl"],
    "mail.normalization": ["paper"],
    "rat.head": [("fc", "dense", "kernel")],
    "ecas.scheduler": ["fixed"],
    "ecas.entropy_batch_norm": ["eval"],
    "las.betas": [(5.0, 6.0)],
    "las.strategy": ["small_resnet"],
    "average.threshold": [0.9],
    "average.batch_stats": ["copy"],
    "ema2.batch_stats": ["copy"],
    "kd.standard": ["other"],
    "kd.robust": ["other"],
    "hat.standard": ["other"],
    "lbgat.guide": ["small_resnet"],
    "mlcat.variant": ["ls"],
    "multi_norm.norms": [("linf", "l2")],
    "multi_norm.how": ["avg"],
    "multi_norm.by": ["example"],
    "te.full": [0.9],
}
# Of every run here: four epochs in which rates and averages differ, three steps each.
RUN = {"epochs": 4, "batch_size": 8, "optimizer.lr_epochs": (0.0, 1.0, 2.0, 3.0, 4.0)}
RUN["optimizer.lr_values"] = (0.1, 0.08, 0.06, 0.04, 0.02)


def get(experiment, path):
    return leaves(experiment.plain())[path]


def changed(path, value):
    if path in OTHER:
        return next(other for other in OTHER[path] if other != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, tuple) and value:
        return tuple(changed("", each) for each in value)
    raise AssertionError(f"{path}={value!r} needs another value in OTHER")


@functools.cache
def loaded(file, method):
    experiment = config.load(f"{file}:{method}", checked=False)
    held_out = min(experiment.dataset.validation_examples, 8)
    fields = {**RUN, "dataset.validation_examples": held_out}
    if experiment.dataset.image_size:  # what is of encoded images alone is in AROUND
        fields |= {f"dataset.{name}": value for name, value in vars(DatasetFields()).items() if name in OF_ENCODED}
        fields |= {"dataset.image_size": 0, "dataset.name": "cifar10"}
    if experiment.optimizer.rest.get("lr_warmup", 0) > RUN["epochs"]:
        fields["optimizer.lr_warmup"] = 1.0
    if hasattr(experiment.optimizer, "lr_peak"):
        fields["optimizer.lr_peak"] = {"epochs": 1.5, "shares": 0.375}[experiment.optimizer.lr_unit]
    return experiment.with_fields(fields)


def configured(file, method, **fields):
    return loaded(file, method).with_fields(fields)


@functools.cache
def fields():
    """Every field with the first (file, method) that has it; each objective, average and network has its own."""
    found = {}
    of_methods = [("cifar10_resnet18", method) for method in (FIRST, *METHODS, *WRAPPERS, *AVERAGES)]
    of_methods.append(("cifar10_resnet18", "pgd_at+swa+ema2"))
    for file, method in [*of_methods, (VIT, "ard_prm"), *((file, FIRST) for file in FILES)]:
        experiment = loaded(file, method)
        stack = experiment.method
        owners = {"objective": stack.base, "average": stack.average, "model.options": experiment.model.name}
        for path in leaves(experiment.plain()):
            group = path.rpartition(".")[0]
            if path not in NOTHING and not (group == "ard_prm" and file != VIT):
                found.setdefault((owners.get(group, ""), path), (file, method))
    return found


# Recorders -----------------------------------------------------------------------------------------------------------


def plain(value):
    """Anything as nested tuples that compare by what they hold; an experiment in a closure is left out."""
    if isinstance(value, Experiment):
        return "experiment"
    if isinstance(value, (jax.Array, np.ndarray)):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        return (str(value.dtype), value.shape, np.asarray(value).tobytes())
    if isinstance(value, Gated):
        return ("gated", plain(value.hook), value.accept(STATE))
    if hasattr(value, "__wrapped__"):
        return plain(value.__wrapped__)
    if isinstance(value, types.FunctionType):
        cells = value.__closure__ or ()
        return (value.__qualname__, *(plain(cell.cell_contents) for cell in cells))
    if isinstance(value, types.MethodType):
        return (value.__qualname__, plain(value.__self__))
    if isinstance(value, dict):
        return tuple((name, plain(each)) for name, each in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    if dataclasses.is_dataclass(value) and not hasattr(value, "apply"):  # a network compares itself
        return (type(value).__name__, *(plain(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return value


def toy_state():
    weights = {"w": jnp.array([3.0, -4.0])}
    fields = {"params": weights, "model_state": {}, "opt_state": (), "objective_state": ()}
    return TrainState(step=jnp.int32(0), epoch=jnp.int32(0), **fields)


STATE = toy_state()


def probed(optimizer):
    """The updates an optimizer makes of gradients that grow, over the run's steps."""
    params, updates = STATE.params, []
    state = optimizer.init(params)
    for step in range(12):
        update, state = optimizer.update({"w": jnp.array([6.0, 8.0]) * (step + 1)}, state, params)
        updates.append(plain(update))
    return tuple(updates)


class Saved:
    """In place of the checkpoints of a run."""

    FOLDER = "checkpoints"

    def __init__(self, folder):
        self.folder, self.saves = str(folder), []

    @classmethod
    def of_run(cls, folder):
        return cls(folder)

    def __contains__(self, name):
        return "runs" not in self.folder

    def check(self):
        pass

    wait = check

    def save_async(self, state, info, evaluated, beside, *, best):
        self.saves.append((info["epoch"], best, info["scores"]))
        SEEN.append(("saved", info["epoch"], best, plain(info["metrics"])))

    def load_variables(self, name, like):
        return Variables({"w": np.frombuffer(self.folder.encode(), np.uint8)}, {})

    def load_evaluated(self, name, like, *, average=""):
        return STATE.variables, {"epoch": 4}


SEEN = []


def fake_load(name, **options):
    SEEN.append(("load", name, tuple(sorted(options.items()))))
    images = np.arange(24 * 8 * 8 * 3, dtype=np.uint32).reshape(24, 8, 8, 3).astype(np.uint8)
    split = Split(images, np.arange(24, dtype=np.int32) % 10)
    if options.get("decoding"):
        train = Split(RecordImages(InMemory(split.labels, (), name), options["decoding"]), split.labels)
        return Dataset(name, train, split, 10)
    return Dataset(name, split, split, 10)


class InMemory(Records):
    """Encoded images that nobody decodes here."""

    def read(self, index):
        return bytes([index])


def fake_stream(split, *, workers, **options):
    SEEN.append(("encoded", workers))
    return Stream(split, **options)


def fake_extra(path):
    SEEN.append(("extra", str(path)))
    return Split(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9, np.int32))


def fake_weights(path, net, *arguments, **options):
    return types.SimpleNamespace(model=net, report="", variables=Variables({"w": path}, {}))


def fake_correct(logits_fn, images, labels, attack, **options):
    for listener in ("on_block", "on_finding"):
        options.pop(listener)
    SEEN.append(
        (
            "evaluated",
            logits_fn.model,
            plain((images, labels, attack, options)),
            jax.config.jax_default_matmul_precision,
        )
    )
    # Half of each class; clean gets better with each evaluation and all else worse, so that it matters what selects.
    done = sum(event[0] == "evaluated" for event in SEEN)
    share = 0.5 + (0.01 if attack is None else -0.01) * done
    return np.arange(len(labels)) < share * len(labels) if attack is None else np.full(len(labels), share)


def fake_judge(logits_fn, images, labels, attack, **options):
    correct = fake_correct(logits_fn, images, labels, attack, **options)
    flags = correct if correct.dtype == bool else np.arange(len(labels)) % 2 == 0
    return Judged(flags, np.asarray(labels, np.int32), np.asarray(images[:4], np.float32) / 255)


def fake_autoattack(attack, logits_fn, images, labels, **options):
    SEEN.append(("AutoAttack", plain(attack), len(labels)))
    settings = {"version": "standard", "norm": attack.norm, "eps": attack.eps}
    flags = np.arange(len(labels)) % 2 == 0
    images = np.asarray(images, np.float32) / 255
    found = {"robust": flags, "clean": flags, "predictions": np.asarray(labels, np.int32), "images": images}
    return types.SimpleNamespace(
        accuracy=0.5, clean_accuracy=0.5, findings=(), settings=settings, seconds={"apgd-ce": 1.0}, **found
    )


def fake_progress(progress, epoch, shown, rate):
    SEEN.append(("progress", epoch, progress.epochs, progress.first_epoch, progress.images_per_epoch))


def fake_init(objective, optimizer, images, *, key, variables):
    SEEN.append(("init", images.shape, plain((key, tuple(variables or ())))))
    return STATE


def fake_fit(state, objective, examples, *, recipe, epochs, epoch_end, evaluate, on_epoch, **options):
    options = {name: plain(options[name]) for name in ("key", "steps_per_chunk", "position")}
    leaves, structure = jax.tree.flatten(objective)
    plain_recipe = {name: value for name, value in recipe._asdict().items() if name != "optimizer"}
    SEEN.append(("fit", plain(state), plain(leaves), structure, plain(plain_recipe), epochs, plain(options)))
    SEEN.append(("data", plain(examples if isinstance(examples, tuple) else "streamed"), plain(epoch_end)))
    SEEN.append(("optimizer", probed(recipe.optimizer)))
    for epoch in range(1, epochs + 1):
        scores = evaluate(state, epoch)
        at = dataclasses.replace(state, step=jnp.int32(3 * epoch), epoch=jnp.int32(epoch))
        on_epoch(at, EpochRecord(epoch, {"loss": 1.0}, scores, 1.0, 1.0, 1.0))


@pytest.fixture(scope="module", autouse=True)
def recorders():
    def writer(folder, *, records):
        kept = []
        return types.SimpleNamespace(records=kept, write=kept.append)

    def trackers(names, info):
        SEEN.append(("loggers", names))
        return types.SimpleNamespace(write=lambda *_: None, images=lambda *_: None, close=lambda **_: None)

    def painter(experiment, net, split):
        SEEN.append(("painted", experiment.log.images))
        return lambda variables: types.SimpleNamespace(image=None, caption="")

    with pytest.MonkeyPatch.context() as patch:
        for module in (sys.modules["piat_jax.experiment.resources"], sys.modules["piat_jax.experiment.run"]):
            patch.setattr(module, "Checkpoints", Saved)
        patch.setattr(data, "load", fake_load)
        patch.setattr(data, "EncodedStream", fake_stream)
        experiment = sys.modules["piat_jax.experiment.experiment"]
        patch.setattr(experiment, "layer_scales", lambda net, like, shape, decay: {"w": decay})
        patch.setattr(data, "read_examples", fake_extra)
        patch.setattr(run_training, "load_weights", fake_weights)
        patch.setattr(run_training, "init_state", fake_init)
        patch.setattr(run_training, "fit", fake_fit)
        patch.setattr(run_training, "MetricsWriter", writer)
        patch.setattr(run_training, "Trackers", trackers)
        patch.setattr(run_training, "painter", painter)
        patch.setattr(run_training, "has_tensorboard", lambda: True)
        patch.setattr(run_training, "check_installed", lambda names: None)
        patch.setattr(TrainingProgress, "epoch", fake_progress)
        patch.setattr(AutoAttack, "run", fake_autoattack)
        patch.setattr(evaluation, "correct_under_attack", fake_correct)
        patch.setattr(evaluation, "judge_under_attack", fake_judge)
        patch.setattr(evaluation, "read_list", lambda path: [path])
        for module in (evaluation, run_training):
            patch.setattr(module, "evaluated", lambda objective, state: state.variables)
        patch.setattr(Run, "open", lambda *arguments, **options: None)
        yield


@functools.cache
def described(file, method, overrides, folder):
    """What piat-train gives to the training, measures, logs and saves."""
    SEEN.clear()
    run_training.train(configured(file, method, **dict(overrides)), Run(folder), listener=TrainingConsole())
    return tuple(SEEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.mark.parametrize(("owner", "path"), fields())
def test_it_changes_what_it_describes(owner, path, folder):
    file, method = fields()[owner, path]
    around = next((fields for start, fields in AROUND.items() if path.startswith(start)), {})
    before = described(file, method, tuple(around.items()), folder)
    value = get(configured(file, method, **around), path)
    after = described(file, method, (*around.items(), (path, changed(path, value))), folder)
    assert before != after, f"config.{path} of {file}:{method} changes nothing: {value!r} -> {changed(path, value)!r}"


def test_the_same_config_describes_the_same(folder):
    """Or every test above would pass."""
    before = described(FILES[0], FIRST, (), folder)
    described.cache_clear()
    assert described(FILES[0], FIRST, (), folder) == before
    # Three steps of eight images an epoch, of which the first of four is over.
    assert ("progress", 1, 4, 1, 24) in before


EVALUATION = (
    *(f"evaluation.{name}" for name in ("final_attacks", "eps", "step_size", "norm", "restarts", "batch_size")),
    *(
        "evaluation.precision",
        "evaluation.attack_precision",
        "seed",
        "dataset.name",
        "dataset.data_dir",
        "dataset.test_examples",
    ),
    *("model.name", "model.mean", "model.std"),
)


@pytest.mark.parametrize("attack", ["pgd3", "aa"])
def test_what_is_evaluated_afterwards_follows_the_config_too(attack, tmp_path):
    def evaluated(**fields):
        SEEN.clear()
        experiment = configured("cifar10_resnet18", "pgd_at", **{"evaluation.final_attacks": (attack,)} | fields)
        run_evaluation.evaluate(experiment, Run(tmp_path), checkpoints=["final"], overwrite=True)
        return tuple(SEEN)

    nothing_to = {
        "pgd3": ("evaluation.attack_precision",),
        "aa": ("evaluation.step_size", "evaluation.restarts", "model.name", "model.mean", "model.std"),
    }
    for path in [path for path in EVALUATION if path not in nothing_to[attack]]:
        around = AROUND.get(path, {})
        value = get(configured("cifar10_resnet18", "pgd_at", **around), path)
        other = ("clean", attack) if path == "evaluation.final_attacks" else changed(path, value)
        before, after = (evaluated(**{**around, path: each}) for each in (value, other))
        assert before != after, f"config.{path} changes nothing of {attack}"
