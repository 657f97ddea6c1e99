"""Starting as one of several processes that work together, on one machine or many."""

import os
import signal
import sys
import threading
from typing import Any, NoReturn

from absl import flags

from piat_jax.cli.errors import CRASHED, SAVED
from piat_jax.core.checks import InputError

SECONDS = 60
"""How long a process may be silent before the others give it up, or be the last to end."""
SECONDS_AFTER_ERROR = 5


def define_flags(values: flags.FlagValues) -> None:
    """The flags that say which process this is."""
    flags.DEFINE_boolean(
        "distributed",
        False,
        "Work together with the others of this job: Slurm, Open MPI (a process for each GPU), Kubernetes, TPU pod.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator", None, "Where there is no such job: the first process's HOST:PORT.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "With --coordinator: which this is, from 0.", flag_values=values)


def start(values: flags.FlagValues) -> None:
    """Join the other processes, if the flags say so; to be called before JAX is used.

    Only the first process speaks on stdout.

    Raises:
      InputError: flags that do not fit together, no job that JAX knows, or processes that do not come.
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
            # Within a Slurm job it would leave all GPUs but one.
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=SECONDS,
            shutdown_timeout_seconds=SECONDS,
        )
    except ValueError as error:
        raise InputError(
            f"--distributed finds no job to join ({error}); give --coordinator, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise InputError(f"the processes do not come together: {str(error).partition(chr(10))[0]}") from error
    # JAX keeps SIGTERM to itself from then on; what answers it here is `StopSignals`, and elsewhere it ends a process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and with a failure the others too.

    They may wait for this one, which must not wait for them on its way out. Where they fail alike, they do so by
    themselves within a few seconds.
    """
    jax: Any = sys.modules.get("jax")
    if code not in (0, SAVED) and jax and jax.distributed.is_initialized():
        if code != CRASHED:
            together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            together.start()
            together.join(SECONDS_AFTER_ERROR)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
