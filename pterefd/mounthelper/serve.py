"""The mount helper: root mounts for a daemon that has no rights of its own, and unmounts when it is gone.

One process a connection (Accept=yes in systemd/pterefd-mount.socket). The daemon says in one packet where it
wants to be mounted; the helper looks that up in a file that only root writes, mounts, and hands over the open
/dev/fuse. The mount lives as long as the connection. What is served at a mount is the daemon's word and never
looked into: no path is walked through it. Standard library only: all of this runs as root.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import sys
from contextlib import suppress

from pterefd.errors import BadInput, Missing
from pterefd.mounthelper.table import plain, table
from pterefd.privileged import peer_of
from pterefd.procfs import mountpoint

PACKET_BYTES = 8192
ASK_SECONDS = 10.0  # for the daemon to say what it wants
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
_libc = ctypes.CDLL(None, use_errno=True)


def serve(connection: socket.socket, path: str) -> None:
    """Mount what is asked for, hand it over, unmount when asked or when the other end is gone. PterefdError.

    path: of the table.
    """
    pid, uid, gid = peer_of(connection)
    connection.settimeout(ASK_SECONDS)
    point, allow_other = _request(connection.recv(PACKET_BYTES))
    entry = next((entry for entry in table(path) if entry.fits(point) and uid == entry.user), None)
    if entry is None:
        raise BadInput(f"{point}: uid {uid} may not mount there")
    if allow_other and not entry.allow_other:
        raise BadInput(f"{point}: allow_other is not allowed there")
    above = _above(point)
    try:
        _leftovers(point, uid)
        new, directory = _directory(point, above, uid)
    finally:
        os.close(above)
    ours = None
    try:
        device = _mount(directory, uid, gid, allow_other)
        ours = mountpoint.topmost(point)
        say(f"{point}: mounted for uid {uid}, pid {pid}")
        try:
            socket.send_fds(connection, [packet(mounted=point)], [device])
        finally:
            os.close(device)  # the daemon's alone now: its end is the mount's
        connection.settimeout(None)
        connection.recv(PACKET_BYTES)  # unmount, or the end of file of a daemon that is gone
    finally:
        os.close(directory)
        clean = _unmount(point, ours)
        if new:
            _remove(point)
    with suppress(OSError):  # of a daemon that is gone
        connection.send(packet(unmounted="clean" if clean else "detached"))


def _request(packet: bytes) -> tuple[str, bool]:
    try:
        asked = json.loads(packet)
    except (ValueError, RecursionError):
        raise BadInput("not a request") from None
    if not isinstance(asked, dict) or asked.keys() != {"mount", "allow_other"}:
        raise BadInput("a request has mount and allow_other")
    point, allow_other = asked["mount"], asked["allow_other"]
    if not isinstance(point, str) or not isinstance(allow_other, bool) or not plain(point):
        raise BadInput("mount is a plain absolute path, allow_other true or false")
    return point, allow_other


def _leftovers(point: str, uid: int) -> None:
    """Take away what a dead daemon of the same user has left; that it is dead is for the user to know."""
    above = [entry.point for entry in mountpoint.mounts() if entry.fstype.startswith("fuse")]
    if any(point.startswith(f"{path}/") for path in above):
        raise BadInput(f"{point}: lies below a FUSE mount")
    while (there := mountpoint.topmost(point)) is not None:
        if there.fstype != mountpoint.FSTYPE or f"user_id={uid}" not in there.options:
            raise Missing(f"{point}: something else is mounted there")
        mountpoint.unmount(point, detach=True)
        if mountpoint.topmost(point) == there:
            raise Missing(f"{point}: what a dead daemon left cannot be taken away")


def _above(point: str) -> int:
    """A descriptor (O_PATH) of the directory that holds point, by way of no symbolic link.

    Every directory on the way is root's, and written by others only where it is sticky: nobody else can put another
    in the place of one of them.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_PATH
    here = os.open("/", flags)
    try:
        for name in point.split("/")[1:-1]:
            here = _entered(here, os.open(name, flags, dir_fd=here))
            status = os.fstat(here)
            if status.st_uid != 0 or (_others_write(status) and not status.st_mode & stat.S_ISVTX):
                raise BadInput(f"{point}: {name} on its way is not root's alone")
    except OSError as e:
        os.close(here)
        raise BadInput(f"{point}: mount point cannot be used: {e.strerror}") from None
    except BadInput:
        os.close(here)
        raise
    return here


def _others_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o022)


def _directory(point: str, above: int, uid: int) -> tuple[bool, int]:
    """Whether it had to be made, and a descriptor of the empty directory at point, which `above` holds.

    Root's, or the user's where the one above is root's alone: an owner can take his own out of a sticky directory, and
    what lay at point later would be another thing.
    """
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    name = os.path.basename(point)
    made = False
    try:
        try:
            leaf = os.open(name, flags, dir_fd=above)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=above)
            made = True
            leaf = os.open(name, flags, dir_fd=above)
    except OSError as e:
        raise BadInput(f"{point}: mount point cannot be used: {e.strerror}") from None
    try:
        owner = os.fstat(leaf).st_uid
        if owner not in (0, uid):
            raise BadInput(f"{point}: belongs to somebody else")
        if owner != 0 and _others_write(os.fstat(above)):
            raise BadInput(f"{point}: belongs to uid {uid}, who could move it: make it root's")
        if os.listdir(leaf):
            raise BadInput(f"{point}: mount point is not empty")
    except BadInput:
        os.close(leaf)
        raise
    return made, leaf


def _entered(left: int, entered: int) -> int:
    os.close(left)
    return entered


def _mount(directory: int, uid: int, gid: int, allow_other: bool) -> int:
    """/dev/fuse, open, and mounted on the directory for a user. The kernel checks modes, always."""
    try:
        device = os.open(mountpoint.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        raise Missing(f"{mountpoint.DEVICE}: {e.strerror}") from None
    options = f"fd={device},rootmode=40000,user_id={uid},group_id={gid},default_permissions"
    options += ",allow_other" if allow_other else ""
    target = f"/proc/self/fd/{directory}".encode()  # this very directory, whatever its path leads to by now
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _libc.mount(b"pterefd", target, mountpoint.FSTYPE.encode(), ctypes.c_ulong(flags), options.encode()) != 0:
        reason = os.strerror(ctypes.get_errno())
        os.close(device)
        raise Missing(f"mount: {reason}")
    return device


def _unmount(point: str, ours: mountpoint.MountEntry | None) -> bool:
    """Unmount what was mounted, if it is what is there still; False where it had to be detached."""
    # All of the entry is compared: the kernel gives the number of a mount that is gone to the next one.
    if ours is None or mountpoint.topmost(point) != ours:
        return True
    clean = mountpoint.unmount(point)
    say(f"{point}: unmounted" if clean else f"{point}: somebody was still inside; detached")
    return clean


def _remove(point: str) -> None:
    try:
        os.rmdir(point)
    except OSError as e:
        say(f"{point}: {e.strerror}")


def packet(**fields: str) -> bytes:
    """One message to the daemon."""
    return json.dumps(fields).encode()


def say(text: str) -> None:
    """One line of the log."""
    print(f"pterefd-mount: {text}", file=sys.stderr, flush=True)
