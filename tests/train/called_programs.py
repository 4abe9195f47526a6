"""How the tests of the programs call them."""

import contextlib
import io


def call(program, *argv: object) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a program run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = program.main([str(argument) for argument in argv])
    return status, out.getvalue(), err.getvalue()
