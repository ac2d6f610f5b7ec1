"""Profiles: which kernel's rules an mm lives under, as named sets of flags (kernel-rules.md, section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pterefd.errors import BadInput

PF_RECLAIM = 1  # MADV_DONTNEED of a whole span frees its PTE page (CONFIG_PT_RECLAIM, 6.14)
PF_MERGE = 2  # a range with an anon_vma may join a neighbour without one (about 6.16)
PF_MMAP3 = 4  # mmap between two mappings: vma_merge_new_range (after 6.1)
PF_REALIGN = 8  # mremap rounds down to whole spans (try_realign_addr, 6.7)
PF_MREMAP_MANY = 16  # mremap of several mappings at once (6.17)
PF_GUARD = 32  # MADV_GUARD_INSTALL (6.13)
PF_STACK = 64  # MAP_STACK sets VM_NOHUGEPAGE, so thread stacks join nothing else (6.7)
PF_COLLAPSE = 1 << 20  # MADV_COLLAPSE (6.1)


@dataclass(frozen=True, slots=True)
class Profile:
    """A named set of PF_* flags. about: one line for a person; measured: checked on that kernel."""

    name: str
    flags: int
    about: str
    measured: bool = False


PROFILES = {
    p.name: p
    for p in (
        Profile("v5.19", 0, "Linux 5.19: no table freed short of munmap"),
        Profile("v6.1", PF_COLLAPSE, "Linux 6.1: as v5.19", measured=True),
        Profile("v6.12", PF_COLLAPSE | PF_MMAP3 | PF_REALIGN | PF_STACK, "Linux 6.12", measured=True),
        Profile(
            "v6.14",
            PF_COLLAPSE | PF_MMAP3 | PF_REALIGN | PF_STACK | PF_GUARD | PF_RECLAIM,
            "Linux 6.14 with PT_RECLAIM",
        ),
        Profile(
            "v6.18",
            PF_COLLAPSE | PF_MMAP3 | PF_REALIGN | PF_STACK | PF_GUARD | PF_RECLAIM | PF_MERGE | PF_MREMAP_MANY,
            "Linux 6.18 with PT_RECLAIM",
            measured=True,
        ),
        Profile("rfc-2022", 0, "v5.19 with the series of 25 Aug 2022: freed on request, empty and zero"),
    )
}
AUTO = "auto"


def named(name: str) -> Profile:
    """The profile of that name; BadInput names those there are."""
    if name not in PROFILES:
        raise BadInput(f"profile {name!r}: not one of {', '.join(PROFILES)}, {AUTO}")
    return PROFILES[name]


def for_kernel(release: str | None, config: Mapping[str, Any] | None) -> Profile:
    """`auto`: the profile of a trace's kernel_release and kernel_config; v6.18 where a trace names none."""
    if not release:
        return PROFILES["v6.18"]
    digits = release.replace("-", ".").split(".")
    try:
        version = (int(digits[0]), int(digits[1]))
    except (IndexError, ValueError):
        raise BadInput(f"kernel_release {release!r}: no version to choose a profile by; give --profile") from None
    steps = (((6, 16), "v6.18"), ((6, 14), "v6.14"), ((6, 7), "v6.12"), ((5, 20), "v6.1"), ((0, 0), "v5.19"))
    base = PROFILES[next(name for least, name in steps if version >= least)]
    off = config is not None and str(config.get("PT_RECLAIM", "y")).lower() in ("n", "false", "0", "m", "none")
    if off and base.flags & PF_RECLAIM:
        return Profile(f"{base.name} without PT_RECLAIM", base.flags & ~PF_RECLAIM, base.about)
    return base
