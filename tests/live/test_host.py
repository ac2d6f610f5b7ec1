"""This machine as a host: what it says of real processes is what a scan says, and what is known by construction."""

from __future__ import annotations

import json
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pterefd import paths
from pterefd.daemon import SWITCH_SECONDS
from pterefd.errors import NoSuchMm, Refused
from pterefd.freeing.work import Request, free
from pterefd.hookspecs import Cause, Kinds, Moment
from pterefd.live import procmem
from pterefd.live.host import LiveHost
from pterefd.live.match import Match
from pterefd.live.scan import read_cgroup, scan, start_time
from pterefd.live.view import LiveView
from pterefd.live.watch import Watch
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.views.rates import FaultRates
from tests.live.grower_process import PAGE, SPAN, Grower
from tests.reclaim.built import Log, plugin, policy
from tests.systemd.installed import NOBODY

pytestmark = pytest.mark.kernel


@pytest.fixture
def other() -> Iterator[Grower]:
    one = Grower()
    yield one
    one.end()


def host_of(*growers: Grower, freer: Freeing | None = None) -> LiveHost:
    """A host of these processes alone, looked at once with no bound on CPU time."""
    watch = Watch(100, Match(frozenset(grower.pid for grower in growers)))
    host = LiveHost(watch, freer=freer)
    host.look()
    return host


def waste(grower: Grower, empty: int, zero: int = 0, mixed: int = 0) -> None:
    """So many more PTE pages of each kind, each kind in a GiB of its own."""
    grower.do("touch", 0, 1, 1)
    grower.do("touch", SPAN, 512 * empty, 512)
    for span in range(empty):
        grower.do("advise", (1 + span) * SPAN, PAGE, mmap.MADV_DONTNEED)
    if zero:
        grower.do("read", 100 * SPAN, 512 * zero, 1)
    if mixed:
        grower.do("read", 200 * SPAN, 512 * mixed, 256)


class Freeing:
    """Frees from these processes alone, by stopping them."""

    def __init__(self, *growers: Grower) -> None:
        self._processes = {(grower.pid, start_time(grower.pid)) for grower in growers}

    def free(self, pid: int, start_time: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        if (pid, start_time) not in self._processes:
            raise Refused(f"{pid}: not of these", "table")
        freed = free(Request(pid, start_time, most=nbytes, stop=0.2, patience=20.0))
        assert (freed.refused, freed.put_off) == ("", "")
        return freed.empty, freed.zero, freed.mixed


# -- numbers --------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_scan_and_of_what_was_done(grower: Grower, other: Grower) -> None:
    before = host_of(grower).numbers(grower.pid)
    waste(grower, empty=40, zero=10, mixed=7)
    host = host_of(grower, other)
    numbers = host.numbers(grower.pid)
    assert (numbers.empty_bytes - before.empty_bytes, numbers.zero_bytes, numbers.mixed_bytes) == (
        40 * PAGE,
        10 * PAGE,
        7 * PAGE,
    )
    seen = scan(grower.pid)
    assert seen is not None
    assert numbers.pgtables_bytes == seen.use.vm_pte == procmem.read_status(grower.pid).kb["VmPTE"] << 10
    assert numbers.reclaimable_pt_bytes == seen.use.reclaimable == numbers.empty_bytes + numbers.zero_bytes
    assert numbers.unlocated_bytes == seen.use.unseen
    assert numbers.age_seconds is not None
    assert host.pids() == sorted((grower.pid, other.pid))
    assert host.mms == 2
    one = host.process(grower.pid)
    assert (one.start_time, one.uid, one.gid) == (start_time(grower.pid), os.geteuid(), os.getegid())
    assert one.cgroup == read_cgroup(grower.pid) == host.group_of(grower.pid)
    with pytest.raises(NoSuchMm, match="none that is watched"):
        host.process(os.getpid())


def test_the_view_has_a_row_for_each(grower: Grower, other: Grower) -> None:
    waste(grower, empty=5, zero=2)
    waste(other, empty=9)
    host = host_of(grower, other)
    view = host.view()
    rows = {pid: row for row, pid in enumerate(view.pid.tolist())}
    for one in (grower, other):
        numbers, row = host.numbers(one.pid), rows[one.pid]
        for name in ("pgtables_bytes", "empty_bytes", "zero_bytes", "mixed_bytes", "unlocated_bytes"):
            assert getattr(view, name)[row] == getattr(numbers, name)
        assert view.reclaimable_bytes[row] == view.sizes(Kinds.BOTH)[row] == numbers.reclaimable_pt_bytes
        stat = procmem.read_stat(one.pid)
        assert view.faults[row] == int(stat[7]) + int(stat[9])
        assert view.total_vm_bytes[row] == int(stat[20])
        assert view.oom_score[row] == int(Path(f"/proc/{one.pid}/oom_score").read_text())
        assert view.host.groups[view.group[row]] == read_cgroup(one.pid)
        assert view.comm(one.pid) == Path(f"/proc/{one.pid}/comm").read_text().strip()
        assert view.oldest_reclaimable_ns[row] > 0
    assert list(view.ranking(Kinds.EMPTY)) == [other.pid, grower.pid]
    assert list(view.ranking(Kinds.ZERO)) == [grower.pid]
    with pytest.raises(ValueError, match="read-only"):
        view.pid[0] = 1
    usage = view.host.usage()
    assert usage.total == os.sysconf("SC_PHYS_PAGES") * PAGE
    assert 0 < view.host.min < view.host.low < view.host.high
    of_group = view.host.usage(view.host.groups[0])
    assert of_group.pgtables == view.pgtables_bytes.sum()
    assert of_group.anon == view.anon_bytes.sum()


def test_who_faults_is_seen_to(grower: Grower, other: Grower) -> None:
    host = host_of(grower, other)
    rates = FaultRates()
    before = host.view_for(lambda: random.Random(1), rates)
    assert before.last_fault_ns.tolist() == [0, 0]
    assert before.fault_rate.tolist() != []
    grower.do("touch", 0, 20 * 512, 512)
    host.look()
    view = host.view_for(lambda: random.Random(1), rates, frozenset((grower.pid, other.pid)))
    rows = {pid: row for row, pid in enumerate(view.pid.tolist())}
    assert view.last_fault_ns[rows[grower.pid]] > 0
    assert view.last_fault_ns[rows[other.pid]] == 0
    assert view.faults[rows[grower.pid]] >= before.faults[rows[grower.pid]] + 20


def test_what_is_not_scanned_yet_has_no_age(grower: Grower) -> None:
    watch = Watch(0.01, Match(frozenset((grower.pid,))), clock=lambda: 0.0)
    watch._left = 0.0
    host = LiveHost(watch)
    host.look()
    numbers = host.numbers(grower.pid)
    assert numbers.age_seconds is None
    assert numbers.pgtables_bytes == procmem.read_status(grower.pid).kb["VmPTE"] << 10
    view = host.view()
    assert (view.age_ns.tolist(), view.scanned.tolist(), view.reclaimable_bytes.tolist()) == ([-1], [False], [0])


def test_a_publication_is_whole() -> None:
    """Whoever takes a view while processes come and go finds columns of one length, and its own pids in them."""
    host = LiveHost(Watch(1))
    host.look()
    done = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                view = host.view()
                lengths = {len(view.pid), len(view.pgtables_bytes), len(view.empty_bytes), len(view.group)}
                assert lengths == {len(host.view().pid)} or len(lengths) == 1
                assert all(view.shown(pid) for pid in view.ranking(Kinds.BOTH))
                assert np.all(np.diff(view.pid) > 0)
                assert view.group.max() < len(view.host.groups)
        except BaseException as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)  # as the daemon does: each read of a look waits so long for the readers
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            short = subprocess.Popen(["sleep", "60"])
            host.look()
            short.kill()
            short.wait()
            host.look()
    finally:
        done.set()
        for reader in readers:
            reader.join()
        sys.setswitchinterval(before)
    assert failed == []


# -- who is who -----------------------------------------------------------------------------------

REUSED = """
import json, subprocess, sys
from pathlib import Path
from pterefd.live.host import LiveHost
from pterefd.live.match import Match
from pterefd.live.watch import Watch
from tests.live.test_host import waste
from tests.live.grower_process import Grower

first = Grower()
host = LiveHost(Watch(100, Match(frozenset((first.pid,)))))
waste(first, empty=30)
host.look()
found = []
def note():
    row = host.published.rows[first.pid]
    found.append([row.process.start_time, row.process.use.empty >> 12, row.reclaimable_since_ns, row.last_fault_ns])
note()
first.end()
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
second = Grower()
assert second.pid == first.pid, (second.pid, first.pid)
waste(second, empty=5)
host.look()
note()
second.end()
print(json.dumps(found))
"""


def test_a_pid_taken_anew_is_another_process(root: Path) -> None:
    """In a pid namespace of its own, where the next pid can be chosen."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSED]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    (start, empty, since, _), (start_then, empty_then, since_then, fault_then) = json.loads(done.stdout)
    assert start_then > start
    assert empty >= 30 > empty_then
    assert since_then > since > 0
    assert fault_then > 0  # it began while it was watched


HIDDEN = f"""
import os
from pterefd.live.host import LiveHost
from pterefd.live.watch import Watch

host = LiveHost(Watch(100))
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
try:
    open("/proc/1/status").close()
except PermissionError:
    host.look()
    print(host.pids() == [os.getpid()])
"""


def test_processes_that_proc_hides_are_passed_over(root: Path) -> None:
    """hidepid=1: they are listed, and what is in their directories is for who may trace them."""
    script = 'mount -t proc -o hidepid=1 proc /proc && "$0" -c "$1"; exit $?'
    command = ["unshare", "--pid", "--fork", "--mount", "sh", "-c", script, sys.executable, HIDDEN]
    path = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=path)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_only_those_that_match_are_watched(grower: Grower, other: Grower) -> None:
    stranger = subprocess.Popen(["sleep", "60"], user=NOBODY)
    ours = {grower.pid, other.pid, stranger.pid}

    def matched(match: Match) -> set[int]:
        host = LiveHost(Watch(0.01, match))
        host.look()
        return ours & set(host.pids())

    name = Path(f"/proc/{grower.pid}/comm").read_text().strip()
    cgroup = read_cgroup(grower.pid)
    try:
        assert matched(Match()) == ours
        assert matched(Match(frozenset((grower.pid,)))) == {grower.pid}
        assert matched(Match(comms=("sleep",))) == {stranger.pid}
        assert matched(Match(comms=(name[:-1] + "?", "none"))) == {grower.pid, other.pid}
        assert matched(Match(users=frozenset((NOBODY,)))) == {stranger.pid}
        assert matched(Match(frozenset((grower.pid,)), users=frozenset((NOBODY,)))) == set()
        assert matched(Match(cgroups=(cgroup,))) == ours
        assert matched(Match(cgroups=("/",))) == ours
        assert matched(Match(cgroups=("*" + cgroup[-3:],))) == ours
        assert matched(Match(cgroups=(cgroup.rstrip("/") + "x",))) == set()
        assert matched(Match(cgroups=("/none", cgroup))) == ours
    finally:
        stranger.kill()
        stranger.wait()


# -- freeing --------------------------------------------------------------------------------------


def reclaimer(host: LiveHost, *folders: Path, **options: object) -> tuple[Reclaimer, Log]:
    plugins, log = Plugins(), Log()
    plugins.load([paths.share("plugins"), *folders])
    return Reclaimer(host, plugins, log, **options), log  # type: ignore[arg-type]


def test_freeing_is_off_unless_something_frees(grower: Grower) -> None:
    waste(grower, empty=10)
    host = host_of(grower)
    freer, log = reclaimer(host)
    with pytest.raises(Refused, match=rf"{grower.pid}: freeing is off"):
        freer.free_ptes(grower.pid)
    assert "freeing is off" in log.lines[-1][1]["refused"]
    assert freer.plugin_errors == {}  # it is no fault of the policy
    with pytest.raises(NoSuchMm):
        freer.free_ptes(os.getpid())
    assert freer.pressure(Cause.LOW, None, PAGE) == 0


def test_a_policy_chooses_on_the_live_view(grower: Grower, other: Grower, tmp_path: Path) -> None:
    """The one with most faults, which is not the largest. What was freed is published, the other is left alone."""
    waste(grower, empty=10)
    waste(other, empty=20)
    grower.do("touch", 250 * SPAN, 4096, 1)
    host = host_of(grower, other, freer=Freeing(grower, other))
    plugin(tmp_path / "p", "mine", policy("yield Choice(int(view.pid[view.faults.argmax()]))"))
    freer, log = reclaimer(host, tmp_path / "p", policy="mine")
    before = host.numbers(grower.pid).empty_bytes
    result = freer.free_ptes(None)
    assert result is not None, log.lines
    assert [pid for pid, _ in result.freed] == [grower.pid]
    seen = scan(grower.pid)
    assert seen is not None
    assert before - result.bytes == host.numbers(grower.pid).empty_bytes == seen.use.empty < 10 * PAGE
    view = host.view()
    freed = dict(zip(view.pid.tolist(), view.freed_bytes.tolist(), strict=True))
    assert freed == {grower.pid: result.bytes, other.pid: 0}


def test_a_freer_may_refuse_some(grower: Grower, other: Grower) -> None:
    waste(grower, empty=10)
    waste(other, empty=20)
    host = host_of(grower, other, freer=Freeing(grower))
    freer, log = reclaimer(host)
    result = freer.free_ptes(None)
    assert result is not None
    assert {pid for pid, _ in result.freed} <= {grower.pid}
    assert log.lines[-1][1]["refused"] == f"{other.pid}: not of these"
    with pytest.raises(Refused):
        freer.free_ptes(other.pid)


def test_who_had_nothing_freed_is_left_alone_for_a_while(grower: Grower) -> None:
    """MADV_DONTFORK: its empty tables are seen, and not to be moved. Twice as many are another matter."""
    grower.do("advise", 0, 400 * SPAN, mmap.MADV_DONTFORK)
    waste(grower, empty=10)
    asked: list[float] = []

    class Counting(Freeing):
        def free(self, *request: Any) -> tuple[int, int, int]:
            asked.append(now[0])
            return super().free(*request)

    now = [1000.0]
    host = LiveHost(Watch(100, Match(frozenset((grower.pid,))), clock=lambda: now[0]), freer=Counting(grower))
    host.look()
    freer, _ = reclaimer(host, triggers=("interval",))
    for _ in range(40):
        freer.tick()
        now[0] += 1.0
        host.look()
    assert [at - asked[0] for at in asked] == [0, 2, 6, 14, 30]
    assert "nothing could be freed: asked again in 32 s" in host.why_not_freed(grower.pid)
    waste(grower, empty=30)
    for _ in range(4):
        now[0] += 1.0
        host.look()
    freer.tick()
    assert len(asked) == 6


def test_tasks_that_wait_although_memory_is_free_are_given_what_they_want(grower: Grower) -> None:
    """The machine has more free than its high mark: what the moment says is missing counts."""
    waste(grower, empty=20)
    host = host_of(grower, freer=Freeing(grower))
    assert host.view().host.free > host.view().host.high
    freer, log = reclaimer(host, triggers=("watermark",))
    freer.pressure(Cause.LOW, None, 1 << 40)
    event, fields = log.lines[-1]
    assert (event, fields["trigger"], fields["outcome"]) == ("reclaimed", "watermark", "partly")


def test_a_cgroup_is_a_group(grower: Grower) -> None:
    host = host_of(grower)
    group = read_cgroup(grower.pid)
    assert host.in_group(group) == {grower.pid}
    assert host.in_group("/") == {grower.pid}
    assert host.in_group(group + "x") == frozenset()
    freer, log = reclaimer(host, triggers=("watermark",))
    freer.moment(Moment(Cause.LOW, host.time_ns, bytes=PAGE, group=group))
    assert log.lines[-1][1]["group"] == group
    assert isinstance(host.view(), LiveView)
