"""What the kernel says of the machine's memory: /proc/meminfo, /proc/zoneinfo and the marks of its zones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pterefd.hookspecs import Usage
from pterefd.live.procmem import PAGE

PROC = Path("/proc")
_ZONE = re.compile(r"Node (\d+), zone +(\S+)")


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone that has pages, in pages. protection: lowmem_reserve, by index of the zone that an allocation asks for.

    index: its own.  node: number of its node.
    """

    node: int
    index: int
    name: str
    free: int
    min: int
    low: int
    high: int
    managed: int
    protection: tuple[int, ...]


def parse_zones(text: str) -> list[Zone]:
    """Of the text of /proc/zoneinfo (mm/vmstat.c zoneinfo_show_print), those that are populated."""
    zones = []
    index: dict[int, int] = {}
    for node, name, block in _blocks(text):
        number = index[node] = index.get(node, -1) + 1
        values = {words[0]: int(words[1]) for words in map(str.split, block) if len(words) == 2 and words[1].isdigit()}
        free = next((int(line.split()[2]) for line in block if line.startswith("  pages free")), 0)
        line = next((line for line in block if line.lstrip().startswith("protection:")), "")
        if values.get("managed"):
            marks = values["min"], values["low"], values["high"], values["managed"]
            zones.append(Zone(node, number, name, free, *marks, tuple(map(int, re.findall(r"\d+", line)))))
    return zones


def _blocks(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(node, zone, lines) of each zone."""
    node, name, block = 0, "", list[str]()
    for line in text.splitlines():
        if match := _ZONE.match(line):
            if name:
                yield node, name, block
            node, name, block = int(match[1]), match[2], []
        else:
            block.append(line)
    if name:
        yield node, name, block


def missing_bytes(zones: list[Zone]) -> int:
    """Bytes missing up to high on the nodes where kswapd would be awake, 0 where there is none.

    mm/page_alloc.c wakes it where an allocation finds no zone of a node above low, each with what it keeps for
    allocations that could not be served elsewhere (zone_watermark_fast, lowmem_reserve).
    """
    missing = 0
    for node in {zone.node for zone in zones}:
        mine = [zone for zone in zones if zone.node == node]
        highest = max(zone.index for zone in mine)
        if all(zone.free < zone.low + _kept(zone, highest) for zone in mine):
            missing += sum(max(0, zone.high + _kept(zone, highest) - zone.free) for zone in mine)
    return missing * PAGE


def _kept(zone: Zone, highest: int) -> int:
    return zone.protection[highest] if highest < len(zone.protection) else 0


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of the text of /proc/meminfo."""
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3}


def read_zones(proc: Path = PROC) -> list[Zone]:
    """The zones of this machine; none where the file may not be read."""
    try:
        return parse_zones((proc / "zoneinfo").read_text())
    except OSError:
        return []


def read_usage(proc: Path = PROC) -> Usage:
    """Memory of this machine, its marks summed over the zones; 0 where the files are not shown."""
    try:
        info = parse_meminfo((proc / "meminfo").read_text())
    except OSError:
        return Usage()
    zones = read_zones(proc)
    return Usage(
        total=info["MemTotal"],
        free=info["MemFree"],
        anon=info.get("AnonPages", 0),
        file=info.get("Cached", 0) - info.get("Shmem", 0),
        shmem=info.get("Shmem", 0),
        pgtables=info.get("PageTables", 0),
        swap_total=info.get("SwapTotal", 0),
        swap_free=info.get("SwapFree", 0),
        min=PAGE * sum(zone.min for zone in zones),
        low=PAGE * sum(zone.low for zone in zones),
        high=PAGE * sum(zone.high for zone in zones),
    )
