"""How every command ends: 0, or one clear line on stderr and a code that says which kind."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from piat_jax.cli.arguments import HelpRequested
from piat_jax.core.checks import InputError, SavedAndStopped

SAVED = 75
"""Exit code of a run that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, "try again"."""

CRASHED = 1
"""Exit code after an error that is nobody's input, as Python's own."""


def run(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's `main(arguments)` and turn what the user can mend into a line and an exit code.

    Returns:
      0; 2 after an InputError, one line for each of its lines; 75 after SIGTERM or Ctrl-C where all was saved; 130
      after Ctrl-C elsewhere. 1 after any other exception where several processes work together; alone it is raised.
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
    except BrokenPipeError:  # who read the output has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return CRASHED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        import jax

        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        return CRASHED
    return 0
