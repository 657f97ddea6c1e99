"""Randomized adversarial training via Taylor expansion (Jin et al., 2023)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from piat_jax import losses
from piat_jax.core.checks import InputError, check_range
from piat_jax.core.forward import forward_keys
from piat_jax.core.rng import flat_draw, named_key
from piat_jax.core.types import AdversarialBatch, Array, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Outputs, Terms, Wrapper, static, wrapper
from piat_jax.objectives.trades import TRADES
from piat_jax.objectives.wrapper_checks import layers

EIGHT = ("clean", "adversarial", *("adversarial", "clean") * 3)


@wrapper(
    "rat",
    summary="TRADES with soft labels from a Taylor expansion in randomised weights.",
    paper="Jin et al. (2023), arXiv:2303.10653",
)
class RAT(Wrapper):
    """RAT: minimise `mean_i [ (1 - share) CE(z_i, y_i) + share first_i + share/2 second_i + beta KL(p_i || p'_i) ]`.

    The new terms pull both predictions towards soft labels, which come from the difference of the last layer's gradient
    between clean and adversarial images. G and G' are the gradients of mean CE(z, y) and mean CE(z', y) with respect to
    the last kernel, each summed over its inputs: one number per class. With the rows of the table T (`soft_labels`)

        first_i  = [ KL(T(|G| - |G'|)_y || p') + KL(T(|G'| - |G|)_y || p) ] / 2
        second_i = [ KL(T(G'^2 - G^2)_y || p') + KL(T(G'^2 - G^2)_y || p) ] / 2

    The soft labels are constants. The inner method's attack runs on a copy of the weights with fresh Gaussian noise on
    its convolutions.

    Train-mode forwards: x, x', x', x, x', x, x', x, or those of the inner method with `shared_forwards`. Repeated
    forwards give the same logits and differ only in BatchNorm's running statistics. The forwards for G and G' do not
    update running statistics.

    Attributes:
      inner: TRADES, or wrappers around it: `RAT(TRADES(...))`; `RAT(AWP(TRADES(...)))`, whose v comes from the gradient
        of TRADES as in the code; or `AWP(RAT(TRADES(...)))`, whose v comes from RAT's. beta is TRADES'. Other methods
        do not work, because RAT takes a share of the term `CE(z, y)` from their loss.
      share: alpha in the code, 0.2.
      kappa: probability mass of a soft label on the other classes: 0.8 for 10 classes, 0.98 for 100.
      noise: standard deviation of the attacked copy's noise, 1e-4; 0 in the AWP variant.
      shared_forwards: whether the new terms use the inner method's forwards; true in the AWP variant.
      head: path of the last layer's kernel `[features, K]` in the parameters: ("linear", "dense", "kernel") in our
        ResNets and MLP, ("fc", "dense", "kernel") in our wide ResNets.

    Source: Jin et al. (2023), arXiv:2303.10653, and its code, which implements the approximation in the paper's
    Appendix D: the paper expands in all randomised weights, the code uses only the last layer. As in the code, both
    second-order labels come from `G'^2 - G^2`; the code also computes the negative, but does not use it. The code adds
    noise to parameters with "conv" in their names; here parameters with four axes get it. If all differences of a soft
    label are equal (0/0 in the code), kappa is spread evenly. The script for PreActResNet-18 multiplies the two
    second-order terms by 0.2 share in place of 0.25 share.
    """

    share: float = 0.2
    kappa: float = 0.8
    noise: float = 1e-4
    shared_forwards: bool = static(default=False)
    head: tuple[str, ...] = static(default=("linear", "dense", "kernel"))

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"awp": {"noise": 0.0, "shared_forwards": True}}
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}
    default_inner: ClassVar[str] = "trades"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("share", self.share, 0, 1)
        check_range("kappa", self.kappa, 0, 1)
        *wrappers, method = layers(self.inner)
        for inside in wrappers:
            if inside.rescales:
                name = type(inside).__name__
                raise InputError(
                    f"{name} scales the cross-entropy, of which RAT takes a share; put it outside: {name}(RAT(...))"
                )
        if not isinstance(method, TRADES):
            raise InputError(
                f"RAT changes terms of TRADES and cannot go around {type(method).__name__}; give RAT(TRADES(...))"
            )

    def init_own(self, variables: Variables, images: Array, *, key: Array) -> PyTree:
        """No state of its own; checks that `head` is in the weights."""
        kernels = {
            tuple(str(getattr(entry, "key", entry)) for entry in path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables.params)
            if leaf.ndim == 2
        }
        if tuple(self.head) not in kernels:
            known = ", ".join(f"{path} {shape}" for path, shape in kernels.items())
            raise InputError(
                f"head={self.head!r} is not a kernel of this model; give the path of its last one, of {known}"
            )
        return ()

    def check_part(self, examples: int) -> None:
        """Refuse parts: the soft labels come from gradients of the full batch."""
        raise InputError("microbatches: RAT's soft labels come from gradients of the full batch; leave it at 1")

    @property
    def forwards(self) -> tuple[str, ...]:
        """Two for the head's gradients, two for TRADES' divergence, four for the new terms; or the inner method's."""
        inside = super().forwards
        if self.shared_forwards:
            return inside
        return (*EIGHT, *(kind for kind in inside if kind not in EIGHT))

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Run the inner method's attack with noisy convolutions."""
        params = noisy_convolutions(variables.params, self.noise, named_key(context.key, "RAT"))
        return super().perturb(variables._replace(params=params), objective_state, batch, context)

    def terms(self, outputs: Outputs, objective_state: PyTree, context: Context) -> Terms:
        """The inner method's terms; soft labels replace a share of the clean cross-entropy."""
        terms = super().terms(outputs, objective_state, context)
        labels, (clean, adversarial) = outputs.batch.clean.labels, (outputs.logits[k] for k in ("clean", "adversarial"))
        images = self.inputs(outputs.batch)
        g, h = (
            self.head_gradient(
                outputs.variables,
                images[kind],
                labels,
                keys=forward_keys(self.model, context.key, outputs.batch.clean.indices, kind),
            )
            for kind in ("clean", "adversarial")
        )

        def pull(towards: Array, of: Array) -> Array:
            return losses.kl_from_target(soft_labels(towards, self.kappa)[labels], of) / 2

        first = pull(jnp.abs(g) - jnp.abs(h), adversarial) + pull(jnp.abs(h) - jnp.abs(g), clean)
        second = pull(h**2 - g**2, adversarial) + pull(h**2 - g**2, clean)
        moved = first + second / 2 - losses.cross_entropy(clean, outputs.target)
        metrics = {**terms.metrics, "first_order": jnp.mean(first), "second_order": jnp.mean(second)}
        return terms._replace(other=terms.other + self.share * moved, metrics=metrics)

    def head_gradient(self, variables: Variables, images: Array, labels: Array, *, keys: Array | None = None) -> Array:
        """The gradient of mean cross-entropy for the last kernel, summed over its inputs: `[K]`, a constant."""
        params, model_state = jax.lax.stop_gradient(variables)
        kernel = params
        for name in self.head:
            kernel = kernel[name]

        def mean_cross_entropy(kernel: Array) -> Array:
            weights = _put(params, self.head, kernel)
            logits, _ = self.model.apply(weights, model_state, images, train=True, key=keys)
            return jnp.mean(losses.cross_entropy(logits, labels))

        return jnp.sum(jax.grad(mean_cross_entropy)(kernel).astype(jnp.float32), axis=0)


def soft_labels(values: Array, kappa: Array | float) -> Array:
    """The table T of a vector over classes, `[K, K]`: row y is the soft label of class y.

    It puts `1 - kappa` on y and kappa on the other classes, in proportion to `values - min(values)`, or evenly if these
    are all 0.

    >>> soft_labels(jnp.array([3.0, 1.0, 2.0]), 0.5).round(3).tolist()[0]
    [0.5, 0.0, 0.5]
    """
    classes = values.shape[0]
    own = jnp.eye(classes, dtype=bool)
    others = jnp.where(own, 0.0, (values - jnp.min(values))[None])
    total = jnp.sum(others, axis=1, keepdims=True)
    even = jnp.where(own, 0.0, 1.0 / (classes - 1))
    return jnp.where(own, 1.0 - kappa, kappa * jnp.where(total > 0, others / jnp.where(total > 0, total, 1.0), even))


def noisy_convolutions(params: PyTree, noise: Array | float, key: Array) -> PyTree:
    """The weights, with `noise N(0, 1)` added to every convolution kernel (four axes).

    >>> noisy_convolutions({"bias": jnp.ones(2)}, 0.1, jax.random.key(0))["bias"].tolist()
    [1.0, 1.0]
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        w + noise * flat_draw(jax.random.normal, key, w.shape, w.dtype) if w.ndim == 4 else w
        for w, key in zip(leaves, keys)
    ]
    return jax.tree.unflatten(structure, noisy)


def _put(tree: PyTree, path: tuple[str, ...], leaf: Array) -> PyTree:
    return {**tree, path[0]: _put(tree[path[0]], path[1:], leaf)} if path else leaf
