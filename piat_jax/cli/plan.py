"""Plan a run on a GPU or TPU that is not present: memory, kernels, collectives, and a lower bound of the time.

    piat-plan --config=cifar10_resnet18:nmse+piat --target=h100 --config.model.dtype=bfloat16
    piat-plan --config=cifar10_wrn32_10 --target=v5e:4x4 --what=train,evaluate,autoattack --price=1.2
    piat-plan --config=cifar10_resnet18 --target=a100 --batches=64,256,1024

XLA compiles the run's real programs for the target. This takes minutes and needs no GPU, TPU, data or weights, but the
compiler's packages (pip install 'piat_jax[plan-gpu]' or 'piat_jax[plan-tpu]'). Targets: a100, a100-40, h100, h200,
b200; v5e, v5p, v6e, also with a topology such as v5e:8x8. The times are lower bounds, not predictions.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, check_at_least, check_choice, check_count, check_range
from piat_jax.core.files import expanded, unwritable, write_json


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    overrides, rest = arguments.split_overrides(argv)
    values = arguments.new_flags()
    flags.DEFINE_string("config", None, "Config and method.", flag_values=values)
    flags.DEFINE_string("target", None, "The device, for a TPU also its topology.", flag_values=values)
    flags.DEFINE_integer("devices", 0, "Number of devices; 0 = one, or all of the topology.", flag_values=values)
    flags.DEFINE_list("what", ["train"], "From train, evaluate, autoattack.", flag_values=values)
    flags.DEFINE_list("batches", [], "Further batch sizes for which training is compiled.", flag_values=values)
    flags.DEFINE_boolean("largest", False, "Find the largest batch that fits, by compilation.", flag_values=values)
    flags.DEFINE_float("price", 0.0, "Dollars per device and hour; 0 shows no cost.", flag_values=values)
    flags.DEFINE_float("robust", 0.5, "Assumed robust accuracy under AutoAttack, in [0, 1].", flag_values=values)
    flags.DEFINE_integer("kernels", 0, "Number of kernel types to list in each part.", flag_values=values)
    flags.DEFINE_string("json", "", "File to write the numbers to.", flag_values=values)
    flags.DEFINE_string("hlo", "", "Folder to write the compiled programs to.", flag_values=values)
    arguments.parse(values, rest, __doc__)
    # The command needs no device and must not occupy present ones. JAX and XLA read these variables when they start.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for flag in ("config", "target"):
        if not values[flag].value:
            raise InputError(f"--{flag} is missing; see --help")
    if not values.what:
        raise InputError("--what is empty; give at least one of train, evaluate, autoattack")
    for name in values.what:
        check_choice("what", name, ("train", "evaluate", "autoattack"))
    for name in ("devices", "kernels"):
        check_count(name, values[name].value, 0)
    for text in values.batches:
        if not text.isdecimal() or not int(text):
            raise InputError(f"batches={text!r} must be whole numbers from 1 on, such as 64,128")
    check_at_least("price", values.price, 0)
    check_range("robust", values.robust, 0, 1)

    from piat_jax.experiment import config
    from piat_jax.plan.planning import plan
    from piat_jax.plan.report import to_json, to_text
    from piat_jax.plan.targets import devices_of, find_target

    target, grid = find_target(values.target, values.devices)
    experiment = config.load(values.config, overrides)
    devices = devices_of(target, grid, values.devices)
    hlo, numbers = (expanded(text) if text else None for text in (values.hlo, values.json))
    for folder in filter(None, (hlo, numbers and numbers.parent)):  # fails before minutes of compilation
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
    made = plan(
        experiment,
        target,
        devices,
        what=values.what,
        batches=[int(text) for text in values.batches],
        largest=values.largest,
        robust=values.robust,
        hlo=hlo,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(to_text(made, price=values.price, kinds=values.kernels))
    if numbers:
        write_json(numbers, to_json(made, price=values.price))


def entry() -> None:
    """The console entry point."""
    errors.leave(errors.run(main))


if __name__ == "__main__":
    entry()
