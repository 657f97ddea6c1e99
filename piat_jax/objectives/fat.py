"""Friendly adversarial training (Zhang et al., 2020)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from piat_jax.core.checks import check_share
from piat_jax.core.types import AdversarialBatch, Batch, Context, PyTree, Variables
from piat_jax.objectives.base import Wrapper, reached, static, wrapper
from piat_jax.objectives.wrapper_checks import check_attack_takes, check_one_run


@wrapper(
    "fat",
    summary="Uses a friendly attack, which stops once an example is misclassified.",
    paper="Zhang et al. (2020), arXiv:2002.11242",
)
class FAT(Wrapper):
    """FAT around any method: its attack stops at an example's `tau + 1`-th misclassified iterate.

    tau is the number of `shares` of the run that have passed. An example with fewer misclassified iterates takes all
    the attack's steps, so with a tau of `steps` or more the attack is unchanged.

    Train-mode forwards: those of the inner method.

    Attributes:
      inner: the method; its attack must be `pgd`.
      shares: the shares of the run's epochs at which tau increases by one. The paper's 120 epochs begin with tau = 0;
        tau is 1 after epoch 50 and 2 after epoch 90. TRADES, 85 epochs: after 30, 50 and 70; MART, 90 epochs: after
        20, 40, 60 and 80.
      noise: omega, standard deviation of the Gaussian noise that each step adds, on pixels in [0, 1]: 0.001; 0 with
        TRADES and MART, where no noise is drawn.

    Source: Zhang et al. (2020), arXiv:2002.11242, and its code. The code reorders the examples by when they stop; here
    they keep their places, which gives the same set. The code clips its TRADES and MART start to the box; here any
    start is projected onto ball and box, as `pgd` does under `patience`. The code's MART forwards x' first, here x
    comes first. The code's eps is 0.031 and its step size 0.007.
    """

    shares: tuple[float, ...] = (50 / 120, 90 / 120)
    noise: float = static(default=0.001)

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "trades": {"shares": (30 / 85, 50 / 85, 70 / 85), "noise": 0.0},
        "mart": {"shares": (20 / 90, 40 / 90, 60 / 90, 80 / 90), "noise": 0.0},
    }
    inner_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"trades": {"clean_forwards": 1}}

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in self.shares:
            check_share("shares", share)
        check_attack_takes(self, "patience", "noise")
        check_one_run(self)

    def perturb(
        self, variables: Variables, objective_state: PyTree, batch: Batch, context: Context
    ) -> AdversarialBatch:
        """Run the inner method's attack with early stopping."""
        patience = sum((reached(share, context).astype(jnp.int32) for share in self.shares), jnp.int32(0))
        context = context.with_attack(patience=patience, noise=self.noise)
        return super().perturb(variables, objective_state, batch, context)
