import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest

from piat_jax.analysis import load_run, robust_accuracy_figure
from piat_jax.analysis.curves import draw_norms
from piat_jax.analysis.runs import NormCurve
from piat_jax.core.checks import InputError


def line_named(axes, name):
    (line,) = [line for line in axes.lines if line.get_label() == name]
    return line


def test_lines_are_means_over_seeds_in_percent(run_at, tmp_path):
    runs = [
        load_run(run_at("1", every=2, epochs=8, pgd=(0.40, 0.60, 0.50, 0.52))),
        load_run(run_at("2", seed=1, every=2, epochs=8, pgd=(0.44, 0.62, 0.40, 0.50))),
        load_run(run_at("3", "nmse+piat", every=4, epochs=8, pgd=(0.5, 0.7))),
    ]
    figure = robust_accuracy_figure(runs, tmp_path / "a.png")
    (axes,) = figure.axes
    line = line_named(axes, "PGD-AT")
    np.testing.assert_array_equal(line.get_xdata(), [2, 4, 6, 8])
    np.testing.assert_allclose(line.get_ydata(), [42, 61, 45, 51])
    other = line_named(axes, "PIAT+NMSE")
    np.testing.assert_array_equal(other.get_xdata(), [4, 8])
    np.testing.assert_allclose(other.get_ydata(), [50, 70])
    markers = [(m.get_xdata()[0], m.get_ydata()[0]) for m in axes.lines if len(m.get_xdata()) == 1]
    np.testing.assert_allclose(markers, [(4, 61), (8, 70)])
    # One band, of the method with two seeds, from lowest to highest.
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    at_six = corners[corners[:, 0] == 6, 1]
    np.testing.assert_allclose([at_six.min(), at_six.max()], [40, 50])
    assert [text.get_text() for text in axes.texts] == ["PGD-AT", "PIAT+NMSE"]
    assert line.get_color() != other.get_color()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("Epoch", "PGD-20 accuracy (%)", "")


def test_seeds_are_averaged_where_all_have_the_metric(run_at, tmp_path):
    runs = [load_run(run_at("1", pgd=(0.4, 0.6, 0.5))), load_run(run_at("2", seed=1, pgd=(0.2, 0.4)))]
    line = line_named(robust_accuracy_figure(runs, tmp_path / "a.png").axes[0], "PGD-AT")
    np.testing.assert_array_equal(line.get_xdata(), [1, 2])
    np.testing.assert_allclose(line.get_ydata(), [30, 50])


def test_the_training_panel_is_dashed_and_of_the_same_colour(run_at, tmp_path):
    figure = robust_accuracy_figure([load_run(run_at("1"))], tmp_path / "a.png", training=True)
    upper, lower = figure.axes
    (line,) = lower.lines
    np.testing.assert_allclose(line.get_ydata(), [10, 20, 30, 40])
    assert (line.get_linestyle(), line_named(upper, "PGD-AT").get_linestyle()) == ("--", "-")
    assert line.get_color() == line_named(upper, "PGD-AT").get_color()


def test_labels_do_not_overlap(run_at, tmp_path):
    methods = ["pgd_at", "alp", "trades", "nmse", "nmse+piat", "trades+piat"]
    ends = [0.5, 0.501, 0.502, 0.503, 0.504, 0.4]
    runs = [load_run(run_at(str(i), m, pgd=(0.3, end))) for i, (m, end) in enumerate(zip(methods, ends))]
    figure = robust_accuracy_figure(runs, tmp_path / "a.png")
    figure.draw_without_rendering()  # saving has left text measured at the file's resolution
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))
    assert boxes[0].x0 > figure.axes[0].get_window_extent().x1


def test_accuracy_against_the_radius(run_at):
    """One seed reaches farther than the other; beyond its last radius a curve is level."""

    def run(name, radii, accuracy, **options):
        found = load_run(run_at(name, **options))
        curve = NormCurve("l2", None, 1.0, tuple(radii), tuple(accuracy))
        best = dataclasses.replace(found.checkpoints["best"], minimum_norm={"ddn50": curve})
        return dataclasses.replace(found, checkpoints={**found.checkpoints, "best": best})

    runs = [run("1", [0, 0.2, 0.4], [0.8, 0.4, 0.0]), run("2", [0, 0.1, 0.2], [0.6, 0.3, 0.1], seed=1)]
    runs.append(load_run(run_at("3", "trades")))
    figure = draw_norms(runs, "ddn50")
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [0, 0.2, 0.4])
    np.testing.assert_allclose(line.get_ydata(), [70, 25, 5])
    assert line.get_linestyle() == "-"
    assert axes.get_xlim() == (0, 0.4)
    far = [run("4", [0, 0.3, 0.5, 9], [0.8, 0.4, 0.04, 0.0], method="alp")]
    assert draw_norms(far, "ddn50").axes[0].get_xlim() == (0, 0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("L2 radius, best checkpoint", "DDN-50 accuracy (%)")
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    np.testing.assert_allclose(sorted({*corners[np.isclose(corners[:, 0], 0.2), 1]}), [10, 40])
    with pytest.raises(InputError, match="ddn50 was run on the final checkpoints in no norm"):
        draw_norms(runs, "ddn50", checkpoint="final")


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_file(run_at, tmp_path, suffix, start):
    path = tmp_path / f"a{suffix}"
    robust_accuracy_figure([load_run(run_at("1"))], path)
    content = path.read_bytes()
    assert content.startswith(start)
    if suffix == ".png":
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert (width, height) == (700, 480)  # 3.5 by 2.4 inches at 200 dpi
        assert len(content) > 5000


def test_what_cannot_be_drawn_is_named(run_at, tmp_path):
    runs = [load_run(run_at("1"))]
    with pytest.raises(InputError, match="no run has test_aa to draw; the metrics have test_clean, test_pgd20"):
        robust_accuracy_figure(runs, tmp_path / "a.png", key="test_aa")
    with pytest.raises(InputError, match=r"suffix='\.jpg' is unknown"):
        robust_accuracy_figure(runs, tmp_path / "a.jpg")
    assert not list(tmp_path.glob("a.*"))


def test_importing_the_package_imports_no_matplotlib():
    code = "import sys, piat_jax.analysis; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
