"""Where compiled kernels are kept: a directory of pterefd's own, one per state of the kernels' sources.

numba looks at the file of a kernel alone, not at the kernels that it calls, so without that a change
in one file would go unnoticed in another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from pterefd.errors import Missing

_PACKAGE = Path(__file__).parent.parent
_KEEP = 4  # caches of older sources that stay, for work on several checkouts


def _fingerprint() -> str:
    """Hash of numba's version and of every source that kernels are compiled from."""
    digest = hashlib.sha256(version("numba").encode())
    for folder in ("engine", "mm"):
        for source in sorted((_PACKAGE / folder).glob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def base_directory() -> Path:
    """The directory that holds the caches: $PTEREFD_CACHE, else the user's cache directory."""
    given = os.environ.get("PTEREFD_CACHE") or os.environ.get("CACHE_DIRECTORY")
    if given:
        return Path(given)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "pterefd"


def usable(folder: Path) -> bool:
    """Make the folder; True where it is ours alone to write (the cache is pickle, which is code)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK)


def cache_directory() -> Path:
    """The directory for this state of the sources; a temporary one where none can be kept."""
    base = base_directory()
    folder = base / f"kernels-{_fingerprint()}"
    if usable(base) and usable(folder):
        _prune(base, folder)
        return folder
    if os.environ.get("PTEREFD_CACHE"):
        raise Missing(f"{base}: cannot be used for compiled kernels: not writable, or by others too")
    return Path(tempfile.mkdtemp(prefix="pterefd-kernels-"))


def _prune(base: Path, current: Path) -> None:
    """Remove all but the newest few caches of other sources."""
    others = [path for path in base.glob("kernels-*") if path != current]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_KEEP:]:
        shutil.rmtree(path, ignore_errors=True)
