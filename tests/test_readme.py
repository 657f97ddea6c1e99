"""The README's code runs as printed, and its tables name what exists."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from piat_jax.cli.methods import AVERAGES
from piat_jax.data import names
from piat_jax.objectives import METHODS, WRAPPERS

README = Path(__file__).parent.parent / "README.md"


def block(first_line):
    """The indented code block that starts with this line."""
    lines = README.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"    {first_line}"))
    code = []
    for line in lines[start:]:
        if line and not line.startswith("    "):
            break
        code.append(line[4:])
    return "\n".join(code)


def test_the_optax_example(capsys):
    exec(block("import jax, jax.numpy as jnp, optax"), {})
    assert float(capsys.readouterr().out) == pytest.approx(0.2350679, rel=1e-4)


def test_the_attack_example():
    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.array([0, 1])
    names = {
        "jax": jax,
        "images": images,
        "labels": labels,
        "logits_fn": lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=1),
    }
    exec(block("from piat_jax.attacks import bind, cw, pgd"), names)
    expected = 0.5 + jnp.array([-8 / 255, 8 / 255])[:, None, None, None] * jnp.ones_like(images)
    assert jnp.allclose(names["adversarial"], expected, atol=1e-6)


def test_the_autoattack_example(capsys, tmp_path):
    def logits_fn(x):
        return jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)

    images = jnp.broadcast_to(jnp.array([0.4, 0.505, 0.6, 0.7])[:, None, None, None], (4, 3, 3, 1))
    names = {"images": images, "labels": jnp.zeros(4, int), "logits_fn": logits_fn}
    code = block("from piat_jax.evaluation import AutoAttack").replace('"aa"', repr(str(tmp_path / "aa")))
    exec(code.replace('version="standard"', 'version="standard", steps=5, queries=5'), names)
    assert names["result"].robust.tolist() == [False, False, True, True]
    assert "robust accuracy 50.00%" in capsys.readouterr().out


def test_every_method_source_and_config_is_listed():
    text = README.read_text()
    for name in (*METHODS, *WRAPPERS, *AVERAGES, *names()):
        assert f"`{name}`" in text, name
    for path in (README.parent / "configs").glob("*.py"):
        if path.stem not in ("__init__", "common"):
            assert f"`{path.name}`" in text, path.name


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert target.startswith("http") or (README.parent / target).exists(), target
