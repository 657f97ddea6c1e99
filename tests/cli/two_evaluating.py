"""One of two processes that evaluate a run on encoded images, for test_encoded_evaluation.py: `folder port number how`.

Images are in a temporary file and are sent block by block. With how = "killed" the second one is killed at AutoAttack's
second block; with "resumed" they go on, and the first says how many blocks were attacked.
"""

import os
import signal
import sys

import jax

from piat_jax.cli import distributed, errors, evaluate
from piat_jax.core import scratch
from piat_jax.evaluation import sending
from piat_jax.evaluation.attack_state import AttackState
from piat_jax.evaluation.blocks import Blocks

EVALUATE = ["--attacks=clean,pgd2,square4", "--checkpoint=final", "--config.evaluation.batch_size=16"]


def counted(place, name, *, kill_at=0):
    """The calls of `place.name`; killed at the one of that number."""
    real, calls = getattr(place, name), []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(place, name, call)
    return calls


def main(folder, port, number, how):
    jax.config.update("jax_num_cpu_devices", 1)
    scratch.IN_MEMORY_BYTES = sending.ON_DEVICE_BYTES = 0
    join = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
    if how == "killed" and number == "1":
        counted(AttackState, "apply", kill_at=2)
    attacked = counted(Blocks, "attack")
    code = errors.run(evaluate.main, [*EVALUATE, *join, f"--workdir={folder}", "--resume"])
    if number == "0":
        print(f"attacked {len(attacked)}", file=sys.stderr, flush=True)
    distributed.leave(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
