"""Exit of every command: 0, or a clear line on stderr and an exit code for the type of error."""

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from piat_jax.cli.arguments import HelpRequested
from piat_jax.core.checks import InputError, SavedAndStopped

SAVED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h, "try again"."""

CRASHED = 1
"""Exit code after an error that is not due to input, as in Python."""

INTERRUPTED = 130
"""Exit code after Ctrl-C if not everything was saved, as of a shell: 128 + SIGINT."""


def run(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's `main(arguments)`; errors that the user can fix become a line and an exit code.

    Returns:
      0; 2 after an InputError, which is printed; 75 after SIGTERM or Ctrl-C if everything was saved; 130 after another
      Ctrl-C. 1 after any other exception if several processes work together; in a single process it is raised.
    """
    try:
        try:
            main(sys.argv[1:] if arguments is None else arguments)
        except HelpRequested as help_text:
            print(help_text)
        sys.stdout.flush()
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except SavedAndStopped as stopped:
        print(stopped, file=sys.stderr)
        return SAVED
    except BrokenPipeError:  # the reader of the output has stopped
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return CRASHED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        import jax

        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        return CRASHED
    return 0


def leave(code: int) -> NoReturn:
    """End this process with what `run` returned.

    After Ctrl-C the device may still be computing. Python would free what it computes with, and XLA would crash, so
    the process does what is registered for its end, and ends without freeing anything.
    """
    if code == INTERRUPTED:
        atexit._run_exitfuncs()
        end(code)
    sys.exit(code)


def end(code: int) -> NoReturn:
    """End this process at once: what was printed is written, and nothing is waited for or freed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
