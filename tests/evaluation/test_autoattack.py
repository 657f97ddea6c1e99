"""The ensemble on networks small enough for thousands of forwards a second."""

import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from piat_jax.attacks import pgd
from piat_jax.core.bound import bind
from piat_jax.core.checks import InputError
from piat_jax.evaluation import AutoAttack, Member, Robustness, blocks
from tests.attacks import golden

SHAPE = (2, 3, 1)
CLASSES = 4
# What all tests share is compiled once: block size 16, these numbers, a network that is a pytree of its weights.
QUICK = AutoAttack(eps=0.04, steps=2, queries=12, targets=2, block_size=16)


def network(weights, x):
    hidden = jnp.tanh((x.reshape(len(x), -1) - 0.5) @ weights["first"])
    return hidden @ weights["second"]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    drawn = {"first": 3 * rng.normal(size=(6, 16)), "second": rng.normal(size=(16, CLASSES))}
    return {name: jnp.asarray(w, jnp.float32) for name, w in drawn.items()}


def examples(count, seed=0):
    rng = np.random.default_rng(1)
    images = rng.uniform(size=(count, *SHAPE)).astype(np.float32)
    labels = np.array(jnp.argmax(network(weights(seed), images), axis=1), np.int32)
    labels[::7] = (labels[::7] + 1) % CLASSES  # some are wrong when clean
    return images, labels


IMAGES, LABELS = examples(60)
NETWORK = Partial(network, weights())


def evaluate(settings=QUICK, logits_fn=NETWORK, images=IMAGES, labels=LABELS, *, devices=1, **options):
    return settings.run(logits_fn, images, labels, devices=jax.devices()[:devices], **options)


def quick(**options):
    return dataclasses.replace(QUICK, **options)


@functools.cache
def reference():
    return evaluate()


def same(one, other, *, seconds=False):
    for field in dataclasses.fields(Robustness):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        elif field.name != "seconds" or seconds:
            assert ours == theirs, field.name


class TestResult:
    def test_the_setting_is_not_trivial(self):
        result = reference()
        assert 0.2 < result.accuracy < result.clean_accuracy < 1
        assert result.fooled.any(axis=1).sum() >= 2
        assert result.findings == ()

    def test_flags_agree_with_a_fresh_forward_and_images_are_inside(self):
        result = reference()
        predictions = np.argmax(network(weights(), result.images), axis=1)
        np.testing.assert_array_equal(result.predictions, predictions)
        np.testing.assert_array_equal(result.robust, predictions == LABELS)
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        moved = np.abs(result.images.astype(np.float64) - IMAGES).reshape(len(IMAGES), -1).max(axis=1)
        np.testing.assert_allclose(result.distances, moved, rtol=1e-6)
        assert result.max_norm <= 0.04 * (1 + 1e-5) + 6e-8
        np.testing.assert_array_equal(moved > 0, result.fooled.any(axis=0))

    def test_what_is_attempted_and_what_it_costs(self):
        result = reference()
        left = result.clean
        for attempted, fooled, queries in zip(result.attempted, result.fooled, result.queries):
            np.testing.assert_array_equal(attempted, left)
            assert not (fooled & ~attempted).any()
            np.testing.assert_array_equal(queries > 0, attempted)
            left = left & ~fooled
        # What never falls costs every forward: 3 of APGD, 2 targets of 3, 2 targets of 5, 13 of Square.
        for queries, cost in zip(result.queries, (3, 6, 10, 13)):
            assert np.all(queries[result.robust] == cost)
        np.testing.assert_array_equal(result.robust, left)
        after = list(result.accuracy_after.values())
        assert after == sorted(after, reverse=True)
        assert after[-1] == result.accuracy
        broken = result.broken_by
        np.testing.assert_array_equal(broken >= 0, result.fooled.any(axis=0))
        assert all(result.fooled[broken[i], i] for i in np.flatnonzero(broken >= 0))

    def test_on_disk_and_back(self, tmp_path):
        reference().save(tmp_path / "deep" / "folder")
        same(Robustness.load(tmp_path / "deep" / "folder"), reference(), seconds=True)
        summary = json.loads((tmp_path / "deep" / "folder" / "result.json").read_text())
        assert summary["robust_accuracy"] == reference().accuracy
        with pytest.raises(InputError, match=r"holds no result\.json"):
            Robustness.load(tmp_path)

    def test_table(self):
        lines = str(reference()).splitlines()
        assert lines[0] == "L-inf, eps 0.04 = 10.2/255, 60 examples, seed 0"
        assert [line.split()[0] for line in lines[2:7]] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
        assert f"robust accuracy {100 * reference().accuracy:.2f}%" in lines[-1]

    def test_each_attack_alone(self):
        result = evaluate(quick(individually=True))
        assert set(result.accuracy_under) == set(result.attacks)
        np.testing.assert_array_equal(result.attempted, np.tile(result.clean, (4, 1)))
        np.testing.assert_array_equal(result.robust, reference().robust)
        np.testing.assert_array_equal(result.images, reference().images)
        assert min(result.accuracy_under.values()) >= result.accuracy
        # One attack by itself finds what it finds among the others.
        alone = evaluate(quick(attacks=("fab-t",)))
        np.testing.assert_array_equal(alone.fooled[0], result.fooled[2])
        assert alone.settings["version"] == "custom"


class TestIndependence:
    """Nothing but network, data, settings and seed has a say."""

    @pytest.mark.parametrize("block_size", [8, 61])  # 61 rows are made 64
    def test_of_block_size(self, block_size):
        same(evaluate(quick(block_size=block_size)), reference())

    def test_of_devices(self):
        for count in (1, 8):
            same(evaluate(quick(block_size=64), devices=count), reference())

    def test_of_the_default_generator(self):
        with jax.default_prng_impl("rbg"):
            same(evaluate(), reference())

    def test_of_how_images_are_given(self):
        pixels = np.round(255 * IMAGES).astype(np.uint8)
        one = evaluate(quick(attacks=("apgd-ce",)), images=pixels)
        floats, wide = jnp.asarray(pixels / np.float32(255)), LABELS.astype(np.int64)
        other = evaluate(quick(attacks=("apgd-ce",)), images=floats, labels=wide)
        same(one, dataclasses.replace(other, settings=one.settings))

    def test_the_seed_has_a_say(self):
        other = evaluate(quick(seed=1))
        assert np.any(other.images != reference().images)

    def test_nothing_is_compiled_twice(self):
        reference()
        before = [fn._cache_size() for fn in (blocks._attack, blocks._logits, blocks._gradients)]
        result = evaluate(quick(eps=0.05, seed=3), Partial(network, weights(5)), *examples(20, seed=5))
        assert len(result.labels) == 20
        assert [fn._cache_size() for fn in (blocks._attack, blocks._logits, blocks._gradients)] == before

    def test_a_closure_is_as_good_as_a_pytree(self):
        closed = evaluate(quick(attacks=("apgd-ce",)), lambda x: network(weights(), x))
        np.testing.assert_array_equal(closed.fooled[0], reference().fooled[0])


class TestAgainstTheory:
    """A linear network is robust where its smallest margin exceeds eps times the dual norm of the difference."""

    @pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
    def test_robust_accuracy_has_a_closed_form(self, norm, dual):
        rng = np.random.default_rng(2)
        w = rng.normal(size=(6, 3)).astype(np.float32)
        images = (0.5 + 0.1 * rng.uniform(-1, 1, size=(32, *SHAPE))).astype(np.float32)  # the box is far
        logits = (images.reshape(32, -1) - 0.5) @ w
        labels = logits.argmax(axis=1)
        gaps = np.take_along_axis(logits, labels[:, None], 1) - logits
        slopes = np.linalg.norm(w[:, labels].T[:, :, None] - w[None], dual, axis=1)
        distance = np.where(gaps > 0, gaps / np.maximum(slopes, 1e-9), np.inf).min(axis=1)
        eps = float(np.sort(distance)[14:16].mean())
        attack = AutoAttack(eps=eps, norm=norm, attacks=("apgd-t", "fab-t"), steps=25, block_size=32)
        result = evaluate(attack, lambda x: (x.reshape(len(x), -1) - 0.5) @ w, images, labels)
        np.testing.assert_array_equal(result.robust, distance > eps)

    @pytest.mark.parametrize("classes", [2, 3])
    def test_few_classes(self, classes):
        attack = quick(attacks=("apgd-dlr", "apgd-t", "fab-t"), targets=9)
        few = {**weights(), "second": weights()["second"][:, :classes]}
        labels = np.argmax(network(few, IMAGES), axis=1)
        result = evaluate(attack, Partial(network, few), labels=labels)
        assert 0 < result.accuracy < 1
        assert np.all(result.queries[1][result.robust] == 3 * (classes - 1))

    def test_monotone_in_eps(self):
        flags = [evaluate(quick(eps=eps)).robust for eps in (0.01, 0.04, 0.2)]
        assert flags[0].sum() > flags[1].sum() > flags[2].sum()
        assert all(np.all(smaller >= larger) for smaller, larger in itertools.pairwise(flags))


def test_the_golden_network():
    """Of the 8 images of the PyTorch reference's toy, 3 are left by each of the three attacks alone, and by all."""
    attack = AutoAttack(eps=0.01, individually=True)
    result = evaluate(attack, lambda x: golden.network(x, jnp.tanh), golden.IMAGES, golden.LABELS)
    under = result.accuracy_under
    assert result.clean_accuracy == 1
    assert (under["apgd-ce"], under["apgd-t"], under["fab-t"]) == (0.375, 0.375, 0.375)
    assert result.robust.tolist() == [False, False, True, False, False, False, True, True]


class TestVersions:
    def test_members(self):
        names = {version: [m.name for m in AutoAttack(version=version).members()] for version in ("plus", "rand")}
        assert names == {
            "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
            "rand": ["apgd-ce", "apgd-dlr"],
        }
        settings = {m.name: (m.runs, m.targets, dict(m.attack.static)) for m in AutoAttack(version="plus").members()}
        assert settings["apgd-ce"] == (5, 0, {"loss": "ce", "steps": 100, "eot": 1})
        assert settings["apgd-dlr"] == (5, 0, {"loss": "dlr", "steps": 100, "eot": 1})
        assert settings["fab"] == (1, 0, {"steps": 100, "restarts": 5, "targets": None})
        assert settings["square"] == (1, 0, {"queries": 5000})
        assert settings["apgd-t"] == (1, 9, {"loss": "targeted", "steps": 100, "eot": 1})
        assert settings["fab-t"] == (1, 9, {"steps": 100})
        assert all(dict(m.attack.static)["eot"] == 20 for m in AutoAttack(version="rand").members())
        sparse = [(m.runs, m.targets) for m in AutoAttack(norm="l1").members()]
        assert sparse == [(5, 0), (1, 5), (1, 9), (1, 0)]

    def test_plus_runs(self):
        plus = AutoAttack(eps=0.04, version="plus", steps=2, queries=2, restarts=2, targets=1, block_size=48)
        result = evaluate(plus)
        assert result.attacks == ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
        # Two restarts of 3 forwards; of untargeted FAB two of 2 steps at 2 forwards, and the clean one.
        assert [int(q[result.robust][0]) for q in result.queries] == [6, 6, 9, 3, 6, 5]

    def test_randomised_network(self):
        def noisy(w, x, keys):
            draw = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
            return network(w, x + 0.02 * draw)

        rand = AutoAttack(eps=0.04, version="rand", steps=3, eot=2, block_size=48)
        result = evaluate(rand, Partial(noisy, weights()))
        assert 0 < result.accuracy < result.clean_accuracy
        assert result.findings == ()
        # One that fell in its attack alone, not in the forward that counts, ended early.
        assert result.queries[0][result.robust].max() == 2 * 4

    def test_an_attack_of_ones_own(self):
        members = (Member("pgd", bind(pgd, steps=5, step_size=0.02)), Member("far", bind(out_of_the_ball)))
        result = evaluate(quick(attacks=members))
        assert result.attacks == ("pgd", "far")
        assert result.fooled[0].any()
        assert not result.fooled[1].any()
        (finding,) = [f for f in result.findings if f.name == "invalid_images"]
        count = int(result.attempted[1].sum())
        assert finding.message.startswith(f"far returned {count} of {count} images that are not finite, or outside")

    def test_each_run_of_an_example_has_randomness_of_its_own(self):
        once = evaluate(quick(attacks=(Member("all", bind(pgd, steps=5, step_size=0.02, start="none")),)))
        twice = evaluate(quick(attacks=(Member("second", bind(at_odd_indices), runs=2),)))
        assert once.fooled.any()
        np.testing.assert_array_equal(twice.fooled, once.fooled)

    def test_images_that_are_no_numbers_break_nothing(self, tmp_path):
        members = (Member("nothing", bind(not_a_number)),)
        with pytest.raises(Stopped):
            evaluate(quick(attacks=members), folder=tmp_path, report=stop_after(1))
        result = evaluate(quick(attacks=members), folder=tmp_path)
        assert result.accuracy == result.clean_accuracy
        count = int(result.clean.sum())  # those before the stop are told as well
        assert f"nothing returned {count} of {count} images" in "".join(f.message for f in result.findings)


def out_of_the_ball(logits_fn, images, labels, *, key, indices, eps, norm):
    return 1 - images


def at_odd_indices(logits_fn, images, labels, *, key, indices, eps, norm):
    """PGD, but only in the second of two runs."""
    found = pgd(logits_fn, images, labels, key=key, eps=eps, norm=norm, steps=5, step_size=0.02, start="none")
    return jnp.where(indices[:, None, None, None] % 2 == 1, found, images)


def not_a_number(logits_fn, images, labels, *, key, indices, eps, norm):
    return images * jnp.nan


class Stopped(Exception):
    """Raised in a report, where the power would fail."""


def stop_after(blocks):
    count = itertools.count(1)

    def report(progress):
        if next(count) == blocks:
            raise Stopped

    return report


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((Member("a", bind(pgd)), "square"), "attacks mixes Members and names"),
        ((Member("a", bind(pgd)), Member("a", bind(pgd, steps=3))), "attacks has several members named a"),
        ((Member("a", pgd),), "attack of member 'a' is <function pgd"),
    ],
)
def test_members_are_checked(members, message):
    with pytest.raises(InputError, match=message):
        AutoAttack(eps=0.1, attacks=members)


class TestImagesOnDisk:
    def test_memory_holds_some_blocks_and_not_all_images(self, tmp_path):
        """Of 700 images, 34 MB as floats, of which most become adversarial."""
        images = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(700, 64, 64, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, 700, np.uint8)[:, None, None, None]
        network = jax.tree_util.Partial(lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1))
        labels = np.where(images[:, 0, 0, 0] > 127, 0, 1)
        settings = AutoAttack(eps=0.4, attacks=("apgd-ce",), steps=2, block_size=32)
        peaks = {}
        for folder in (tmp_path / "aa", None):
            tracemalloc.start()
            try:
                result = settings.run(network, images, labels, folder=folder, devices=jax.devices()[:1])
                peaks[folder] = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert result.accuracy < 0.5
            assert result.images.shape == images.shape
        assert peaks[tmp_path / "aa"] < 25e6 < 34e6 < peaks[None]
        assert isinstance(Robustness.load(tmp_path / "aa").images, np.memmap)

    def test_a_result_of_an_earlier_version_has_them_beside_the_flags(self, tmp_path):
        result = evaluate(folder=tmp_path)
        images = np.array(result.images)
        (tmp_path / "images.npy").unlink()
        with np.load(tmp_path / "result.npz") as stored:
            arrays = dict(stored)
        assert "images" not in arrays
        np.savez(tmp_path / "result.npz", **arrays, images=images)
        same(evaluate(folder=tmp_path, report=stop_after(1)), result, seconds=True)


class TestResume:
    @pytest.mark.parametrize("after", [1, 3, 6])
    def test_stopped_and_resumed_in_other_blocks(self, after, tmp_path):
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path / "aa", report=stop_after(after))
        seen = []
        result = evaluate(quick(block_size=8), folder=tmp_path / "aa", report=seen.append)
        same(result, reference())
        assert seen  # there was something left
        assert seen[0].done > 0
        assert sorted(path.name for path in (tmp_path / "aa").iterdir()) == [
            "clean.npz", "images.npy", "result.json", "result.npz", "settings.json"]  # fmt: skip
        # A finished one is read, and nothing runs.
        again = evaluate(folder=tmp_path / "aa", report=stop_after(1))
        same(again, result, seconds=True)

    def test_half_written_and_broken_files_are_work_to_be_done(self, tmp_path):
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path, report=stop_after(3))
        written = sorted((tmp_path / "blocks").glob("*.npz"))
        assert len(written) == 3
        written[1].write_bytes(written[1].read_bytes()[:-100])
        written[2].write_bytes(b"")
        (tmp_path / "blocks" / "000004.npz.partial").write_bytes(b"half")
        same(evaluate(folder=tmp_path), reference())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"eps": 0.05}, "eps 0.04 there, 0.05 here"),
            ({"seed": 1}, "seed 0 there, 1 here"),
            ({"steps": 5}, "steps=5"),
        ],
    )
    def test_another_evaluation_is_refused(self, change, message, tmp_path):
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path, report=stop_after(1))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=re.escape(message)):
            evaluate(quick(**change), folder=tmp_path)
        assert sorted(tmp_path.rglob("*")) == before

    def test_other_data_another_network_or_other_files_are_refused(self, tmp_path):
        with pytest.raises(Stopped):
            evaluate(folder=tmp_path / "a", report=stop_after(1))
        with pytest.raises(InputError, match=r"holds another evaluation \(data"):
            evaluate(images=1 - IMAGES, folder=tmp_path / "a")
        with pytest.raises(InputError, match="another network"):
            evaluate(logits_fn=Partial(network, weights(1)), folder=tmp_path / "a")
        near = weights()
        near["first"] = near["first"] * jnp.float32(1 + 1e-5)  # logits within rounding, and yet another network
        with pytest.raises(InputError, match="another network"):
            evaluate(logits_fn=Partial(network, near), folder=tmp_path / "a")
        evaluate(folder=tmp_path / "a")
        with pytest.raises(InputError, match="another network; remove it, or give another folder"):  # finished as well
            evaluate(logits_fn=Partial(network, weights(1)), folder=tmp_path / "a")
        with pytest.raises(InputError, match="holds files that are not from an evaluation"):
            evaluate(folder=tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file"):
            evaluate(folder=tmp_path / "file")

    def test_killed(self, tmp_path):
        """SIGKILL, in a process of its own."""
        code = f"""
import os, signal, sys
sys.path[:0] = {[p for p in sys.path if p]!r}
import tests.evaluation.test_autoattack as t
seen = []
def report(progress):
    seen.append(progress)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
t.evaluate(folder={str(tmp_path)!r}, report=report)
"""
        done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert len(list((tmp_path / "blocks").glob("*.npz"))) == 4
        same(evaluate(folder=tmp_path), reference())


def test_progress_goes_down_to_nothing():
    seen = []
    evaluate(report=seen.append)
    assert [p.attack for p in seen] == sorted((p.attack for p in seen), key=reference().attacks.index)
    assert seen[-1].left == 0
    assert seen[-1].robust == reference().robust.sum()
    assert all(p.left > 0 for p in seen[:-1])
    assert all(0 < p.done <= p.total for p in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "eps=8 must be in (0, 1]; did you mean 8/255?"),
        ({"eps": 0}, "eps=0 must be in (0, 1]"),
        ({"norm": "linff"}, "norm='linff' is unknown; did you mean 'linf'?"),
        ({"version": "standart"}, "version='standart' is unknown; did you mean 'standard'?"),
        ({"attacks": ("apgd_ce",)}, "attack='apgd_ce' is unknown; did you mean 'apgd-ce'?"),
        ({"attacks": ("square", "square")}, "attacks=square,square names an attack twice"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": 5.5}, "steps=5.5 must be a whole number of at least 1"),
        ({"targets": 0}, "targets=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"eot": 20}, "eot=20: fab-t, square cannot attack a randomised network"),
        ({"precision": "high"}, "precision='high' is unknown"),
        ({"seed": 2**32}, "seed=4294967296 must be in [0, 4294967295]"),
        ({"seed": -1}, "seed=-1 must be in [0, 4294967295]"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        AutoAttack(**options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (2 * IMAGES - 1, LABELS, "give pixels in [0, 1] and normalise inside logits_fn"),
        (np.where(IMAGES[0, 0, 0] == IMAGES, np.nan, IMAGES), LABELS, "images range from nan to nan"),
        (IMAGES[0], LABELS, "images has shape (2, 3, 1); give [N, height, width, channels]"),
        (IMAGES.astype(int), LABELS, "images has dtype int64"),
        (IMAGES[:0], LABELS[:0], "images is empty"),
        (IMAGES, LABELS[:3], "labels are int32[3]; give 60 integers"),
        (IMAGES, LABELS.astype(float), "labels are float64[60]"),
        (IMAGES, LABELS + 1, "labels range from 1 to 4; with the 4 classes of the logits they must be in [0, 3]"),
    ],
)
def test_bad_data_are_refused(images, labels, message):
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(images=images, labels=labels)


def test_bad_networks_are_refused():
    with pytest.raises(InputError, match="logits_fn computes with NumPy"):
        evaluate(logits_fn=lambda x: np.asarray(x).mean((1, 2)))
    with pytest.raises(InputError, match="logits_fn='resnet18' cannot be called"):
        evaluate(logits_fn="resnet18")
    with pytest.raises(InputError, match=re.escape("shape (16, 1) for 16 images; they must be [16, K] with K >= 2")):
        evaluate(logits_fn=lambda x: x.mean((1, 2)))
    with pytest.raises(InputError, match="logits_fn returns a tuple; give logits alone"):
        evaluate(logits_fn=lambda x: (network(weights(), x), {}))
    for settings, why in ((quick(version="rand"), "version='rand'"), (quick(attacks=("apgd-ce",), eot=2), "eot=2")):
        with pytest.raises(InputError, match=re.escape(f"{why} calls logits_fn(images, keys), which takes no keys")):
            evaluate(settings, logits_fn=lambda x: network(weights(), x))


class TestNetworksAsUsersHaveThem:
    quick = quick(attacks=("apgd-ce",))

    @pytest.mark.parametrize("norm", ["Linf", "L2"])
    def test_spellings_of_robustbench(self, norm):
        assert evaluate(quick(attacks=("apgd-ce",), norm=norm)).settings["norm"] == norm.lower()

    def test_a_module_without_a_hash(self):
        """A pytree with a function among its leaves, as Equinox has them: no argument of jit, and without a hash."""

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Module:
            weights: dict
            activation: object

            def __call__(self, x):
                return self.activation((x.reshape(len(x), -1) - 0.5) @ self.weights["first"]) @ self.weights["second"]

        found = evaluate(self.quick, logits_fn=Module(weights(), jnp.tanh))
        np.testing.assert_array_equal(found.fooled, evaluate(self.quick).fooled)

    def test_a_module_for_one_example(self):
        one = type(
            "Net", (), {"__module__": "equinox._module", "__call__": lambda self, x: network(weights(), x[None])[0]}
        )
        with pytest.raises(
            InputError, match=re.escape("an Equinox Net, which takes one example; give jax.vmap(module)")
        ):
            evaluate(self.quick, logits_fn=one())
        found = evaluate(self.quick, logits_fn=jax.vmap(one()))
        np.testing.assert_array_equal(found.fooled, evaluate(self.quick).fooled)


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_a_radius_without_bound(version):
    """No ball is larger than the box: L2 at 1e30 breaks what any image of the box can break."""
    settings = quick(norm="l2", eps=1e30, version=version, steps=10, restarts=1)
    assert evaluate(settings).accuracy == evaluate(dataclasses.replace(settings, eps=6.0**0.5)).accuracy == 0


def test_attacks_may_be_one_text_with_commas():
    one = AutoAttack(attacks="apgd-ce, square")
    assert [member.name for member in one.members()] == ["apgd-ce", "square"]
    assert one == AutoAttack(attacks=("apgd-ce", "square"))
    with pytest.raises(InputError, match="attack='apgd_ce' is unknown; did you mean 'apgd-ce'"):
        AutoAttack(attacks="apgd_ce,square")
