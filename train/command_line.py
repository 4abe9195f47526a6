"""What the programs `python -m train…` share: flags that answer a slip with the nearest, and errors of one line.

Exit status: 0 done, 2 something that the user can mend, 3 the loss stopped being finite, 130 interrupted,
141 the reader of the output went away.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence

from dl_core.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` where argparse would print its usage and leave."""

    def __init__(self, **options):
        """Options as of argparse.ArgumentParser; flags must be spelt out and help keeps its line breaks."""
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str):
        """Raises instead of leaving."""
        raise UsageError(f"{message}; see --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments as a namespace.

        Raises:
          UsageError: an unknown flag, with the nearest that exists, or whatever argparse finds wrong.
        """
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for argument in argv:  # before argparse complains of what the slip left out
            given = argument.split("=")[0]
            if given.startswith("--") and given not in [*flags, "--"]:
                nearest = difflib.get_close_matches(given, flags, n=1, cutoff=0.5)
                hint = f"did you mean {nearest[0]}?" if nearest else f"the flags are {', '.join(flags)}"
                raise UsageError(f"unknown flag {given}; {hint}")
        args, unknown = self.parse_known_args(argv)
        if unknown:
            raise UsageError(f"unknown argument {unknown[0]!r}; the flags are {', '.join(flags)}")
        return args


def report_errors(run: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Runs a program; what the user can mend is one line on standard error, without a traceback.

    Args:
      run: arguments -> exit status.
      argv: arguments without the program's name; those of the command line by default.

    Returns:
      The exit status.
    """
    try:
        status = run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return status
    except (
        BrokenPipeError
    ):  # whoever read the output, such as `head`, has seen enough; Python flushes once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as the shell counts a program ended by SIGPIPE
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        loop = sys.modules.get("train.loop")  # not imported here: it brings JAX
        if loop is None or not isinstance(error, loop.NonFiniteLoss):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 3
