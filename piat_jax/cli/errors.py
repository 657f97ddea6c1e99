"""How every command ends: 0, or one clear line on stderr and exit code 2."""

import sys
from collections.abc import Callable, Sequence

from piat_jax.cli.arguments import HelpRequested
from piat_jax.core.checks import InputError


def run(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's `main(arguments)` and turn what the user can mend into a line and an exit code.

    Returns:
      0; 2 after an InputError, one line for each of its lines; 130 after Ctrl-C.
    """
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except HelpRequested as help_text:
        print(help_text)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
