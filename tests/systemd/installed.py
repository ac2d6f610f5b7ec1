"""What the tests of an installation share: one in a root of its own, and compiled kernels for a copy of the package."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pterefd
from pterefd.engine.cache import cache_directory

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = Path(pterefd.__file__).resolve().parent
UNITS = ("pterefd.service", "pterefd@.service", "pterefd-mount.socket", "pterefd-mount@.service")
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
