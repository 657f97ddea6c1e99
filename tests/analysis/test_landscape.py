import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.analysis.landscape import loss_landscape, random_directions
from piat_jax.attacks import bind, pgd
from piat_jax.core.checks import InputError
from piat_jax.core.forward import make_logits_fn
from piat_jax.models import create

MODEL = create("mlp", num_classes=3, hidden=(5,))
IMAGES = jax.random.uniform(jax.random.key(0), (4, 2, 2, 1))
LABELS = jnp.array([0, 1, 2, 0])
VARIABLES = MODEL.init(jax.random.key(1), IMAGES)
DIRECTIONS = random_directions(jax.random.key(2), VARIABLES.params)
COORDINATES = np.array([-1.0, 0.0, 0.5])


def landscape(**options):
    given = {"directions": DIRECTIONS, "coordinates": COORDINATES, "key": jax.random.key(3)}
    return loss_landscape(MODEL, VARIABLES, IMAGES, LABELS, **{**given, **options})


def by_hand(m1, m2, attack=None):
    params = jax.tree.map(lambda w, u, v: w + m1 * u + m2 * v, VARIABLES.params, *DIRECTIONS)
    logits_fn = make_logits_fn(MODEL, VARIABLES._replace(params=params))
    x = IMAGES if attack is None else attack(logits_fn, IMAGES, LABELS, key=jax.random.key(3))
    log_p = np.asarray(jax.nn.log_softmax(logits_fn(x)), np.float64)
    return -log_p[np.arange(4), LABELS].mean()


def test_directions_have_length_one_as_a_whole_and_differ():
    u, v = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in DIRECTIONS)
    np.testing.assert_allclose([np.linalg.norm(u), np.linalg.norm(v)], 1, rtol=1e-5)
    assert abs(u @ v) < 0.9
    # Global: no single tensor has length 1.
    assert all(np.linalg.norm(leaf) < 0.999 for leaf in jax.tree.leaves(DIRECTIONS.u))


@pytest.mark.parametrize("points_per_call", [4, 50])
def test_each_point_is_the_loss_there_whatever_the_blocks(points_per_call):
    attack = bind(pgd, eps=0.1, step_size=0.05, steps=2)
    found = landscape(attack=attack, points_per_call=points_per_call)
    assert found.shape == (3, 3)
    for i, j in ((0, 2), (1, 1), (2, 0)):
        np.testing.assert_allclose(found[i, j], by_hand(COORDINATES[i], COORDINATES[j], attack), rtol=1e-4)
    assert (found >= landscape() - 1e-6).all()


def test_refused():
    with pytest.raises(InputError, match="coordinates is empty"):
        landscape(coordinates=np.array([]))
    with pytest.raises(InputError, match="points_per_call=0"):
        landscape(points_per_call=0)
    with pytest.raises(InputError, match="not finite at 1 of 1 points"):
        landscape(coordinates=np.array([np.inf]))
