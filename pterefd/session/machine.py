"""The machine that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence

from pterefd.config import GroupTable, HostSection, MmSection
from pterefd.errors import BadInput
from pterefd.host.memory import GroupLimit, Memory, VmKnobs, Zone
from pterefd.mm.profile import AUTO, Profile, for_kernel, named
from pterefd.source.source import Source


def profile_of(name: str, sources: Sequence[Source]) -> Profile:
    """The profile of [host]; auto is that of the first source's kernel. BadInput."""
    if name != AUTO:
        return named(name)
    if not sources:
        return for_kernel(None, {})
    meta = sources[0].meta
    return for_kernel(meta.kernel_release, meta.kernel_config, meta.kernel_version)


def memory_of(host: HostSection, groups: Sequence[GroupTable], mms: Sequence[MmSection] = ()) -> Memory | None:
    """The memory of [host] and [[group]]; None where neither memory nor zones are given. BadInput names the key.

    mms: [[mm]], whose groups must be there.
    """
    names = [group.name for group in groups]
    for number, mm in enumerate(mms):
        if mm.group and mm.group not in names:
            raise BadInput(
                f"mm.{number}.group: no [[group]] is named {mm.group!r}; there are: {', '.join(names) or 'none'}"
            )
    zones = tuple(Zone(zone.name, zone.managed_pages) for zone in host.zones)
    total = sum(zone.managed_pages for zone in zones) * 4096
    if host.memory is None and not zones:
        if groups:
            raise BadInput("group: groups need host.memory")
        if host.swap:
            raise BadInput("host.swap: swap needs host.memory")
        return None
    if host.memory is not None and zones and host.memory != total:
        raise BadInput(f"host.memory is {host.memory} bytes, but host.zones are {total}: give one of them")
    return Memory(
        host.memory or total,
        swap_bytes=host.swap,
        zones=zones,
        knobs=VmKnobs(**host.vm.model_dump()),
        groups=tuple(GroupLimit(group.name, group.limit) for group in groups),
    )
