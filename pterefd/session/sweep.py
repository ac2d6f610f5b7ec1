"""Every combination of a comparison, each in a process of its own; what is done may be kept, and gone on from.

A task is text (JSON), so that it is the same for a worker here and one on another machine, and its digest names its
result: of the pterefd that runs it, the scenario, the contents of the traces and plugins, the costs, and the
combination. Results are put together in the order of the table, whenever they come in.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pterefd import __version__, errors
from pterefd.errors import BadInput, PterefdError
from pterefd.session.outcome import Combination, Result, Series, outcome_from_dict

ATTEMPTS = 3  # of one combination, where a worker dies

OnDone = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, slots=True)
class Task:
    """One combination to be run. text: all that a worker needs.  digest: of all that decides the outcome."""

    text: str
    digest: str


def file_digest(path: Path) -> str:
    """SHA-256 of a file. BadInput: it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


@cache
def code_digest() -> str:
    """Of this pterefd: its version and its files."""
    package = Path(errors.__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(package.rglob("*.py")):
        if "_share" not in path.parts:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def make_tasks(shared: dict[str, Any], files: Sequence[Path], combinations: Sequence[Combination]) -> list[Task]:
    """A task for each combination. shared: what all have in common, for JSON; files: those that workers read."""
    digests = {str(path): file_digest(path) for path in files}
    by_content = json.dumps(shared, sort_keys=True)
    for name, digest in digests.items():
        by_content = by_content.replace(json.dumps(name), json.dumps(digest))  # where a file lies changes nothing
    tasks = []
    for combination in combinations:
        whose = json.dumps(combination.as_dict(), sort_keys=True)
        text = json.dumps(
            {"shared": shared, "files": digests, "combination": asdict(combination), "code": code_digest()},
            sort_keys=True,
        )
        decided = "\0".join((code_digest(), by_content, *sorted(digests.values()), whose))
        tasks.append(Task(text, hashlib.sha256(decided.encode()).hexdigest()))
    return tasks


# ---- in a worker ------------------------------------------------------------------------------------


def work(text: str) -> str:
    """Run one task. The result as JSON, or {"error": one line, "exit_code": ...}: exceptions of ours do not travel."""
    try:
        return _work(json.loads(text))
    except PterefdError as error:
        return json.dumps({"error": str(error), "exit_code": error.exit_code})


def _work(task: dict[str, Any]) -> str:
    from pterefd.session.experiment import run
    from pterefd.session.scenario import setting_of

    if task["code"] != code_digest():
        raise BadInput("a worker has another pterefd than the one that started the comparison: install the same")
    for name, digest in task["files"].items():
        if _digest_of_now(name, *_stamp(Path(name))) != digest:
            raise BadInput(f"{name}: not the file that the comparison was started with, on this worker")
    given = task["combination"]
    combination = Combination(**{**given, "triggers": tuple(given["triggers"])})
    return dump(run(setting_of(task["shared"]), combination))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        now = path.stat()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read on this worker: {error.strerror}") from None
    return now.st_mtime_ns, now.st_size


@cache
def _digest_of_now(name: str, _mtime_ns: int, _size: int) -> str:
    return file_digest(Path(name))


def dump(result: Result) -> str:
    """A result as JSON, the same text for the same result."""
    given = {
        "combination": asdict(result.combination),
        "outcome": result.outcome.as_dict(),
        "series": asdict(result.series),
    }
    return json.dumps(given, sort_keys=True)


def load(text: str) -> Result:
    """The result that dump() wrote. PterefdError: what the task failed with."""
    given = json.loads(text)
    if "error" in given:
        raised = PterefdError(given["error"])
        raised.exit_code = given["exit_code"]
        raise raised
    combination = given["combination"]
    return Result(
        Combination(**{**combination, "triggers": tuple(combination["triggers"])}),
        outcome_from_dict(given["outcome"]),
        Series(**given["series"]),
    )


# ---- all of them ------------------------------------------------------------------------------------


class Kept:
    """Results in a directory, a file each, named by the task's digest; without a directory nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(f"{directory}: cannot be made: {error.strerror}") from None

    def get(self, task: Task) -> str | None:
        """The result of a task that was done before."""
        if self._directory is None:
            return None
        try:
            text = (self._directory / f"{task.digest}.json").read_text()
            load(text)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return text

    def put(self, task: Task, text: str) -> None:
        """Keep a result: written beside and renamed, so that a file is there whole or not at all."""
        if self._directory is None:
            return
        path = self._directory / f"{task.digest}.json"
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            beside.write_text(text)
            beside.rename(path)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


Runner = Callable[[Sequence[Task]], Iterator[tuple[int, str]]]  # yields (index, result), as they are done


def run_all(tasks: Sequence[Task], runner: Runner, kept: Kept, on_done: OnDone | None = None) -> list[Result]:
    """Results of all tasks, in their order. PterefdError: the first that one failed with; what is done is kept."""
    texts = [kept.get(task) for task in tasks]
    missing = [index for index, text in enumerate(texts) if text is None]
    done = len(tasks) - len(missing)
    if on_done is not None:
        on_done(done, len(tasks))
    if missing:
        for at, text in runner([tasks[index] for index in missing]):
            load(text)  # an error ends it here
            texts[missing[at]] = text
            kept.put(tasks[missing[at]], text)
            done += 1
            if on_done is not None:
                on_done(done, len(tasks))
    return [load(text) for text in texts if text is not None]


def here(jobs: int) -> Runner:
    """A runner in this process (1 job), or in so many processes of this machine."""

    def run(tasks: Sequence[Task]) -> Iterator[tuple[int, str]]:
        if jobs == 1 or len(tasks) == 1:
            for index, task in enumerate(tasks):
                yield index, work(task.text)
        else:
            yield from _in_processes(tasks, min(jobs, len(tasks)))

    return run


def _in_processes(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[int, str]]:
    """Results as they are done. A process that dies takes its pool with it: what was not done is done in a new one."""
    left = set(range(len(tasks)))
    for attempt in range(ATTEMPTS):
        pool = ProcessPoolExecutor(
            jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
        )
        try:
            futures: dict[Future[str], int] = {pool.submit(work, tasks[index].text): index for index in sorted(left)}
            waiting = set(futures)
            while waiting:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    text = future.result()
                    left.discard(futures[future])
                    yield futures[future], text
            return
        except BrokenProcessPool:
            if attempt + 1 == ATTEMPTS:
                raise PterefdError(
                    f"a process of the comparison died {ATTEMPTS} times: out of memory? --jobs 1"
                ) from None
        finally:
            _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    """Without waiting for what runs: nobody wants it any more."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _ignore_interrupts() -> None:
    """Ctrl-C goes to the whole process group; the one that started the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
