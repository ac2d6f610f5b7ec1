"""A recording from beginning to end: `record -- COMMAND` and `record -p PID`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pterefd import outputs
from pterefd.errors import EXIT_PARTLY, BadInput, Missing, Partly, PterefdError
from pterefd.live import machine, procmem, ptrace
from pterefd.source.record import perf
from pterefd.source.record.anonymize import anonymize
from pterefd.source.record.assemble import Assembled, assemble
from pterefd.source.record.calls import UNMODELLED
from pterefd.source.record.marks import CheckpointMark, ExecMark, Marks
from pterefd.source.record.metadata import metadata
from pterefd.source.record.perfdata import Format, PerfData, parse_format
from pterefd.source.record.snapshot import read_snapshot
from pterefd.source.record.tracer import Tracer
from pterefd.source.writer import TraceWriter

EXIT_RECORDER = 125  # the recorder itself failed, as env(1) has it
DEFAULT_EVERY_S = 0.2

_LOOK_S = 0.1  # how soon at the latest a signal to the recorder is seen
_SIGNALS_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; the command must not inherit that


def _to_stderr(text: str) -> None:
    print(f"pterefd: {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Options:
    """How to record.

    checkpoint_every: seconds between the checkpoints of a process, None for the default, 0 for none but those before
    exits.  thp: "off" or "keep".  follow: "all" records until every child has ended, "command" until the command has.
    duration: seconds after which a recording of a running process ends, None for never.
    progress: told (done, total) events while the trace is written.  say: told what the user should know, line by line.
    """

    output: Path
    checkpoint_every: float | None = None
    thp: str = "off"
    force: bool = False
    anonymize: bool = False
    follow: str = "all"
    duration: float | None = None
    progress: Callable[[int, int | None], None] | None = None
    say: Callable[[str], None] = _to_stderr

    @property
    def every_ns(self) -> int:
        """checkpoint_every in nanoseconds."""
        return int((DEFAULT_EVERY_S if self.checkpoint_every is None else self.checkpoint_every) * 1e9)


# ---- the two ways in -----------------------------------------------------------------------------


def record_command(argv: list[str], options: Options) -> int:
    """Record a command and all its children into options.output; returns the exit code to end with.

    That is the command's own (128+n for a signal), 127 or 126 where it could not be started, 4 where it succeeded but
    the recording is not complete, 130 where it was left running at a second Ctrl-C.
    BadInput: the output.  Missing: perf, rights.  RecorderError: anything else that kept the recording from starting.
    """
    run = _Run(options, [os.fspath(word) for word in argv])
    with run.prepared():
        try:
            return run.command()
        except BadInput as error:  # the command has run: who called it did nothing wrong
            raise perf.RecorderError(str(error)) from error


def record_pid(pid: int, options: Options) -> None:
    """Record a running process and its later children, until it ends, Ctrl-C, or options.duration is over.

    It is left running. Partly: the recording has gaps.  Otherwise as `record_command`.
    """
    run = _Run(options, None)
    with run.prepared():
        run.attach(pid)


class _Run:
    """One recording: perf and the tracer side by side, then their results put together."""

    def __init__(self, options: Options, argv: list[str] | None) -> None:
        self._options = options
        self._argv = argv
        self._say = options.say
        self._marks = Marks()
        self._stop = False
        self._interrupts = 0
        self._trouble: list[str] = []  # why the recording is not complete
        self._perf: perf.Perf | None = None
        self._tracer: Tracer | None = None
        self._child = 0
        self._exit_status: int | None = None
        self._failure: BaseException | None = None

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Check what is needed, and have a directory for perf's file beside the output."""
        machine.check_arch("recording")
        output = self._options.output
        outputs.check(output, force=self._options.force, ending=".parquet")
        self._perf_path = perf.find_perf()
        self._perf_version = perf.perf_version(self._perf_path)
        self._tracefs = perf.tracefs()
        perf.check_rights()
        self._events = perf.available(self._tracefs, perf.RECORD_EVENTS)
        try:
            scratch = tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent)
        except OSError as error:
            raise BadInput(f"{output}: cannot be written: {error.strerror}") from None
        self._data_path = Path(scratch) / "perf.data"
        try:
            yield
        finally:
            if self._perf is not None:
                self._perf.close()
            shutil.rmtree(scratch, ignore_errors=True)

    # -- a command --------------------------------------------------------------------------------

    def command(self) -> int:
        """Record the command; its exit code."""
        with _handlers(self._command_signal):
            self._in_thread(self._trace_command)
            if self._exit_status is None and not self._interrupts >= 2:
                self._exit_status = _wait_for(self._child)
        code = 128 + signal.SIGINT if self._exit_status is None else _exit_code(self._exit_status)
        if self._marks.execs:
            self._finish([self._child])
        elif code in (126, 127):
            return code
        if self._trouble:
            self._tell_trouble()
            return code or EXIT_PARTLY
        return code

    def _trace_command(self) -> None:
        assert self._argv is not None
        self._child, go = _spawn(self._argv, thp_off=self._options.thp == "off")
        try:
            ptrace.seize(self._child)
            self._perf = perf.Perf(self._perf_path, self._data_path, self._child, self._events)
            tracer = self._new_tracer(self._child)
            tracer.add_process(self._child, [self._child], execed=False)
            self._perf.enable()
            os.write(go, b"\n")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
            raise
        finally:
            os.close(go)
        tracer.run()
        self._exit_status = tracer.exit_status

    def _new_tracer(self, leader: int) -> Tracer:
        every = self._options.every_ns
        tracer = Tracer(self._marks, every, leader, only_leader=self._options.follow == "command")
        tracer.stop_requested = lambda: self._stop
        tracer.on_foreign = self._foreign
        self._tracer = tracer
        return tracer

    def _foreign(self, pid: int, status: int) -> None:
        """wait(2) met a child that is not traced: perf, which ends here only when something is wrong."""
        if self._perf is not None and pid == self._perf.pid:
            self._perf.noticed(status)
            self._stop = not self._perf.complete  # it ends by itself, in order, when nobody is left

    def _command_signal(self, number: int) -> None:
        """A signal to the recorder. Ctrl-C reaches the command, too; what it does then is its own affair."""
        self._interrupts += 1
        if self._interrupts >= 2:
            self._stop = True
            self._say("recording stopped, the command is left running")
        elif number in (signal.SIGTERM, signal.SIGHUP) and self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)
        else:
            self._say("interrupted: waiting for the command to end (once more stops the recording)")

    # -- a running process ------------------------------------------------------------------------

    def attach(self, pid: int) -> None:
        """Record a process that runs already."""
        _check_target(pid)
        with _handlers(self._attach_signal):
            self._in_thread(lambda: self._trace_pid(pid))
        self._finish([pid])
        if self._trouble:
            self._tell_trouble(last=False)
            raise Partly(f"{self._options.output}: {self._trouble[-1]}")

    def _attach_signal(self, number: int) -> None:
        self._stop = True

    def _trace_pid(self, pid: int) -> None:
        tracer = self._new_tracer(pid)
        mm = tracer.add_process(pid, _seize_all(pid), execed=True)
        flags = procmem.read_vm_flags(pid)
        before = set(procmem.tasks(pid))
        self._perf = perf.Perf(self._perf_path, self._data_path, pid, self._events)
        begin = time.monotonic()
        if not tracer.hold(mm):
            raise perf.RecorderError(f"process {pid} cannot be made to stand still (a thread is stuck in the kernel)")
        if set(procmem.tasks(pid)) - before:  # a thread that perf may have missed: again, while all stand still
            self._perf.close()
            self._perf = perf.Perf(self._perf_path, self._data_path, pid, self._events)
        self._perf.enable()
        for attempt in range(10):
            first = self._snapshot(pid, flags)
            if tracer.stood_still(mm, wake=attempt >= 2):
                break
        else:
            raise perf.RecorderError(f"process {pid} cannot be made to stand still (its threads wake up again)")
        tracer.release(mm)
        self._begin_with(*first)
        stood = (time.monotonic() - begin) * 1000
        self._say(f"attached to {pid} ({self._marks.execs[0].snapshot.comm}), which stood still for {stood:.0f} ms")
        if self._options.duration is not None:
            end = time.monotonic() + self._options.duration
            tracer.stop_requested = lambda: self._stop or time.monotonic() >= end
        tracer.run()

    def _snapshot(self, pid: int, flags: dict[int, frozenset[str]]) -> tuple[ExecMark, procmem.Checkpoint | None]:
        """What the process is when recording begins: its memory, and the first checkpoint."""
        t = time.monotonic_ns()
        snapshot, entries = read_snapshot(pid, attached=True, flags=flags)
        checkpoint = procmem.read_checkpoint(pid)
        threads = [tid for tid in procmem.tasks(pid) if tid != pid]
        self._marks.huge_pages += entries.huge_files
        return ExecMark(t, pid, pid, snapshot, attached=True, threads=threads), checkpoint

    def _begin_with(self, mark: ExecMark, checkpoint: procmem.Checkpoint | None) -> None:
        """The recording begins with this; what the tracer met before is in it."""
        pid, unlocated = mark.tgid, mark.snapshot.unlocated or 0
        self._marks.forget_before(mark.t)
        self._marks.execs.insert(0, mark)
        if checkpoint is not None:
            fields = checkpoint.fields | {"unlocated_pte_pages": unlocated}
            self._marks.checkpoints.insert(0, CheckpointMark(mark.t, pid, fields))
        if unlocated:
            self._say(f"{unlocated} page-table pages of {pid} hold nothing: their place cannot be known")

    # -- both -------------------------------------------------------------------------------------

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Do the tracing in a thread of its own: when it ends, the kernel lets go of whoever is traced.

        Nobody has to be stopped for that, and wait(2) there meets nobody else's children.
        """

        def body() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error
            self._marks.end = time.monotonic_ns()

        thread = threading.Thread(target=body, name="tracer")
        thread.start()
        while thread.is_alive():  # with a timeout: a signal that another thread took does not end this thread's wait
            thread.join(_LOOK_S)
        if self._failure is not None:
            if isinstance(self._failure, OSError) and not isinstance(self._failure, PterefdError):
                raise perf.RecorderError(f"recording failed: {self._failure}") from self._failure
            raise self._failure

    def _finish(self, roots: list[int]) -> None:
        """Stop perf, put everything together and write it. Ctrl-C during that is for somebody who insists."""
        asked = 0

        def interrupted(number: int) -> None:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise KeyboardInterrupt
            self._say("writing the trace (once more gives it up)")

        with _handlers(interrupted):
            self._put_together(roots)

    def _put_together(self, roots: list[int]) -> None:
        assert self._perf is not None
        if not self._perf.stop():
            self._trouble.append(f"perf ended early ({self._perf.last_words()}): what came later is not recorded")
            data = PerfData(self._data_path, read_formats(self._tracefs, self._events), copy=True)
            self._data_path.unlink()  # perhaps it was for want of room; what there is is in memory now
            self._marks.cut(max(data.flushed_until, self._marks.execs[0].t))
        else:
            data = PerfData(self._data_path)
        assembled = assemble(data, self._marks, roots)
        data.close()
        self._note_gaps(assembled)
        if self._options.anonymize:
            anonymize(assembled.table)
        try:
            self._write(assembled)
        except Partly as error:
            self._trouble.append(str(error))

    def _write(self, assembled: Assembled) -> None:
        meta = metadata(
            thp=self._thp(),
            command=None if self._options.anonymize else self._command_line(),
            perf_version=self._perf_version,
        )
        total = sum(len(group) for group in assembled.table.groups())
        done = 0
        with TraceWriter(self._options.output, meta, force=self._options.force) as writer:
            for arrays, count in assembled.table.pieces(assembled.begin):
                writer.add_arrays(arrays, count)
                done += count
                if self._options.progress is not None:
                    self._options.progress(done, total)

    def _thp(self) -> str:
        """What stands in the trace: what the machine gives huge pages to, unless they are off for the command."""
        return "never" if self._argv is not None and self._options.thp == "off" else machine.thp_setting()

    def _command_line(self) -> list[str] | None:
        return self._argv if self._argv is not None else self._marks.execs[0].snapshot.cmdline or None

    def _note_gaps(self, found: Assembled) -> None:
        """Say what is not in the recording."""
        marks = self._marks
        if found.lost:
            self._trouble.append(f"{found.lost} events were lost (perf's buffers were full): the trace has gaps")
        if found.untraced:
            self._trouble.append(f"{found.untraced} tasks were made untraced: they are not in the trace")
        if found.stranded:
            self._trouble.append(f"{found.stranded} processes went on with the mm of one that called exec: left out")
        for name, count in sorted(found.unmodelled.items()):
            self._say(f"{count} times {UNMODELLED.get(name, name + ': not recorded')}: tables may differ from there on")
        for program in sorted(set(marks.programs_32bit)):
            self._trouble.append(f"{program} is a 32-bit program: its system calls are not recorded")
        if marks.huge_pages:
            self._say("huge pages of files were mapped: page tables are not exact where they were")
        if marks.missed_checkpoints > len(marks.checkpoints):
            self._say(f"{marks.missed_checkpoints} checkpoints were left out: not all threads stood still in time")

    def _tell_trouble(self, *, last: bool = True) -> None:
        for text in self._trouble if last else self._trouble[:-1]:
            self._say(text)


# ---- helpers -------------------------------------------------------------------------------------


def read_formats(tracefs: Path, events: list[str]) -> dict[int, Format]:
    """Formats of tracepoints from the running kernel, by ID."""
    formats = {}
    for event in events:
        system, name = event.split(":")
        fmt = parse_format((tracefs / "events" / system / name / "format").read_text(), system)
        formats[fmt.id] = fmt
    return formats


def _spawn(argv: list[str], *, thp_off: bool) -> tuple[int, int]:
    """Fork a child that waits before it becomes the command: its pid, and the pipe that lets it go on."""
    wait_end, go_end = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child only waits and execs
        pid = os.fork()
    if pid == 0:
        _become(argv, wait_end, go_end, thp_off=thp_off)
    os.close(wait_end)
    return pid, go_end


def _become(argv: list[str], wait_end: int, go_end: int, *, thp_off: bool) -> NoReturn:
    """In the child: wait, then become the command. 127 where there is none, 126 where it cannot be executed."""
    try:
        os.close(go_end)
        for number in _SIGNALS_RESTORED:
            signal.signal(number, signal.SIG_DFL)
        if thp_off:
            ptrace.disable_thp()
        if not os.read(wait_end, 1):
            os._exit(EXIT_RECORDER)
        os.execvp(argv[0], argv)  # noqa: S606
    except FileNotFoundError:
        os.write(2, f"pterefd: {argv[0]}: no such command\n".encode(errors="surrogateescape"))
        os._exit(127)
    except OSError as error:
        os.write(2, f"pterefd: {argv[0]}: {error.strerror}\n".encode(errors="surrogateescape"))
        os._exit(126)
    finally:
        os._exit(EXIT_RECORDER)


def _wait_for(pid: int) -> int:
    """Wait for the command, which is no longer traced."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return EXIT_RECORDER << 8


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _check_target(pid: int) -> None:
    """BadInput: no such process, or none that can be recorded.  Missing: no right to."""
    if pid == os.getpid():
        raise BadInput(f"process {pid} is this one")
    try:
        status = procmem.read_status(pid)
        if "VmPTE" not in status.kb:
            raise BadInput(f"process {pid} ({status.name}) has no memory of its own (kernel thread or zombie)")
        if status.tgid != pid:
            raise BadInput(f"{pid} is a thread of process {status.tgid}: name that")
        if procmem.is_32bit(pid):
            raise BadInput(f"process {pid} is a 32-bit program: its system calls cannot be recorded")
        procmem.count_maps(pid)
    except procmem.GONE:
        raise BadInput(f"there is no process {pid}") from None
    except PermissionError:
        raise Missing(f"process {pid} may not be traced: it takes root") from None


def _seize_all(pid: int) -> list[int]:
    """Trace every thread of a process, those too that appear meanwhile."""
    seized: set[int] = set()
    while True:
        new = set(procmem.tasks(pid)) - seized
        if not new:
            return sorted(seized)
        for tid in new:
            try:
                ptrace.seize(tid)
            except PermissionError:
                raise Missing(f"process {pid} may not be traced: by right, or because somebody else does") from None
            seized.add(tid)


@contextlib.contextmanager
def _handlers(act: Callable[[int], None]) -> Iterator[None]:
    """Have signals that would end the recorder call `act`. Only the main thread can; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        act(number)

    old: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for restored, previous in old.items():
            signal.signal(restored, previous)
