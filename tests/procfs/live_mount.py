"""Serves the tree of a live host at a mount point, until its standard input ends: `python -m tests.procfs.live_mount`.

In a process of its own, as tests ask through the mount while they hold Python's lock. Prints `mounted`, then a line for
each PTE page that it was told to free: it frees none, but says whose it would.
"""

from __future__ import annotations

import json
import sys
import threading

from pterefd import log, paths
from pterefd.hookspecs import Kinds
from pterefd.live.host import LiveHost
from pterefd.live.match import Match
from pterefd.live.watch import Watch
from pterefd.procfs import fuse_impl, mountpoint
from pterefd.procfs.live.caller import LiveCallers
from pterefd.procfs.live.faces import LiveFaces
from pterefd.procfs.live.root import live_tree
from pterefd.procfs.mount import Mount
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer

LOOK_SECONDS = 0.2


class Told:
    """Says what it was told to free, on standard output."""

    def free(self, pid: int, start_time: int, kinds: Kinds, nbytes: int | None) -> tuple[int, int, int]:
        print(json.dumps({"free": pid}), flush=True)
        return 0, 0, 0


def main(point: str, *comms: str) -> None:
    """comms: of the processes that are watched; none: all."""
    binding = fuse_impl.load()
    host = LiveHost(Watch(1.0, Match(comms=comms)), freer=Told())
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    faces = LiveFaces(host, Reclaimer(host, plugins, log.get()), LiveCallers(binding.caller))
    mountpoint.prepare(point)
    mount = Mount(live_tree(faces), point, binding, allow_other=True, name_seconds=0, fault=lambda e: print(repr(e)))
    mount.start()
    print("mounted", flush=True)
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    while not ending.wait(LOOK_SECONDS):
        host.look()
    mount.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
