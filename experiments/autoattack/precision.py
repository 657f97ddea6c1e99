"""Effect of fewer bits in AutoAttack's attacks: flags of a trained network under emulated TF32 and bfloat16.

    python -m experiments.autoattack.precision runs/x --examples=1000 --out=autoattack_precision

A CPU multiplies float32 exactly, so the operands of every convolution and dense layer, in forward and backward pass,
are rounded as a GPU's or TPU's units round theirs (to the nearest; sums stay in float32). The judge is float32
throughout. Writes result.json and table.md after each row.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import markdown
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError
from piat_jax.core.cores import use_one_device_a_core
from piat_jax.core.files import expanded
from piat_jax.core.forward import make_logits_fn
from piat_jax.core.types import Array, Model, Variables
from piat_jax.data import load
from piat_jax.evaluation import AutoAttack, Robustness
from piat_jax.evaluation.attack_state import AttackState
from piat_jax.experiment import Run
from piat_jax.experiment.evaluation import in_bfloat16
from piat_jax.experiment.provenance import describe_run
from piat_jax.experiment.run import ON_DISK

MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}
"""Bits of the mantissa; both have float32's eight of the exponent."""


class Row(NamedTuple):
    """One way to attack."""

    name: str
    seed: int
    network: Any  # what is attacked in place of the judge; None for the judge itself


def main(argv: Sequence[str]) -> None:
    """The command."""
    use_one_device_a_core()
    values = arguments.new_flags()
    flags.DEFINE_integer("examples", 1000, "The first n test examples.", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or final.", flag_values=values)
    flags.DEFINE_integer("block_size", 256, "Examples at once.", flag_values=values)
    flags.DEFINE_string("out", "", "Folder to write to; by default nothing is written.", flag_values=values)
    folders = arguments.parse(values, argv, __doc__, positional=True)
    if len(folders) != 1:
        raise InputError("give the folder of one run")
    run = Run(folders[0])
    experiment = run.experiment()
    data = load(experiment.dataset.name, data_dir=experiment.dataset.data_dir, test_examples=values.examples)
    images, labels = np.asarray(data.test.images), np.asarray(data.test.labels)
    net = experiment.build_model(data.num_classes, dtype="float32")
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
    variables = run.checkpoints.load_variables(ON_DISK[values.checkpoint], like)
    settings = {"eps": experiment.evaluation.eps, "norm": experiment.evaluation.norm, "block_size": values.block_size}
    rows = [
        Row("float32", 0, None),
        Row("TF32, emulated", 0, emulated(net, variables, MANTISSA["tensorfloat32"])),
        Row("float32", 1, None),
        Row("bfloat16 products, emulated", 0, emulated(net, variables, MANTISSA["bfloat16"])),
        Row("TF32, emulated", 1, emulated(net, variables, MANTISSA["tensorfloat32"])),
        Row("bfloat16 activations", 0, make_logits_fn(in_bfloat16(net), variables)),
    ]
    report: dict[str, Any] = {"run": describe_run(), "settings": settings, "examples": len(labels), "rows": []}
    first: Robustness | None = None
    for row in rows:
        began, repeated = time.perf_counter(), Repeated()
        attack = AutoAttack(**settings, seed=row.seed)
        with repeated:
            found = attack.run(make_logits_fn(net, variables), images, labels, attack_logits_fn=row.network)
        first = first or found
        report["rows"].append(
            {
                "attacked": row.name,
                "seed": row.seed,
                "clean": found.clean_accuracy,
                "robust": found.accuracy,
                "only_here_robust": int((found.robust & ~first.robust).sum()),
                "only_here_broken": int((~found.robust & first.robust).sum()),
                "refused": repeated.refused,
                "broken_again": repeated.broken,
                "runs": repeated.runs,
                "after": found.accuracy_after,
                "seconds": time.perf_counter() - began,
            }
        )
        print(f"{row.name}, seed {row.seed}\n{found}\n\n{to_markdown(report)}", flush=True)
        if values.out:
            out = expanded(values.out)
            out.mkdir(parents=True, exist_ok=True)
            (out / "result.json").write_text(json.dumps(report, indent=2) + "\n")
            (out / "table.md").write_text(to_markdown(report))


class Repeated:
    """Counts, while entered, the runs of attacks, those that the judge refused, and those broken when done again."""

    def __init__(self) -> None:
        self.runs = self.refused = self.broken = 0

    def __enter__(self) -> None:
        self.apply = AttackState.apply

        def counted(state: AttackState, record: Any) -> None:
            again = sum(state.refused[int(record.member)][record.tasks, record.examples])
            self.runs += len(record.tasks)
            self.refused += int(record.refused.sum())
            self.broken += int(record.fell.sum()) if again else 0
            self.apply(state, record)

        AttackState.apply = counted  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        AttackState.apply = self.apply  # type: ignore[method-assign]


def emulated(net: Model, variables: Variables, mantissa: int) -> Callable[[Array], Array]:
    """The network with operands of its products rounded to so many bits of the mantissa, a pytree of its weights."""
    return jax.tree_util.Partial(functools.partial(_forward, net, mantissa), variables)


def _forward(net: Model, mantissa: int, variables: Variables, images: Array) -> Array:
    def rounded(path: Any, weight: Array) -> Array:
        return jax.lax.reduce_precision(weight, 8, mantissa) if "kernel" in jax.tree_util.keystr(path) else weight

    def products(call: Any, args: Any, keywords: Any, context: Any) -> Any:
        if context.method_name != "__call__" or not isinstance(context.module, (nn.Conv, nn.Dense)):
            return call(*args, **keywords)
        (x,) = args
        return _round_back(call(_round(x, mantissa), **keywords), mantissa)

    params = jax.tree_util.tree_map_with_path(rounded, variables.params)
    with nn.intercept_methods(products):
        return net.apply(params, variables.model_state, images, train=False)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round(x: Array, mantissa: int) -> Array:
    """Rounded on the way forward."""
    return jax.lax.reduce_precision(x, 8, mantissa)


_round.defvjp(lambda x, mantissa: (_round(x, mantissa), None), lambda mantissa, _, gradient: (gradient,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _round_back(x: Array, mantissa: int) -> Array:
    """Rounded on the way back: a product's gradients are products with that of its result."""
    return x


_round_back.defvjp(
    lambda x, mantissa: (x, None), lambda mantissa, _, gradient: (jax.lax.reduce_precision(gradient, 8, mantissa),)
)


def to_markdown(report: dict[str, Any]) -> str:
    """The rows as a table."""
    heads = ("robust here only", "broken here only", "runs", "refused", "broken again")
    fields = ("only_here_robust", "only_here_broken", "runs", "refused", "broken_again")
    rows = [
        [row["attacked"], row["seed"], f"{100 * row['robust']:.2f}%", *(row[field] for field in fields)]
        for row in report["rows"]
    ]
    return markdown.table(("attacked in", "seed", "robust", *heads), rows) + "\n"


if __name__ == "__main__":
    errors.leave(errors.run(main))
