"""The root of the tree: where the kernel has something, it stands there too."""

from __future__ import annotations

from pterefd.procfs.faces import Faces
from pterefd.procfs.machine import FILES, SYS_KERNEL
from pterefd.procfs.own import KERNELS_OWN, OWN
from pterefd.procfs.pid import PIDS
from pterefd.procfs.sys_pterefd import SYS_PTEREFD
from pterefd.procfs.tree import Dir, Tree
from pterefd.procfs.vm import SYS_VM

SYS = Dir("sys", (SYS_VM, SYS_KERNEL, SYS_PTEREFD), "Knobs: the kernel's own under vm, the daemon's under pterefd.")

ROOT = Dir("", (*FILES, SYS, *OWN, PIDS, KERNELS_OWN), "A host: its mms by pid, its memory, and its knobs.")


def proc_tree(faces: Faces) -> Tree:
    """The whole tree, bound to what it shows."""
    return Tree(ROOT, faces)
