"""A memory cgroup of the tests' own, of whichever version the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit() -> Iterator[tuple[Path, str]]:
    """The limit file of a memory cgroup of its own, and the word that it takes for none (page_counter_memparse)."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (v1 / "memory.limit_in_bytes").exists():
        root, name, unlimited = v1, "memory.limit_in_bytes", "-1"
    else:
        (v2 / "cgroup.subtree_control").write_text("+memory")
        root, name, unlimited = v2, "memory.max", "max"
    group = root / f"pterefd-{os.getpid()}"
    group.mkdir()
    try:
        yield group / name, unlimited
    finally:
        group.rmdir()
