"""What is made from the command line itself: `setup/manual.py man|bash|zsh|fish` writes it to standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from pterefd import __version__
from pterefd.cli.group import COMPLETE, cli

CODES = (
    ("0", "done"),
    ("1", "a check did not hold, or a difference was found"),
    ("2", "bad usage or bad input"),
    ("3", "something outside is missing: a program, a right, a mount, a free port"),
    ("4", "partly done; what was not is said"),
    ("70", "a fault of pterefd itself"),
)
FILES = (
    ("/etc/pterefd/pterefd.toml", "The configuration of pterefd.service; /etc/pterefd/NAME.toml of pterefd@NAME."),
    ("/etc/pterefd/mounts.toml", "Which mounts the mount helper makes, and for whom."),
    ("/run/pterefd/proc", "Where pterefd.service is mounted; pterefd@NAME at /run/pterefd/NAME."),
)


def manual() -> Iterator[str]:
    """pterefd(1), in man(7)."""
    context = click.Context(cli, info_name="pterefd", **cli.context_settings)
    yield f'.TH PTEREFD 1 "" "pterefd {__version__}" "User Commands"'
    yield f".SH NAME\npterefd \\- {_text(_lowered(cli.help or '')).rstrip('.')}"
    yield ".SH SYNOPSIS\n.B pterefd\n.I COMMAND\n[\\fIOPTIONS\\fR]..."
    yield ".SH COMMANDS"
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield from _command(command, name, context)
    yield ".SH EXIT STATUS"
    yield from (f".TP\n.B {code}\n{_text(about)}" for code, about in CODES)
    yield ".SH FILES"
    yield from (f".TP\n.I {_text(path)}\n{_text(about)}" for path, about in FILES)


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """A command with its options, and those below it."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_text(context.command_path)} {_text(usage)}"
    for paragraph in (command.help or "").partition("\f")[0].split("\n\n"):
        verbatim = paragraph.startswith("\b")
        lines = [line.strip() for line in paragraph.removeprefix("\b").strip().splitlines()]
        yield ".PP\n" + ("\n.br\n" if verbatim else "\n").join(map(_text, lines))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f".TP\n.B {_text(record[0])}\n{_text(record[1])}"
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _command(found, below, context)


def _text(text: str) -> str:
    """As roff takes it: a hyphen is a minus, and no line begins with a control character."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def completion(shell: str) -> str:
    """The script that a shell sources; it asks the program itself."""
    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "pterefd", COMPLETE)
    return script.source_template % script.source_vars()


def main() -> None:
    what = sys.argv[1]
    print("\n".join(manual()) if what == "man" else completion(what))


if __name__ == "__main__":
    main()
