"""The workloads of plugins/: figures that follow from their definitions, and the running kernel's agreement."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pterefd import paths
from pterefd.errors import BadInput
from pterefd.hookspecs import Kinds
from pterefd.host.host import Host
from pterefd.mm.events import OP_EXEC, OP_EXIT, OP_FAULT, OP_FORK, OP_MADVISE, Batch
from pterefd.mm.profile import named
from pterefd.reclaim.plugins import Plugins
from pterefd.reenact.kernel import ThisKernel
from pterefd.reenact.reenact import reenact
from pterefd.reenact.reproducer import LIMITS
from pterefd.session.feed import Feed
from pterefd.session.report import Report
from pterefd.source.convert import write_trace
from pterefd.source.trace import open_trace
from pterefd.source.workload import WorkloadSource
from tests.conftest import ROOT, Run

PAGE, MIB, SPAN, GIB = 1 << 12, 1 << 20, 1 << 21, 1 << 30
PROFILES = ("rfc-2022", "v6.18")

# Of each workload an instance that runs in a moment, and the digest of its events with seed 1.
SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "balloon_kdump": ({"ram_mib": 24, "kept_mib": 4, "crashkernel_mib": 2, "hold_s": 0.1}, "d35178bfeff4b1da"),
    "balloon_migration": ({"ram_mib": 24, "kept_mib": 4, "hold_s": 0.1}, "8d6836bf7ed9b85c"),
    "bytedance": ({"scale": 0.00001, "discard_kib": 512}, "17f836e9e4fd1c0c"),
    "fork_server": ({"heap_mib": 8, "children": 12, "at_once": 3, "scratch_mib": 1}, "c6af1f3db0c1bc48"),
    "hungry": ({"size_mib": 16, "cycles": 2}, "1917d292cdf626fc"),
    "jemalloc": (
        {"arenas": 2, "peak_mib": 16, "dirty_decay_ms": 2000, "muzzy_decay_ms": 1000, "rest_ms": 5000},
        "9461d6f57a31194d",
    ),
    "page_pool": ({"queries": 4, "query_mib": 16, "cached_mib": 2}, "c39ecd221ee9bfe0"),
    "sparse_hash": ({"range_gib": 16, "keys": 2000, "misses": 1000}, "efd86f2111193a12"),
    "tcmalloc": ({"peak_mib": 24, "base_mib": 1, "cycles": 3, "release_mib": 16}, "1e22c3ea80ff1ab6"),
}


@pytest.fixture(scope="module")
def source() -> Callable[..., WorkloadSource]:
    """A workload by its name, with parameters and a seed."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    assert set(plugins.workloads) == set(SMALL), "every workload has its tests here"

    def make(name: str, seed: int = 0, **parameters: Any) -> WorkloadSource:
        return WorkloadSource(plugins.workloads[name], parameters, seed)

    return make


class Seen:
    """A host on which a workload ran, up to its last exit; strict, so that no access is outside its mappings."""

    def __init__(self, source: WorkloadSource, profile: str) -> None:
        self.host = Host(named(profile))
        self.host.strict = True
        report = Report(self.host)
        feed = Feed(source, self.host)
        batches = list(source.batches())
        for batch in batches:
            last = batch is batches[-1]
            feed.run(batch, 0, len(batch) - last)
            assert not last or batch.op[-1] == OP_EXIT
        self.ended = {row.pid: row for row in report.rows()[: -len(self.host.pids())]}
        self.counters = self.host.counters(1)

    @property
    def vm_pte(self) -> int:
        """VmPTE in kB."""
        return self.host.counters(1).pgtables_bytes >> 10

    def free(self) -> tuple[int, int]:
        """PTE pages that are given back: empty ones, zero ones."""
        empty, zero, _ = self.host.free_ptes(1, Kinds.BOTH, None)
        return empty // PAGE, zero // PAGE


def digest(source: WorkloadSource) -> str:
    """Of all columns of all events."""
    found = hashlib.sha256()
    for batch in source.batches():
        for name in ("t", "pid", "op", "addr", "len", "arg", "ext"):
            found.update(getattr(batch, name).astype("<i8").tobytes())
        found.update(repr(batch.side).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_alone_decides(source: Any, name: str) -> None:
    """The very events, on every machine; another change of a digest is a change of the workload."""
    parameters, known = SMALL[name]
    assert digest(source(name, seed=1, **parameters)) == known
    assert name == "hungry" or digest(source(name, seed=2, **parameters)) != known


@pytest.mark.kernel
@pytest.mark.parametrize("name", SMALL)
def test_the_running_kernel_agrees(source: Any, name: str, tmp_path: Path) -> None:
    """Written as a trace and done again as real system calls, the numbers are the model's at every checkpoint."""
    path = tmp_path / f"{name}.parquet"
    made = source(name, **SMALL[name][0])
    events = write_trace(made, path)
    result = reenact(path, ThisKernel(max(os.sched_getaffinity(0))), every=max(events // 40, 1), limits=LIMITS)
    assert result.check.error is None
    assert [str(difference) for difference in result.check.differences] == []
    assert (result.check.differ, result.done.unlike, dict(result.done.left_out)) == (0, [], {})
    assert result.check.checkpoints > 10


@pytest.mark.parametrize("name", SMALL)
def test_a_trace_of_it_is_the_same_events(source: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    made = source(name, **SMALL[name][0])
    assert write_trace(made, path) == made.events
    trace = open_trace(path)
    assert (trace.events, trace.meta.command) == (made.events, made.meta.command)
    assert digest(trace) == digest(made)  # type: ignore[arg-type]


# ---- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_page_pool_keeps_a_pte_page_for_all_that_was_ever_mapped(source: Any, profile: str) -> None:
    """64 MiB a query and no cache: 4 queries map 256 MiB, 128 spans: 512 kB, and a PMD and a PUD page."""
    seen = Seen(source("page_pool", queries=4, query_mib=64, cached_mib=0), profile)
    assert (seen.vm_pte, seen.counters.anon_bytes) == (128 * 4 + 8, 0)
    assert seen.free() == (128, 0)
    assert seen.vm_pte == 8
    # The cache of 16 MiB is used again: 64 + 3 * 48 MiB.
    seen = Seen(source("page_pool", queries=4, query_mib=64, cached_mib=16), profile)
    assert (seen.vm_pte, seen.counters.anon_bytes) == (104 * 4 + 8, 16 * MIB)
    # The repair: addresses are used again, and nothing grows.
    seen = Seen(source("page_pool", queries=4, query_mib=64, cached_mib=0, reuse=True), profile)
    assert (seen.vm_pte, seen.counters.anon_bytes) == (32 * 4 + 8, 0)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scale", [1000, 100])
def test_bytedance_to_scale(source: Any, profile: str, scale: int) -> None:
    """28,835,840 PTE pages (110 GiB), of which 590 GiB need 302,080 (1.24 GB); 56,320 PMD pages stay."""
    seen = Seen(source("bytedance", scale=1 / scale, sparse_share=0.0), profile)
    spans, needed = 28_835_840 // scale, -(-302_080 // scale)
    assert seen.counters.total_vm_bytes == spans * SPAN
    assert seen.counters.anon_bytes == 590 * GIB // scale // PAGE * PAGE
    upper = seen.vm_pte // 4 - spans
    assert -(-56_320 // scale) + 1 <= upper <= -(-56_320 // scale) + 4, "PMD pages, at most one more for the place"
    assert seen.free() == (spans - needed, 0)
    assert seen.vm_pte // 4 == needed + upper
    assert needed * PAGE * scale / 1e9 == pytest.approx(1.24, rel=0.005)
    assert spans * PAGE * scale / GIB == pytest.approx(110, rel=0.001)


def test_bytedance_with_random_entries(source: Any) -> None:
    """One span in a hundred holds 1 to 16 entries: as many PTE pages more that stay; RES is the same."""
    seen = Seen(source("bytedance"), "rfc-2022")
    spans, sparse = 28_835, 288
    assert seen.counters.anon_bytes == 590 * GIB // 1000 // PAGE * PAGE
    left = spans - seen.free()[0]
    packed = 590 * GIB // 1000 // PAGE
    assert (packed - 16 * sparse) // 512 + sparse <= left <= (packed - sparse) // 512 + 1 + sparse
    assert left == 586


def test_all_of_the_case_is_built_in_pieces(source: Any) -> None:
    """At scale 1 its first batches come at once, the first of all is short, and none is longer than it may be."""
    batches = source("bytedance", scale=1).batches()
    sizes = [len(next(batches)) for _ in range(20)]
    assert sizes[0] < 32 * 1024
    assert sizes[5:] == [128 * 1024] * 15


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["balloon_migration", "balloon_kdump"])
def test_what_the_balloon_took_is_zero_pages_once_all_is_read(source: Any, name: str, profile: str) -> None:
    """1 GiB with 128 MiB kept: 512 spans, 448 of them zero; with a page kept in each of 8 spans, 8 fewer at most."""
    seen = Seen(source(name, ram_mib=1024, kept_mib=128, scattered_pages=0), profile)
    assert (seen.vm_pte, seen.counters.anon_bytes) == (512 * 4 + 12, 128 * MIB), (
        "two PMD pages: it lies over a GiB's end"
    )
    assert (seen.counters.zero_bytes, seen.counters.empty_bytes) == (448 * PAGE, 0)
    assert seen.counters.zero_bytes / seen.counters.pgtables_bytes > 0.86, "nearly all of VmPTE"
    assert seen.free() == (0, 448)
    assert seen.vm_pte == 64 * 4 + 12
    seen = Seen(source(name, ram_mib=1024, kept_mib=128, scattered_pages=8), profile)
    assert seen.counters.anon_bytes == 128 * MIB + 8 * PAGE
    assert 440 <= seen.free()[1] < 448


def test_what_the_balloon_took_is_empty_before(source: Any) -> None:
    made = source("balloon_migration", ram_mib=64, kept_mib=8, scattered_pages=0)
    host = Host(named("rfc-2022"))
    for batch in made.batches():
        reads = np.flatnonzero((batch.op == OP_FAULT) & (batch.arg == 0))
        host.run(batch, 0, int(reads[0]) if len(reads) else len(batch))
        if len(reads):
            break
    assert (host.counters(1).empty_bytes, host.counters(1).zero_bytes) == (28 * PAGE, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_sparse_hash_has_a_pte_page_for_nearly_every_page(source: Any, profile: str) -> None:
    made = source("sparse_hash", range_gib=1024, keys=5000, misses=3000, removed_share=1.0)
    seen = Seen(made, profile)
    (batch,) = made.batches()
    touched = batch.addr[batch.op == OP_FAULT]
    spans, gibs = len(np.unique(touched // SPAN)), len(np.unique(touched // GIB))
    assert seen.counters.anon_bytes == 0
    assert spans > 0.98 * 8000
    assert seen.counters.pgtables_bytes == (spans + gibs + 3) * PAGE, "1 TiB lies in three PUD pages"
    read = np.unique(touched[batch.arg[batch.op == OP_FAULT] == 0] // SPAN)
    assert seen.counters.mixed_bytes == len(read) * PAGE, "zero entries and none: what the mail's tests miss"
    assert seen.free() == (spans - len(read), 0)


def test_children_of_a_fork_server_have_the_parents_tables(source: Any) -> None:
    seen = Seen(source("fork_server", heap_mib=64, children=10, at_once=4, scratch_mib=2), "v6.18")
    assert seen.host.pids() == [1]
    assert seen.counters.anon_bytes == 64 * MIB
    assert sorted(seen.ended) == list(range(2, 12))
    for row in seen.ended.values():
        assert row.RssAnon == (64 + 2) * 1024
        # 33 spans of the heap, which begins in the middle of one, and one or two of its own
        assert (33 + 1) * 4 <= row.VmPTE <= seen.vm_pte + 8 + 12


def test_at_most_so_many_children_live_at_once(source: Any) -> None:
    made = source("fork_server", heap_mib=1, children=40, at_once=3, every_ms=1, life_ms=50)
    found = Most()
    for batch in made.batches():
        found.take(batch)
    assert found.most == 1 + 3


class Most:
    """The most processes that live at a time."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def take(self, batch: Batch) -> None:
        for op in batch.op.tolist():
            self.alive += (op in (OP_EXEC, OP_FORK)) - (op == OP_EXIT)
            self.most = max(self.most, self.alive)


def test_a_hungry_neighbour_grows_at_its_rate_and_gives_all_back(source: Any) -> None:
    made = source("hungry", size_mib=100, rate_mib=50, hold_s=2, rest_s=3, cycles=2)
    (batch,) = made.batches()
    faults = batch.t[batch.op == OP_FAULT]
    assert len(faults) == 200
    assert (int(faults[99]) // 10**6, int(faults[100]) // 10**6, int(batch.t[-1]) // 10**9) == (1980, 7000, 11)
    seen = Seen(made, "v6.18")
    assert (seen.counters.anon_bytes, seen.counters.peak_pgtables_bytes) == (0, (50 + 2) * PAGE)


def test_jemalloc_decays_along_the_curve_and_leaves_its_tables(source: Any) -> None:
    """All is dirty at the end of a peak, half of it after half of the decay time, none after all of it."""
    made = source(
        "jemalloc", arenas=1, peak_mib=64, base_mib=0, cycles=1, busy_ms=200, rest_ms=25_000, muzzy_decay_ms=10_000
    )
    (batch,) = made.batches()
    purges = batch.op == OP_MADVISE
    lazy = purges & (batch.arg == batch.arg[purges][0])
    dropped = purges & ~lazy
    assert (lazy.any(), dropped.any()) == (True, True)
    assert batch.t[lazy].max() < batch.t[dropped].max()
    total = int(batch.len[lazy].sum())
    assert total == int(batch.len[dropped].sum()) >= 64 * MIB
    half = int(batch.len[lazy & (batch.t <= 5_150_000_000)].sum())
    assert 0.42 < half / total < 0.58
    for profile in PROFILES:
        seen = Seen(made, profile)
        assert seen.counters.anon_bytes == 0
        assert seen.vm_pte >= 33 * 4, "a PTE page for each span of the peak"
        assert seen.free()[0] >= 32


def test_without_a_muzzy_time_jemalloc_discards_at_once(source: Any) -> None:
    made = source("jemalloc", arenas=1, muzzy_decay_ms=0)
    advice = {int(a) for batch in made.batches() for a in batch.arg[batch.op == OP_MADVISE]}
    assert len(advice) == 1
    never = source("jemalloc", arenas=1, dirty_decay_ms=-1)
    assert not any((batch.op == OP_MADVISE).any() for batch in never.batches())


def test_tcmalloc_releases_at_its_rate_and_subrelease_keeps_the_table(source: Any) -> None:
    made = source("tcmalloc", peak_mib=64, base_mib=0, cycles=1, cycle_s=20, release_mib=16)
    (batch,) = made.batches()
    purges = batch.op == OP_MADVISE
    by_second = np.bincount(batch.t[purges] // 10**9, weights=batch.len[purges])
    assert by_second.max() <= (16 + 2) * MIB
    assert by_second.sum() >= 64 * MIB
    seen = Seen(made, "rfc-2022")
    assert (seen.counters.anon_bytes, seen.free()) == (0, (32, 0))
    kept = Seen(source("tcmalloc", peak_mib=64, base_mib=4, cycles=1, cycle_s=20, release_mib=16), "v6.18")
    assert 3 * MIB < kept.counters.anon_bytes <= 4 * MIB
    kept_pages = kept.vm_pte // 4 - 2
    assert kept_pages > 2 * 4 * MIB // SPAN, "what subrelease discards is less than a span: far more than 4 MiB need"


# ---- on the command line --------------------------------------------------------------------------


def test_synth_writes_a_trace_that_replays(pterefd: Run, tmp_path: Path) -> None:
    done = pterefd("synth", "page_pool", "--set", "queries=2", "--set", "query_mib=8", "--seed", "3", "-o", "p.parquet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    replayed = pterefd("replay", "p.parquet")
    assert replayed.returncode == 0
    assert "ydb-server" in replayed.stdout
    again = pterefd("synth", "page_pool", "--set", "queries=2", "--set", "query_mib=8", "--seed", "3")
    exported = pterefd("export", "p.parquet")
    assert again.stdout == exported.stdout
    lines = pterefd("synth", "hungry", "--set=size_mib=1", "-o", "h.jsonl")
    assert lines.returncode == 0
    assert (tmp_path / "h.jsonl").read_text().startswith('{"op":"trace"')


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("hungrier",), "there is no workload 'hungrier'; there are: balloon_kdump, balloon_migration, bytedance, "),
        (
            ("hungry", "--set", "size=1"),
            "workload hungry: size: there is no such parameter; there are: size_mib, rate_mib, hold_s, rest_s,",
        ),
        (("hungry", "--set", "cycles=abc"), "workload hungry: cycles: should be an integer, not 'abc'\n"),
        (
            ("hungry", "--set", "size_mib=0"),
            "workload hungry: size_mib: should be at least 1, not '0'",
        ),
        (("hungry", "--set", "size_mib"), "'size_mib' is not KEY=VALUE"),
        (("hungry", "-o", "there.parquet"), "there.parquet: exists already (--force replaces it)"),
    ],
)
def test_what_synth_refuses_is_one_line(pterefd: Run, tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    (tmp_path / "there.parquet").write_text("")
    done = pterefd("synth", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pterefd: {reason}")
    assert done.stderr.count("\n") == 1


def test_the_example_of_the_page_works(pterefd: Run, tmp_path: Path) -> None:
    """As a new user would follow it. 64 MiB, discarded in pieces of half a span: 32 PTE pages stay."""
    page = (ROOT / "docs" / "workloads.md").read_text()
    (example,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Sawtooth" in text]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sawtooth.py").write_text(example)
    made = pterefd("synth", "sawtooth", "--plugins", "mine", "-o", "saw.parquet")
    assert (made.returncode, made.stderr) == (0, "")
    replayed = pterefd("replay", "saw.parquet", "--json")
    (row,) = json.loads(replayed.stdout)["files"][0]["mms"]
    assert (row["RssAnon"], row["VmPTE"], row["empty_bytes"]) == (0, 32 * 4 + 8, 32 * PAGE)


def test_a_parameter_of_the_case_that_makes_no_sense_is_refused(source: Any) -> None:
    with pytest.raises(BadInput, match="workload bytedance: scale: should be at most 1, not 2"):
        source("bytedance", scale=2)
