"""AutoAttack on a thousand classes: which are aimed at, and that memory is that of images and logits, not of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.attacks.ensemble import VERSIONS, ensemble
from piat_jax.evaluation import AutoAttack
from piat_jax.evaluation.blocks import Blocks, Rows, _attack

SIDE, ROWS = 32, 8
IMAGE = SIDE * SIDE * 3 * 4
"""Bytes of an image as floats."""


def network(classes, scale=1.0):
    """Linear on the mean of each of 16 parts of an image, so that its weights are few."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(48, classes)) * scale, jnp.float32)

    def forward(weights, x):
        parts = x.reshape(len(x), 4, SIDE // 4, 4, SIDE // 4, 3).mean((2, 4))
        return (parts.reshape(len(x), 48) - 0.5) @ weights

    return jax.tree_util.Partial(forward, weights)


def test_the_nine_highest_other_classes_are_aimed_at(monkeypatch):
    images = np.random.default_rng(1).uniform(0.2, 0.8, (ROWS, SIDE, SIDE, 3)).astype(np.float32)
    logits = np.asarray(network(1000)(images))
    labels = logits.argmax(axis=1)
    aimed = {}
    real = Blocks.attack

    def seen(blocks, attack, rows, key, eps, norm):
        name = attack.fn.__name__
        for index, target in zip(rows.indices.tolist(), [] if rows.targets is None else rows.targets.tolist()):
            aimed.setdefault((name, index // 9), []).append((index % 9, target))
        return real(blocks, attack, rows, key, eps, norm)

    monkeypatch.setattr(Blocks, "attack", seen)
    # A radius at which nothing falls, so that every run is done.
    result = AutoAttack(eps=1e-9, steps=1, queries=1, block_size=32).run(network(1000), images, labels)
    assert result.attacks == VERSIONS["standard"]
    assert result.accuracy == 1.0
    for name in ("apgd", "fab"):
        for example in range(ROWS):
            order = np.argsort(-logits[example], kind="stable")
            assert order[0] == labels[example]
            assert sorted(aimed[name, example]) == list(enumerate(order[1:10].tolist()))
    assert len(aimed) == 2 * ROWS


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"])
def test_memory_does_not_grow_by_an_image_for_each_class(name):
    (member,) = ensemble("plus", attacks=(name,), steps=2, queries=2)

    def needed(classes):
        blocks = Blocks(network(classes), ROWS, jax.devices()[:1], "highest")
        rows = Rows(
            jnp.full((ROWS, SIDE, SIDE, 3), 0.5),
            jnp.zeros(ROWS, jnp.int32),
            jnp.arange(ROWS, dtype=jnp.uint32),
            jnp.full(ROWS, True),
            jnp.ones(ROWS, jnp.int32) if member.targets else None,
        )
        key = jax.random.key(0, impl="threefry2x32")
        options = {"norm": "linf", "mesh": blocks.mesh}
        lowered = _attack.lower(member.attack, blocks.logits_fn, rows, key, jnp.float32(0.1), **options)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = needed(10), needed(1000)
    # The weights' copies, and some arrays of logits; an image for each row and class would be 98 MB.
    assert many - few < 20 * 4 * 1000 * (48 + ROWS) < ROWS * 1000 * IMAGE / 20
    assert few > ROWS * IMAGE  # the measure sees images
