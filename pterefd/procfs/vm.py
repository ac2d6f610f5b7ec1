"""sys/vm: free_ptes, where the mails put it, and pt_reclaim, which is pterefd's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from pterefd.hookspecs import Tunables
from pterefd.procfs.faces import Faces
from pterefd.procfs.intwrite import INT_MAX, parse_memory
from pterefd.procfs.knobs import plugin_knobs
from pterefd.procfs.memory import VM_KNOBS
from pterefd.procfs.tree import Content, Dir, Family, File, Rows

DEFAULT = "default"  # in a trigger's policy file: the policy in charge
PAGE = 4096


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


def _set_policy_of(faces: Faces, trigger: str, name: str) -> None:
    faces.reclaimer.set_policy_of(trigger, None if name == DEFAULT else name)
    faces.note("policy set", trigger=trigger, policy=name)


def _reclaim(faces: Faces, _: object, text: str) -> None:
    """mm/vmscan.c user_proactive_reclaim(): whole pages, and EAGAIN where less was freed."""
    wanted = parse_memory(text) // PAGE * PAGE
    result = faces.reclaimer.reclaim(wanted) if wanted else None
    if (0 if result is None else result.bytes) < wanted:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _reload(faces: Faces, _: object, __: int) -> None:
    faces.reclaimer.reload()


def _take_back(faces: Faces, _: object, name: str) -> None:
    faces.reclaimer.take_back(name)
    faces.note("plugin taken back", plugin=name)


def _words(names: Iterable[str]) -> str:
    """As tcp_available_congestion_control: names with a blank between them."""
    return " ".join(names) + "\n"


def _policy_tunables(faces: Faces) -> Mapping[str, Tunables]:
    return faces.reclaimer.policy_tunables()


def _trigger_tunables(faces: Faces) -> Mapping[str, Tunables]:
    return faces.reclaimer.trigger_tunables()


POLICIES = Dir(
    "policies",
    (
        Family(
            "NAME",
            "One directory per policy that declares tunables.",
            lambda faces, _: _policy_tunables(faces),
            lambda faces, _, name: name if name in _policy_tunables(faces) else None,
            Dir("NAME", (Rows("TUNABLE", "A tunable that the policy declares.", plugin_knobs(_policy_tunables)),)),
        ),
    ),
    "Tunables of each policy.",
    exists=lambda faces, _: bool(_policy_tunables(faces)),
)

TRIGGER = Dir(
    "trigger",
    (
        Family(
            "NAME",
            "One directory per trigger.",
            lambda faces, _: faces.reclaimer.available_triggers(),
            lambda faces, _, name: name if name in faces.reclaimer.available_triggers() else None,
            Dir(
                "NAME",
                (
                    File(
                        "policy",
                        0o644,
                        "The policy that serves this trigger's requests; default: the one in pt_reclaim/policy.",
                        Content.STRING,
                        read=lambda faces, name: (faces.reclaimer.policy_of(name) or DEFAULT) + "\n",
                        write=_set_policy_of,
                    ),
                    Rows("TUNABLE", "A tunable that the trigger declares.", plugin_knobs(_trigger_tunables)),
                ),
            ),
        ),
    ),
    "Policy and tunables of each trigger.",
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
        File(
            "reclaim",
            0o200,
            "Write bytes (K, M, G behind them) to free so many over all mms; EAGAIN where less was freed.",
            Content.STRING,
            unit="bytes",
            write=_reclaim,
        ),
        File(
            "reload",
            0o200,
            "Write 1 to take up plugin files that are new or have changed; EINVAL where one does not fit.",
            Content.INT,
            unit="flag",
            low=1,
            high=1,
            write=_reload,
        ),
        File(
            "put_aside",
            0o644,
            "Plugins that failed too often and are not called any more, kind and name, one a line; "
            "write a name to take it back.",
            Content.STRING,
            read=lambda faces, _: "".join(f"{kind} {name}\n" for kind, name in sorted(faces.reclaimer.put_aside())),
            write=_take_back,
        ),
        POLICIES,
        TRIGGER,
    ),
    "Who decides when and where page tables are reclaimed.",
)

FREE_PTES = File(
    "free_ptes",
    0o200,
    "Write a pid to free the empty and zero PTE pages of its mm; 0 means every mm.",
    Content.INT,
    unit="pid",
    low=0,
    high=INT_MAX,
    write=_free_ptes,
)

SYS_VM = Dir(
    "vm",
    (
        FREE_PTES,
        *VM_KNOBS,
        PT_RECLAIM,
    ),
    "The kernel's /proc/sys/vm.",
)
