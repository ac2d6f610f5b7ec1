"""The daemon as its unit runs it: no rights, a mount namespace that lets no mount out; and its mount seen outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pterefd.procfs import mountpoint
from pterefd.session.simulation import REPLAY_NICE
from tests.mounthelper.helper import MountHelper
from tests.systemd.installed import NOBODY, ROOT, allowed_calls, filtered, in_reach, kernels, open_way
from tests.systemd.manager import Manager

pytestmark = pytest.mark.mount

# What bears on the mount: a mount namespace, ProcSubset=pid, no rights. The rest is left to systemd.
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs")
AS_NOBODY += ("--bounding-set=-all", "--inh-caps=-all")
UNIT = (*in_reach(proc="subset=pid"), *AS_NOBODY)
AS_ANOTHER = ("setpriv", "--reuid=4711", "--regid=4711", "--clear-groups")

Start = Callable[..., Manager]


@pytest.fixture
def area(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts reach other mount namespaces, as systemd makes all of them."""
    path = tmp_path / "area"
    path.mkdir()
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "--make-shared", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def start(tmp_path: Path, area: Path) -> Iterator[Start]:
    """Starts the daemon as nobody, with the helper that the table allows what it asks for."""
    table = f"[[mount]]\npoint = '{area}/*'\nuser = 'nobody'\nallow_other = true"
    helper = MountHelper(tmp_path, table)
    open_way(tmp_path / "x")
    managers: list[Manager] = []

    def start(text: str = "", unit: tuple[str, ...] = UNIT) -> Manager:
        cache = kernels(tmp_path / f"cache{len(managers)}", user=NOBODY)
        one = Manager(
            tmp_path,
            f"daemon.mount_helper = '{helper.socket}'\n{text}",
            program=(*unit, sys.executable, "-m", "pterefd"),
            mount=area / "one",
            environment={"PTEREFD_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
        )
        managers.append(one)
        return one

    yield start
    for one in managers:
        one.stop()
        until_gone(one.mount)
    helper.stop()


def until_gone(mount: Path) -> None:
    deadline = time.monotonic() + 30
    while mountpoint.topmost(str(mount)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(path: Path, *as_: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*as_, "cat", path], capture_output=True, text=True)


def test_the_mount_is_seen_outside(start: Start, area: Path) -> None:
    """With allow_other by everybody; a write from outside has its effect inside."""
    one = start("daemon.allow_other = true")
    one.until_heard("READY=1")
    one.until(lambda: one.read("sys/pterefd/replay/state") == "held\n")
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["CapEff"], status["CapPrm"]) == ("1", "0" * 16, "0" * 16)
    assert status["Uid"].split()[0] == str(NOBODY)
    ours, theirs = (os.readlink(f"/proc/{pid}/ns/mnt") for pid in ("self", one.process.pid))
    assert ours != theirs
    assert one.read("1/comm") == "redis-server\n"
    assert read(one.mount / "1/comm", *AS_ANOTHER).stdout == "redis-server\n"
    assert int(one.read("1/reclaimable_pt_bytes")) > 0
    (one.mount / "sys/vm/free_ptes").write_text("1")
    assert one.read("1/reclaimable_pt_bytes") == "0\n"
    assert one.stop() == 0
    assert mountpoint.topmost(str(one.mount)) is None
    assert not one.mount.exists()


def refused_calls(prefix: tuple[str, ...]) -> set[str]:
    """What a program under the filter may not do, of what the kernel would let anybody do with himself."""
    calls = {
        "setpriority": "os.setpriority(os.PRIO_PROCESS, 0, 10)",
        "sched_setaffinity": "os.sched_setaffinity(0, os.sched_getaffinity(0))",
        "sched_setscheduler": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    }
    done = {
        name: subprocess.run([*prefix, sys.executable, "-c", f"import os; {code}"], capture_output=True)
        for name, code in calls.items()
    }
    return {name for name, result in done.items() if b"PermissionError" in result.stderr}


def test_under_the_units_filter_it_replays_to_the_end(start: Start) -> None:
    """Without libseccomp: the sets are asked of systemd, the filter is put in front by a program of the tests."""
    prefix = filtered("pterefd.service")
    assert {"setpriority", "openat", "execve"} <= allowed_calls("pterefd.service")
    assert refused_calls(prefix) == {"sched_setaffinity", "sched_setscheduler"}
    one = start("daemon.allow_other = true\nreplay.hold = false", unit=(*UNIT, *prefix))
    one.until_heard("READY=1")
    one.until(lambda: one.read("sys/pterefd/replay/state") == "ended\n")
    status = Path(f"/proc/{one.process.pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status
    nice = {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{one.process.pid}/task").iterdir()}
    assert nice <= {0, REPLAY_NICE}
    assert one.stop() == 0
    assert [line for line in one.said().splitlines() if "nice" in line or "fault" in line] == []


def test_without_allow_other_it_is_the_daemons_alone(start: Start, area: Path) -> None:
    """Not even root is let in: FUSE's own rule."""
    one = start()
    one.until_heard("READY=1")
    for as_ in ((), AS_ANOTHER):
        assert "Permission denied" in read(one.mount / "1/comm", *as_).stderr
    one.until(lambda: read(one.mount / "1/comm", *AS_NOBODY).stdout == "redis-server\n")


def test_a_daemon_that_is_killed_leaves_no_mount(start: Start, area: Path) -> None:
    one = start("daemon.allow_other = true")
    one.until_heard("READY=1")
    one.process.kill()
    one.process.wait()
    until_gone(one.mount)


def test_the_watchdog_sees_the_mount_from_inside(tmp_path: Path, start: Start) -> None:
    one = start(unit=("env", "WATCHDOG_USEC=2000000", *UNIT))
    one.until_heard("WATCHDOG=1")


def test_a_namespace_that_no_mount_reaches_is_named(start: Start, area: Path) -> None:
    one = start(unit=(*in_reach(propagation="private"), *AS_NOBODY))
    assert one.process.wait(280) == 3
    assert one.said().splitlines()[-1] == (
        f"pterefd: {area}/one: mounted, but not seen here: mounts must reach this mount namespace (slave)"
    )


def test_what_the_helper_refuses_is_the_daemons_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mounts.toml").write_text("")
    one = start()
    assert one.process.wait(280) == 3
    (line,) = one.said().splitlines()
    assert line == f"pterefd: mount helper {tmp_path}/socket: {tmp_path}/area/one: uid {NOBODY} may not mount there"
