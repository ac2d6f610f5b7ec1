"""Real mounts for the tests, always unmounted.

The process of the tests serves them itself, so nothing may touch a mount while it holds Python's lock: no
subprocess with its working directory there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.mount import Mount
from pterefd.procfs.tree import Tree


@pytest.fixture(autouse=True)
def no_mount_is_left(tmp_path: Path) -> Iterator[None]:
    """Nothing is mounted under the test's directory when it is over, whatever it did."""
    yield
    left = [entry.point for entry in mountpoint.mounts() if entry.point.startswith(str(tmp_path))]
    for point in left:
        mountpoint.unmount(point, detach=True)
    assert left == []


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "mount point"
    path.mkdir()
    return path


@pytest.fixture
def mounted(point: Path) -> Iterator[Callable[[Tree], Path]]:
    """Mounts a tree for the time of the test, and says where."""
    mounts: list[Mount] = []

    def mount(tree: Tree) -> Path:
        mountpoint.prepare(str(point))
        mounts.append(Mount(tree, str(point), fuse_impl.load()))
        mounts[-1].start()
        return point

    yield mount
    for one in mounts:
        one.stop()
