"""The command `deepclust`: fit, predict, report, bench, backends.

Exit codes: 0; 1 for a fault of deepclust's (a bug, with its traceback, or a wrong result that bench
found), and where the reader of stdout went away; 2 for input that cannot be used, with one line on
stderr; 130 after Ctrl-C. With --json stdout holds one JSON object, errors too; all else goes to
stderr.
"""

from __future__ import annotations

import dis
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

import click

import deepclust
from deepclust.cli import _output, backends, bench, fit, predict, report

_EXAMPLES = """\b
Examples:
  deepclust fit digits --n-clusters 10 --out demo
  deepclust predict demo digits --out labels.npy
  deepclust report demo --tsne
  deepclust COMMAND --help

\b
Exit codes:
  0    done
  1    a bug, with its traceback; a wrong result in bench; a closed pipe
  2    input that cannot be used: one line on stderr says why
  130  interrupted (Ctrl-C)
"""


class _Group(click.Group):
    """Commands in the order in which one meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    epilog=_EXAMPLES,
)
@click.version_option(deepclust.__version__, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Deep clustering from the command line."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _file in (fit, predict, report, bench, backends):
    cli.add_command(_file.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0, 1 where bench found a wrong result or stdout was closed, 2 for input that
        cannot be used, 130 after Ctrl-C.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        deepclust ...
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    # Of the processes that torchrun starts, one speaks.
    as_json = "--json" in args and os.environ.get("RANK", "0") == "0"
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = cli.main(args, prog_name="deepclust", standalone_mode=False, obj=args)
            sys.stdout.flush()  # here, not when Python ends, is a closed pipe to be found
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (_output.Interrupted, click.Abort) as stop:
            if isinstance(stop, _output.Interrupted):
                click.echo(err=True)  # after the ^C of the terminal, as click does for its own
            command = getattr(stop, "resume", None)
            going_on = f"; to go on: {command}" if command else ""
            return _output.fail(f"interrupted{going_on}", 130, as_json, resume=command)
        except click.ClickException as error:
            return _output.fail(_message(error), 2, as_json)
        except Exception as error:
            if not (isinstance(error, OSError) or _is_check(error)):
                if as_json:
                    _output.fail(f"{type(error).__name__}: {error}", 1, as_json)
                raise
            message = str(error)
            if isinstance(error, OSError) and error.strerror and error.filename:
                message = f"{error.filename}: {error.strerror}"
            return _output.fail(message, 2, as_json)
    return code if isinstance(code, int) else 0


def _message(error: click.ClickException) -> str:
    """What the error says and, where it is click's own, which gives no advice, where to read on."""
    context = getattr(error, "ctx", None)
    if context is None or type(error) is click.UsageError:
        return error.format_message()
    return f"{error.format_message()} ({context.command_path} --help has examples)"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _output.warn(str(message))


def _is_check(error: Exception) -> bool:
    """Whether a `raise` of this package, or of scikit-learn's validation, made the error.

    Any other error is a bug, which needs its traceback.
    """
    if not isinstance(error, (ValueError, TypeError, RuntimeError, ImportError)):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals.get("__name__", "")
    if not module.startswith(("deepclust.", "sklearn.utils.")):
        return False
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
