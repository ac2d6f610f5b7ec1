"""The command line as users meet it: the installed script, its exit codes, one line for what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pterefd import __version__
from pterefd.cli.group import COMMANDS
from tests.conftest import Run

# A process that writes to memory and gives some of it back, in the words of the trace format.
SMALL_TRACE = """\
{"op": "trace", "format_version": 1, "arch": "x86_64", "page_size": 4096, "command": "small"}
{"op": "exec", "pid": 1, "comm": "small"}
{"op": "mmap", "pid": 1, "addr": 1073741824, "len": 4194304, "prot": "rw-", "flags": "private,anonymous"}
{"op": "fault", "pid": 1, "addr": 1073741824, "len": 4194304, "write": true}
{"op": "expect", "pid": 1, "VmPTE": 16, "RssAnon": 4096}
{"op": "madvise", "pid": 1, "addr": 1073741824, "len": 1048576, "advice": "dontneed"}
{"op": "madvise", "pid": 1, "addr": 1074790400, "len": 1048576, "advice": "dontneed"}
{"op": "expect", "pid": 1, "VmPTE": 16, "RssAnon": 2048, "reclaimable_pt_bytes": 4096}
{"op": "exit", "pid": 1}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    path.write_text(SMALL_TRACE)
    return path


def one_line(text: str) -> str:
    """The only line of text, which says `pterefd: ...`."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("pterefd: ")
    return lines[0]


# -- what it says of itself -------------------------------------------------------------


def test_version(pterefd: Run) -> None:
    result = pterefd("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"pterefd {__version__}\n", "")


def test_python_m_is_the_same_program(root: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "pterefd", "--version"], cwd=root, capture_output=True, text=True)
    assert result.stdout == f"pterefd {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(pterefd: Run, command: str) -> None:
    result = pterefd(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: pterefd {command}")
    assert result.stderr == ""


def test_every_command_is_in_the_documentation(root: Path) -> None:
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    assert [command for command in COMMANDS if f"pterefd {command}" not in text] == []


def test_every_option_is_in_the_documentation(root: Path) -> None:
    from pterefd.cli import cli

    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    context = cli.make_context("pterefd", ["info", "FILE"], resilient_parsing=True)
    missing = []
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        options = [
            max(parameter.opts, key=len) for parameter in command.params if parameter.param_type_name == "option"
        ]
        missing += [f"{name} {option}" for option in options if option not in text]
    assert missing == []


@pytest.mark.parametrize("command", ["record", "import", "export", "info", "doctor"])
def test_numba_is_not_loaded_where_nothing_is_replayed(small: Path, tmp_path: Path, root: Path, command: str) -> None:
    arguments = {
        "record": ["record", "--script"],
        "import": ["import", str(small), "-o", str(tmp_path / "out.parquet")],
        "export": ["export", str(small)],
        "info": ["info", str(small)],
        "doctor": ["doctor"],
    }[command]
    program = f"""
import sys
from pterefd.cli.group import run
code = run({arguments!r})
assert code in (0, 3), code
assert "numba" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# -- bad usage: exit code 2 and one line ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bogus"], "bogus"),
        (["--bogus"], "--bogus"),
        (["info"], "FILE"),
        (["replay"], "FILE"),
        (["import", "x.jsonl"], "--output"),
        (["record", "-o", "x.parquet"], "-p PID"),
        (["record", "-o", "x.parquet", "-p", "1", "--", "true"], "-p PID"),
        (["record", "--", "true"], "-o FILE"),
        (["record", "-o", "x.parquet", "--checkpoint-every", "soon", "--", "true"], "'soon'"),
        (["record", "-o", "x.parquet", "-p", "abc"], "'abc' is no pid"),
        (["record", "-o", "x.parquet", "-p", "0"], "'0' is no pid"),
        (["scan", "abc"], "'abc' is no pid"),
        (["compare", "x.toml", "--format", "mail", "--json"], "--json is a form of its own: leave --format out"),
        (["plugins", "check", "."], ".: is a directory: name a plugin file in it"),
        (["record", "-o", "x.parquet", "--thp", "sometimes", "--", "true"], "sometimes"),
        (["replay", "x.parquet", "--fields", "VmPTE"], "--check"),
        (["replay", "x.parquet", "--check", "--tolerance", "VmPTE"], "VmPTE"),
        (
            ["replay", "x.parquet", "--check", "--tolerance", "VmPTE=much"],
            "--tolerance 'VmPTE=much': 'much' is not a size",
        ),
        (["run", "--speed", "0"], "'0'"),
        (["run", "--metrics-address", "9105"], "HOST:PORT"),
    ],
)
def test_bad_usage(pterefd: Run, tmp_path: Path, arguments: list[str], reason: str) -> None:
    result = pterefd(*arguments)
    assert result.returncode == 2
    assert reason in one_line(result.stderr)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help_and_is_bad_usage(pterefd: Run) -> None:
    result = pterefd()
    assert result.returncode == 2
    assert "Commands:" in result.stderr


# -- bad input ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "replay", "export", "import"])
def test_a_missing_file_is_named(pterefd: Run, tmp_path: Path, command: str) -> None:
    output = ["-o", "out.parquet"] if command == "import" else []
    result = pterefd(command, "nothing.parquet", *output)
    assert result.returncode == 2
    assert "nothing.parquet" in one_line(result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "replay", "export", "import"])
def test_a_directory_is_no_trace(pterefd: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    output = ["-o", "out.parquet"] if command == "import" else []
    result = pterefd(command, "folder", *output)
    assert result.returncode == 2
    assert "folder" in one_line(result.stderr)


@pytest.mark.parametrize("command", ["info", "replay", "export"])
def test_a_truncated_trace_is_named(pterefd: Run, small: Path, tmp_path: Path, command: str) -> None:
    assert pterefd("import", small, "-o", "whole.parquet").returncode == 0
    whole = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    result = pterefd(command, "half.parquet")
    assert result.returncode == 2
    assert "half.parquet" in one_line(result.stderr)


def test_an_existing_file_is_kept_without_force(pterefd: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("precious")
    result = pterefd("import", small, "-o", "out.parquet")
    assert result.returncode == 2
    assert "--force" in one_line(result.stderr)
    assert (tmp_path / "out.parquet").read_text() == "precious"
    assert pterefd("import", small, "-o", "out.parquet", "--force").returncode == 0


def test_run_with_a_missing_configuration(pterefd: Run) -> None:
    result = pterefd("run", "-c", "nothing.toml")
    assert result.returncode == 2
    assert "nothing.toml" in one_line(result.stderr)


# -- what the commands print ------------------------------------------------------------------


def test_import_and_export_are_inverse(pterefd: Run, small: Path, tmp_path: Path) -> None:
    assert pterefd("import", small, "-o", "small.parquet").returncode == 0
    exported = pterefd("export", "small.parquet")
    assert exported.returncode == 0
    assert [json.loads(line)["op"] for line in exported.stdout.splitlines()] == [
        json.loads(line)["op"] for line in SMALL_TRACE.splitlines()
    ]
    assert pterefd("export", "small.parquet", "-o", "again.jsonl").returncode == 0
    assert (tmp_path / "again.jsonl").read_text() == exported.stdout


@pytest.mark.parametrize("command", [["info"], ["replay"], ["replay", "--check"]])
def test_json_is_one_object(pterefd: Run, small: Path, command: list[str]) -> None:
    result = pterefd(*command, "--json", small)
    assert result.returncode == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)


def test_doctor_json_is_one_object(pterefd: Run) -> None:
    result = pterefd("doctor", "--json")
    assert isinstance(json.loads(result.stdout), dict)


def test_check_ends_with_its_count(pterefd: Run, small: Path) -> None:
    result = pterefd("replay", "--check", "--profile", "v6.18", small)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{small}: 2 checkpoints, 0 differ"


def test_check_finds_a_difference(pterefd: Run, small: Path) -> None:
    small.write_text(SMALL_TRACE.replace('"VmPTE": 16, "RssAnon": 2048', '"VmPTE": 36, "RssAnon": 2048'))
    result = pterefd("replay", "--check", small)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == f"{small}: 2 checkpoints, 1 differ"
    assert pterefd("replay", "--check", "--fields", "RssAnon", small).returncode == 0
    assert pterefd("replay", "--check", "--tolerance", "VmPTE=16kB", small).returncode == 1
    assert pterefd("replay", "--check", "--tolerance", "VmPTE=20kB", small).returncode == 0
    assert pterefd("replay", "--check", "--tolerance", "VmPTE=60%", small).returncode == 0


def test_check_says_where_only_large_folios_differ(pterefd: Run, small: Path) -> None:
    """The comparison is as strict as ever, and its last line the same; beside it stands what to do."""
    small.write_text(SMALL_TRACE.replace('"VmPTE": 16, "RssAnon": 4096', '"VmPTE": 16, "RssFile": 64'))
    result = pterefd("replay", "--check", small)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == f"{small}: 2 checkpoints, 1 differ"
    said = f"pterefd: {small}: only RssFile differs: large folios of files, see docs/exactness.md; "
    assert result.stderr == said + "--fields VmPTE,RssAnon,RssShmem,VmSwap leaves them out\n"
    advised = pterefd("replay", "--check", "--fields", "VmPTE,RssAnon,RssShmem,VmSwap", small)
    assert (advised.returncode, advised.stderr) == (0, "")


def test_every_file_is_tried(pterefd: Run, small: Path) -> None:
    result = pterefd("replay", "--check", "nothing.jsonl", small)
    assert result.returncode == 2
    assert "nothing.jsonl" in one_line(result.stderr)
    assert result.stdout.splitlines()[-1] == f"{small}: 2 checkpoints, 0 differ"


@pytest.mark.kernel
@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_record_ends_as_its_command_does(pterefd: Run, tmp_path: Path, command: str, code: int) -> None:
    result = pterefd("record", "-o", "out.parquet", "--", "/bin/sh", "-c", command)
    assert result.returncode == code, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("output", "reason"), [("out.parquet", "exists already (--force"), ("no/out.parquet", "cannot be written: No such")]
)
def test_an_output_that_cannot_be_is_bad_usage(pterefd: Run, tmp_path: Path, output: str, reason: str) -> None:
    (tmp_path / "out.parquet").write_text("precious")
    result = pterefd("record", "-o", output, "--", "touch", "ran")
    assert result.returncode == 2
    assert reason in one_line(result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert (tmp_path / "out.parquet").read_text() == "precious"


def test_the_recorders_own_failures_are_125(pterefd: Run, tmp_path: Path) -> None:
    result = pterefd("record", "-o", "out.parquet", "--", "true", env={**os.environ, "PATH": "/nowhere"})
    assert result.returncode == 125
    assert "perf" in one_line(result.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kernel
def test_an_output_that_is_there_only_afterwards_is_the_recorders_failure(pterefd: Run, tmp_path: Path) -> None:
    result = pterefd("record", "-o", "out.parquet", "--", "touch", "out.parquet")
    assert result.returncode == 125
    assert "exists already" in one_line(result.stderr)
    assert (tmp_path / "out.parquet").read_text() == ""


# -- pipes and signals ----------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(script: Path, small: Path) -> None:
    with subprocess.Popen([script, "export", small], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_a_full_disk_is_one_line(pterefd: Run) -> None:
    with Path("/dev/full").open("w") as full:
        result = pterefd("--version", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 3
    assert "No space left" in one_line(result.stderr)


def test_interrupt_ends_quietly(script: Path, small: Path) -> None:
    """Ctrl-C while a reader does not read on: 130, and no traceback."""
    head, body = SMALL_TRACE.splitlines(keepends=True)[:4], SMALL_TRACE.splitlines(keepends=True)[4:]
    small.write_text("".join(head + body[1:2] * 5000 + body[-1:]))
    with subprocess.Popen([script, "export", small], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"{"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""
