"""Profiles: which kernel's rules an mm lives under, as named sets of flags (kernel-rules.md, sections 4 and 8).

The kernels' own are measured or from source; those of the mails are the posted series on the rules of v5.19.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pterefd.errors import BadInput

PF_RECLAIM = 1  # MADV_DONTNEED of a whole span frees its PTE page (CONFIG_PT_RECLAIM, 6.14)
PF_MERGE = 2  # a range with an anon_vma may join a neighbour without one (about 6.16)
PF_MMAP3 = 4  # mmap between two mappings: vma_merge_new_range (after 6.1)
PF_REALIGN = 8  # mremap rounds down to whole spans (try_realign_addr, 6.7)
PF_MREMAP_MANY = 16  # mremap of several mappings at once (6.17)
PF_GUARD = 32  # MADV_GUARD_INSTALL (6.13)
PF_STACK = 64  # MAP_STACK sets VM_NOHUGEPAGE, so thread stacks join nothing else (6.7)
PF_POPULATE = 1 << 8  # MADV_POPULATE_* stops at a hole; before, it goes on behind it (6.9)
PF_UNACCOUNT = 1 << 10  # mprotect takes VM_ACCOUNT off what was never written and may not be any more (6.5)
PF_APART = 1 << 9  # MREMAP_DONTUNMAP never makes source and destination one mapping (6.12.114, 6.1.191)
PF_COLLAPSE = 1 << 20  # MADV_COLLAPSE (6.1)
PF_SPLIT_ZERO = 1 << 21  # a folio that is split maps its zero-filled pages to the zero page (6.12)

# ---- the mails ------------------------------------------------------------------------------------
PF_TRACK = 1 << 24  # rfc-2022: a plain pte_refcount, which track_pte_set and track_pte_clear keep
PF_PERCPU_REF = 1 << 25  # percpu-2022: a percpu_ref; zap and MADV_FREE try to free (try_to_free_user_pte)
PF_LAST_REF = 1 << 26  # atomic-2021: an atomic pte_refcount; whoever drops the last reference frees
PF_EMPTY_ONLY = 1 << 27  # free_ptes leaves PTE pages of 512 zero entries alone
PF_ALIGNED = 1 << 28  # free_ptes frees a PTE page only where one mapping covers its span
PF_UFFD_EXEMPT = 1 << 29  # free_ptes passes over spans with memory registered with userfaultfd
PF_CONT_PTE = 1 << 30  # arm64's contiguous PTEs: 16 entries in one
PF_AUTO_FREE = PF_PERCPU_REF | PF_LAST_REF
PF_COUNTED = PF_TRACK | PF_AUTO_FREE  # a PTE page has a count of its entries
PF_KEEPS = PF_EMPTY_ONLY | PF_ALIGNED | PF_UFFD_EXEMPT


@dataclass(frozen=True, slots=True)
class Profile:
    """A named set of PF_* flags. about: one line for a person; measured: checked on that kernel."""

    name: str
    flags: int
    about: str
    measured: bool = False


_V6_12 = PF_UNACCOUNT | PF_COLLAPSE | PF_SPLIT_ZERO | PF_POPULATE | PF_MMAP3 | PF_REALIGN | PF_STACK
_V6_14 = _V6_12 | PF_GUARD | PF_RECLAIM

PROFILES = {
    p.name: p
    for p in (
        Profile("v5.19", 0, "Linux 5.19: no table freed short of munmap"),
        Profile("v6.1", PF_COLLAPSE, "Linux 6.1: as v5.19", measured=True),
        Profile("v6.12", _V6_12, "Linux 6.12: as v6.1, but for what merges and for mremap", measured=True),
        Profile("v6.14", _V6_14, "Linux 6.14 with PT_RECLAIM: MADV_DONTNEED of a whole span frees its PTE page"),
        Profile(
            "v6.18",
            _V6_14 | PF_MERGE | PF_MREMAP_MANY,
            "Linux 6.18 with PT_RECLAIM: as v6.14, but for what merges and for mremap",
            measured=True,
        ),
        Profile("rfc-2022", PF_TRACK, "v5.19 and the RFC of 25 Aug 2022: empty and zero PTE pages, on request"),
        Profile("rfc-2022-empty", PF_TRACK | PF_EMPTY_ONLY, "as rfc-2022, without its zero part"),
        Profile("rfc-2022-aligned", PF_TRACK | PF_ALIGNED, "as rfc-2022, only spans that one mapping covers"),
        Profile("rfc-2022-uffd", PF_TRACK | PF_UFFD_EXEMPT, "as rfc-2022, userfaultfd's ranges passed over"),
        Profile(
            "percpu-2022", PF_PERCPU_REF, "v5.19 and the RFC of 29 Apr 2022: empty ones, by madvise and truncation"
        ),
        Profile("atomic-2021", PF_LAST_REF, "v5.19 and the series of 10 Nov 2021: empty ones, at once on any path"),
    )
}
AUTO = "auto"
OPTIONS = {"cont_pte": PF_CONT_PTE}  # behind a profile's name and a plus sign


def named(name: str) -> Profile:
    """The profile of that name, with its options (`rfc-2022+cont_pte`); BadInput names those there are."""
    base, *options = name.split("+")
    if base not in PROFILES:
        raise BadInput(f"profile {name!r}: not one of {', '.join(PROFILES)}, {AUTO}")
    profile = PROFILES[base]
    for option in options:
        if option not in OPTIONS:
            raise BadInput(f"profile {name!r}: no option {option!r}; there are: {', '.join(OPTIONS)}")
        profile = replace(profile, name=name, flags=profile.flags | OPTIONS[option])
    return profile


# What stable releases brought to an older kernel: its version, the first of them, the flag.
STABLE = (((6, 1), 191, PF_APART), ((6, 12), 114, PF_APART))


def _stable_release(version: tuple[int, int], release: str, details: str | None) -> int:
    """The third number of a kernel's version. Debian names it in uname -v alone: `6.1.0-56`, but `Debian 6.1.192-2`."""
    for text in (details or "", release):
        found = re.search(rf"\b{version[0]}\.{version[1]}\.(\d+)", text)
        if found:
            return int(found[1])
    return 0


def for_kernel(release: str | None, config: Mapping[str, Any] | None, details: str | None = None) -> Profile:
    """`auto`: the profile of a trace's kernel_release and kernel_config; v6.18 where a trace names none.

    details: its kernel_version.
    """
    if not release:
        return PROFILES["v6.18"]
    digits = release.replace("-", ".").split(".")
    try:
        version = (int(digits[0]), int(digits[1]))
    except (IndexError, ValueError):
        raise BadInput(f"kernel_release {release!r}: no version to choose a profile by; give --profile") from None
    steps = (((6, 16), "v6.18"), ((6, 14), "v6.14"), ((6, 7), "v6.12"), ((5, 20), "v6.1"), ((0, 0), "v5.19"))
    base = PROFILES[next(name for least, name in steps if version >= least)]
    for kernel, first, flag in STABLE:
        if kernel == version and _stable_release(version, release, details) >= first:
            base = replace(base, flags=base.flags | flag, about=f"{base.about}, from {kernel[0]}.{kernel[1]}.{first}")
    off = config is not None and str(config.get("PT_RECLAIM", "y")).lower() in ("n", "false", "0", "m", "none")
    if off and base.flags & PF_RECLAIM:
        return Profile(f"{base.name} without PT_RECLAIM", base.flags & ~PF_RECLAIM, base.about)
    return base
