"""sys/vm: free_ptes, where the mails put it, and pt_reclaim, which is pterefd's own."""

from __future__ import annotations

from collections.abc import Iterable

from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX
from pterefd.procfs.knobs import plugin_knobs
from pterefd.procfs.tree import Content, Dir, Family, File, Rows


def _free_ptes(faces: Faces, _: object, pid: int) -> None:
    """Free the empty and zero PTE pages of pid; 0, which names no process here, means every mm."""
    faces.reclaimer.free_ptes(pid or None)


def _set_policy(faces: Faces, _: object, name: str) -> None:
    """Differs from Linux: an unknown name is EINVAL, where tcp_congestion_control says ENOENT."""
    faces.reclaimer.set_policy(name)
    faces.note("policy set", policy=name)


def _set_triggers(faces: Faces, _: object, text: str) -> None:
    names = text.split()
    faces.reclaimer.set_triggers(names)
    faces.note("triggers set", triggers=names)


def _words(names: Iterable[str]) -> str:
    """As tcp_available_congestion_control: names with a blank between them."""
    return " ".join(names) + "\n"


POLICIES = Dir(
    "policies",
    (
        Family(
            "NAME",
            "One directory per policy that declares tunables.",
            lambda faces, _: faces.reclaimer.policy_tunables(),
            lambda faces, _, name: faces.reclaimer.policy_tunables().get(name),
            Dir("NAME", (Rows("TUNABLE", "A tunable that the policy declares.", plugin_knobs),)),
        ),
    ),
    "Tunables of each policy.",
    exists=lambda faces, _: bool(faces.reclaimer.policy_tunables()),
)

PT_RECLAIM = Dir(
    "pt_reclaim",
    (
        File(
            "policy",
            0o644,
            "The policy that chooses which mms are reclaimed from, in what order, how much.",
            Content.STRING,
            read=lambda faces, _: faces.reclaimer.policy + "\n",
            write=_set_policy,
        ),
        File(
            "available_policies",
            0o444,
            "Policies that may be written to policy.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.available_policies()),
        ),
        File(
            "triggers",
            0o644,
            "Triggers that are asked when something happens, blanks between them.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.triggers),
            write=_set_triggers,
        ),
        File(
            "available_triggers",
            0o444,
            "Triggers that may be written to triggers.",
            Content.STRING,
            read=lambda faces, _: _words(faces.reclaimer.available_triggers()),
        ),
        POLICIES,
    ),
    "Who decides when and where page tables are reclaimed.",
)

SYS_VM = Dir(
    "vm",
    (
        File(
            "free_ptes",
            0o200,
            "Write a pid to free the empty and zero PTE pages of its mm; 0 means every mm.",
            Content.INT,
            unit="pid",
            low=0,
            high=INT_MAX,
            write=_free_ptes,
        ),
        PT_RECLAIM,
    ),
    "The kernel's /proc/sys/vm.",
)
