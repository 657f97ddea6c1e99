"""Start as one of several processes that work together, on one machine or many."""

import os
import signal
import sys
import threading
from typing import Any, NoReturn

from absl import flags

from piat_jax.cli import errors
from piat_jax.cli.errors import CRASHED, SAVED
from piat_jax.core.checks import InputError

SECONDS = 60
"""Seconds without a heartbeat after which a process counts as lost, or for which others wait for it at the end."""
SECONDS_AFTER_ERROR = 5


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags that say which process this is."""
    flags.DEFINE_boolean(
        "distributed",
        False,
        "Join the other processes of this job: Slurm, Open MPI (one process per GPU), Kubernetes, TPU pod.",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", None, "Without such a job: HOST:PORT of the first process.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "With --coordinator: number of processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "With --coordinator: number of this process, from 0.", flag_values=values)


def start(values: flags.FlagValues) -> None:
    """Join the other processes, if the flags say so; call this before JAX is used.

    Only the first process writes to stdout.

    Raises:
      InputError: flags do not fit together, JAX finds no job, or the other processes do not connect.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    coordinator, count, number = (values[name].value for name in ("coordinator", "num_processes", "process_id"))
    if coordinator:
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
            raise InputError(f"coordinator={coordinator!r} must be HOST:PORT of the first process, as in node1:1234")
        if count is None or number is None:
            raise InputError("--coordinator needs --num_processes and --process_id")
        if not 0 <= number < count:
            raise InputError(f"process_id={number} must be in [0, {count}), for num_processes={count}")
    elif count is not None or number is not None:
        raise InputError("--num_processes and --process_id need --coordinator; in a Slurm job give --distributed")
    elif not values["distributed"].value:
        return
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            # Within a Slurm job, detection would leave each process only one GPU.
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=SECONDS,
            shutdown_timeout_seconds=SECONDS,
        )
    except ValueError as error:
        raise InputError(
            f"--distributed finds no job to join ({error}); give --coordinator, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise InputError(f"the processes cannot connect: {str(error).partition(chr(10))[0]}") from error
    # JAX now catches SIGTERM. Restore the default: `StopSignals` handles it, and elsewhere it ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and after a failure the other processes too.

    They may be waiting for this one, so it must not wait for them. If they fail in the same way, they end by
    themselves within a few seconds.
    """
    jax: Any = sys.modules.get("jax")
    if code not in (0, SAVED) and jax and jax.distributed.is_initialized():
        if code != CRASHED:
            together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            together.start()
            together.join(SECONDS_AFTER_ERROR)
        errors.end(code)
    errors.leave(code)
