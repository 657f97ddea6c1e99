"""The PyTorch AutoAttack that ours is measured against: golden numbers of the published code, and the model."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.core.types import Variables
from piat_jax.models import LinenModel, ResNet, WideResNet
from tests.attacks import golden

torch = pytest.importorskip("torch")

from experiments.autoattack import torch_attacks, torch_model  # noqa: E402

NAMES = {"linf": "Linf", "l2": "L2"}


IMAGES = torch.tensor(golden.IMAGES.transpose(0, 3, 1, 2).copy())
WEIGHTS, LABELS = [torch.tensor(w) for w in golden.WEIGHTS], torch.tensor(golden.LABELS).long()


def toy(x):
    return golden.network(x.permute(0, 2, 3, 1), torch.tanh, WEIGHTS)


def ranked():
    return toy(IMAGES).topk(10).indices.T


def lengths(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), torch.inf if norm == "linf" else 2, dim=1)


def test_doctests():
    found = doctest.testmod(torch_attacks, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


class TestGolden:
    @pytest.mark.parametrize("name", [name for name in golden.GOLDEN["apgd"] if not name.startswith("dlr|")])
    def test_apgd(self, name):
        kind, norm, eps = name.split("|")
        kind, _, rank = kind.partition("-t")
        options = {"loss": "targeted", "target": ranked()[int(rank) - 1]} if rank else {"loss": kind}
        outcome = torch_attacks.apgd(toy, IMAGES, LABELS, eps=float(eps), norm=norm.lower(), start="none", **options)
        expected = golden.GOLDEN["apgd"][name]
        robust = np.array(expected["still_correct"], bool)
        np.testing.assert_array_equal(~outcome.fooled, robust)
        # Under DLR what is already fooled climbs on, chaotically.
        compared = robust if rank else np.full(8, True)
        np.testing.assert_allclose(outcome.value[compared], np.array(expected["best_loss"])[compared], atol=1e-5)

    @pytest.mark.parametrize("norm", NAMES)
    def test_fab(self, norm):
        for rank in range(2, 11):
            outcome = torch_attacks.fab_target(toy, IMAGES, LABELS, ranked()[rank - 1], eps=9.0, norm=norm)
            np.testing.assert_allclose(
                outcome.value, golden.GOLDEN["fab_t_distance"][f"rank{rank}|{NAMES[norm]}"], atol=1e-6
            )
            np.testing.assert_allclose(lengths(outcome.images - IMAGES, norm), outcome.value, rtol=1e-6)

    @pytest.mark.parametrize("norm", NAMES)
    def test_steps_to_hyperplanes(self, norm):
        table = golden.GOLDEN["projections"]
        t, w = (torch.tensor(table[name]).repeat(3, 1) for name in ("t", "w"))
        needed = torch.tensor(table["b"]) - (t * w).sum(1)
        np.testing.assert_allclose(torch_attacks.step_to_hyperplane(t, w, needed, norm), table[norm], atol=6e-6)

    def test_windows_and_tiles(self):
        table = golden.GOLDEN["square"]
        for size in (28, 32, 224):
            for norm in NAMES:
                sides = [torch_attacks.window_side(n, (size, size), norm) for n in table["starts_at_iter"]]
                assert sides == table[f"{norm}_size_{size}"]
                before = [torch_attacks.window_side(n - 1, (size, size), norm) for n in table["starts_at_iter"][1:]]
                assert before == sides[:-1]
        for side in (3, 5):
            tile = torch_attacks.tile(side, torch.device("cpu"))
            np.testing.assert_allclose(tile, table[f"eta{side}"], atol=6e-5)

    def test_the_whole(self):
        result = torch_attacks.autoattack(toy, IMAGES, LABELS, eps=0.01, batch_size=3, queries=100)
        robust = golden.GOLDEN["apgd"]["ce|Linf|0.01"]["still_correct"]
        np.testing.assert_array_equal(result.robust, np.array(robust, bool))
        assert result.accuracy == dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square"), 3 / 8)
        assert result.broken_by == [None if survives else "apgd-ce" for survives in robust]


class TestLinear:
    """Where the robust accuracy is known: margin against radius times dual norm, the box out of the way."""

    @pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
    @pytest.mark.parametrize("classes", [2, 3, 4, 5])
    def test_robust_accuracy(self, classes, norm, dual):
        draw = torch.Generator().manual_seed(classes)
        weights, bias = torch.randn(48, classes, generator=draw), 0.3 * torch.randn(classes, generator=draw)
        images = 0.4 + 0.2 * torch.rand(40, 3, 4, 4, generator=draw)

        def model(x):
            return (x.flatten(1) - 0.5) @ weights + bias

        logits = model(images)
        labels = logits.argmax(1)
        slopes = torch.linalg.vector_norm(weights[:, labels].T[:, :, None] - weights, dual, dim=1)
        margins = (logits.amax(1, keepdim=True) - logits).scatter(1, labels[:, None], torch.inf)
        distances = (margins / slopes.clamp(min=1e-9)).amin(1)
        eps = distances.median().item() * 0.999
        # Steps are finite: next to the boundary an attack may fail.
        decided = (distances < 0.97 * eps) | (distances > eps)
        images, labels, distances = images[decided], labels[decided], distances[decided]
        labels[0] = (labels[0] + 1) % classes

        result = torch_attacks.autoattack(model, images, labels, eps=eps, norm=norm, batch_size=7, steps=30, queries=60)
        assert result.clean.tolist() == [False] + [True] * (len(images) - 1)
        expected = result.clean & (distances > eps)
        assert 15 < expected.sum() < 25
        np.testing.assert_array_equal(result.robust, expected)
        assert result.accuracy["square"] == pytest.approx(expected.float().mean().item())
        assert [name is not None for name in result.broken_by] == (result.clean & ~result.robust).tolist()
        np.testing.assert_array_equal(model(result.images).argmax(1) == labels, result.robust)
        np.testing.assert_array_equal(result.images[result.robust], images[result.robust])
        assert lengths(result.images - images, norm).max() <= eps + 1e-7
        assert result.images.min() >= 0
        assert result.images.max() <= 1


class TestContract:
    @pytest.mark.parametrize("norm", NAMES)
    def test_each_attack_alone_fools_and_says_so(self, norm):
        eps = 0.05 if norm == "linf" else 0.5
        target = ranked()[1]
        outcomes = [
            torch_attacks.apgd(toy, IMAGES, LABELS, eps=eps, norm=norm, loss="targeted", target=target, steps=10),
            torch_attacks.fab_target(toy, IMAGES, LABELS, target, eps=eps, norm=norm, steps=10),
            torch_attacks.square(toy, IMAGES, LABELS, eps=eps, norm=norm, queries=300),
        ]
        for outcome in outcomes:
            assert outcome.fooled.sum() >= 6
            np.testing.assert_array_equal(toy(outcome.images).argmax(1) != LABELS, outcome.fooled)
            np.testing.assert_array_equal(outcome.images[~outcome.fooled], IMAGES[~outcome.fooled])
            assert lengths(outcome.images - IMAGES, norm).max() <= eps + 1e-7

    def test_nothing_left_to_attack(self):
        result = torch_attacks.autoattack(toy, IMAGES, LABELS, eps=0.3, steps=20, queries=10)
        assert result.accuracy == {"apgd-ce": 0.0}
        assert list(result.seconds) == ["apgd-ce"]


OPTIONS = {
    "stride 2, grey": {"stem_stride": 2, "width": 8, "stage_sizes": (1, 1, 1)},
    "stride 1, colour": {"width": 4, "stage_sizes": (2, 1), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1)},
    "wide": {"blocks_per_group": 2, "widen_factor": 1},
}


class TestModel:
    def flax_model(self, name):
        """A model, images, and variables all of which are drawn at random."""
        shape = (5, 13, 11, 1 if "grey" in name else 3)
        rng = np.random.default_rng(0)

        def leaf(path, shape):
            name = path[-1].key
            low, high = {"var": (0.5, 2.0), "scale": (0.5, 1.5)}.get(name, (-0.4, 0.4))
            return jnp.asarray(rng.uniform(low, high, shape.shape), jnp.float32)

        model = LinenModel((WideResNet if name == "wide" else ResNet)(num_classes=7, **OPTIONS[name]))
        images = jnp.asarray(rng.uniform(size=shape), jnp.float32)
        variables = Variables(*jax.tree.map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0), images)))
        return model, variables, images

    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("name", OPTIONS)
    def test_logits(self, name, channels_last):
        model, variables, images = self.flax_model(name)
        network = torch_model.WideResNet if name == "wide" else torch_model.ResNet
        module = network(7, channels=images.shape[-1], channels_last=channels_last, **OPTIONS[name])
        torch_model.load(module, variables)
        expected, _ = jax.jit(lambda: model.apply(*variables, images, train=False))()
        logits = module(torch.tensor(np.array(images)).permute(0, 3, 1, 2))
        np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
        assert np.ptp(expected) > 1

    def test_missing_and_unused_entries_are_refused(self):
        name = "stride 2, grey"
        _, variables, _ = self.flax_model(name)
        module = torch_model.ResNet(7, channels=1, **OPTIONS[name])
        params, state = variables
        without = {key: value for key, value in params.items() if key != "linear"}
        with pytest.raises(RuntimeError, match=r"Missing key.*linear\.weight"):
            torch_model.load(module, Variables(without, state))
        with pytest.raises(RuntimeError, match=r"Unexpected key.*layer4_0\.bn1\.weight"):
            torch_model.load(module, Variables({**params, "layer4_0": {"bn1": params["bn1"]}}, state))
        statistics = {key: value for key, value in state["batch_stats"].items() if key != "bn1"}
        with pytest.raises(RuntimeError, match=r"Missing key.*bn1\.running_mean"):
            torch_model.load(module, Variables(params, {"batch_stats": statistics}))
        with pytest.raises(RuntimeError, match="size mismatch"):
            torch_model.load(torch_model.ResNet(6, channels=1, **OPTIONS[name]), variables)
