"""A sweep: the same bytes in whatever order and wherever its runs are done, gone on from where it was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pterefd.errors import BadInput, PterefdError
from pterefd.session.scenario import Choices, Plan, comparison, load, plan
from pterefd.session.sweep import Kept, Task, here, run_all, work
from tests.conftest import SCRIPT
from tests.house import spans, write_trace

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SCENARIO = """
[scenario]
title = "Spans to free"

[[mm]]
trace = "a.jsonl"

[compare]
triggers = ["none", "interval", "on_demand"]
policies = ["largest_first", "empty_only"]
bound = true

[plugins.trigger.interval]
period_ms = 10
kinds = "empty+zero"
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Six runs of a trace of 60 ms."""
    events = [
        *({"t": k * 1_000_000, **event} for k, event in enumerate(spans(1, full=2, zero=3, empty=4))),
        {"t": 50_000_000, "op": "free_ptes", "pid": 1},
        {"t": 59_000_000, "op": "exit", "pid": 1},
    ]
    write_trace(tmp_path / "a.jsonl", events)
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def planned(scenario: Path) -> Plan:
    return plan(load(scenario), Choices())


def backwards(tasks: Sequence[Task]) -> Iterator[tuple[int, str]]:
    for index in reversed(range(len(tasks))):
        yield index, work(tasks[index].text)


def test_the_order_in_which_runs_are_done_changes_nothing(planned: Plan) -> None:
    reports = []
    for runner in (here(1), here(2), backwards):
        done = comparison(planned, run_all(planned.tasks, runner, Kept(None)))
        reports.append((json.dumps(done.as_dict()), done.as_csv()))
    assert reports[0] == reports[1] == reports[2]


def test_what_it_comes_to(planned: Plan) -> None:
    results = run_all(planned.tasks, here(1), Kept(None))
    freed = {(r.combination.trigger, r.combination.policy): r.outcome.freed_bytes >> 12 for r in results}
    assert freed == {
        ("none", "none"): 0,
        ("interval", "largest_first"): 7,
        ("interval", "empty_only"): 4,
        ("on_demand", "largest_first"): 7,
        ("on_demand", "empty_only"): 4,
        ("none", "bound"): 7,
    }


def test_a_sweep_goes_on_from_what_is_done(planned: Plan, tmp_path: Path) -> None:
    """Interrupted after two runs: the others are all that is done the second time."""
    kept = Kept(tmp_path / "kept")

    def interrupted(tasks: Sequence[Task]) -> Iterator[tuple[int, str]]:
        yield from list(zip(range(2), (work(task.text) for task in tasks[:2]), strict=True))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(planned.tasks, interrupted, kept)
    done: list[int] = []

    def counted(tasks: Sequence[Task]) -> Iterator[tuple[int, str]]:
        done.append(len(tasks))
        yield from here(1)(tasks)

    whole = run_all(planned.tasks, counted, kept)
    assert done == [len(planned.tasks) - 2]
    assert whole == run_all(planned.tasks, here(1), Kept(None))
    assert run_all(planned.tasks, lambda _tasks: iter(()), kept) == whole


def test_a_damaged_result_is_made_anew(planned: Plan, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    whole = run_all(planned.tasks, here(1), kept)
    path = tmp_path / f"{planned.tasks[0].digest}.json"
    text = path.read_text()
    path.write_text(text[:100])
    assert run_all(planned.tasks, here(1), kept) == whole
    assert path.read_text() == text
    assert list(tmp_path.glob("*.tmp")) == []


def test_progress_counts_what_was_there_already(planned: Plan, tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put(planned.tasks[3], work(planned.tasks[3].text))
    seen: list[tuple[int, int]] = []
    run_all(planned.tasks, here(1), kept, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_a_worker_refuses_other_files_and_another_pterefd(planned: Plan, tmp_path: Path) -> None:
    task = json.loads(planned.tasks[0].text)
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text() + "\n")
    answer = json.loads(work(json.dumps(task)))
    assert answer["exit_code"] == 2
    assert answer["error"].endswith("a.jsonl: not the file that the comparison was started with, on this worker")
    answer = json.loads(work(json.dumps({**task, "code": "0"})))
    assert answer["error"].startswith("a worker has another pterefd")


def test_an_error_of_a_run_ends_the_sweep_with_its_line(planned: Plan, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").unlink()
    for jobs in (1, 2):
        with pytest.raises(PterefdError, match=r"a\.jsonl: cannot be read on this worker: No such file") as caught:
            run_all(planned.tasks, here(jobs), Kept(None))
        assert caught.value.exit_code == 2


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file: cannot be made: File exists"):
        Kept(tmp_path / "file")


# ---- the command ------------------------------------------------------------------------------------


def test_compare_writes_all_that_is_asked_for(scenario: Path, pterefd: Run, tmp_path: Path) -> None:
    done = pterefd(
        "compare", scenario, "--json", "--csv", "a.csv", "--plot", "a.svg", "--plot", "a.html", "--jobs", "2"
    )
    assert done.stderr == ""
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert [run["policy"] for run in report["runs"]].count("bound") == 1
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 7
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert (tmp_path / "a.html").stat().st_size > 1000
    again = pterefd("compare", scenario, "--json", "--csv", "b.csv", "--jobs", "1")
    assert again.stdout == done.stdout
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_compare_says_when_an_expectation_does_not_hold(scenario: Path, pterefd: Run) -> None:
    scenario.write_text(SCENARIO + '\n[[expect]]\ntrigger = "none"\nkills = ">= 1"\n')
    done = pterefd("compare", scenario, "--trigger", "none", "--format", "mail", "--no-bound")
    assert done.returncode == 1
    assert done.stderr == f"pterefd: {scenario}: run 1: trigger none, kills >= 1 does not hold\n"
    assert max(map(len, done.stdout.splitlines())) <= 72


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trigger", "pre_oops"], "pterefd: --trigger: no trigger 'pre_oops'; there are: "),
        (["--set", "compare.policies=['lagest']"], "scenario.toml: compare.policies: no policy 'lagest'; there are: "),
        (["--set", "compare.memory=['1QB']"], "scenario.toml: compare.memory: '1QB': unknown unit 'QB' of size"),
        (["--set", "mm=[]"], "scenario.toml: no [[mm]]: nothing to run"),
        (["--set", "mm.0.trace=nope.jsonl"], "scenario.toml: mm.0.trace: "),
        (
            ["--set", "mm.0.parameters.foo=3"],
            "scenario.toml: mm.0: parameters are a workload's, and a trace has none\n",
        ),
        (["--set", "plugins.trigger.interval.perod_ms=5"], "plugin interval: perod_ms: no such tunable; there are: "),
        (["--set", "plugins.trigger.interval.period_ms=0"], "interval: period_ms: should be at least 10, not 0\n"),
        (["--plot", "a.pdf"], "a.pdf: a picture is a file of .png, .svg, .html"),
        (["--scheduler", "localhost:1"], "--scheduler 'localhost:1': not tcp://HOST:PORT or tls://HOST:PORT"),
        (["--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"], "--jobs is for this machine, --scheduler for others"),
        (["--memory", "2x"], "has no host.memory that it could be a multiple of"),
        (["--costs", "none.json"], "none.json: cannot be read: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, scenario: Path, pterefd: Run) -> None:
    done = pterefd("compare", scenario, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_expectation_that_is_about_no_run_does_not_hold(scenario: Path, pterefd: Run) -> None:
    """It would hold for ever. Where the command line says what is compared, expectations of other runs are left out."""
    scenario.write_text(SCENARIO + '\n[[expect]]\ntrigger = "pre_oom"\nkills = "== 0"\n')
    done = pterefd("compare", scenario, "--jobs", "1")
    assert done.returncode == 1
    assert done.stderr == f"pterefd: {scenario}: expect: trigger pre_oom, kills == 0: about no run\n"
    assert "Expected, and about no run: trigger pre_oom, kills == 0: DOES NOT HOLD" in " ".join(done.stdout.split())
    narrowed = pterefd("compare", scenario, "--trigger", "none", "--no-bound")
    assert (narrowed.returncode, narrowed.stderr) == (0, "")


def test_a_scenario_without_a_title_has_its_files_name(scenario: Path, pterefd: Run) -> None:
    scenario.write_text("[[mm]]" + SCENARIO.partition("[[mm]]")[2])
    done = pterefd("compare", scenario, "--trigger", "none", "--no-bound")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, scenario.stem)


def test_an_interrupted_command_keeps_what_is_done(scenario: Path, pterefd: Run, tmp_path: Path) -> None:
    """Interrupted as soon as the first result is there; the same command ends what is left."""
    args = ["compare", str(scenario), "--resume", "kept", "--jobs", "2", "--json", *(f"--seed={n}" for n in range(8))]
    process = subprocess.Popen(
        [str(SCRIPT), *args], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "kept").glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    before = len(list((tmp_path / "kept").glob("*.json")))
    assert before >= 1
    done = pterefd(*args)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["runs"]) == 48
    assert list((tmp_path / "kept").glob("*.tmp")) == []
