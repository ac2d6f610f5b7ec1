"""How kernels are compiled: the only place that configures numba.

Compiled code is cached in a directory of pterefd's own, one per state of the kernels' sources:
numba looks at the file of a kernel alone, not at the kernels that it calls, so without that a
change in one file would go unnoticed in another.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.types import unliteral

from pterefd.errors import Missing

_PACKAGE = Path(__file__).parent.parent
_KEEP = 4  # caches of older sources that stay, for work on several checkouts


def _fingerprint() -> str:
    """Hash of numba's version and of every source that kernels are compiled from."""
    digest = hashlib.sha256(numba.__version__.encode())
    for folder in ("engine", "mm"):
        for source in sorted((_PACKAGE / folder).glob("*.py")):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _base() -> Path:
    """The directory that holds the caches: $PTEREFD_CACHE, else the user's cache directory."""
    given = os.environ.get("PTEREFD_CACHE") or os.environ.get("CACHE_DIRECTORY")
    if given:
        return Path(given)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "pterefd"


def _usable(folder: Path) -> bool:
    """Make the folder; True where it is ours alone to write (the cache is pickle, which is code)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK)


def cache_directory() -> Path:
    """The directory for this state of the sources; a temporary one where none can be kept."""
    base = _base()
    folder = base / f"kernels-{_fingerprint()}"
    if _usable(base) and _usable(folder):
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


numba.config.CACHE_DIR = str(cache_directory())


def _without_literals(dispatcher: Any) -> Any:
    """Let calls from other kernels see plain types: numba would compile a kernel anew for every constant."""
    template = dispatcher.get_call_template

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return template(tuple(map(unliteral, args)), {name: unliteral(typ) for name, typ in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """Compile at the first call. nogil: a replay's thread leaves the others alone; no test for division by zero."""
    return _without_literals(numba.njit(nogil=True, cache=True, error_model="numpy")(function))


# Small helpers on the path of every event, put in place before LLVM sees them.
inline = numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
