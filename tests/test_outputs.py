"""Files that commands write: nothing that is there is lost, `-` is standard output or refused, names fit formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.house import spans, write_trace

SCENARIO = """
[scenario]
title = "Spans to free"

[plugins]
directories = ["mine"]

[[mm]]
trace = "a.jsonl"

[compare]
triggers = ["none"]
"""
COMPARE = ("compare", "s.toml", "--jobs", "1")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A scenario with all that it reads, a trace as Parquet's name has it, and pictures of before: what is there."""
    write_trace(tmp_path / "a.jsonl", spans(1, full=1, zero=1, empty=2))
    (tmp_path / "s.toml").write_text(SCENARIO)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "p.py").write_text("PTEREFD_API = 1\n")
    (tmp_path / "there").write_text("weeks of work")
    (tmp_path / "there.svg").write_text("weeks of work")
    (tmp_path / "link.csv").symlink_to("s.toml")
    return content(tmp_path)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((*COMPARE, "--csv", "there"), "there: exists already (--force replaces it)"),
        ((*COMPARE, "--plot", "there.svg"), "there.svg: exists already (--force replaces it)"),
        ((*COMPARE, "--force", "--csv", "link.csv"), "link.csv: is a file that is read: it would be lost"),
        ((*COMPARE, "--force", "--csv", "s.toml"), "s.toml: is a file that is read: it would be lost"),
        ((*COMPARE, "--force", "--csv", "a.jsonl"), "a.jsonl: is a file that is read: it would be lost"),
        ((*COMPARE, "--force", "--csv", "mine/p.py"), "mine/p.py: is a file that is read: it would be lost"),
        ((*COMPARE, "--csv", "a.csv", "--csv", "b.csv"), "--csv is given 2 times: one file can be written"),
        ((*COMPARE, "--plot", "a.svg", "--plot", "./a.svg"), "a.svg is to be written 2 times"),
        ((*COMPARE, "--csv", "-"), "- is standard output, where this cannot go"),
        ((*COMPARE, "--plot", "-"), "-: a picture is a file of .png, .svg, .html"),
        ((*COMPARE, "--csv", "b.toml"), "b.toml: what is written is CSV, not TOML: its name should end in .csv"),
        (("calibrate", "-o", "there"), "there: exists already (--force replaces it)"),
        (("calibrate", "-o", "-"), "- is standard output, where this cannot go"),
        (("reenact", "a.jsonl", "--reproducer", "there"), "there: exists already (--force replaces it)"),
        (("reenact", "a.jsonl", "--keep", "there"), "there: exists already (--force replaces it)"),
        (("reenact", "a.jsonl", "--keep", "new.jsonl"), "new.jsonl: what is written is Parquet, not JSON Lines"),
        (("record", "-o", "-", "--", "true"), "- is standard output, where this cannot go"),
        (
            ("record", "-o", "new.jsonl", "--", "true"),
            "new.jsonl: what is written is Parquet, not JSON Lines: its name should end in .parquet "
            "(`pterefd export` makes JSON Lines of it)",
        ),
        (
            ("record", "-o", "new.txt", "--", "true"),
            "new.txt: what is written is Parquet: its name should end in .parquet (`pterefd export` makes",
        ),
        (("import", "a.jsonl", "-o", "b.txt"), "b.txt: what is written is Parquet: its name should end in .parquet"),
        (("synth", "hungry", "-o", "b.txt"), "b.txt: what is written is Parquet: its name should end in .parquet"),
        (("import", "a.jsonl", "-o", "-"), "- is standard output, where this cannot go"),
        (("import", "a.jsonl", "-o", "b.jsonl"), "b.jsonl: what is written is Parquet, not JSON Lines"),
        (("import", "a.jsonl", "-o", "there", "-o", "b"), "--output is given 2 times"),
        (("export", "a.jsonl", "-o", "b.parquet"), "b.parquet: what is written is JSON Lines, not Parquet"),
        (("synth", "hungry", "-o", "/dev/null", "--force"), "/dev/null: is not a regular file"),
        (("synth", "hungry", "-o", "b.csv"), "b.csv: what is written is Parquet, not CSV: its name should"),
    ],
)
def test_what_would_be_lost_or_misnamed_is_refused(
    pterefd: Run, tmp_path: Path, files: dict[str, bytes], arguments: tuple[str, ...], reason: str
) -> None:
    done = pterefd(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert content(tmp_path) == files


def test_force_replaces_what_is_there(pterefd: Run, tmp_path: Path, files: dict[str, bytes]) -> None:
    done = pterefd(*COMPARE, "--force", "--csv", "there", "--plot", "there.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "there").read_text().startswith("profile,policy,")
    assert "<svg" in (tmp_path / "there.svg").read_text()
    assert {name: data for name, data in content(tmp_path).items() if not name.startswith("there")} == {
        name: data for name, data in files.items() if not name.startswith("there")
    }


@pytest.mark.parametrize("arguments", [("export", "a.jsonl"), ("synth", "hungry", "--set=size_mib=1")])
def test_a_dash_is_standard_output(
    pterefd: Run, tmp_path: Path, files: dict[str, bytes], arguments: tuple[str, ...]
) -> None:
    done = pterefd(*arguments, "-o", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[0])["op"] == "trace"
    assert done.stdout == pterefd(*arguments).stdout
    assert content(tmp_path) == files
    assert pterefd(*arguments, "-o", "./-").returncode == 0  # a file of that name, for who wants one
    assert "-" in content(tmp_path)
