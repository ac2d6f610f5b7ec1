"""`pterefd run --live`, as a user runs it, on real processes whose page-table memory is known."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pterefd import config, daemon
from pterefd.errors import BadInput
from pterefd.live import procmem
from pterefd.live.keeper import Keeper
from pterefd.live.scan import read_cgroup, scan
from pterefd.procfs import mountpoint
from tests.live.grower_process import PAGE, SPAN, Grower
from tests.reclaim.built import plugin, policy
from tests.systemd.installed import NOBODY
from tests.test_daemon import Running

pytestmark = [pytest.mark.mount, pytest.mark.kernel]

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, script: Path) -> Iterator[Start]:
    """Starts a daemon on this machine's processes and waits until it says that it is mounted."""
    running: list[Running] = []
    mnt = tmp_path / "mnt"
    mnt.mkdir()

    def start(*args: str | int | Path, text: str | None = None, user: int | None = None) -> Running:
        """text: a configuration, behind what is usual here."""
        command = [str(script), "run", "--live", "--mount", str(mnt), "--metrics-address", "127.0.0.1:0"]
        if text is not None:
            path = tmp_path / "pterefd.toml"
            path.write_text(text)
            command += ["-c", str(path)]
        log = tmp_path / f"log{len(running)}"
        with log.open("w") as err:
            process = subprocess.Popen(
                [*command, *map(str, args)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True, user=user
            )
        one = Running(process, mnt, log)
        running.append(one)
        assert process.stdout is not None
        while line := process.stdout.readline():
            one.hints.append(line)
            if line.startswith("metrics: "):
                one.metrics = line.split()[1]
                return one
        raise AssertionError((one.hints, process.wait(10), one.err()))

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
    mountpoint.unmount(str(mnt), detach=True)


def waste(grower: Grower, empty: int, zero: int) -> None:
    grower.do("touch", SPAN, 512 * empty, 512)
    for span in range(empty):
        grower.do("advise", (1 + span) * SPAN, PAGE, mmap.MADV_DONTNEED)
    grower.do("read", 100 * SPAN, 512 * zero, 1)


def until(true: Callable[[], Any], one: Running) -> None:
    """Wait for what the next looks should bring."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, one.err()
        time.sleep(0.05)


def write(path: Path, text: str) -> None:
    """Once: what a file of Python's has not got rid of, it writes again when it is closed."""
    with path.open("wb", buffering=0) as file:
        file.write(text.encode())


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_metrics_of_a_process_are_what_a_scan_says(start: Start, grower: Grower) -> None:
    waste(grower, empty=40, zero=10)
    one = start("--pid", grower.pid)
    seen = scan(grower.pid)
    assert seen is not None
    labels = (name_of(grower.pid), "live")

    def gauges() -> dict[tuple[str, ...], float]:
        return one.scrape()

    until(lambda: ("pterefd_mm_age_seconds", *labels, str(grower.pid)) in gauges(), one)
    found = gauges()
    pid = str(grower.pid)
    assert found["pterefd_host_mms", "live"] == 1
    assert found["pterefd_mm_pgtables_bytes", *labels, pid] == seen.use.vm_pte
    assert found["pterefd_mm_reclaimable_pt_bytes", *labels, "empty", pid] == seen.use.empty >= 40 * PAGE
    assert found["pterefd_mm_reclaimable_pt_bytes", *labels, "zero", pid] == 10 * PAGE
    group = read_cgroup(grower.pid)
    assert found["pterefd_cgroup_pgtables_bytes", group, "live"] == seen.use.vm_pte
    assert found["pterefd_cgroup_reclaimable_pt_bytes", group, "live", "empty"] == seen.use.empty
    assert found["pterefd_cgroup_reclaimable_pt_bytes", group, "live", "zero"] == 10 * PAGE
    assert found["pterefd_host_memory_bytes", "live", "total"] == os.sysconf("SC_PHYS_PAGES") * PAGE
    assert found["pterefd_host_watermark_bytes", "live", "low"] > 0
    assert found["pterefd_live_waiting", "live"] == 0
    assert found["pterefd_host_not_seen", "live", "rights"] == 0
    assert found["pterefd_live_scan_seconds_total", "live"] > 0
    assert not [name for name, *_ in found if name.startswith("pterefd_replay")]
    assert os.path.exists(one.mount / pid)
    assert one.read(f"{pid}/reclaimable_pt_bytes") == f"{seen.use.reclaimable}\n"
    assert one.hints[1].startswith(f"    cat mnt/{pid}/reclaimable_pt_bytes")
    code, log = one.end()
    assert code == 0
    assert "host=live mms=1" in log


def test_it_sees_what_changes(start: Start, grower: Grower) -> None:
    one = start("--pid", grower.pid, "--comm", name_of(grower.pid))
    pid = str(grower.pid)
    waste(grower, empty=40, zero=10)
    until(lambda: int(one.read(f"{pid}/pt_reclaim/empty_bytes")) >= 40 * PAGE, one)
    assert int(one.read(f"{pid}/pt_reclaim/zero_bytes")) == 10 * PAGE
    grower.end()
    until(lambda: not os.path.exists(one.mount / pid), one)
    until(lambda: one.scrape()["pterefd_host_mms", "live"] == 0, one)


def test_no_kernels_are_loaded(start: Start, grower: Grower) -> None:
    """Nor their compiler: a live host computes nothing that they do."""
    one = start("--pid", grower.pid)
    loaded = {line.path for line in procmem.read_maps(one.process.pid)}
    assert not [path for path in loaded if "numba" in path or "llvmlite" in path]
    assert [path for path in loaded if "numpy" in path]


def test_freeing_is_off(start: Start, grower: Grower) -> None:
    waste(grower, empty=10, zero=1)
    one = start("--pid", grower.pid)
    pid = str(grower.pid)
    until(lambda: int(one.read(f"{pid}/pt_reclaim/empty_bytes")), one)
    before = procmem.read_status(grower.pid).kb["VmPTE"]
    for knob, text in (("free_ptes", pid), ("pt_reclaim/reclaim", "4096")):
        with pytest.raises(OSError) as caught:
            write(one.mount / "sys/vm" / knob, text)
        assert caught.value.errno == errno.EPERM
    assert procmem.read_status(grower.pid).kb["VmPTE"] == before
    with pytest.raises(OSError) as caught:
        write(one.mount / "sys/vm/free_ptes", "1")
    assert caught.value.errno == errno.ESRCH  # none of those that are watched
    log = one.end()[1]
    assert log.count(f'refused="{pid}: freeing is off') == 2
    assert "plugin failed" not in log


def test_a_trigger_ticks_and_a_policy_chooses(start: Start, grower: Grower, tmp_path: Path) -> None:
    """By the host's clock, on the live view; with freeing off its choices are refused, and logged."""
    waste(grower, empty=10, zero=1)
    folder = tmp_path / "plugins"
    plugin(folder, "mine", policy("yield Choice(int(view.pid[view.sizes(request.kinds).argmax()]))"))
    text = f"""
        host.kind = "live"
        live.pid = [{grower.pid}]
        live.interval = "100ms"
        plugins = {{ directories = ["{folder}"], policy = "mine", triggers = ["interval"] }}
    """
    one = start(text=text)
    until(lambda: "policy=mine" in one.err() and f"{grower.pid}: freeing is off" in one.err(), one)
    until(lambda: one.scrape()["pterefd_reclaim_runs_total", "live", "nothing", "mine", "interval"] > 1, one)


def test_a_reload_changes_who_is_watched(start: Start, grower: Grower, tmp_path: Path) -> None:
    other = Grower()
    try:
        one = start(text=f"host.kind = 'live'\nlive = {{ pid = [{grower.pid}], budget = 2.5 }}\n")
        assert one.scrape()["pterefd_host_mms", "live"] == 1
        (tmp_path / "pterefd.toml").write_text(f"host.kind = 'live'\nlive.pid = [{grower.pid}, {other.pid}]\n")
        one.process.send_signal(signal.SIGHUP)
        until(lambda: one.scrape()["pterefd_host_mms", "live"] == 2, one)
        assert os.path.exists(one.mount / str(other.pid))
        (tmp_path / "pterefd.toml").write_text("host.profile = 'v6.18'\n")
        one.process.send_signal(signal.SIGHUP)
        until(lambda: "of a simulated host, and host.kind is live" in one.err(), one)
        assert "keys=['live.pid', 'live.budget']" in one.err()
    finally:
        other.end()


def test_who_may_not_be_seen_is_told(start: Start, grower: Grower) -> None:
    """As nobody, who has no rights, it sees no entries of others: it counts them, and says why."""
    # It runs in this process, so that no installed file has to be readable by nobody.
    code = "\n".join(
        (
            "import os, sys",
            "from pterefd.live.host import LiveHost",
            "from pterefd.live.match import Match",
            "from pterefd.live.watch import Watch",
            f"host = LiveHost(Watch(100, Match(frozenset(({grower.pid},)))))",
            f"os.setresgid({NOBODY}, {NOBODY}, {NOBODY})",
            f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})",
            "host.look()",
            f"one = host.process({grower.pid})",
            "print(one.reason, one.vm_pte, one.use, one.why)",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vm_pte = procmem.read_status(grower.pid).kb["VmPTE"] << 10
    assert done.stdout.startswith(f"rights {vm_pte} None {grower.pid}: Permission denied")


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("host = { kind = 'live', memory = '1GiB' }", {}, "host.memory: of a simulated host, and host.kind is live"),
        ("replay.traces = ['a']", {"live": True}, "replay.traces: of a simulated host, and host.kind is live"),
        ("[[mm]]\nworkload = 'hungry'", {"live": True}, "mm: of a simulated host, and host.kind is live"),
        ("live.pid = [1]", {}, "live.pid: of a live host, and host.kind is simulated"),
        ("", {"matching": {"comm": ("a",)}}, "command line: live.comm: of a live host, and host.kind is simulated"),
        ("", {"live": True, "swap": "1GiB"}, "command line: host.swap: of a simulated host, and host.kind is live"),
        ("live.user = ['no such']", {"live": True}, "live.user.0: there is no user 'no such'"),
        ("live.cgroup = ['a']", {"live": True}, "live.cgroup.0: 'a' is not a path of a cgroup"),
        ("live.budget = 0", {"live": True}, "live.budget: should be at least 0.01, not 0"),
        ("live.interval = '1ms'", {"live": True}, "live.interval: should be a duration from 100ms to 60s"),
        ("host.kind = 'dead'", {}, "host.kind: should be 'simulated' or 'live', not 'dead'"),
    ],
)
def test_what_the_other_kind_of_host_has_is_refused(
    tmp_path: Path, text: str, overrides: dict[str, Any], said: str
) -> None:
    path = tmp_path / "pterefd.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        config.load(path, **overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_traces_are_not_for_a_live_host(root: Path) -> None:
    settings = config.load(root / "etc" / "pterefd.toml", live=True, shipped=True, matching={"user": ("root", "7")})
    assert settings.host.kind == "live"
    assert settings.mms == ()
    assert settings.live.user == (0, 7)


def test_a_watch_that_ends_or_hangs_is_told(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    settings = config.load(mount=tmp_path / "mnt", metrics_address="off", live=True)

    def started(one: daemon.Daemon) -> None:
        assert isinstance(one.works, Keeper)
        probe = one.probes(5.0)["watch"]
        assert probe()
        one.works.looked -= 6.0
        assert not probe()
        one.works.failure = BadInput("the list of processes: broken")

    with pytest.raises(BadInput, match="the list of processes: broken"):
        daemon.run(settings, out=StringIO(), err=StringIO(), started=started)
