"""One plugin file on a small recorded host: what it answers to a fixed row of moments, or emits. A process of its own.

    python -m pterefd.session.trial FILE OUT [--restore]

OUT gets one JSON object: the classes that FILE registers; for each the answers, moment by moment; and what is wrong.
contract.py runs this twice, with other hash seeds, and compares.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pterefd import paths
from pterefd.errors import BadInput
from pterefd.hookspecs import Cause, Moment, ReclaimResult
from pterefd.host.host import Host
from pterefd.mm.events import MAP_ANONYMOUS, MAP_PRIVATE, OP_EXEC, OP_EXIT, OP_FAULT, OP_MMAP, PROT_READ, Batch
from pterefd.mm.profile import named
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.session.feed import Feed
from pterefd.session.purity import Purity
from pterefd.source.place import Placed
from pterefd.source.trace import open_trace
from pterefd.source.workload import WorkloadSource

RECORDING = "etc/traces/redis.parquet"
COPIES = 3  # of the recording on one host, each a little behind the one before it
BEGIN = 0.9  # of its events, where the trial begins: it has page tables to free by then
STEPS = 9  # parts that the rest is cut into
PAGE, SPAN, BASE = 4096, 1 << 21, 1 << 40
TRIGGERS = ("on_demand", "watermark", "pre_oom")


class _Log:
    """Keeps what is said of plugins that fail, each line once."""

    def __init__(self) -> None:
        self.wrong: dict[str, None] = {}

    def info(self, event: str, **fields: Any) -> None:
        """Acts are seen as results."""

    def error(self, event: str, **fields: Any) -> None:
        if event == "plugin failed":
            self.wrong.setdefault(f"{fields['kind']} {fields['plugin']}: {fields['error']}")


class SmallHost:
    """A few mms of a recorded server and one that has read memory; their last events, and the moments between them."""

    def __init__(self) -> None:
        self.host = Host(named("rfc-2022"), seed=1)
        trace = open_trace(paths.share(RECORDING))
        above = trace.highest_pid()
        copies = [Placed(trace, pid_base=copy * above) for copy in range(COPIES)]
        self._feeds = [Feed(copy, self.host, on_free_ptes=lambda _: None) for copy in copies]
        self._batches = [list(copy.batches()) for copy in copies]
        for copy in range(COPIES):
            self._run(copy, 0.0, BEGIN - 0.01 * copy)
        self._reader = COPIES * above + 1
        self._events((OP_EXEC, 0, 0, 0), (OP_MMAP, BASE, (STEPS + 1) * 3 * SPAN, 0))

    def steps(self) -> Iterator[int]:
        """Run the next part of every mm's events, then give the number of the step."""
        for step in range(STEPS):
            for copy in range(COPIES):
                ends = [BEGIN - 0.01 * copy + (1 - BEGIN) * n / STEPS for n in (step, step + 1)]
                self._run(copy, *ends)
            at = BASE + step * 3 * SPAN
            self._events((OP_FAULT, at, 2 * SPAN, 0), (OP_FAULT, at + 2 * SPAN, PAGE, 0))
            yield step

    def _run(self, copy: int, begin: float, end: float) -> None:
        """A part of a copy's events, given as fractions, up to the end of its first process."""
        batches = self._batches[copy]
        total = sum(map(len, batches))
        first, last = int(total * begin), int(total * end)
        before = 0
        for batch in batches:
            low, high = max(first - before, 0), min(last - before, len(batch), _living(batch))
            if low < high:
                self._feeds[copy].run(batch, low, high)
            before += len(batch)

    def _events(self, *events: tuple[int, int, int, int]) -> None:
        """(op, addr, len, arg) of the mm that reads: spans of zero pages, and some with few of them."""
        op, addr, length, arg = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
        batch = Batch(
            t=np.full(len(op), self.host.time_ns),
            pid=np.full(len(op), self._reader, dtype=np.int32),
            op=op.astype(np.uint8),
            addr=addr,
            len=length,
            arg=arg,
            err=np.zeros(len(op), dtype=np.int16),
            ext=np.array([[PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, -1]], dtype=np.int64),
            side=[{"comm": "reader"}],
            paths=["/"],
        )
        self.host.run(batch, 0, len(batch))

    def moments(self, step: int) -> Iterator[Moment]:
        """Every cause, with more or less wanted."""
        now = self.host.time_ns
        pids = self.host.pids()
        yield Moment(Cause.TICK, now)
        yield Moment(Cause.RECLAIM, now, bytes=(3 + step) * PAGE)
        yield Moment(Cause.LOW, now, bytes=(1 + step) * PAGE)
        yield Moment(Cause.OOM, now, bytes=2 * PAGE)
        if pids:
            yield Moment(Cause.WRITE, now, pid=pids[step % len(pids)])
        if step % 4 == 3:
            yield Moment(Cause.WRITE, now)


def _living(batch: Batch) -> int:
    """Events before the first exit."""
    exits = (batch.op == OP_EXIT).nonzero()[0]
    return int(exits[0]) if len(exits) else len(batch)


def answers(path: Path, kind: str, name: str, log: _Log, *, restore: bool) -> list[Any]:
    """What came of every moment. restore: half-way another reclaimer, with a fresh copy of FILE, goes on."""
    small = SmallHost()

    def reclaimer() -> Reclaimer:
        plugins = Plugins()
        _load(plugins, path)
        chosen = {"policy": {"policy": name, "triggers": TRIGGERS}, "trigger": {"triggers": (name,)}}.get(kind, {})
        return Reclaimer(small.host, plugins, log, failures=3, **chosen)  # type: ignore[arg-type]

    acting = reclaimer()
    found: list[Any] = []
    for step in small.steps():
        if restore and step == STEPS // 2:
            state = _as_json(acting.state(), f"{kind} {name}", log)
            acting = reclaimer()
            acting.restore(state)
        for moment in small.moments(step):
            found.append(_answer(moment, acting.moment(moment)))
    _as_json(acting.state(), f"{kind} {name}", log)
    return found


def emitted(plugins: Plugins, name: str) -> list[Any]:
    """A workload's events with its own defaults: (batch, digest of its columns), batch by batch. BadInput."""
    found: list[Any] = []
    for batch in WorkloadSource(plugins.workloads[name], seed=1).batches():
        columns = (batch.t, batch.pid, batch.op, batch.addr, batch.len, batch.arg, batch.err, batch.ext)
        digest = hashlib.sha256(b"".join(column.tobytes() for column in columns))
        digest.update(repr((batch.side, batch.paths)).encode())
        found.append([f"batch {len(found)}", digest.hexdigest()])
    return found


def _load(plugins: Plugins, path: Path) -> None:
    """The built-in plugins and FILE, which may be one of them, or of an installed package."""
    built_in = paths.share("plugins")
    plugins.load([built_in], installed=False)
    if path.resolve().parent != built_in.resolve():
        plugins.load_file(path)


def _as_json(state: dict[str, Any], whose: str, log: _Log) -> Any:
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        log.wrong.setdefault(f"{whose}: state() is no JSON: {error}")
        raise SystemExit(0) from None


def _answer(moment: Moment, result: ReclaimResult | None) -> Any:
    if result is None:
        return [moment.cause.value, None]
    request = result.request
    asked = [request.bytes_wanted, request.kinds.text, request.pid, request.group]
    sums = [result.empty_bytes, result.zero_bytes, result.mixed_bytes]
    return [moment.cause.value, result.trigger, result.policy, asked, sums, result.freed, result.outcome]


def main() -> None:
    path, out = Path(sys.argv[1]), Path(sys.argv[2])
    restore = "--restore" in sys.argv[3:]
    purity = Purity(str(path))
    log = _Log()
    report: dict[str, Any] = {"classes": [], "answers": {}, "restored": {}, "error": None}
    try:
        plugins = Plugins()
        purity.watch()
        _load(plugins, path)
        report["classes"] = [key.split(" ") for key, origin in plugins.origin.items() if origin == str(path)]
        for kind, name in report["classes"] or [("observer", path.stem)]:
            if kind == "workload":
                events = emitted(plugins, name)
                report["answers"][f"{kind} {name}"] = report["restored"][f"{kind} {name}"] = events
                continue
            report["answers"][f"{kind} {name}"] = answers(path, kind, name, log, restore=False)
            if restore:
                report["restored"][f"{kind} {name}"] = answers(path, kind, name, log, restore=True)
    except BadInput as error:
        report["error"] = str(error)
    finally:
        report["wrong"] = list(log.wrong)
        report["impure"] = list(purity.found)
        out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
