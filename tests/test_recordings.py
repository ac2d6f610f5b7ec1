"""The bundled recordings: held by the model, with something to free, and a check that can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Run
from tests.recordings import published
from tests.recordings.__main__ import unchecked_exits
from tests.recordings.programs import BY_NAME

TRACES = sorted((ROOT / "etc" / "traces").glob("*.parquet"))
CHECK = ("replay", "--check", "--fields", "VmPTE")
SPAN = 1 << 21  # bytes that one PTE page maps


def described(pterefd: Run, path: Path) -> dict[str, Any]:
    result = pterefd("info", "--json", path)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_there_are_two_or_more() -> None:
    assert len(TRACES) >= 2


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_model_holds_at_every_checkpoint(pterefd: Run, path: Path) -> None:
    result = pterefd(*CHECK, "--tolerance", "VmPTE=16kB", "--json", path)
    assert result.returncode == 0, result.stdout
    (file,) = json.loads(result.stdout)["files"]
    assert file["checkpoints"] > 0
    assert (file["differ"], file["corrections"], file["widest_window_ns"], file["outside"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", ["rfc-2022", "v6.18"])
def test_there_is_something_to_free_at_its_end(pterefd: Run, path: Path, profile: str) -> None:
    result = pterefd("replay", "--profile", profile, "--json", path)
    (file,) = json.loads(result.stdout)["files"]
    assert max(mm["reclaimable_pt_bytes"] for mm in file["mms"]) > 0


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_it_is_small_and_names_nothing_of_the_machine_it_was_made_on(pterefd: Run, path: Path) -> None:
    assert path.stat().st_size < 3 << 20
    assert described(pterefd, path)["huge_pages_seen"] is False
    exported = pterefd("export", path).stdout
    for place in ('"/root/', '"/home/', '"/tmp/', '"/work'):
        assert place not in exported


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_script_makes_it(path: Path) -> None:
    assert f"\nrecord {path.stem} " in (ROOT / "etc" / "traces" / "make.sh").read_text().replace("    record", "record")


def test_one_event_less_is_a_difference(pterefd: Run, tmp_path: Path) -> None:
    """Without the largest discard its page tables stay, and the kernel's figures say that they went."""
    exported = pterefd("export", ROOT / "etc" / "traces" / "redis.parquet").stdout
    events = [json.loads(line) for line in exported.splitlines()]
    discards = [i for i, event in enumerate(events) if event.get("advice") == "dontneed" or event["op"] == "munmap"]
    largest = max(discards, key=lambda i: events[i]["len"])
    assert events[largest]["len"] >= 2 * SPAN - 4096  # so that it covers a whole span, wherever it begins
    whole, less = tmp_path / "whole.jsonl", tmp_path / "less.jsonl"
    for target, kept in ((whole, events), (less, events[:largest] + events[largest + 1 :])):
        target.write_text("".join(json.dumps(event) + "\n" for event in kept))
    assert pterefd(*CHECK, whole).returncode == 0
    result = pterefd(*CHECK, less)
    assert result.returncode == 1
    assert not result.stdout.endswith(" 0 differ\n")


def test_the_first_session_of_the_readme_is_what_happens(pterefd: Run) -> None:
    """The figures that README.md shows of the recording that `make run` replays."""
    result = pterefd("replay", "--json", ROOT / "etc" / "traces" / "redis.parquet")
    (mm,) = json.loads(result.stdout)["files"][0]["mms"]
    text = (ROOT / "README.md").read_text()
    freed = mm["reclaimable_pt_bytes"]
    for shown in (f"VmPTE:\t{mm['VmPTE']:8d} kB", f"\n{freed}\n", f"VmPTE:\t{mm['VmPTE'] - (freed >> 10):8d} kB"):
        assert shown in text


# ---- real programs (tests/recordings) -----------------------------------------------------------------

PROGRAMS = sorted((ROOT / "etc" / "traces" / "programs").glob("*.parquet"))
FIELDS = "VmPTE,RssAnon,RssShmem,VmSwap"


def test_every_program_has_its_recording() -> None:
    assert [path.stem for path in PROGRAMS] == sorted(BY_NAME)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_model_holds_at_every_checkpoint_of_a_program(pterefd: Run, path: Path) -> None:
    """Without a tolerance, without a correction; every process is looked at once more before it exits."""
    result = pterefd("replay", "--check", "--fields", FIELDS, "--json", path)
    assert result.returncode == 0, result.stdout
    (file,) = json.loads(result.stdout)["files"]
    assert file["checkpoints"] > 0
    assert (file["differ"], file["corrections"], file["outside"]) == (0, 0, 0)
    assert unchecked_exits(path) == 0


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_names_nothing_of_the_machine_it_was_recorded_on(pterefd: Run, path: Path) -> None:
    exported = pterefd("export", path).stdout
    for place in ('"/root/', '"/home/', '"/tmp/', '"/work'):
        assert place not in exported


def test_the_published_figures() -> None:
    """The mails say 102640 kB before their change and 248 kB after; what the profiles say of the same recordings."""
    found = published.table()
    assert found == json.loads(published.RESULTS.read_text())
    recorded, profiles = found["recorded"], found["profiles"]
    assert found["exact"] == dict.fromkeys(published.VARIANTS, True)
    for name, kernel in recorded.items():
        assert profiles["v6.18"][name][0] == kernel
    whole, halves = "published-2mib", "published-1mib"
    # beside the 25,600 page tables of 50 GiB and the 50 PMD pages above them, a few of the program's own
    for profile in ("v5.19", "v6.1", "v6.12", "rfc-2022"):
        assert 102640 <= profiles[profile][whole][0] <= 102660
    for profile in ("v6.14", "v6.18", "percpu-2022", "atomic-2021"):
        assert 236 <= profiles[profile][whole][0] <= 260
    # two calls of 1 MiB: PT_RECLAIM frees nothing, what counts references frees all the same
    assert profiles["v6.18"][halves][0] > 102600
    assert profiles["percpu-2022"][halves][0] < 260
    # and the series of August 2022 gives all of them back when asked
    assert profiles["rfc-2022"][halves][1] == 25600 * 4
