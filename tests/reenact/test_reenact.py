"""Traces done again on the running kernel: hand-written ones by rule, recordings, and programs of the oracle's."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pterefd.errors import Missing
from pterefd.reenact.build import build_agent
from pterefd.reenact.kernel import ThisKernel
from pterefd.reenact.reenact import Result, reenact
from pterefd.reenact.reproducer import LIMITS, reproduce
from pterefd.session.check import CheckOptions, check_trace
from tests.conftest import ROOT, Run
from tests.kernel.execute import Execution, Machine
from tests.kernel.generate import generate

pytestmark = pytest.mark.kernel

Row = dict[str, Any]
SPAN = 1 << 21
PLACE = 2 << 39  # a PGD slot of its own, so that its tables are the trace's alone
ANON = {"op": "mmap", "pid": 1, "addr": PLACE, "len": 2 * SPAN, "prot": "rw-", "flags": "private,anonymous"}
EXEC = {"op": "exec", "pid": 1, "comm": "hand"}


def touch(at: int, length: int = 4096, write: bool = True, pid: int = 1) -> Row:
    return {"op": "fault", "pid": pid, "addr": PLACE + at, "len": length, "write": write}


def advise(advice: str, at: int, length: int, pid: int = 1) -> Row:
    return {"op": "madvise", "pid": pid, "addr": PLACE + at, "len": length, "advice": advice}


def expect(pid: int = 1, **fields: int) -> Row:
    return {"op": "expect", "pid": pid, **fields}


# A PUD, a PMD and a PTE page for the first access, 4 kB each; what the rules say, in kB beyond the agent's own.
BY_RULE: dict[str, Sequence[Row]] = {
    "a page a span": [
        *(ANON, touch(0), expect(VmPTE=12, RssAnon=4), touch(SPAN), expect(VmPTE=16, RssAnon=8)),
        *({"op": "munmap", "pid": 1, "addr": PLACE, "len": 2 * SPAN}, expect(VmPTE=0, RssAnon=0, vmas=0)),
    ],
    "the zero page is no anonymous memory": [
        *(ANON, touch(0, SPAN, write=False), expect(VmPTE=12, RssAnon=0, zero_entries=512)),
        *(touch(4096), expect(VmPTE=12, RssAnon=4, zero_entries=511)),
    ],
    "a discard of part of a span leaves its table": [
        *(ANON, touch(0, SPAN), advise("dontneed", 0, SPAN // 2), expect(VmPTE=12, RssAnon=1024)),
        *(advise("dontneed", SPAN // 2, SPAN // 2), expect(VmPTE=12, RssAnon=0)),
    ],
    "a move takes the pages along and leaves the tables": [
        *(ANON, touch(0)),
        {"op": "mremap", "pid": 1, "addr": PLACE, "len": 4096, "new_addr": PLACE + (1 << 30), "new_len": 4096},
        expect(VmPTE=20, RssAnon=4),
    ],
    "a child has tables for what is anonymous": [
        *(ANON, touch(0), {"op": "fork", "pid": 1, "child": 2}, expect(2, VmPTE=12, RssAnon=4)),
        *(advise("dontneed", 0, 4096, pid=2), expect(2, VmPTE=12, RssAnon=0), expect(VmPTE=12, RssAnon=4)),
        {"op": "exit", "pid": 2},
    ],
    "shared memory": [
        *(ANON | {"flags": "shared,anonymous"}, touch(0, 8192), expect(VmPTE=12, RssAnon=0, RssShmem=8)),
        *(advise("dontneed", 0, SPAN // 2), expect(VmPTE=12, RssShmem=0)),
    ],
    "a guard is an entry and no memory": [
        *(ANON, advise("guard_install", 0, 8192), expect(VmPTE=12, RssAnon=0, guard_entries=2)),
    ],
    "a call that fails does what it does before": [
        *(ANON, touch(0), touch(SPAN)),
        advise("dontneed", 0, 3 * SPAN) | {"errno": "ENOMEM"},
        expect(RssAnon=0),
    ],
    "a file's pages around": [
        {**ANON, "len": SPAN, "prot": "r--", "flags": "private", "path": "/lib/some.so", "file_size": SPAN},
        touch(0, write=False),
        expect(VmPTE=12, RssAnon=0),
    ],
    "a snapshot": [
        *(ANON, {"op": "state", "pid": 1, "addr": PLACE, "len": 8192, "entry": "anon"}),
        {"op": "state", "pid": 1, "addr": PLACE + 8192, "len": 4096, "entry": "zero"},
        expect(VmPTE=12, RssAnon=8, zero_entries=1),
    ],
    "a heap": [
        {"op": "brk", "pid": 1, "start": PLACE, "addr": PLACE},
        *({"op": "brk", "pid": 1, "addr": PLACE + SPAN}, touch(0, 8192), expect(VmPTE=12, RssAnon=8)),
    ],
}
# 6.18 with PT_RECLAIM frees the PTE page of a span that is discarded whole, 6.1 keeps it.
DISCARD: list[Row] = [ANON, touch(0, SPAN), advise("cold", 0, 4096), advise("dontneed", 0, SPAN)]


@pytest.fixture(scope="module")
def kernel() -> ThisKernel:
    return ThisKernel(max(os.sched_getaffinity(0)))


@pytest.fixture
def enacted(kernel: ThisKernel, tmp_path: Path) -> Any:
    """Write a trace and re-enact it with a checkpoint after every event."""

    def run(rows: Sequence[Row], **options: Any) -> Result:
        path = tmp_path / "hand.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"every": 1, "limits": LIMITS, "options": CheckOptions(), **options}
        return reenact(path, kernel, **settings)

    return run


def differences(result: Result) -> list[str]:
    assert result.check.error is None
    assert result.check.checkpoints > 0
    return [str(difference) for difference in result.check.differences]


@pytest.mark.parametrize("name", BY_RULE)
def test_what_the_rules_say(enacted: Any, name: str) -> None:
    """Kernel, model and the numbers of the rules agree."""
    result = enacted([EXEC, *BY_RULE[name]])
    assert differences(result) == []
    assert result.done.unlike == []
    assert result.done.left_out == {}
    assert result.done.recorded
    assert result.done.as_recorded == result.done.recorded


def test_a_recording_on_the_command_line(pterefd: Run) -> None:
    path = ROOT / "etc" / "traces" / "redis.parquet"
    result = pterefd("reenact", path)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.endswith(" checkpoints, 0 differ")
    assert last.startswith(f"{path}: ")


def test_a_recording_with_children_and_threads(kernel: ThisKernel) -> None:
    """All of what its own kernel said, where this is that kernel."""
    result = reenact(ROOT / "etc" / "traces" / "python.parquet", kernel)
    assert differences(result) == []
    if result.trace.meta.kernel_release == kernel.release:
        # How many pages of a file one fault maps follows from the page cache's folios, which are of any size.
        exact = set(result.done.recorded) - {"RssFile", "present_entries"}
        assert exact >= {"VmPTE", "RssAnon", "RssShmem", "VmSwap", "zero_entries", "vmas"}
        for name in exact:
            assert (name, result.done.as_recorded[name]) == (name, result.done.recorded[name])


@pytest.mark.parametrize("family", ["anon", "vma", "mixed"])
def test_programs_of_the_oracle(enacted: Any, family: str) -> None:
    """Their traces, the oracle's agent's own pages included, at other places of other agents."""
    machine = Machine.this()
    rows = Execution(machine, generate(family, 7, 60, machine.heap_start)).run()
    assert differences(enacted(rows)) == []


def test_what_is_kept_can_be_checked(enacted: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept.parquet"
    result = enacted([EXEC, *DISCARD], keep=kept)
    again = check_trace(kept, options=CheckOptions(), limits=LIMITS)
    assert again.error is None
    assert (again.checkpoints, again.differ) == (result.check.checkpoints, 0)


def test_what_is_not_done_is_named(enacted: Any) -> None:
    result = enacted(
        [
            EXEC,
            {**ANON, "flags": "private,anonymous,hugetlb"},
            {**ANON, "addr": PLACE + 4 * SPAN},
            advise("hwpoison", 4 * SPAN, 4096),
            advise("dontneed", 4 * SPAN, 4096) | {"errno": "EINVAL"},
        ]
    )
    assert differences(result) == []
    assert sum(result.done.left_out.values()) == 2
    assert any("hugetlb" in kind for kind in result.done.left_out)
    assert any("hwpoison" in kind for kind in result.done.left_out)
    (unlike,) = result.done.unlike
    assert (unlike.op, unlike.traced, unlike.here) == ("madvise dontneed", "EINVAL", "")


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "in-a-child"])
def test_a_wrong_profile_is_found_and_shown(enacted: Any, kernel: ThisKernel, tmp_path: Path, forks: bool) -> None:
    """The program, compiled here once more, prints what the kernel does and what the model expects."""
    assert kernel.config["PT_RECLAIM"], "this test knows what a kernel with PT_RECLAIM does"
    rows = [EXEC, *DISCARD]
    if forks:
        child = [row | {"pid": 2} for row in DISCARD[2:]]
        rows = [EXEC, *DISCARD[:2], {"op": "fork", "pid": 1, "child": 2}, *child, {"op": "exit", "pid": 2}]
    result = enacted(rows, profile="v6.1", options=CheckOptions(frozenset({"VmPTE"})))
    assert any("VmPTE" in line for line in differences(result))
    source = tmp_path / "steps.c"
    said = reproduce(result, kernel, source)
    assert "it says: VmPTE +8 kB, expected under v6.1: +12 kB" in said
    assert "MADV_COLD" not in source.read_text()  # it is not needed
    program = tmp_path / "steps"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O1", "-o", program, source], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "VmPTE +8 kB, expected under v6.1: +12 kB\n")


def test_differences_are_exit_code_1(pterefd: Run, tmp_path: Path) -> None:
    path = tmp_path / "hand.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [EXEC, *DISCARD]))
    result = pterefd("reenact", "--profile", "v6.1", "--time", "--json", path)
    assert result.returncode == 1, result.stderr
    found = json.loads(result.stdout)
    assert found["differ"] > 0
    assert found["time"]["events"] == len(DISCARD)
    assert len(found["time"]["kernel_ns"]) == 5
    assert min(found["time"]["kernel_ns"]) > 512 * 50  # 512 faults: none is as fast as 50 ns
    assert found["time"]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "text", "says"),
    [
        ((), '{"op": "frob"}\n', "hand.jsonl:1: 'frob' is not a known op"),
        (("--profile", "v9"), "", "profile 'v9'"),
        (("--fields", "Rss"), "", "Rss"),
        (("--kernel", "/etc/passwd"), "", "/etc/passwd: not an x86 kernel image"),
    ],
)
def test_bad_input_is_one_line(pterefd: Run, tmp_path: Path, arguments: tuple[str, ...], text: str, says: str) -> None:
    (tmp_path / "hand.jsonl").write_text(text)
    result = pterefd("reenact", *arguments, "hand.jsonl")
    assert result.returncode == 2
    assert result.stdout == ""
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_a_compiler_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="install the package gcc"):
        build_agent()
