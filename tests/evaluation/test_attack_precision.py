"""AutoAttack attacks in fewer bits and judges precisely. Rounding is emulated: a CPU multiplies float32 as it is."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from piat_jax import models
from piat_jax.attacks import pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.evaluation import AutoAttack, Member, Robustness
from piat_jax.evaluation.attack_state import AttackState
from piat_jax.evaluation.journal import Journal
from piat_jax.experiment import Run, config, run_evaluation
from piat_jax.experiment.classifier import About, Classifier
from piat_jax.experiment.evaluation import evaluation_attack, in_bfloat16, seen_by_attacks
from tests.evaluation.test_autoattack import (
    IMAGES,
    LABELS,
    NETWORK,
    Stopped,
    evaluate,
    network,
    out_of_the_ball,
    quick,
    reference,
    same,
    stop_after,
    weights,
)


def coarse(bits, weights, x):
    """The network with operands rounded to `bits` bits of the mantissa: 10 is TF32, 7 bfloat16."""
    round_ = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=bits)
    hidden = jnp.tanh(round_(x.reshape(len(x), -1) - 0.5) @ round_(weights["first"]))
    return round_(hidden) @ round_(weights["second"])


def opposite(weights, x):
    """At once everything that is classified right is misclassified."""
    return -network(weights, x)


ROUGH = Partial(functools.partial(coarse, 1), weights())
OPPOSITE = Partial(opposite, weights())


def equal(one, other, *, but=()):
    """Equal results, whatever they say of how; `but` fields."""
    of_other = {name: getattr(other, name) for name in ("settings", "seconds", *but)}
    same(dataclasses.replace(one, **of_other), other)


@pytest.fixture
def records(monkeypatch):
    """What is applied to the state, in order."""
    seen, apply = [], AttackState.apply
    monkeypatch.setattr(AttackState, "apply", lambda state, record: seen.append(record) or apply(state, record))
    return seen


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_on_a_cpu_precision_alone_changes_nothing(precision, records):
    result = evaluate(quick(attack_precision=precision))
    equal(result, reference())
    assert not any(record.refused.any() for record in records)
    assert result.settings == {**reference().settings, "attack_precision": precision}


def test_the_default_is_the_evaluation_that_it_was(records):
    result = evaluate(quick(seed=7))
    assert all(record.refused.size == 0 for record in records)
    assert {"attack_precision", "attack_network"}.isdisjoint(result.settings)


def test_only_the_attacks_have_fewer_bits():
    asked = []

    def watched(x):
        asked.append(jax.config.jax_default_matmul_precision)
        return network(weights(), x)

    with jax.default_matmul_precision("float32"):  # what its shapes are asked for
        evaluate(quick(attacks=("apgd-ce",), attack_precision="tensorfloat32"), watched)
        assert set(asked) == {"float32", "highest", "tensorfloat32"}
        asked.clear()
        evaluate(quick(attacks=("apgd-ce",)), watched)
        assert set(asked) == {"float32", "highest"}


@pytest.mark.parametrize("individually", [False, True])
def test_what_the_judge_refuses_is_attacked_again_precisely(individually, records):
    """Here that is every run, as a first image is taken for a success: so the result is that of the judge alone."""
    settings = quick(attacks=("apgd-ce", "apgd-t"), individually=individually)
    result = evaluate(settings, attack_logits_fn=OPPOSITE)
    first = [record for record in records if record.refused.size]
    assert all(np.all(record.refused | record.fell) for record in first)
    assert sum(len(record.tasks) for record in first) < sum(len(record.tasks) for record in records)
    exact = evaluate(settings)
    np.testing.assert_array_equal(result.fooled, exact.fooled)
    refused = ~np.isin(np.arange(len(LABELS)), [i for record in first for i in record.examples[record.fell]])
    np.testing.assert_array_equal(result.images[refused], exact.images[refused])
    # One forward in fewer bits before each run.
    assert np.all((result.queries[0] == exact.queries[0] + exact.attempted[0])[refused])


def test_what_fewer_bits_leave_is_not_attacked_again(records):
    """A network of which no image is misclassified; of the labels, those of its one class."""
    right = Partial(lambda w, x: jnp.zeros((len(x), 4)).at[:, 2].set(1.0) + 0 * network(w, x), weights())
    chosen = LABELS == 2
    result = evaluate(images=IMAGES[chosen], labels=LABELS[chosen], attack_logits_fn=right)
    np.testing.assert_array_equal(result.robust, result.clean)
    assert not any(record.refused.any() for record in records)
    assert (reference().fooled.any(axis=0) & chosen).any()


def test_every_success_is_one_to_the_judge_and_none_is_lost(records):
    result = evaluate(attack_logits_fn=ROUGH)
    predictions = np.argmax(network(weights(), result.images), axis=1)
    np.testing.assert_array_equal(result.predictions, predictions)
    np.testing.assert_array_equal(result.robust, predictions == LABELS)
    refused = sum(int(record.refused.sum()) for record in records)
    again = [record for record in records if not record.refused.size]
    assert 0 < refused < sum(len(record.tasks) for record in records)
    assert sum(record.fell.sum() for record in again) > 0
    # At least what fewer bits alone find, and what is judged a success at once stays.
    alone = np.zeros(len(LABELS), bool)
    for record in records:
        if record.refused.size:
            alone[record.examples[record.fell]] = True
    assert not (result.robust & alone).any()
    assert (result.fooled.any(axis=0) & ~alone).any()


@pytest.mark.parametrize("options", [{"block_size": 8}, {"block_size": 61}])
def test_of_blocks_and_devices_nothing_shows(options):
    equal(evaluate(quick(**options), attack_logits_fn=ROUGH), evaluate(attack_logits_fn=ROUGH))
    equal(evaluate(quick(block_size=64), devices=8, attack_logits_fn=ROUGH), evaluate(attack_logits_fn=ROUGH))


class TestResume:
    def test_it_goes_on_wherever_it_was_stopped(self, tmp_path, records):
        whole = evaluate(attack_logits_fn=ROUGH)
        blocks = len(records)
        again = [number for number, record in enumerate(records, 1) if not record.refused.size]
        for after in {1, again[0] - 1, again[0], blocks - 1}:
            folder = tmp_path / str(after)
            with pytest.raises(Stopped):
                evaluate(attack_logits_fn=ROUGH, folder=folder, report=stop_after(after))
            equal(evaluate(quick(block_size=24), attack_logits_fn=ROUGH, folder=folder), whole)
            equal(Robustness.load(folder), whole)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ({}, {"attack_precision": "bfloat16"}, "attack_precision None there, bfloat16 here"),
            ({"attack_precision": "bfloat16"}, {}, "attack_precision bfloat16 there, None here"),
        ],
    )
    def test_another_precision_is_refused(self, before, after, message, tmp_path):
        with pytest.raises(Stopped):
            evaluate(quick(**before), folder=tmp_path, report=stop_after(1))
        with pytest.raises(InputError, match=message):
            evaluate(quick(**after), folder=tmp_path)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (None, ROUGH, "attack_network None there, another here"),
            (ROUGH, None, "attack_network another there, None here"),
            (ROUGH, OPPOSITE, "holds the evaluation of another network"),
        ],
    )
    def test_another_attacked_network_is_refused(self, before, after, message, tmp_path):
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path, report=stop_after(1), attack_logits_fn=before)
        with pytest.raises(InputError, match=message):
            evaluate(folder=tmp_path, attack_logits_fn=after)

    def test_a_folder_of_an_earlier_version_goes_on(self, tmp_path):
        """It has records without the field, and settings without the precision."""
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path, report=stop_after(2))
        for path in sorted((tmp_path / "blocks").glob("*.npz")):
            with np.load(path) as stored:
                kept = {name: stored[name] for name in stored if name != "refused"}
            np.savez(path, **kept)
        told = []
        equal(evaluate(folder=tmp_path, report=told.append), reference())
        whole = []
        evaluate(report=whole.append)
        assert len(told) == len(whole) - 2  # nothing is done again
        assert Journal.read_settings(tmp_path) == {**reference().settings}


class TestOwnAttacks:
    def test_one_that_claims_nothing_is_done_again_where_it_fails(self, records):
        members = (Member("pgd", bind(pgd, steps=5, step_size=0.02)),)
        result = evaluate(quick(attacks=members), attack_logits_fn=ROUGH)
        exact = evaluate(quick(attacks=members))
        assert np.all(result.fooled >= exact.fooled)
        assert sum(int(record.refused.sum()) for record in records) > 0

    def test_images_outside_are_not_cured_by_bits(self, records):
        result = evaluate(quick(attacks=(Member("far", bind(out_of_the_ball)),)), attack_logits_fn=ROUGH)
        assert sum(len(record.tasks) for record in records) == result.clean.sum()


@pytest.mark.parametrize("version", ["rand"])
def test_randomised_networks(version):
    def noisy(bits, w, x, keys):
        draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return coarse(bits, w, x + 0.02 * draw)

    settings = quick(version=version, steps=3, eot=2, block_size=48)
    judge, attacked = (Partial(functools.partial(noisy, bits), weights()) for bits in (23, 7))
    result = evaluate(settings, judge, attack_logits_fn=attacked)
    assert 0 < result.accuracy < result.clean_accuracy
    with pytest.raises(InputError, match="keys"):
        evaluate(settings, judge, attack_logits_fn=NETWORK)


def test_progress_counts_what_is_done_again():
    told = []
    evaluate(attack_logits_fn=ROUGH, report=told.append)
    assert told[-1].left == 0
    runs = dict(zip(reference().attacks, (1, 2, 2, 1)))
    for progress in told:
        assert 0 <= progress.done <= progress.total <= runs[progress.attack] * reference().clean.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack_precision": "tf32"}, "attack_precision='tf32' is unknown"),
        ({"attack_precision": "highest"}, "attack_precision='highest' is unknown"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        quick(**options)


def test_a_network_of_other_classes_is_refused():
    other = Partial(lambda w, x: network(w, x)[:, :3], weights())
    with pytest.raises(
        InputError, match=r"attack_logits_fn returns logits of shape \(16, 3\), but logits_fn \(16, 4\)"
    ):
        evaluate(attack_logits_fn=other)
    with pytest.raises(InputError, match="logits_fn"):
        evaluate(attack_logits_fn="network")


class TestExperiments:
    def experiment(self, **fields):
        overrides = {f"evaluation.{name}": value for name, value in fields.items()}
        return config.load("embedded:pgd_at", overrides)

    def test_the_field_reaches_the_attack(self):
        assert evaluation_attack(self.experiment(), "aa").attack_precision == "same"
        experiment = self.experiment(attack_precision="tensorfloat32")
        assert evaluation_attack(experiment, "apgd-ce5").attack_precision == "tensorfloat32"

    def test_bfloat16_is_of_activations(self):
        net = models.create("small_resnet", num_classes=10, width=4)
        images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
        variables = net.init(jax.random.key(1), images)
        assert seen_by_attacks(self.experiment(attack_precision="tensorfloat32"), net, variables) is None
        seen = seen_by_attacks(self.experiment(attack_precision="bfloat16"), net, variables)
        precise = make_logits_fn(net, variables)(images)
        error = np.abs(seen(images) - precise).max() / np.abs(precise).max()
        assert 1e-4 < error < 5e-2
        assert seen(images).dtype == jnp.float32
        text = jax.jit(lambda x: seen(x)).lower(images).as_text()
        assert "bf16" in text

    def test_a_network_that_cannot_is_refused(self):
        with pytest.raises(InputError, match="needs a network with a field dtype, and str has none"):
            in_bfloat16("network")

    def test_a_wrong_name_is_said_at_once(self):
        with pytest.raises(InputError, match=r"evaluation\.attack_precision='tf32' is unknown"):
            self.experiment(attack_precision="tf32")


class TestCommands:
    """Whatever evaluates hands the attacks what they are to see."""

    @pytest.fixture
    def seen(self, monkeypatch):
        networks = []

        def run(attack, logits_fn, images, labels, *, attack_logits_fn=None, **options):
            networks.append((attack.attack_precision, attack_logits_fn and attack_logits_fn.model.module.dtype))
            flags, classes = np.ones(len(labels), bool), np.asarray(labels, np.int32)
            found = {"robust": flags, "clean": flags, "predictions": classes, "images": np.asarray(images)}
            return types.SimpleNamespace(accuracy=0.5, seconds={"apgd-ce": 1.0}, findings=(), **found)

        monkeypatch.setattr(AutoAttack, "run", run)
        return networks

    @pytest.fixture
    def model(self):
        net = models.create("mlp", num_classes=10)
        about = About(model="mlp", num_classes=10, image_shape=(28, 28, 1))
        return Classifier.of(net, net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))), about)

    def test_a_classifier(self, model, seen):
        images, labels = np.zeros((2, 28, 28, 1), np.uint8), np.zeros(2, int)
        for precision in ("same", "tensorfloat32", "bfloat16"):
            model.attack(images, labels, "aa", attack_precision=precision)
            model.evaluate(images, labels, "aa", attack_precision=precision)
        expected = [("same", None), ("tensorfloat32", None), ("bfloat16", jnp.bfloat16)]
        assert seen == [pair for pair in expected for _ in range(2)]

    def test_a_run(self, model, seen, tmp_path):
        model.to_run(tmp_path / "run", "embedded:pgd_at")
        run = Run(tmp_path / "run")
        fields = {"evaluation.final_attacks": ("aa",), "evaluation.attack_precision": "bfloat16"}
        found = run_evaluation.evaluate(
            run.experiment().with_fields(fields), run, checkpoints=["final"], num_examples=8
        )
        assert seen == [("bfloat16", jnp.bfloat16)]
        assert found["settings"]["attack_precision"] == "bfloat16"
        # An evaluation with the judge's own precision says nothing of it, as before, and is another one.
        with pytest.raises(InputError, match=r"attack_precision bfloat16 there, same here\); give --overwrite"):
            run_evaluation.evaluate(run.experiment(), run, checkpoints=["final"], num_examples=8)
        again = run_evaluation.evaluate(
            run.experiment().with_fields({"evaluation.final_attacks": ("aa",)}),
            run,
            checkpoints=["final"],
            num_examples=8,
            overwrite=True,
        )
        assert "attack_precision" not in again["settings"]
        with pytest.raises(InputError, match=r"attack_precision same there, bfloat16 here\); give --overwrite"):
            run_evaluation.evaluate(run.experiment().with_fields(fields), run, num_examples=8)
