"""Replay at full speed, and the comparison of every checkpoint with what the kernel said there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pterefd.engine.arena import Limits
from pterefd.errors import EXIT_BAD_INPUT, BadInput, NoSuchMm, PterefdError
from pterefd.host.counters import MmCounters
from pterefd.host.host import Host
from pterefd.mm.events import OP_EXPECT, Batch
from pterefd.mm.profile import AUTO, Profile, for_kernel, named
from pterefd.session.feed import Feed
from pterefd.session.report import MmRow, Report
from pterefd.source.trace import Trace, open_trace

# field of `expect` -> what the model says, in the field's own unit
FIELDS: dict[str, Callable[[MmCounters], int]] = {
    "VmPTE": lambda c: c.pgtables_bytes >> 10,
    "RssAnon": lambda c: c.anon_bytes >> 10,
    "RssFile": lambda c: c.file_bytes >> 10,
    "RssShmem": lambda c: c.shmem_bytes >> 10,
    "VmSwap": lambda c: c.swap_bytes >> 10,
    "zero_entries": lambda c: c.zero_entries,
    "present_entries": lambda c: c.present_entries,
    "swap_entries": lambda c: c.swap_entries,
    "guard_entries": lambda c: c.guard_entries,
    "vmas": lambda c: c.vmas,
    "reclaimable_pt_bytes": lambda c: c.reclaimable_pt_bytes,
}
# What the kernel decides for itself when it maps large folios of files: a recording cannot tell (docs/exactness.md).
LARGE_FOLIO_FIELDS = frozenset({"RssFile", "present_entries"})
KB_FIELDS = frozenset({"VmPTE", "RssAnon", "RssFile", "RssShmem", "VmSwap"})


class Tolerance(NamedTuple):
    """How far a value may be from the kernel's: absolutely, in the field's unit, or as a share of the kernel's."""

    absolute: float = 0.0
    share: float = 0.0

    def allows(self, kernel: int, model: int) -> bool:
        """True where the two agree well enough."""
        return abs(kernel - model) <= max(self.absolute, self.share * kernel)


class Difference(NamedTuple):
    """A checkpoint's field that the model does not agree with, or a correction (field `state`)."""

    where: str
    pid: int
    field: str
    kernel: int
    model: int

    def __str__(self) -> str:
        if self.field == "state":
            return f"{self.where}: pid {self.pid}: a state corrects the replay"
        return f"{self.where}: pid {self.pid}: {self.field} is {self.kernel} in the kernel, {self.model} here"


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """fields: those to compare, None for all.  tolerances: by field; exact where none is given."""

    fields: frozenset[str] | None = None
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)


@dataclass(slots=True)
class FileResult:
    """What a replay of one file gave. error: why it ended early, None where it did not.

    differ: checkpoints that differ, corrections included.  widest_window_ns: of checkpoints with t0 and t1.
    """

    path: Path
    profile: str = ""
    events: int = 0
    rows: list[MmRow] = field(default_factory=list)
    checkpoints: int = 0
    differ: int = 0
    corrections: int = 0
    widest_window_ns: int = 0
    differences: list[Difference] = field(default_factory=list)
    outside: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    thp: str | None = None
    error: PterefdError | None = None

    @property
    def by_large_folios(self) -> bool:
        """Whether it differs in nothing but what large folios of files account for."""
        differing = {difference.field for difference in self.differences}
        return "RssFile" in differing and differing <= LARGE_FOLIO_FIELDS and not self.corrections

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "file": str(self.path),
            "profile": self.profile,
            "events": self.events,
            "mms": [row._asdict() for row in self.rows],
            "checkpoints": self.checkpoints,
            "differ": self.differ,
            "corrections": self.corrections,
            "widest_window_ns": self.widest_window_ns,
            "differences": [difference._asdict() for difference in self.differences],
            "outside": self.outside,
            "skipped": self.skipped,
            "thp": self.thp,
            "error": None if self.error is None else str(self.error),
        }


def parse_fields(text: str) -> frozenset[str]:
    """`VmPTE,RssAnon`, or `all`: BadInput names a field that is none."""
    if text.strip() == "all":
        return frozenset(FIELDS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        _known(name)
    if not names:
        raise BadInput("--fields: no field is named")
    return frozenset(names)


def _known(name: str) -> None:
    if name not in FIELDS:
        raise BadInput(f"{name!r} is no field of a checkpoint; there are: {', '.join(FIELDS)}")


def parse_tolerance(text: str, size: Callable[[str], int]) -> tuple[str, Tolerance]:
    """`FIELD=16kB`, `FIELD=1%`, `FIELD=4` (entries). size: bytes of a size with its unit."""
    name, equals, amount = text.partition("=")
    if not equals or not amount:
        raise BadInput(f"--tolerance {text!r}: not FIELD=SIZE or FIELD=PERCENT%")
    _known(name)
    if amount.endswith("%"):
        try:
            return name, Tolerance(share=float(amount[:-1]) / 100)
        except ValueError:
            raise BadInput(f"--tolerance {text!r}: {amount!r} is no percentage") from None
    return name, Tolerance(absolute=size(amount) / (1024 if name in KB_FIELDS else 1))


class _Window(NamedTuple):
    """A checkpoint that was read between two times: agrees with any value held there."""

    t0: int
    t1: int
    event: int
    pid: int
    fields: dict[str, Any]
    seen: dict[str, set[int]]


class Checker:
    """Replays one trace on a host of its own, and compares."""

    def __init__(
        self, trace: Trace, profile: Profile, options: CheckOptions | None, strict: bool, limits: Limits
    ) -> None:
        self.trace = trace
        self.options = options
        self.host = Host(profile, limits=limits)
        self.host.strict = strict
        self.report = Report(self.host)
        self.result = FileResult(trace.path, profile=profile.name, thp=trace.meta.thp)
        self._windows = _windows(trace) if options is not None else []
        self._open: list[_Window] = []
        self._feed = Feed(trace, self.host, self._expect if options is not None else None)
        self._corrections = 0

    def run(self, progress: Callable[[int, int | None], None] | None = None) -> FileResult:
        """Replay to the end. An error of the trace ends it early and is in the result."""
        try:
            for batch in self.trace.batches():
                self._batch(batch)
                self.result.events = batch.first + len(batch)
                if progress is not None:
                    progress(self.result.events, None)
            self._close(None)
        except PterefdError as error:
            self.result.error = error
        result = self.result
        result.rows = self.report.rows()
        result.outside = self.host.outside
        result.skipped = {name: number for name, number in self.host.skipped.items() if number}
        result.corrections = self.host.corrections
        if self.options is not None:
            result.differ += self.host.corrections
        return result

    def _batch(self, batch: Batch) -> None:
        """A batch at once, or event by event where a window is open."""
        if not self._windows and not self._open:
            self._feed.run(batch, 0, len(batch))
            return
        for i in range(len(batch)):
            now = int(batch.t[i])
            if now >= 0:
                self._close(now)
                while self._windows and self._windows[0].t0 <= now:
                    window = self._windows.pop(0)
                    self._open.append(window)
                    self._sample(window)
            self._feed.run(batch, i, i + 1)
            for window in self._open:
                self._sample(window)

    # ---- checkpoints --------------------------------------------------------------------------

    def _wanted(self, fields: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
        """The fields to compare of a checkpoint, with the kernel's values."""
        options = self.options or CheckOptions()
        for name, value in fields.items():
            if name in FIELDS and value is not None and (options.fields is None or name in options.fields):
                yield name, int(value)

    def _expect(self, index: int, pid: int, fields: dict[str, Any]) -> None:
        if fields.get("t0") is not None and fields.get("t1") is not None:
            return  # a window of its own
        try:
            counters = self.host.counters(pid)
        except NoSuchMm:
            return
        model = {name: {FIELDS[name](counters)} for name, _ in self._wanted(fields)}
        self._compare(index, pid, fields, model)

    def _compare(self, index: int, pid: int, fields: dict[str, Any], model: Mapping[str, set[int]]) -> None:
        """One checkpoint: each field agrees with some value that the model held."""
        tolerances = (self.options or CheckOptions()).tolerances
        differs = False
        self.result.checkpoints += 1
        for name, kernel in self._wanted(fields):
            held = model.get(name) or set()
            tolerance = tolerances.get(name, Tolerance())
            if any(tolerance.allows(kernel, value) for value in held):
                continue
            differs = True
            nearest = min(held, key=lambda value: abs(value - kernel), default=-1)
            self.result.differences.append(Difference(self.trace.where(index), pid, name, kernel, nearest))
        self.result.differ += differs

    # ---- windows ------------------------------------------------------------------------------

    def _sample(self, window: _Window) -> None:
        try:
            counters = self.host.counters(window.pid)
        except NoSuchMm:
            return
        for name, _ in self._wanted(window.fields):
            window.seen.setdefault(name, set()).add(FIELDS[name](counters))

    def _close(self, now: int | None) -> None:
        """Compare the windows that ended before now (None: all)."""
        if now is None:
            while self._windows:
                window = self._windows.pop(0)
                self._sample(window)
                self._open.append(window)
        for window in [w for w in self._open if now is None or w.t1 < now]:
            self._open.remove(window)
            self.result.widest_window_ns = max(self.result.widest_window_ns, window.t1 - window.t0)
            self._compare(window.event, window.pid, window.fields, window.seen)


def _windows(trace: Trace) -> list[_Window]:
    """The trace's checkpoints with a window, by their beginning."""
    found = []
    for batch in trace.batches():
        for i in (batch.op == OP_EXPECT).nonzero()[0].tolist():
            fields = batch.side[int(batch.arg[i])]
            if fields.get("t0") is not None and fields.get("t1") is not None:
                found.append(_Window(fields["t0"], fields["t1"], batch.first + i, int(batch.pid[i]), fields, {}))
    return sorted(found, key=lambda window: (window.t0, window.event))


def profile_for(trace: Trace, name: str) -> Profile:
    """A named profile, or with `auto` that of the trace's kernel."""
    if name == AUTO:
        return for_kernel(trace.meta.kernel_release, trace.meta.kernel_config, trace.meta.kernel_version)
    return named(name)


def check_trace(
    path: Path,
    *,
    profile: str | None = None,
    options: CheckOptions | None = None,
    strict: bool = False,
    limits: Limits | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> FileResult:
    """Replay one file; with options, compare. profile None: auto when checking, else rfc-2022."""
    name = profile or (AUTO if options is not None else "rfc-2022")
    if name != AUTO:
        named(name)
    try:
        trace = open_trace(path)
        return Checker(trace, profile_for(trace, name), options, strict=strict, limits=limits or Limits()).run(progress)
    except PterefdError as error:
        return FileResult(path, error=error)


def replay_files(
    paths: Sequence[Path],
    *,
    profile: str | None = None,
    options: CheckOptions | None = None,
    strict: bool = False,
    progress: Callable[[Path, int, int | None], None] | None = None,
) -> list[FileResult]:
    """Replay every file, one after another, each on a host of its own; an error in one does not stop the next."""
    return [
        check_trace(
            path,
            profile=profile,
            options=options,
            strict=strict,
            progress=None if progress is None else partial(progress, path),
        )
        for path in paths
    ]


def exit_code(results: Iterable[FileResult]) -> int:
    """2 where a file could not be read or run, else 1 where one differs, else 0."""
    codes = [EXIT_BAD_INPUT if r.error is not None else int(r.differ > 0) for r in results]
    return max(codes, default=0)
