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
    summary="Friendly attack: stops once an example is misclassified.",
    paper="Zhang et al. (2020), arXiv:2002.11242",
)
class FAT(Wrapper):
    """FAT around any method: its attack stops at an example's `tau + 1`-th misclassified iterate.

    tau counts the `shares` of the run that have passed. An example that is never misclassified that often takes all
    the attack's steps, so a tau of `steps` or more is the attack itself.

    Train-mode forwards: those inside.

    Attributes:
      inner: the method; its attack must be `pgd`.
      shares: the shares of the run's epochs at which tau goes up by one. The paper's 120 epochs begin with tau = 0,
        and it is 1 after epoch 50 and 2 after epoch 90; TRADES, 85 epochs: after 30, 50 and 70; MART, 90 epochs:
        after 20, 40, 60 and 80.
      noise: omega, what each step adds times N(0, 1), in pixels: 0.001, and 0 with TRADES and MART, where nothing is
        drawn.

    Source: Zhang et al. (2020), arXiv:2002.11242, and its code. It gathers the examples in the order in which they
    stop; here they keep their places, which is the same set. Its TRADES and MART start is clipped to the box; here any
    start is projected onto ball and box, as `pgd` does under `patience`. Its MART forwards x'
    first, ours x. Its eps is 0.031 and its step 0.007.
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
        """The attack inside, stopped early."""
        patience = sum((reached(share, context).astype(jnp.int32) for share in self.shares), jnp.int32(0))
        context = context.with_attack(patience=patience, noise=self.noise)
        return super().perturb(variables, objective_state, batch, context)
