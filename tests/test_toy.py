import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine.claims import Claim, Interval, interval, verdict
from experiments.toy import __main__ as toy
from experiments.toy.study import Scores, Settings, drop_epochs, measure
from piat_jax.core.checks import InputError
from piat_jax.data.circles import Circles

TINY = ["--seeds=2", "--epochs=3", "--warmup=0", "--train_points=32", "--test_points=32", "--batch_size=16"]
TINY += ["--hidden=4", "--steps=2", "--test_steps=2"]


def test_circles_follow_their_formula():
    key = jax.random.key(3)
    points, labels = Circles().draw(key, 2000)
    x = np.asarray(points).reshape(2000, 3)
    assert points.shape == (2000, 1, 1, 3)
    assert np.bincount(labels).tolist() == [1000, 1000]
    assert (x[:, 2] >= 0.80).all()
    assert (x[:, 2] <= 0.85).all()
    for label, radius in ((0, 0.35), (1, 1.0)):
        squares = (x[labels == label, :2] ** 2).sum(1)
        # E |x|^2 = rho^2 + 2 sigma^2, with a deviation below 0.5 for either class.
        assert abs(squares.mean() - radius**2 - 2 * 0.2**2) < 4 * 0.5 / 1000**0.5
        assert np.abs(x[labels == label, :2].mean(0)).max() < 0.1
    assert (points == Circles().draw(key, 2000)[0]).all()
    assert not (points == Circles().draw(jax.random.key(4), 2000)[0]).all()
    bare = np.asarray(Circles(sigma=0.0).draw(key, 2000)[0]).reshape(2000, 3)
    np.testing.assert_allclose(np.hypot(bare[:, 0], bare[:, 1]), np.repeat([0.35, 1.0], 1000), rtol=1e-5)


def test_measures_by_hand():
    robust = np.array([[0.0, 0.9, 0.5, 0.6, 0.4, 0.5], [0.5, 0.6, 0.7, 0.7, 0.8, 0.8]])
    change = np.array([[0.9, 0.8, 0.1, 0.2, 0.3, 0.4]] * 2)
    scores = Scores(robust, robust, robust + 0.1, robust, change)
    found = measure(scores, warmup=2)
    # Of .5 .6 .4 .5: the fall from .9 is warm-up's; epoch 5 has the largest drop.
    np.testing.assert_allclose(found.deviation, [100 * (0.02 / 3) ** 0.5, 100 * (0.01 / 3) ** 0.5])
    np.testing.assert_allclose(found.drop, [20, 0], atol=1e-9)
    assert drop_epochs(scores, 2)[0] == 5
    np.testing.assert_allclose(found.change_at_drop[0], 30)
    np.testing.assert_allclose((found.best_robust[0], found.final_robust[0], found.mean_robust[0]), (90, 50, 50))
    np.testing.assert_allclose((found.final_clean[1], found.mean_clean[1], found.mean_change[1]), (90, 85, 25))
    np.testing.assert_allclose(interval(np.array([0.0, 2.0])), (1, 1 - 12.7062047, 1 + 12.7062047))


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("higher", 0.1, 1.0, "holds"),
        ("higher", -1.0, -0.1, "does not hold"),
        ("lower", 0.1, 1.0, "does not hold"),
        ("lower", -0.1, 1.0, "not decided"),
        ("kept", -0.9, -0.1, "holds"),
        ("kept", -3.0, -1.1, "does not hold"),
    ],
)
def test_verdict(kind, low, high, expected):
    claim = Claim("", "piat", "pgd_at", "deviation", kind)
    assert verdict(claim, Interval((low + high) / 2, low, high)) == expected


def test_a_tiny_study_from_flags_to_files(tmp_path, monkeypatch):
    found = {}
    original = toy.train_method
    monkeypatch.setattr(toy, "train_method", lambda *args: found.setdefault(args[0], original(*args)))
    out = tmp_path / "new" / "toy"
    toy.main([*TINY, f"--out={out}"])
    figures = [f"{n}{s}" for n in ("data", "curves", "boundary", "overlay", "oscillation") for s in (".png", ".svg")]
    assert sorted(path.name for path in out.iterdir()) == sorted(["runs.csv", "summary.md", *figures])
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert len(rows) == 4 * 2 * 3
    assert all(0 <= float(row["test_robust"]) <= float(row["test_clean"]) <= 1 for row in rows)
    assert "PIAT - PGD-AT" in (out / "summary.md").read_text()

    params = {method: jax.tree.leaves(history.params) for method, history in found.items()}
    for ours, plain in zip(params["piat"], params["pgd_at"]):
        assert (ours[:, 0] == plain[:, 0]).all()  # the same start
        # The first epoch is the same, and lambda_1 = 2/11 of what was before it comes back.
        np.testing.assert_allclose(ours[:, 1], plain[:, 0] * 2 / 11 + plain[:, 1] * 9 / 11, atol=1e-6)
        assert not np.allclose(plain[0], plain[1])  # seeds differ


def test_dry_run_writes_nothing(tmp_path, capsys):
    toy.main(["--dry_run", f"--out={tmp_path / 'out'}"])
    assert "4 methods x 20 seeds x 50 epochs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sedes=3", "sedes"),
        ("--seeds=1", "seeds=1 must be at least 2"),
        ("--train_points=33", "train_points=33 must be even"),
        ("--batch_size=4000", "batch_size=4000 is more than the 1000 examples"),
        ("--warmup=48", "warmup=48 leaves fewer than 3"),
        ("--low=0.9", "low=0.9 must be at most high=0.85"),
        ("--eps=8", "eps=8"),
        (f"--out={__file__}", "is a file"),
    ],
)
def test_bad_flags_are_one_line(flag, message):
    with pytest.raises(InputError, match=message) as error:
        toy.main([flag, "--dry_run"])
    assert "\n" not in str(error.value)


def test_defaults_are_those_of_the_paper():
    settings = Settings()
    assert (settings.lr, settings.momentum, settings.epochs) == (0.5, 0.9, 50)
    assert (settings.eps, settings.step_size, settings.steps) == (0.1, 0.05, 5)
    assert jnp.isclose(settings.circles.inner, 0.35)
