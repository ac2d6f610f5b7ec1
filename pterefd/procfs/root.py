"""The root of the tree: where the kernel has something, it stands there too."""

from __future__ import annotations

from pterefd.procfs.faces import Faces
from pterefd.procfs.live import machine as live_machine
from pterefd.procfs.live import pid as live_pid
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.machine import FILES, SYS_KERNEL
from pterefd.procfs.own import KERNELS_OWN, OWN
from pterefd.procfs.pid import PIDS
from pterefd.procfs.sys_pterefd import SYS_PTEREFD
from pterefd.procfs.tree import Dir, Tree
from pterefd.procfs.vm import SYS_VM

SYS = Dir("sys", (SYS_VM, SYS_KERNEL, SYS_PTEREFD), "Knobs: the kernel's own under vm, the daemon's under pterefd.")

ROOT = Dir("", (*FILES, SYS, *OWN, PIDS, KERNELS_OWN), "A host: its mms by pid, its memory, and its knobs.")

LIVE_ROOT = Dir(
    "",
    (*live_machine.FILES, live_machine.SYS, *live_pid.SELF, live_pid.PIDS, KERNELS_OWN),
    "This machine: its processes by pid, as whoever asks sees them, its memory, and its knobs.",
)


def proc_tree(faces: Faces | LiveFaces) -> Tree:
    """The whole tree, bound to what it shows: a simulated host, or a live one."""
    return Tree(LIVE_ROOT if isinstance(faces, LiveFaces) else ROOT, faces)
