"""The README's and the guides' code runs as printed, and their tables name what exists."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import piat_jax
from piat_jax import losses
from piat_jax.averaging import AVERAGES
from piat_jax.cli import errors, evaluate, train
from piat_jax.data import names
from piat_jax.models import MODELS
from piat_jax.objectives import METHODS, WRAPPERS

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
PYTHON = DOCS / "guides/python.md"
PAGES = (README, *sorted(DOCS.rglob("*.md")))


def block(first_line, page=README):
    """The indented code block of a page that starts with this line."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"    {first_line}"))
    code = []
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        code.append(line[4:])
    return "\n".join(code)


@pytest.mark.parametrize("page", [README, PYTHON])
def test_the_optax_example(page, capsys):
    exec(block("import jax, jax.numpy as jnp, optax", page), {})
    assert float(capsys.readouterr().out) == pytest.approx(0.2350679, rel=1e-4)


@pytest.mark.parametrize("page", [README, PYTHON])
def test_the_attack_example(page):
    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1])
    names = {
        "jax": jax,
        "images": images,
        "labels": labels,
        "logits_fn": lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=1),
    }
    exec(block("from piat_jax.attacks import bind, cw, pgd", page), names)
    expected = 0.5 + jnp.array([-8 / 255, 8 / 255])[:, None, None, None] * jnp.ones_like(images)
    assert jnp.allclose(names["adversarial"], expected, atol=1e-6)


def test_the_autoattack_example(capsys, tmp_path):
    def logits_fn(x):
        return jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)

    images = jnp.broadcast_to(jnp.array([0.4, 0.505, 0.6, 0.7])[:, None, None, None], (4, 3, 3, 1))
    names = {"images": images, "labels": jnp.zeros(4, int), "logits_fn": logits_fn}
    code = block("from piat_jax.evaluation import AutoAttack", DOCS / "guides/autoattack.md").replace(
        '"aa"', repr(str(tmp_path / "aa"))
    )
    exec(code.replace('version="standard"', 'version="standard", steps=5, queries=5'), names)
    assert names["result"].robust.tolist() == [False, False, True, True]
    assert "robust accuracy 50.00%" in capsys.readouterr().out


def test_the_pytorch_example(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    code = block("from piat_jax.evaluation import AutoAttack").replace('"aa"', repr(str(tmp_path / "aa")))
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    names = {"module": module, "images": np.full((4, 2, 2, 3), 0.5, np.float32), "labels": np.zeros(4, int)}
    exec(code.replace('norm="linf"', 'norm="linf", steps=5, queries=5'), names)
    assert names["result"].robust.shape == (4,)
    assert "robust accuracy" in capsys.readouterr().out


def test_the_train_step_of_your_own():
    names = {}
    exec(block("import flax.linen as nn, jax", PYTHON), names)
    best, params = names["best"], names["params"]
    # After 60 steps, three epochs of 20, training is at the interpolated weights.
    jax.tree.map(np.testing.assert_array_equal, best, params)
    logits = names["model"].apply(best, names["model_state"], names["images"], train=False)[0]
    assert float(losses.cross_entropy(logits, names["labels"]).mean()) < np.log(10)


def test_the_network_and_method_of_your_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(block("# mine.py", PYTHON))
    config = f"--config={tmp_path}/mine.py:mine+awp+piat"
    small = ["epochs=1", "batch_size=8", "attack.steps=1", "dataset.train_examples=16", "dataset.test_examples=8"]
    fields = [f"--config.{field}" for field in (*small, "evaluation.attacks=clean", "evaluation.select=clean")]
    workdir = f"--workdir={tmp_path / 'run'}"
    try:
        assert errors.run(train.main, [config, workdir, *fields, "--config.objective.weight=0.2"]) == 0
        told = capsys.readouterr().out
        assert f"evaluate with: piat-evaluate {workdir} {config}" in told
        assert errors.run(evaluate.main, [config, workdir, *fields, "--attacks=clean"]) == 0
        assert "note: --config differs" not in capsys.readouterr().err  # the weight, not given here, is the run's
        # In another process the names are not known before the file is read.
        METHODS.pop("mine")
        assert errors.run(evaluate.main, [workdir, "--attacks=clean", "--resume"]) == 2
        assert "If a file of yours defines it, import the file, or give config=" in capsys.readouterr().err
        again = ["--resume", "--config.epochs=2", "--config.objective.weight=0.2"]
        assert errors.run(train.main, [config, workdir, *fields, *again]) == 0
    finally:
        MODELS.pop("net"), METHODS.pop("mine")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["checkpoints"]["final"]["epoch"] == 1


def test_the_compiled_loop():
    names = {}
    exec(block("import jax, numpy as np", PYTHON), names)
    state = names["state"]
    assert (int(state.epoch), int(state.step)) == (3, 12)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.anchor.params)


def test_the_average_of_your_own():
    try:
        exec(block("from piat_jax.averaging import Average, average", PYTHON), {})
        experiment = piat_jax.experiment.load("embedded:piat+half", {"average.start": 0.5})
        assert experiment.build_average().weight == 0.5
        assert experiment.build_average().start == 0.5
    finally:
        AVERAGES.pop("half")


def test_the_front_door(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("import piat_jax", DOCS / "guides/training.md").replace(
        "epochs=3)", "epochs=1, overrides={'attack.steps': 1})"
    )
    assert "epochs=1" in code
    exec(code, {})
    # The README's is the beginning of it.
    assert block("import piat_jax", DOCS / "guides/training.md").startswith(block("import piat_jax").strip())
    assert "small_resnet (19,810 parameters), 28x28x1 -> 10 classes; embedded, nmse+piat" in capsys.readouterr().out
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_every_method_source_config_and_network_is_listed():
    listed = {
        README: (*METHODS, *WRAPPERS, *AVERAGES),
        DOCS / "guides/data.md": names(),
        DOCS / "guides/weights.md": [name for name in MODELS if name not in ("mlp", "small_resnet")],
        DOCS / "configs.md": [path.name for path in (ROOT / "configs").glob("[!_]*.py") if path.stem != "common"],
    }
    for page, names_ in listed.items():
        text = page.read_text()
        for name in names_:
            assert f"`{name}`" in text, (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    made = {"methods", "reference", "images", "changelog.md"}  # when the site is built
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http") and Path(target).parts[0] not in made:
            assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130
