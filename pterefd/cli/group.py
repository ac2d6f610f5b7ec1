"""The group of commands, and what becomes of every error that escapes one."""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from pterefd import __version__
from pterefd.errors import COMPILER, EXIT_BAD_INPUT, EXIT_FAULT, EXIT_MISSING, PterefdError

COMPLETE = "_PTEREFD_COMPLETE"  # set by the completion of a shell: bash_complete, zsh_source, ...
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE

# Name of the command and where its function lies, in the order of --help.
COMMANDS = (
    "record",
    "import",
    "export",
    "info",
    "replay",
    "reenact",
    "synth",
    "compare",
    "calibrate",
    "run",
    "shell",
    "scan",
    "top",
    "free",
    "plugins",
    "doctor",
)


class Commands(click.Group):
    """Loads a command's module when the command is asked for: `--version` and `info` start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"pterefd.cli.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pterefd", message="%(prog)s %(version)s")
def cli() -> None:
    """Page-table memory that is empty or zero: record it, replay it, see it and give it back."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; the entry point of the `pterefd` script."""
    if asked := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "pterefd", COMPLETE, asked))
    code = run(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _nobody_reads()
    except OSError as error:  # a full disk, told about only now
        code = code or _say(f"cannot write: {error.strerror}", EXIT_MISSING)
        _nobody_reads()
    if any(thread.name == COMPILER for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Prints at most one line for whatever goes wrong, but for faults of pterefd."""
    try:
        # Not cli.main(), which would make its own exit codes out of interrupts and closed pipes.
        with cli.make_context("pterefd", list(sys.argv[1:] if args is None else args)) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return EXIT_BAD_INPUT
    except click.ClickException as error:
        return _say(f"{error.format_message().rstrip('.')}{_hint(error)}", EXIT_BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except PterefdError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        # Every file that a user names has its own message where it is opened; what is left here is a full disk.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _fault(error)
        return _say(f"cannot write: {error.strerror}", EXIT_MISSING)
    except Exception as error:
        return _fault(error)


def _fault(error: Exception) -> int:
    traceback.print_exception(error)
    return _say(f"a fault of pterefd itself: {type(error).__name__}: {error}", EXIT_FAULT)


def _say(text: str, code: int) -> int:
    line = " ".join(text.split())
    print(f"pterefd: {line}", file=sys.stderr)
    return code


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see '{context.command_path} --help')" if context is not None else ""


def _nobody_reads() -> int:
    """Point standard output elsewhere, or the interpreter would complain once more when it flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE
