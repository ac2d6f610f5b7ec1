"""The root of a live host's tree."""

from __future__ import annotations

from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.live.machine import FILES, SYS
from pterefd.procfs.live.pid import PIDS, SELF
from pterefd.procfs.own import KERNELS_OWN
from pterefd.procfs.tree import Dir, Tree

LIVE_ROOT = Dir(
    "",
    (*FILES, SYS, *SELF, PIDS, KERNELS_OWN),
    "This machine: its processes by pid, as whoever asks sees them, its memory, and its knobs.",
)


def live_tree(faces: LiveFaces) -> Tree:
    """The whole tree, bound to what it shows."""
    return Tree(LIVE_ROOT, faces)
