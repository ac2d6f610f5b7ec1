"""The mount helper, run as root by systemd's own socket activation: what it mounts, for whom, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pterefd.procfs import mountpoint
from tests.mounthelper.helper import ROOT, MountHelper
from tests.systemd.installed import NOBODY, in_reach, open_way

pytestmark = pytest.mark.mount


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """Where mounts may be made: only root may change it."""
    path = tmp_path / "area"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def helper(tmp_path: Path, area: Path) -> Iterator[MountHelper]:
    table = f"""
        [[mount]]
        point = "{area}/*"
        user = "root"
        [[mount]]
        point = "{area}/shared"
        user = "root"
        allow_other = true
        [[mount]]
        point = "{area}/theirs"
        user = "nobody"
    """
    one = MountHelper(tmp_path, table)
    yield one
    one.stop()


def ask(helper: MountHelper, **request: Any) -> tuple[socket.socket, dict[str, str], list[int]]:
    """The connection, the answer, and what was handed over."""
    connection = helper.connect()
    connection.send(json.dumps({"allow_other": False, **request}).encode())
    data, devices, _, _ = socket.recv_fds(connection, 8192, 4)
    return connection, json.loads(data), list(devices)


def mounted(point: Path) -> mountpoint.MountEntry | None:
    return mountpoint.topmost(str(point))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def child_of(helper: MountHelper) -> int:
    """The process that serves the only connection."""
    return int(subprocess.check_output(["pgrep", "-P", str(helper.process.pid)], text=True))


def refused(helper: MountHelper, point: object, **request: Any) -> str:
    connection, answer, devices = ask(helper, mount=str(point), **request)
    with connection:
        assert devices == []
        assert answer.keys() == {"refused"}
    helper.said(answer["refused"])
    return answer["refused"]


# -- a life --------------------------------------------------------------------------------------


def test_it_mounts_hands_over_and_unmounts_when_asked(helper: MountHelper, area: Path) -> None:
    point = area / "one"
    connection, answer, (device,) = ask(helper, mount=str(point))
    with connection:
        assert answer == {"mounted": str(point)}
        assert os.readlink(f"/proc/self/fd/{device}") == "/dev/fuse"
        there = mounted(point)
        assert there is not None
        assert there.fstype == "fuse.pterefd"
        assert {"user_id=0", "group_id=0", "default_permissions"} <= set(there.options)
        assert "allow_other" not in there.options
        flags = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {point} " in line)
        assert {"nosuid", "nodev", "noexec"} <= set(flags.split()[3].split(","))
        kept = [os.readlink(path) for path in Path(f"/proc/{child_of(helper)}/fd").iterdir()]
        assert "/dev/fuse" not in kept  # or the daemon's end would not be the mount's
        os.close(device)
        connection.send(b"{}")
        assert json.loads(connection.recv(8192)) == {"unmounted": "clean"}
    assert mounted(point) is None
    assert not point.exists()  # the helper had made it


def test_it_unmounts_when_the_other_end_is_gone(helper: MountHelper, area: Path) -> None:
    """However it went, and whoever is inside."""
    point = area / "one"
    point.mkdir()
    connection, _, (device,) = ask(helper, mount=str(point))
    connection.close()
    until(lambda: mounted(point) is None)
    os.close(device)
    assert point.exists()  # and it had not made it


def test_a_helper_that_is_stopped_unmounts(helper: MountHelper, area: Path) -> None:
    connection, _, (device,) = ask(helper, mount=str(area / "one"))
    with connection:
        os.kill(child_of(helper), 15)
        until(lambda: mounted(area / "one") is None)
    os.close(device)


def test_what_a_killed_helper_left_is_taken_away_for_the_same_user(helper: MountHelper, area: Path) -> None:
    connection, _, (device,) = ask(helper, mount=str(area / "one"))
    os.kill(child_of(helper), 9)
    assert connection.recv(1) == b""
    connection.close()
    os.close(device)
    assert mounted(area / "one") is not None
    connection, answer, (device,) = ask(helper, mount=str(area / "one"))
    assert "mounted" in answer
    assert [entry.point for entry in mountpoint.mounts()].count(str(area / "one")) == 1
    connection.close()
    until(lambda: mounted(area / "one") is None)
    os.close(device)


def test_what_somebody_else_mounted_there_meanwhile_is_left_alone(helper: MountHelper, area: Path) -> None:
    point = area / "one"
    connection, _, (device,) = ask(helper, mount=str(point))
    with connection:
        subprocess.run(["umount", "-l", point], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
        try:
            connection.send(b"{}")
            assert json.loads(connection.recv(8192)) == {"unmounted": "clean"}
            there = mounted(point)
            assert there is not None
            assert there.fstype == "tmpfs"
        finally:
            subprocess.run(["umount", point], check=True)
    os.close(device)


# -- what is refused -------------------------------------------------------------------------------


def test_a_point_that_the_table_does_not_have(helper: MountHelper, area: Path, tmp_path: Path) -> None:
    for point in (tmp_path / "mnt", area, area / "one" / "two", "/", "/etc"):
        assert "may not mount there" in refused(helper, point) or "plain absolute path" in refused(helper, point)
    assert list(area.iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/../b", "a//b", "", "a\nb", ".hidden", "-\x1b[31m"])
def test_a_path_that_is_not_plain(helper: MountHelper, area: Path, name: str) -> None:
    assert "plain absolute path" in refused(helper, f"{area}/{name}") or "may not" in refused(helper, f"{area}/{name}")


def test_a_symbolic_link_is_never_followed(helper: MountHelper, area: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (area / "link").symlink_to(tmp_path / "elsewhere")
    assert "cannot be used" in refused(helper, area / "link")
    assert mounted(tmp_path / "elsewhere") is None


def test_a_way_that_others_can_change(helper: MountHelper, area: Path) -> None:
    area.chmod(0o777)
    assert "is not root's alone" in refused(helper, area / "one")
    os.chown(area, NOBODY, NOBODY)
    area.chmod(0o755)
    assert "is not root's alone" in refused(helper, area / "one")


def test_what_is_no_empty_directory_of_theirs(helper: MountHelper, area: Path) -> None:
    (area / "full").mkdir()
    (area / "full" / "x").touch()
    (area / "file").touch()
    (area / "foreign").mkdir()
    os.chown(area / "foreign", NOBODY, NOBODY)
    assert "not empty" in refused(helper, area / "full")
    assert "cannot be used: Not a directory" in refused(helper, area / "file")
    assert "belongs to somebody else" in refused(helper, area / "foreign")


def test_a_place_where_something_is_mounted(helper: MountHelper, area: Path) -> None:
    (area / "one").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", area / "one"], check=True)
    try:
        assert "something else is mounted there" in refused(helper, area / "one")
    finally:
        subprocess.run(["umount", area / "one"], check=True)


def test_others_are_let_in_only_where_the_table_says_so(helper: MountHelper, area: Path) -> None:
    assert "allow_other is not allowed there" in refused(helper, area / "one", allow_other=True)


@pytest.mark.parametrize("packet", [b"", b"x", b"[]", b'{"mount": 1, "allow_other": false}', b"[" * 4000, b"{}"])
def test_what_is_no_request(helper: MountHelper, packet: bytes) -> None:
    with helper.connect() as connection:
        connection.send(packet)
        assert b"refused" in connection.recv(8192)


CLIENT = """
import sys
from pterefd.errors import Missing
from pterefd.procfs.helped import Helped
helped = Helped(sys.argv[1])
for point in sys.argv[2:]:
    try:
        helped.mount(point, False)
        print("mounted", helped.unmount())
    except Missing as error:
        print(error)
"""


def ask_as_nobody(helper: MountHelper, *points: Path) -> list[str]:
    """A line for each point: what came of asking for it."""
    as_nobody = [*in_reach(), "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    result = subprocess.run(
        [*as_nobody, sys.executable, "-c", CLIENT, helper.socket, *points],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return result.stdout.splitlines()


def test_a_directory_that_its_owner_could_move(helper: MountHelper, area: Path, tmp_path: Path) -> None:
    """In a sticky one its owner could put a link to another file system in its place, to have that unmounted."""
    open_way(tmp_path / "x")
    (area / "theirs").mkdir()
    os.chown(area / "theirs", NOBODY, NOBODY)
    area.chmod(0o1777)
    (line,) = ask_as_nobody(helper, area / "theirs")
    assert line.endswith(f"belongs to uid {NOBODY}, who could move it: make it root's")
    os.chown(area / "theirs", 0, 0)
    assert ask_as_nobody(helper, area / "theirs") == ["mounted True"]


def test_nothing_is_taken_away_where_the_way_is_not_roots_alone(helper: MountHelper, area: Path) -> None:
    connection, answer, devices = ask(helper, mount=str(area / "one"))
    assert answer == {"mounted": str(area / "one")}
    area.chmod(0o777)
    assert "is not root's alone" in refused(helper, area / "one")
    assert mounted(area / "one") is not None
    area.chmod(0o755)
    os.close(devices[0])
    connection.close()


def test_another_user_has_what_the_table_gives_that_user(helper: MountHelper, area: Path, tmp_path: Path) -> None:
    """nobody is let in by the file modes, and told apart by the kernel's word, not by anything that it says."""
    open_way(tmp_path / "x")
    one, theirs = ask_as_nobody(helper, area / "one", area / "theirs")
    assert one == f"mount helper {helper.socket}: {area}/one: uid {NOBODY} may not mount there"
    assert theirs == "mounted True"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("x = 1", "consists of [[mount]] tables"),
        ("[[mount]]\npoint = '/a'", "takes point, user and allow_other"),
        ("[[mount]]\npoint = '/a'\nuser = 'root'\nroot = true", "takes point, user and allow_other"),
        ("[[mount]]\npoint = 'a/*'\nuser = 'root'", "point 'a/*' is not a plain absolute path"),
        ("[[mount]]\npoint = '/a'\nuser = 'nobody-of-that-name'", "there is no user 'nobody-of-that-name'"),
        ("[[mount]]\npoint = '/a'\nuser = 'root'\nallow_other = 1", "allow_other 1 is not true or false"),
        ("[[", "mounts.toml: "),
    ],
)
def test_a_bad_table_allows_nothing(helper: MountHelper, area: Path, table: str, reason: str) -> None:
    helper.table.write_text(table)
    assert reason in refused(helper, area / "one")


def test_a_table_that_others_may_write_allows_nothing(helper: MountHelper, area: Path) -> None:
    helper.table.chmod(0o666)
    assert "written by nobody else" in refused(helper, area / "one")


def test_started_by_hand_it_says_who_starts_it() -> None:
    result = subprocess.run([sys.executable, "-m", "pterefd.mounthelper"], capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "pterefd-mount.socket" in result.stderr


def test_it_loads_nothing_that_root_need_not_run() -> None:
    """Beside the standard library: errors, the table, the mount point."""
    program = "import sys, pterefd.mounthelper.__main__\nprint(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    tops = {name.partition(".")[0] for name in names}
    assert not tops & {"numpy", "numba", "click", "pydantic", "fuse", "mfusepy", "structlog"}
    assert sorted(name for name in names if name.startswith("pterefd.")) == [
        *("pterefd.errors", "pterefd.mounthelper", "pterefd.mounthelper.__main__", "pterefd.mounthelper.serve"),
        *("pterefd.mounthelper.table", "pterefd.privileged", "pterefd.procfs", "pterefd.procfs.mountpoint"),
    ]
