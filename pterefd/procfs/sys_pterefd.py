"""sys/pterefd: the daemon's own files, the replays among them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pterefd import quantities
from pterefd.errors import BadInput
from pterefd.procfs.faces import Faces
from pterefd.procfs.tree import Content, Dir, Family, File

if TYPE_CHECKING:
    from pterefd.session.replay import Replay


def _set_state(faces: Faces, replay: Replay, text: str) -> None:
    if text == "pause":
        replay.pause()
    elif text == "resume":
        replay.resume()
    else:
        raise BadInput(f"state takes pause or resume, not {text!r}")
    faces.note("replay " + text, replay=replay.number, state=replay.state)


def _set_speed(faces: Faces, replay: Replay, text: str) -> None:
    speed = quantities.speed(text)
    replay.set_speed(speed)
    faces.note("replay speed set", replay=replay.number, speed=shown_speed(speed))


def shown_speed(speed: float | None) -> str:
    """`max`, or the shortest number: 1, 2.5."""
    return "max" if speed is None else f"{speed:.12g}"


def _find(faces: Faces, _: object, name: str) -> Replay | None:
    return next((replay for replay in faces.replays if str(replay.number) == name), None)


def _names(faces: Faces, _: object) -> Iterable[str]:
    return [str(replay.number) for replay in faces.replays]


REPLAY_FILES = (
    File(
        "state",
        0o644,
        "running, paused, held (before pid 1 exits) or ended; write pause or resume.",
        Content.STRING,
        read=lambda _, replay: replay.state + "\n",
        write=_set_state,
    ),
    File(
        "speed",
        0o644,
        "Speed of the replay as a factor of real time, or max.",
        Content.STRING,
        unit="ratio",
        read=lambda _, replay: shown_speed(replay.speed) + "\n",
        write=_set_speed,
    ),
    File(
        "position",
        0o444,
        "Index of the next event, a slash, and the number of events (? of a workload that has not ended yet).",
        Content.STRING,
        unit="events",
        read=lambda _, replay: f"{replay.position}/{'?' if replay.events is None else replay.events}\n",
    ),
)

REPLAY = Dir(
    "replay",
    (
        *REPLAY_FILES,
        Family("N", "One directory per trace and workload, numbered from 0.", _names, _find, Dir("N", REPLAY_FILES)),
    ),
    "The traces and workloads that run; the files here are those of the first.",
    exists=lambda faces, _: bool(faces.replays),
    obj=lambda faces, _: faces.replays[0],
)

SYS_PTEREFD = Dir(
    "pterefd",
    (
        File(
            "version",
            0o444,
            "Version of the daemon.",
            Content.STRING,
            read=lambda faces, _: faces.version + "\n",
        ),
        File(
            "host_kind",
            0o444,
            "Whose processes are seen: simulated, or live: this machine's.",
            Content.STRING,
            read=lambda faces, _: f"{faces.host.kind}\n",
        ),
        File("pid", 0o444, "Pid of the daemon.", Content.STRING, unit="pid", read=lambda *_: f"{os.getpid()}\n"),
        File(
            "profile",
            0o444,
            "The kernel profile that the mms live under.",
            Content.STRING,
            read=lambda faces, _: faces.profile + "\n",
        ),
        REPLAY,
    ),
    "The daemon itself.",
)
