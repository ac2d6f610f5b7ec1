"""Where the tree may be mounted, what a killed daemon leaves, and how a mount ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pterefd.errors import BadInput, Missing
from pterefd.procfs import mountpoint
from pterefd.procfs.mountpoint import MountEntry

SERVER = """
import sys, time
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.mount import Mount
from pterefd.procfs.tree import Dir, File, Tree
pid = File("pid", 0o444, "", read=lambda *_: "4711\\n")
root = Dir("", (Dir("sys", (Dir("pterefd", (pid,)),)),))
Mount(Tree(root, None), sys.argv[1], fuse_impl.load()).start()
print("mounted", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(point: Path) -> Iterator[subprocess.Popen[str]]:
    """Another daemon, mounted at `point`."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(point)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mounted\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    process.stdout.close()
    mountpoint.unmount(str(point), detach=True)


def test_an_empty_directory_will_do(point: Path) -> None:
    assert mountpoint.prepare(str(point)) is False


def test_a_missing_directory_is_named(point: Path) -> None:
    with pytest.raises(BadInput, match=rf"{point}/x: mount point does not exist \(mkdir it first\)$"):
        mountpoint.prepare(str(point / "x"))


def test_a_file_is_no_mount_point(point: Path) -> None:
    (point / "file").write_text("")
    with pytest.raises(BadInput, match="file: mount point is not a directory"):
        mountpoint.prepare(str(point / "file"))


def test_a_directory_with_something_in_it_is_no_mount_point(point: Path) -> None:
    (point / "file").write_text("")
    with pytest.raises(BadInput, match="mount point is not empty"):
        mountpoint.prepare(str(point))
    assert os.listdir(point) == ["file"]


@pytest.mark.mount
def test_the_mount_of_a_killed_daemon_is_taken_away(point: Path, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(point)
    assert mountpoint.prepare(str(point)) is True
    assert os.listdir(point) == []
    assert mountpoint.prepare(str(point)) is False


@pytest.mark.mount
def test_the_mount_of_a_living_daemon_is_left_alone(point: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(Missing, match=r"another pterefd \(pid 4711\) is mounted there"):
        mountpoint.prepare(str(point))
    assert (point / "sys/pterefd/pid").read_text() == "4711\n"


@pytest.mark.mount
def test_a_daemon_that_does_not_answer_is_left_alone(
    point: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountpoint, "ANSWER_SECONDS", 0.2)
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(Missing, match="does not answer"):
        mountpoint.prepare(str(point))
    assert mountpoint.is_ours(str(point))


@pytest.mark.mount
def test_a_busy_mount_is_detached(point: Path, other: subprocess.Popen[str]) -> None:
    inside = os.open(point, os.O_RDONLY)
    try:
        assert mountpoint.unmount(str(point)) is False
        assert os.listdir(point) == []
        with pytest.raises(OSError, match=r"not connected|closed"):
            os.listdir(inside)
    finally:
        os.close(inside)


def test_unmounting_what_is_not_mounted_is_no_error(point: Path) -> None:
    assert mountpoint.unmount(str(point)) is True


def test_mountinfo_is_read_with_its_escapes() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 0:42 / /a\\134b rw shared:2 master:1 - fuse.pterefd pterefd rw,user_id=0\n"
    )
    assert mountpoint.mounts(text) == [
        MountEntry(36, "/mnt 2", "ext3", "/dev/root", ("rw", "errors=continue")),
        MountEntry(37, "/a\\b", "fuse.pterefd", "pterefd", ("rw", "user_id=0")),
    ]


def test_a_path_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.absolute(tmp_path / "link" / "mnt") == str(tmp_path / "real" / "mnt")
    assert mountpoint.absolute("mnt") == os.path.join(os.path.realpath("."), "mnt")


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.absolute(tmp_path / "link") == str(tmp_path / "real")


def test_without_the_device_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(Missing, match="fuse: not there; load the fuse module"):
        mountpoint.check_fuse()
