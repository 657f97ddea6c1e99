"""Predicted classes and images of a few examples, and what a report makes of them."""

import json
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest

from piat_jax.analysis import charts, examples, load_run
from piat_jax.analysis.curves import COLORS
from piat_jax.analysis.grids import MOST_PIXELS, draw_grid
from piat_jax.analysis.predictions import Predictions, choose, make_predictions, path_of
from piat_jax.analysis.report import make_report
from piat_jax.core.checks import InputError

LABELS = np.array([0, 1, 2, 0, 1, 2])
CLEAN = np.array([0, 1, 2, 0, 1, 0])
ATTACKED = np.array([0, 2, 2, 1, 1, 1])
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)


def make(predicted=ATTACKED, shown=None, **options):
    return make_predictions(LABELS, predicted, seconds=1.25, shown=shown, **options)


def with_predictions(folder, attack, found, checkpoint="best", names=("cat", "dog", "eel")):
    """Give a run's folder predictions, and the accuracy that they have."""
    found.save(path_of(folder, checkpoint, attack))
    content = json.loads((folder / "evaluation.json").read_text()) | {"class_names": list(names)}
    content["checkpoints"][checkpoint]["accuracy"][attack] = float((found.predicted == found.labels).mean())
    content |= {"settings": {"eps": 0.1, "norm": "linf"}, "num_examples": len(found.labels)}
    (folder / "evaluation.json").write_text(json.dumps(content))
    return folder


def test_they_are_read_as_they_were_written(tmp_path):
    attacked = np.clip(IMAGES / 255 + 0.05, 0, 1).astype(np.float32)
    # Of the first four alone there are attacked images.
    np.testing.assert_array_equal(make(shown=(IMAGES, attacked[:4]), clean=CLEAN).indices, [1, 3, 0, 2])
    found = make(shown=(IMAGES, attacked), clean=CLEAN)
    # 1 and 3 were broken; the last one was wrong when clean.
    np.testing.assert_array_equal(found.indices, [1, 3, 0, 2, 4])
    np.testing.assert_array_equal(found.clean, IMAGES[found.indices])
    np.testing.assert_allclose(found.attacked, attacked[found.indices], atol=1e-3)
    path = path_of(tmp_path, "best", "pgd20")
    found.save(path)
    read = Predictions.load(path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    assert (read.seconds, read.labels.dtype) == (1.25, np.int16)


def test_few_and_small_images_are_kept():
    correct = np.arange(40) % 2 == 0
    assert len(choose(correct, None, (32, 32, 3))) == 12
    np.testing.assert_array_equal(choose(correct, correct, (32, 32, 3)), [0, 2, 4, 6])  # none was broken
    large = choose(correct, None, (224, 224, 3))
    assert len(large) * 224 * 224 * 3 * 2 <= 2 * 2**20
    assert len(choose(correct, None, (4000, 4000, 3))) == 2
    assert len(make(shown=(IMAGES, IMAGES[:0].astype(np.float32))).indices) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": ATTACKED[:3]}, "do not fit each other"),
        ({"indices": np.array([9])}, "do not fit each other"),
        ({"clean": IMAGES[:0]}, "do not fit each other"),
        ({"seconds": np.zeros(2)}, "cannot be read"),
        ({"labels": None}, "cannot be read"),
    ],
)
def test_a_file_of_something_else(tmp_path, change, message):
    path = tmp_path / "x.npz"
    attacked = (IMAGES / 255).astype(np.float32)
    arrays = {
        name: value for name, value in (vars(make(shown=(IMAGES, attacked))) | change).items() if value is not None
    }
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=f"x.npz .*{message}.*evaluate again"):
        Predictions.load(path)


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "x.npz"
    make().save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        Predictions.load(path)


def test_matrices_count_all_seeds(run_at):
    runs = [with_predictions(run_at(str(seed), seed=seed), "pgd20", make()) for seed in (0, 1)]
    page = make_report([load_run(run) for run in runs])
    (axes,) = page.figures["confusion_0_pgd20"].axes
    shown = {tuple(round(each) for each in text.get_position()): text.get_text() for text in axes.texts}
    # By column and row: of two cats each one is taken for a dog.
    assert shown == {(0, 0): "50", (1, 0): "50", (1, 1): "50", (2, 1): "50", (2, 2): "50", (1, 2): "50"}
    assert "PGD-20: 50.0 % of 12 predictions over 2 seeds are correct." in page.html
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "eel"]


def test_predictions_that_are_no_class_are_left_out(run_at):
    run = with_predictions(run_at("1"), "pgd20", make(np.array([0, -1, 2, 1, 1, 1])))
    page = make_report([load_run(run)])
    assert "60.0 % of 6 predictions are correct. 1 without finite logits are left out." in page.html


def test_of_many_classes_the_mistakes_are_told(run_at, monkeypatch):
    monkeypatch.setattr(charts, "MOST_CLASSES", 2)
    page = make_report([load_run(with_predictions(run_at("1"), "pgd20", make()))])
    assert "confusion_0_pgd20" not in page.figures
    assert '<td class="label">cat</td><td class="label">dog</td><td>1</td>' in page.html


def test_predictions_of_another_evaluation_are_not_shown(run_at):
    run = with_predictions(run_at("1"), "pgd20", make())
    assert examples.read_predictions(load_run(run), "best", "pgd20") is not None
    assert examples.read_predictions(load_run(run), "best", "cw20") is None
    assert examples.read_predictions(load_run(run), "final", "pgd20") is None
    make(CLEAN).save(path_of(run, "best", "pgd20"))
    assert examples.read_predictions(load_run(run), "best", "pgd20") is None
    assert make_report([load_run(run)]).figures.keys().isdisjoint({"confusion_0_pgd20"})


def test_images_stand_in_a_page_as_data(run_at, monkeypatch):
    attacked = np.clip(IMAGES / 255 + 0.1, 0, 1).astype(np.float32)
    found = make(shown=(IMAGES, attacked), clean=CLEAN)
    runs = [with_predictions(run_at(str(i), f"m{i}"), "pgd20", found) for i in range(3)]
    monkeypatch.setattr(examples, "MOST_GRIDS", 2)
    page = make_report([load_run(run) for run in runs])
    assert [name for name in page.figures if name.startswith("images")] == ["images_0_pgd20", "images_1_pgd20"]
    assert page.html.count("data:image/png;base64,") == 2 * 3 * 5
    assert "2 examples that were broken, then 3 that held" in page.html
    assert "Images of the first 2 settings" in page.html
    assert "1.25" in page.html  # seconds


def test_what_members_of_autoattack_broke(run_at):
    run = with_predictions(run_at("1"), "aa", make())
    folder = run / "robustness" / "best-aa"
    folder.mkdir(parents=True)
    found = {"broken": {"apgd-ce": 2, "<b>": 1}, "num_examples": 6, "clean_accuracy": 5 / 6, "robust_accuracy": 0.5}
    (folder / "result.json").write_text(json.dumps(found))
    page = make_report([load_run(run)]).html
    assert ">&lt;b&gt;</th>" in page
    assert "<td>best</td><td>6</td><td>1</td><td>2</td><td>1</td><td>50.00</td>" in page


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


def test_a_grid_shows_what_changed():
    clean = np.full((2, 3, 3, 1), 0.5)
    attacked = clean + np.array([0.1, -0.05])[:, None, None, None]
    figure = draw_grid(clean, attacked, eps=0.1, true=["a", "b$"], predicted=["a", "c"], predicted_attacked=["a", "c"])
    axes = np.array(figure.axes).reshape(3, 2)
    np.testing.assert_allclose(pixels(axes[2, 0]), np.ones((3, 3)), rtol=1e-5)
    np.testing.assert_allclose(pixels(axes[2, 1]), np.full((3, 3), 0.25), rtol=1e-5)
    np.testing.assert_allclose(pixels(axes[1, 0]), np.full((3, 3), 0.6), rtol=1e-5)
    assert [each.get_title() for each in axes[0]] == ["a", "b\\$\n(c)"]
    assert [each.get_title() for each in axes[1]] == ["a", "c"]
    colors = [matplotlib.colors.to_hex(each.title.get_color()).upper() for each in axes[1]]
    assert colors == ["#000000", COLORS[1]]
    assert [each.get_ylabel() for each in axes[:, 0]] == ["clean", "adversarial", "difference"]
    # Without a radius each difference reaches its end.
    loose = np.array(draw_grid(clean, attacked).axes).reshape(3, 2)
    np.testing.assert_allclose(pixels(loose[2, 1]), np.zeros((3, 3)), atol=1e-6)


def test_colour_and_large_images():
    large = np.zeros((1, 500, 400, 3), np.uint8)
    axes = draw_grid(large, large).axes
    assert max(pixels(axes[0]).shape) <= MOST_PIXELS
    assert pixels(axes[0]).shape[2] == 3
    np.testing.assert_array_equal(pixels(axes[2]), 0.5)


def test_what_is_no_grid():
    images = np.zeros((2, 3, 3, 1))
    for clean, attacked in ((images, images[:1]), (images[:0], images[:0]), (images[0], images[0])):
        with pytest.raises(InputError, match=r"give both as \[N, H, W, C\], N at least 1"):
            draw_grid(clean, attacked)
    with pytest.raises(InputError, match="true has 1 names for 2 images; give one for each"):
        draw_grid(images, images, true=["a"])


def test_names_of_files():
    assert path_of(Path("r"), "final:swa", "pgd20") == Path("r/predictions/final_swa-pgd20.npz")
