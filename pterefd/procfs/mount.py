"""A mounted tree and its life; what is served there is in operations.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pterefd.errors import Missing
from pterefd.procfs import mountpoint
from pterefd.procfs.fuse_impl import Binding, ignore_broken_pipes
from pterefd.procfs.helped import Helped
from pterefd.procfs.operations import Operations
from pterefd.procfs.tree import Tree

# The kernel asks again for a name and its owner after this long. An mm that is gone may be seen by
# stat for so long; what is read is never cached. 0 doubles to triples the latency of an open. A name that means
# something else to each caller must be asked for each time, and its owner comes with it.
CACHE_SECONDS = 0.1
OPTIONS = {
    "foreground": True,
    "fsname": "pterefd",
    "subtype": "pterefd",
    "default_permissions": True,
    "direct_io": True,
    "nosuid": True,
    "nodev": True,
    "noexec": True,
}
# How long what is still being served may take after the unmount. Where another mount namespace has the mount too
# (pterefd shell), libfuse serves on; the end of this process ends that.
MOUNT_SECONDS = 2.0

Caller = Callable[[int, int], AbstractContextManager[Any]]


class Mount:
    """A mounted tree. start() returns when it is mounted, stop() when it is not."""

    def __init__(
        self,
        tree: Tree,
        point: str,
        binding: Binding,
        *,
        allow_other: bool = False,
        helped: Helped | None = None,
        caller: Caller = lambda _uid, _pid: nullcontext(),
        fault: Callable[[Exception], None] = lambda _: None,
        name_seconds: float = CACHE_SECONDS,
    ) -> None:
        """helped: who mounts, None: this process.  caller(uid, pid): a context around each write.

        fault: told of what should not have happened.  name_seconds: as CACHE_SECONDS, of names.
        """
        self.point = point
        self._place = point
        self._helped = helped
        self._binding = binding
        self._options = OPTIONS | {
            "allow_other": allow_other,
            "entry_timeout": name_seconds,
            "attr_timeout": CACHE_SECONDS,
        }
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._cwd = os.open(".", os.O_PATH | os.O_DIRECTORY)

        def whoever() -> AbstractContextManager[Any]:
            uid, _, pid = binding.caller()
            return caller(uid, pid)

        self._operations = Operations(tree, self._mounted, fault, whoever)
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)

    def start(self) -> None:
        """Mount. Missing where it cannot be (libfuse has said why on stderr)."""
        if self._helped is not None:
            # libfuse 3.3 takes an open /dev/fuse, mounted by somebody else, for a mount point.
            self._place = f"/dev/fd/{self._helped.mount(self.point, bool(self._options['allow_other']))}"
        self._thread.start()
        while not self._ready.wait(0.005):
            if self._ended.is_set() or not self._thread.is_alive():
                raise Missing(f"{self.point}: cannot be mounted")
        if not mountpoint.is_ours(self.point):
            raise Missing(f"{self.point}: mounted, but not seen here: mounts must reach this mount namespace (slave)")

    def stop(self) -> bool:
        """Unmount; False where somebody was still inside and it had to be detached."""
        clean = mountpoint.unmount(self.point) if self._helped is None else self._helped.unmount()
        self._thread.join(MOUNT_SECONDS)
        return clean

    @property
    def mounted(self) -> bool:
        """Whether it is mounted now."""
        return self._ready.is_set() and not self._ended.is_set()

    @property
    def ended(self) -> bool:
        """Whether the mount is gone: stopped, or unmounted by somebody else."""
        return self._ended.is_set()

    def _mounted(self) -> None:
        os.chdir(self._cwd)  # fuse_main goes to /
        os.close(self._cwd)
        self._ready.set()

    def _serve(self) -> None:
        try:
            self._binding.serve(self._operations, self._place, **self._options)
        except RuntimeError:
            pass  # fuse_main's return value; start() says that it is not mounted
        finally:
            ignore_broken_pipes()
            self._ended.set()
