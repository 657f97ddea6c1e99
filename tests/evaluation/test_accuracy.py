import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax import models
from piat_jax.attacks import ATTACKS, pgd
from piat_jax.attacks.registry import TO_TRAIN_WITH
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.pixels import to_float
from piat_jax.evaluation import accuracy, correct_under_attack, judge_under_attack
from piat_jax.evaluation.accuracy import _correct_block, worst_class
from piat_jax.evaluation.validity import Threat, measure, threat_of


@pytest.fixture(scope="module")
def setup():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.integers(0, 256, (13, 4, 4, 1), np.uint8))
    model = models.create("mlp", num_classes=3, hidden=(8,))
    variables = model.init(jax.random.key(0), to_float(images))
    labels = jnp.argmax(make_logits_fn(model, variables)(to_float(images)), axis=1)
    labels = labels.at[4].set((labels[4] + 1) % 3)  # one is wrong from the start
    return make_logits_fn(model, variables), images, labels


def test_clean_accuracy_is_that_of_the_labels(setup):
    correct = correct_under_attack(*setup, None, key=jax.random.key(0))
    np.testing.assert_array_equal(correct, np.arange(13) != 4)


def test_flags_do_not_depend_on_the_batch_size(setup):
    attack = bind(pgd, eps=0.06, step_size=0.03, steps=2)
    flags = [
        correct_under_attack(*setup, attack, key=jax.random.key(5), batch_size=size) for size in (1, 4, 5, 13, 100)
    ]
    for other in flags[1:]:
        np.testing.assert_array_equal(flags[0], other)
    assert 0 < flags[0].sum() < 12  # the attack breaks some and not all, else this shows nothing


def test_flags_agree_with_the_attack_run_by_hand(setup):
    logits_fn, images, labels = setup
    attack = bind(pgd, eps=0.06, step_size=0.03, steps=2)
    adversarial = attack(logits_fn, to_float(images), labels, key=jax.random.key(5), indices=jnp.arange(13))
    expected = jnp.argmax(logits_fn(adversarial), axis=1) == labels
    flags = correct_under_attack(*setup, attack, key=jax.random.key(5), batch_size=5)
    np.testing.assert_array_equal(flags, expected)


def test_classes_and_images_agree_with_the_attack_run_by_hand(setup, monkeypatch):
    logits_fn, images, labels = setup
    attack = bind(pgd, eps=0.06, step_size=0.03, steps=2)
    adversarial = attack(logits_fn, to_float(images), labels, key=jax.random.key(5), indices=jnp.arange(13))
    for size, shown in ((100, 13), (5, 5)):  # of the first block
        found = judge_under_attack(*setup, attack, key=jax.random.key(5), batch_size=size)
        np.testing.assert_array_equal(found.predicted, jnp.argmax(logits_fn(adversarial), axis=1))
        np.testing.assert_array_equal(found.correct, found.predicted == labels)
        np.testing.assert_allclose(found.images, adversarial[:shown], atol=1e-6)
    assert judge_under_attack(*setup, attack, key=jax.random.key(5), show=False).images.shape == (0, 4, 4, 1)
    monkeypatch.setattr(accuracy, "MOST_SHOWN", 3)
    assert len(judge_under_attack(*setup, attack, key=jax.random.key(5), batch_size=6).images) == 3


def test_a_larger_radius_never_helps_and_compiles_nothing(setup):
    counts, accuracies = [], []
    for eps in (0.0, 0.03, 0.06, 0.12, 0.5):
        attack = bind(pgd, eps=eps, step_size=eps / 2, steps=4, keep="best")
        accuracies.append(correct_under_attack(*setup, attack, key=jax.random.key(5), batch_size=7).sum())
        counts.append(_correct_block._cache_size())
    assert accuracies[0] == 12
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] == 0
    assert len(set(counts)) == 1


def test_a_plain_function_and_floats_are_taken_as_well(setup):
    logits_fn, images, labels = setup
    attack = bind(pgd, eps=0.06, step_size=0.03, steps=2)
    expected = correct_under_attack(*setup, attack, key=jax.random.key(5))
    plain = correct_under_attack(lambda x: logits_fn(x), to_float(images), labels, attack, key=jax.random.key(5))
    np.testing.assert_array_equal(plain, expected)
    assert not expected.all()
    with pytest.raises(InputError, match="torch"):
        correct_under_attack(_Module(), images, labels, None, key=jax.random.key(5))


class _Module:
    __module__ = "torch.nn"

    def __call__(self, images):
        return images


def test_the_arguments_of_before_work_and_warn(setup):
    logits_fn, images, labels = setup
    expected = correct_under_attack(*setup, None, key=jax.random.key(0))
    with pytest.warns(DeprecationWarning, match=r"correct_under_attack\(make_logits_fn\(model, variables\), ...\) now"):
        found = correct_under_attack(logits_fn.model, logits_fn.variables, images, labels, None, key=jax.random.key(0))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="takes four arguments before key=, but got 5"):
        correct_under_attack(*setup, None, None, key=jax.random.key(0))


def test_worst_class_is_the_lowest_accuracy_of_a_class_that_occurs():
    rng = np.random.default_rng(0)
    labels, correct = rng.choice([0, 1, 3], 60), rng.uniform(size=60) < 0.6  # class 2 has no example
    by_class = [correct[labels == k].mean() for k in (0, 1, 3)]
    assert len(set(by_class)) == 3
    worst = jax.jit(worst_class, static_argnums=2)(correct, labels, 4)
    np.testing.assert_allclose(worst, min(by_class), rtol=1e-6)


def test_bad_batch_size(setup):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        correct_under_attack(*setup, None, key=jax.random.key(0), batch_size=0)


def stray(logits_fn, images, labels, *, key, indices=None, kind="nan", eps=0.1, norm="linf", box=(0.0, 1.0)):
    """Breaks what it promises at the even examples, where all becomes misclassified; keeps to it at the odd ones."""
    far = {"nan": images * jnp.nan, "inf": images + jnp.inf, "ball": 1 - images, "box": images - 0.001 - images.max()}
    return jnp.where(indices[:, None, None, None] % 2 == 0, far[kind], images)


@pytest.mark.parametrize("kind", ["nan", "inf", "ball", "box"])
def test_an_image_outside_the_threat_model_is_no_success(setup, kind):
    findings = []
    attack = bind(stray, kind=kind, eps=0.1 if kind == "ball" else 1.0)
    clean = correct_under_attack(*setup, None, key=jax.random.key(0))
    flags = correct_under_attack(*setup, attack, key=jax.random.key(0), batch_size=5, on_finding=findings.append)
    np.testing.assert_array_equal(flags, clean)
    (finding,) = findings
    assert finding.name == "invalid_images"
    assert "7 of 13 images that are not finite, or outside ball or box; they count as failed attacks" in str(finding)
    assert "stray(" in finding.message


def test_outputs_that_are_probabilities_are_told(setup):
    """All of them: single rows may be so by chance. Without an attack they do no harm."""
    network, images, labels = setup
    attack, key = bind(pgd, eps=0.1, step_size=0.05, steps=2), jax.random.key(0)

    def told(logits_fn, attack, **options):
        findings = []
        correct_under_attack(logits_fn, images, labels, attack, key=key, on_finding=findings.append, **options)
        return [finding.message for finding in findings]

    def softmax(x):
        return jax.nn.softmax(network(x))

    (message,) = told(softmax, attack, batch_size=5)
    assert message.startswith("the outputs look like probabilities; give logits")
    assert told(softmax, None) == []
    assert told(network, attack) == told(lambda x: softmax(x).at[0].mul(2), attack) == []
    # An output that is not finite says nothing about the others.
    assert told(lambda x: softmax(x).at[0].set(jnp.nan), attack) == [message]
    assert told(lambda x: softmax(x).at[0].set(jnp.inf), attack) == [message]
    assert told(lambda x: jnp.full_like(network(x), jnp.nan), attack) == []
    # What matters is the network that was attacked.
    assert told(softmax, attack, source=network) == []


def test_the_library_s_attacks_keep_to_their_threat_model(setup):
    findings = []
    assert set(TO_TRAIN_WITH) == {"n_fgsm", "msd"}  # which evaluations refuse
    for name in ATTACKS.keys() - set(TO_TRAIN_WITH):
        for norm in ("linf", "L2"):
            bound = bind(ATTACKS[name], eps=0.25, norm=norm)
            correct_under_attack(*setup, bound, key=jax.random.key(0), on_finding=findings.append)
    assert findings == []


def test_measure():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.3, 0.7, (6, 4, 4, 3)).astype(np.float32)
    step = rng.normal(size=clean.shape)
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1)):
        step /= np.linalg.norm(step.reshape(6, -1), order, axis=1).reshape(6, 1, 1, 1)
        radii = 0.25 * np.array([0.5, 0.999, 1.0, 1.001, 1.5, 0.0])
        images = (clean + step * radii.reshape(6, 1, 1, 1)).astype(np.float32)
        for arrays in ((images, clean), (jnp.asarray(images), jnp.asarray(clean))):
            distances, valid = measure(*arrays, Threat(0.25, norm, None))
            np.testing.assert_allclose(distances, radii, atol=1e-6)
            np.testing.assert_array_equal(valid, [True, True, True, False, False, True])
    nothing = np.full_like(clean, np.nan)
    for arrays in ((nothing, clean), (jnp.asarray(nothing), jnp.asarray(clean))):
        assert not np.any(measure(*arrays, Threat(box=None))[1])
    assert measure(clean - 0.4, clean, Threat())[1].tolist() == (clean.min((1, 2, 3)) >= 0.4).tolist()
    assert threat_of(None) == threat_of(lambda *arguments: None) == Threat()
    assert threat_of(bind(pgd, box=None)) == Threat(8 / 255, "linf", None)
