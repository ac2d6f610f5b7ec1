"""What the tests of an installation share: one in a root of its own, and compiled kernels for a copy of the package."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pterefd
from pterefd.engine.cache import cache_directory

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = Path(pterefd.__file__).resolve().parent
UNITS = (
    *("pterefd.service", "pterefd@.service", "pterefd-mount.socket", "pterefd-mount@.service"),
    *("pterefd-free.socket", "pterefd-free.service"),
)
NOBODY = 65534


def install(root: Path, *, prefix: str = "/usr", interpreter: str | Path = sys.executable) -> str:
    """`make install DESTDIR=root`, with the packages of the tests' own environment; what it says on stderr."""
    environment = {**os.environ, "DESTDIR": str(root), "PREFIX": prefix, "DEPENDENCIES": "no"}
    command = [ROOT / "setup" / "install.sh", "install", sys.executable, interpreter]
    return subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE, text=True).stderr


def kernels(target: Path, package: Path = PACKAGE, *, user: int = 0) -> Path:
    """A cache directory in which a copy of the package finds what this one has compiled; compiling takes minutes.

    The cache is by the path and the time of each source file; it must be the user's own.
    """
    subprocess.run([sys.executable, "-c", "from pterefd.host.warm import warm; warm()"], check=True)
    source = cache_directory()
    for part in ("engine", "mm"):
        for file in (PACKAGE / part).glob("*.py"):
            if package != PACKAGE:
                assert (package / part / file.name).read_bytes() == file.read_bytes()
                status = file.stat()
                os.utime(package / part / file.name, ns=(status.st_atime_ns, status.st_mtime_ns))
        copied = target / source.name / _place(package / part)
        shutil.copytree(source / _place(PACKAGE / part), copied)
    for path in (target, *target.rglob("*")):
        os.chown(path, user, user)
        path.chmod(0o700)
    return target


def _place(directory: Path) -> str:
    """numba.core.caching._CacheLocator.get_suitable_cache_subpath()."""
    return f"{directory.name}_{hashlib.sha1(str(directory).encode()).hexdigest()}"


def _expanded(name: str) -> set[str]:
    """A system call, or all of a set of systemd's."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True)
    words = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return set().union(*(_expanded(word) for word in words if word and not word.startswith("#")))


def allowed_calls(unit: str) -> set[str]:
    """Names of the system calls that the SystemCallFilter= lines of a unit let through: systemd.exec(5)."""
    allowed = _expanded("@default")
    for line in (ROOT / "systemd" / unit).read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            calls = set().union(*map(_expanded, value.lstrip("~").split()))
            allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


def filtered(unit: str) -> tuple[str, ...]:
    """A command's prefix: the unit's system call filter, of the calls that this machine's headers know."""
    headers = subprocess.run(
        ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
    number = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", headers.stdout, re.MULTILINE))
    numbers = sorted({int(number[name]) for name in allowed_calls(unit) if name in number})
    (error,) = (line for line in (ROOT / "systemd" / unit).read_text().splitlines() if "SystemCallErrorNumber=" in line)
    code = getattr(errno, error.partition("=")[2])
    return sys.executable, str(Path(__file__).parent / "filtered.py"), str(code), ",".join(map(str, numbers))


def open_way(path: Path) -> None:
    """Let every user pass through the directories above path."""
    for directory in path.parents:
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o011)


def in_reach(*, propagation: str = "slave", proc: str = "") -> tuple[str, ...]:
    """A command's prefix: a mount namespace in which the Python that runs the tests can be run by every user.

    proc: options of a /proc of its own.
    """
    prefix = Path(sys.base_prefix)
    closed = [path for path in reversed(prefix.parents) if path.stat().st_mode & 0o001 == 0]
    steps = ["set -e"]
    if proc:
        steps.append(f"mount -t proc -o {proc} proc /proc")
    if closed:  # such as /root
        steps += [
            "kept=$(mktemp -d)",
            f"mount --bind {prefix} $kept",
            f"mount -t tmpfs -o mode=755 tmpfs {closed[0]}",
            f"mkdir -p {prefix}",
            f"mount --bind $kept {prefix}",
            "umount $kept",
            "rmdir $kept",
        ]
    return ("unshare", "--mount", "--propagation", propagation, "sh", "-c", "; ".join([*steps, 'exec "$@"']), "sh")
