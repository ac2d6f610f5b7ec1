"""A real mount of a small tree: what system calls see, beside what the kernel's own /proc answers."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pterefd.errors import NoSuchMm
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.mount import Mount
from pterefd.procfs.tree import Content, Dir, Family, File, Link, Tree

pytestmark = pytest.mark.mount

Values = dict[str, Any]


def store(values: Values, _: object, value: Any) -> None:
    values["value"] = value


def store_slowly(values: Values, _: object, value: int) -> None:
    values["writing"].set()
    values["go_on"].wait(10)
    values["value"] = value


def no_such_mm(*_: Any) -> str:
    raise NoSuchMm("no mm with pid 5")


def fault(*_: Any) -> str:
    raise ZeroDivisionError


ROOT = Dir(
    "",
    (
        Dir(
            "sys",
            (
                File("int", 0o644, "", Content.INT, low=0, high=200, read=lambda v, _: f"{v['value']}\n", write=store),
                File("slow", 0o200, "", Content.INT, write=store_slowly),
                File("write_only", 0o200, "", Content.INT, low=0, high=9, write=store),
                File("fixed", 0o444, "", Content.STRING, read=lambda *_: "fixed\n"),
            ),
        ),
        File("text", 0o444, "", read=lambda v, _: "".join(f"line {i} {v['value']}\n" for i in range(20_000))),
        File("exited", 0o444, "", read=no_such_mm),
        File("fault", 0o444, "", read=fault),
        Link("self", "", lambda *_: "1"),
        Family(
            "PID",
            "",
            lambda v, _: map(str, v["pids"]),
            lambda v, _, name: name if name in map(str, v["pids"]) else None,
            Dir("PID", (File("status", 0o444, "", read=lambda _, pid: f"Pid:\t{pid}\n"),)),
            owner=lambda _, pid: (int(pid), 100),
        ),
    ),
)


@pytest.fixture
def values() -> Values:
    return {"value": 60, "pids": [1, 12], "writing": threading.Event(), "go_on": threading.Event()}


@pytest.fixture
def mnt(values: Values, mounted: Callable[[Tree], Path]) -> Path:
    return mounted(Tree(ROOT, values))


def answer(call: Callable[..., Any], *args: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return call(*args)
    except OSError as e:
        return errno.errorcode[e.errno or 0]


def write(path: Path, data: bytes, flags: int = os.O_WRONLY) -> Any:
    """What one write() on a fresh descriptor returns."""

    def call() -> int:
        fd = os.open(path, flags)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    return answer(call)


def sh(command: str, **env: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=os.environ | env)


# -- seen ------------------------------------------------------------------------------------------


def test_it_looks_like_proc(mnt: Path) -> None:
    assert sorted(os.listdir(mnt)) == ["1", "12", "exited", "fault", "self", "sys", "text"]
    assert os.readlink(mnt / "self") == "1"
    status = os.stat(mnt / "12" / "status")
    assert (oct(status.st_mode), status.st_size, status.st_uid, status.st_gid) == ("0o100444", 0, 12, 100)
    assert oct(os.stat(mnt / "sys").st_mode) == "0o40555"
    with os.scandir(mnt) as entries:
        assert {e.name for e in entries if e.is_dir(follow_symlinks=False)} == {"1", "12", "sys"}
    entry = next(e for e in mountpoint.mounts() if e.point == str(mnt))
    assert (entry.fstype, entry.source) == ("fuse.pterefd", "pterefd")


def test_reads_in_pieces_come_from_one_snapshot(mnt: Path, values: Values) -> None:
    whole = (mnt / "text").read_bytes()
    assert whole.count(b"\n") == 20_000
    fd = os.open(mnt / "text", os.O_RDONLY)
    try:
        pieces = [os.read(fd, 7)]
        values["value"] = 61
        while piece := os.read(fd, 4097):
            pieces.append(piece)
        assert b"".join(pieces) == whole
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.read(fd, 10) == b"line 0 61\n"  # a held descriptor, as top and vmstat have one
    finally:
        os.close(fd)


def test_dd_tail_and_cp_read_it(mnt: Path, tmp_path: Path) -> None:
    whole = (mnt / "text").read_text()
    assert sh('dd bs=7 if="$P" 2>/dev/null', P=mnt / "text").stdout == whole
    assert sh('tail -n 1 "$P"', P=mnt / "text").stdout == "line 19999 60\n"
    assert sh('cp "$P" "$T" && cat "$T"', P=mnt / "text", T=tmp_path / "copy").stdout == whole


def test_an_int_read_byte_by_byte_ends_after_the_first(mnt: Path) -> None:
    for path in (mnt / "sys/int", Path("/proc/sys/vm/swappiness")):
        with path.open("rb", buffering=0) as f:
            assert len(f.read(1) or b"") == 1
            assert f.read(1) == b""


def test_a_new_name_is_there_at_once_and_an_old_one_gone_to_open(mnt: Path, values: Values) -> None:
    assert answer(os.stat, mnt / "77") == "ENOENT"
    values["pids"].append(77)
    assert (mnt / "77" / "status").read_text() == "Pid:\t77\n"
    values["pids"].remove(77)
    assert answer((mnt / "77" / "status").read_text) == "ENOENT"
    assert "77" not in os.listdir(mnt)


# -- written ---------------------------------------------------------------------------------------


def test_writes_answer_as_the_kernel_does(mnt: Path, values: Values) -> None:
    assert write(mnt / "sys/int", b"61\n") == 3
    assert values["value"] == 61
    assert write(mnt / "sys/int", b"65 66") == 3
    assert values["value"] == 65
    for data in (b"201", b"x", b"-1", b" "):
        assert write(mnt / "sys/int", data) == "EINVAL"
    assert write(mnt / "sys/int", b"") == 0
    assert values["value"] == 65


def test_a_shell_writes_with_truncation_and_with_append(mnt: Path, values: Values) -> None:
    path = mnt / "sys/int"
    for command, value in (('echo 71 > "$P"', 71), ('echo 72 >> "$P"', 72), ('echo 73 >> "$P"', 73)):
        assert sh(command, P=path).returncode == 0
        assert (values["value"], path.read_text()) == (value, f"{value}\n")
    assert sh('echo 500 > "$P"', P=path).returncode != 0


def test_a_second_write_on_one_descriptor_is_taken_and_dropped(mnt: Path, values: Values) -> None:
    fd = os.open(mnt / "sys/int", os.O_WRONLY)
    try:
        assert [os.write(fd, b"7"), os.write(fd, b"8"), os.write(fd, b"x")] == [1, 1, 1]
        assert values["value"] == 7
        assert os.pwrite(fd, b"9", 0) == 1
        assert values["value"] == 9
    finally:
        os.close(fd)


def test_a_write_larger_than_a_page_is_read_to_its_first_4095_bytes(mnt: Path, values: Values) -> None:
    assert write(mnt / "sys/int", b"70" + b" " * 5000) == 5002
    assert write(mnt / "sys/int", b"71" + b" " * 300_000) == 300_002
    assert values["value"] == 71
    assert write(mnt / "sys/int", b" " * 5000 + b"72") == "EINVAL"


def test_what_is_write_only_is_so_for_root(mnt: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        assert answer(os.open, mnt / "sys/write_only", flags) == "EACCES"
    assert answer(os.truncate, mnt / "sys/write_only", 0) is None
    assert write(mnt / "sys/write_only", b"1", os.O_WRONLY | os.O_TRUNC) == 1


def test_a_reader_does_not_wait_behind_a_long_write(mnt: Path, values: Values) -> None:
    writer = threading.Thread(target=write, args=(mnt / "sys/slow", b"5"))
    writer.start()
    assert values["writing"].wait(5)
    begin = time.monotonic()
    assert (mnt / "sys/int").read_text() == "60\n"
    assert time.monotonic() - begin < 2
    assert writer.is_alive()
    values["go_on"].set()
    writer.join()
    assert (mnt / "sys/int").read_text() == "5\n"


def test_errors_of_the_house_and_faults_become_errnos(mnt: Path) -> None:
    assert answer((mnt / "exited").read_text) == "ESRCH"
    assert answer((mnt / "fault").read_text) == "EIO"
    assert (mnt / "sys/int").read_text() == "60\n"


# -- beside the kernel's own -----------------------------------------------------------------------


def odd_calls(sysctl: Path, write_only: Path, fixed: Path, text: Path, directory: Path) -> dict[str, Any]:
    """What odd system calls answer on files of each sort. None of them changes anything."""
    results: dict[str, Any] = {}
    for what, path in (("int", sysctl), ("write_only", write_only), ("fixed", fixed), ("text", text)):
        for name, flags in (
            ("r", os.O_RDONLY),
            ("w", os.O_WRONLY),
            ("rw", os.O_RDWR),
            ("wt", os.O_WRONLY | os.O_TRUNC),
        ):
            fd = answer(os.open, path, flags)
            if isinstance(fd, int):
                os.close(fd)
                fd = "opened"
            results[f"open {what} {name}"] = fd
        results[f"truncate {what}"] = answer(os.truncate, path, 0)
        results[f"truncate to 5 {what}"] = answer(os.truncate, path, 5)
        results[f"chmod {what}"] = answer(os.chmod, path, 0o666)
        results[f"utime {what}"] = answer(os.utime, path)
        results[f"rename {what}"] = answer(os.rename, path, path.parent / "new")
        results[f"link {what}"] = answer(os.link, path, path.parent / "new")
        results[f"getxattr {what}"] = answer(os.getxattr, path, "user.x") if what != "write_only" else None
        results[f"below {what}"] = answer(os.stat, path / "x")
    results["write text"] = write(text, b"x")
    results["chown int"] = answer(os.chown, sysctl, 0, 0)
    results["create"] = answer(os.open, directory / "new", os.O_CREAT | os.O_WRONLY)
    results["mkdir"] = answer(os.mkdir, directory / "new")
    results["symlink"] = answer(os.symlink, "x", directory / "new")
    results["mknod"] = answer(os.mknod, directory / "new")
    results["open directory w"] = answer(os.open, directory, os.O_WRONLY)
    results["truncate directory"] = answer(os.truncate, directory, 0)
    for name in ("01", "+1", "-1", "0", "99999999999", "1x"):
        results[f"stat {name}"] = answer(os.stat, directory / name)
    return results


@pytest.mark.kernel
def test_odd_calls_answer_as_on_the_kernels_proc(mnt: Path) -> None:
    vm = Path("/proc/sys/vm")
    kernel = odd_calls(
        vm / "swappiness", vm / "drop_caches", Path("/proc/sys/kernel/ostype"), Path("/proc/self/status"), Path("/proc")
    )
    ours = odd_calls(mnt / "sys/int", mnt / "sys/write_only", mnt / "sys/fixed", mnt / "text", mnt)
    assert ours == kernel


# -- both bindings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "name"), [("3", "mfusepy"), ("2", "fusepy")])
def test_each_binding_serves_the_tree(
    wanted: str, name: str, point: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTEREFD_FUSE", wanted)
    binding = fuse_impl.load()
    assert binding.name == name
    mount = Mount(Tree(ROOT, values), str(point), binding)
    before = os.getcwd()
    mount.start()
    try:
        assert os.getcwd() == before
        assert sorted(os.listdir(point / "12")) == ["status"]
        assert write(point / "sys/int", b"9") == 1
        assert (point / "sys/int").read_text() == "9\n"
        assert write(point / "sys/int", b"x") == "EINVAL"
        assert write(point / "sys/fixed", b"9") == "EACCES"
        assert os.stat(point / "12").st_uid == 12
    finally:
        assert mount.stop()
    assert mount.ended
    assert os.listdir(point) == []
    read_end, write_end = os.pipe()  # libfuse 2 gives SIGPIPE its default: the write would end the process
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as nobody_reads, pytest.raises(BrokenPipeError):
        nobody_reads.write(b"x")


def test_the_writer_is_known(point: Path, values: Values) -> None:
    callers: list[tuple[int, int]] = []

    class Caller:
        def __init__(self, uid: int, pid: int) -> None:
            callers.append((uid, pid))

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    mount = Mount(Tree(ROOT, values), str(point), fuse_impl.load(), caller=Caller)
    mount.start()
    try:
        write(point / "sys/int", b"1")
    finally:
        mount.stop()
    assert callers == [(os.geteuid(), os.getpid())]
