import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from piat_jax.models import LinenModel, ResNet, create
from tests.models.torch_reference import filled, images

# The output of torch_reference.py, torch 2.13.0 on CPU in float64.
NETS = {
    "resnet": (
        create("small_resnet", num_classes=3, width=4, stage_sizes=(2, 1)),
        [
            [0.07193039768379175, 0.6791599027711573, 0.8493397220021032],
            [0.08297665368785154, 0.6148612228573934, 0.7571259382508939],
        ],
    ),
    "preact_resnet": (
        LinenModel(ResNet(num_classes=3, width=4, stage_sizes=(2, 1), pre_activation=True)),
        [
            [0.5301362356565658, 0.48838067761215914, 0.09916813973100133],
            [0.6079870212372109, 0.5386043534490959, 0.15262958928385287],
        ],
    ),
    "wide_resnet": (
        create("wide_resnet", num_classes=3, blocks_per_group=2, widen_factor=1),
        [
            [-0.2199852704942847, 0.4498757489166446, 0.8165721011502808],
            [-0.3078787433938373, 0.3632566170225915, 0.8230319145222359],
        ],
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_logits_equal_pytorch(name):
    model, expected = NETS[name]
    x = jnp.asarray(images(), jnp.float32)
    params, state = filled(model, x)
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(params, state, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
