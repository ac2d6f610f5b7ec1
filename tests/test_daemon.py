"""The daemon as a user runs it: started, seen, written to, stopped, killed; and what keeps it from starting."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from pterefd import config, daemon
from pterefd.errors import EXIT_BAD_INPUT, EXIT_MISSING, BadInput
from pterefd.host.warm import warm
from pterefd.procfs import mountpoint
from pterefd.session import simulation
from tests.house import AT, EVENTS, SPAN, fault, mmap, write_trace
from tests.reclaim.built import plugin, policy

pytestmark = pytest.mark.mount

HELD = [*EVENTS, {"op": "exit", "pid": 2}, {"op": "exit", "pid": 1}]


class Running:
    """A daemon in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], mount: Path, log: Path) -> None:
        self.process = process
        self.mount = mount
        self.log = log
        self.metrics = ""
        self.hints: list[str] = []

    def state(self) -> str:
        return (self.mount / "sys/pterefd/replay/state").read_text().strip()

    def wait_for(self, state: str) -> None:
        deadline = time.monotonic() + 200  # kernels that changed are compiled first
        while self.state() != state:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def read(self, path: str) -> str:
        return (self.mount / path).read_text()

    def vm_pte(self, pid: int) -> int:
        """VmPTE in kB."""
        return next(
            int(line.split()[1]) for line in self.read(f"{pid}/status").splitlines() if line.startswith("VmPTE")
        )

    def scrape(self) -> dict[tuple[str, ...], float]:
        """(name, label values in the order of their names) -> value."""
        with urllib.request.urlopen(self.metrics, timeout=10) as response:
            families = list(parse(response.read().decode()))
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code after a signal, and what was logged."""
        self.process.send_signal(number)
        return self.process.wait(30), self.err()

    def err(self) -> str:
        """What it has written to standard error."""
        return self.log.read_text()


Start = Callable[..., Running]


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def start(tmp_path: Path, mnt: Path, script: Path) -> Iterator[Start]:
    """Starts a daemon on `mnt` and waits until it says that it is mounted."""
    running: list[Running] = []

    def start(
        *args: str | Path, trace: Path | None = None, text: str = "", events: Any = HELD, whole: str | None = None
    ) -> Running:
        """text: of the configuration, behind what is usual here. whole: all of it."""
        path = trace or write_trace(tmp_path / "trace.jsonl", events)
        settings = tmp_path / "pterefd.toml"
        usual = f"daemon.mount = '{mnt}'\nmetrics.address = '127.0.0.1:0'\nreplay.speed = 'max'\n{text}\n"
        settings.write_text(usual if whole is None else whole)
        log = tmp_path / f"log{len(running)}"
        traces = [] if "[[mm]]" in text or events == [] else ["--trace", str(path)]
        command = [str(script), "run", "-c", str(settings), *traces, *map(str, args)]
        with log.open("w") as err:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True)
        one = Running(process, mnt, log)
        running.append(one)
        assert process.stdout is not None
        lines = []
        while line := process.stdout.readline():
            lines.append(line)
            if line.startswith("metrics: "):
                one.metrics = line.split()[1]
                one.hints = lines
                return one
        raise AssertionError((lines, process.wait(10), one.err()))

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
    mountpoint.unmount(str(mnt), detach=True)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def pids(mnt: Path) -> set[int]:
    """Directories of processes in the mount."""
    return {int(name) for name in os.listdir(mnt) if name.isdecimal()}


def refused(script: Path, directory: Path, *args: str | Path, text: str = "") -> tuple[int, str]:
    """Exit code and the one line of a daemon that does not start."""
    settings = directory / "refused.toml"
    settings.write_text(f"metrics.address = '127.0.0.1:0'\n{text}\n")
    command = [str(script), "run", "-c", str(settings), *map(str, args)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert len(lines) == 1, done.stderr
    assert [entry for entry in mountpoint.mounts() if entry.point.startswith(str(directory))] == []
    return done.returncode, lines[0]


# -- a life ------------------------------------------------------------------------------------------


def test_recordings_and_workloads_share_the_host(start: Start, tmp_path: Path, traces: list[Path]) -> None:
    """[[mm]] tables, each copy a replay of its own; a workload says how many events it has once they are made."""
    text = """
        [[mm]]
        workload = "hungry"
        parameters = { size_mib = 8, hold_s = 0 }
        copies = 2
        [[mm]]
        trace = "trace.jsonl"
        start = 0.5
        pid_base = 100
        [[mm]]
        workload = "page_pool"
        parameters = { queries = 2, query_mib = 4 }
        seed = 7
        oom_score_adj = 250
    """
    one = start(text=text)
    deadline = time.monotonic() + 200
    while [one.read(f"sys/pterefd/replay/{n}/state").strip() for n in range(4)] != ["held"] * 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pids(one.mount) == {1, 2, 101, 107, 108}
    assert one.read("108/comm") == "ydb-server\n"
    assert one.read("sys/pterefd/replay/0/position") == "11/12\n"
    (one.mount / "sys/pterefd/replay/0/state").write_text("resume")
    while one.read("sys/pterefd/replay/0/state") != "ended\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert one.read("sys/pterefd/replay/0/position") == "12/12\n"
    (one.mount / "sys/pterefd/replay/1/speed").write_text("2")
    assert one.read("sys/pterefd/replay/1/speed") == "2\n"
    assert one.end() == (0, one.err())


def test_workloads_on_the_command_line_stand_in_place_of_what_the_file_has(start: Start) -> None:
    one = start("--workload", "hungry,size_mib=4,hold_s=0", "--workload", "hungry")
    assert (one.mount / "sys/pterefd/replay/2").is_dir()
    assert not (one.mount / "sys/pterefd/replay/3").exists()


@pytest.mark.parametrize(
    ("arguments", "text", "reason"),
    [
        (("--workload", "none"), "", "pterefd: there is no workload 'none'; there are: balloon_kdump, "),
        (
            ("--workload", "hungry,size=1"),
            "",
            "pterefd: workload hungry: size: there is no such parameter; there are: size_mib",
        ),
        (("--workload", "hungry,size"), "", "'size' is not KEY=VALUE"),
        (
            (),
            "[[mm]]\nworkload = 'hungry'\nparameters = { cycles = 0 }",
            "refused.toml: mm.0.workload: workload hungry: ",
        ),
        (
            (),
            "[[mm]]\nworkload = 'hungry'\n[[mm]]\nworkload = 'x'",
            "refused.toml: mm.1.workload: there is no workload",
        ),
        ((), "[[mm]]\ntrace = 'nope.parquet'", "refused.toml: mm.0.trace: "),
        ((), "replay.traces = ['nope.parquet']", "refused.toml: replay.traces.0: "),
        ((), "[[mm]]\nworkload = 'hungry'\n" * 2 + "pid_base = 0", "refused.toml: mm: hungry: pids 1..1 are partly "),
    ],
)
def test_a_bad_workload_stops_the_start(
    script: Path, tmp_path: Path, arguments: tuple[str, ...], text: str, reason: str
) -> None:
    code, line = refused(script, tmp_path, "--mount", tmp_path / "mnt", *arguments, text=text)
    assert (code, reason in line) == (EXIT_BAD_INPUT, True), line


def test_what_a_new_user_does(start: Start, traces: list[Path], mnt: Path) -> None:
    """A bundled recording, held before its end; a shell frees, and all three faces agree."""
    one = start(trace=next(path for path in traces if path.name == "redis.parquet"))
    one.wait_for("held")
    comm = one.read("1/comm").strip()
    before, could = one.vm_pte(1), int(one.read("1/reclaimable_pt_bytes"))
    scraped = one.scrape()
    assert could > 0
    assert scraped["pterefd_mm_pgtables_bytes", comm, "simulated", "1"] == before * 1024
    kinds = [scraped["pterefd_mm_reclaimable_pt_bytes", comm, "simulated", kind, "1"] for kind in ("empty", "zero")]
    assert sum(kinds) == could

    assert subprocess.run(["sh", "-c", "echo 1 > sys/vm/free_ptes"], cwd=mnt).returncode == 0

    assert before - one.vm_pte(1) == could // 1024
    assert one.read("1/reclaimable_pt_bytes") == "0\n"
    scraped = one.scrape()
    assert scraped["pterefd_mm_pgtables_bytes", comm, "simulated", "1"] == before * 1024 - could
    freed = [
        scraped["pterefd_reclaimed_pt_bytes_total", "simulated", kind, "largest_first", "on_demand"]
        for kind in ("empty", "zero")
    ]
    assert freed == kinds
    assert scraped["pterefd_reclaim_runs_total", "simulated", "done", "largest_first", "on_demand"] == 1
    code, log = one.end()
    acts = [line.split("]")[1].split()[0] for line in log.splitlines()]
    assert (code, acts) == (0, ["started", "reclaimed", "stopped"])


def test_what_it_says_to_try_can_be_tried(
    start: Start, script: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By pids that there are; and where `pterefd` is no command, how it becomes one."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    one = start(text="[[mm]]\nworkload = 'hungry'\nparameters = { size_mib = 4 }\npid_base = 40")
    one.wait_for("held")
    assert [line for line in one.hints if "/1/" in line] == []
    for line in one.hints[1:-1]:
        done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), line
    activate = one.hints[-2].split("#")[0]
    found = subprocess.run(["sh", "-c", f"{activate}; command -v pterefd"], capture_output=True, text=True)
    assert found.stdout == f"{script}\n"
    assert "nothing to run" not in one.err()


def test_a_configuration_that_runs_nothing_says_so(start: Start, tmp_path: Path) -> None:
    one = start(events=[])
    assert [line.split(" at ")[0] for line in one.hints if "mnt" in line] == ["mounted"]
    until(lambda: "nothing to run" in one.err())
    (line,) = [line for line in one.err().splitlines() if "nothing to run" in line]
    assert line.endswith(f"nothing to run: no [[mm]], no traces config={tmp_path / 'pterefd.toml'}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_leaves_nothing_behind(start: Start, mnt: Path, number: int) -> None:
    one = start()
    one.wait_for("held")
    assert one.end(number)[0] == 0
    assert os.listdir(mnt) == []
    assert not mountpoint.is_ours(str(mnt))
    port = int(one.metrics.split(":")[2].split("/")[0])
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))


def test_a_signal_that_is_told_twice_is_one(start: Start, mnt: Path) -> None:
    """timeout(1) tells a whole group, and make(1) in it tells its children again."""
    one = start()
    one.wait_for("held")
    one.process.send_signal(signal.SIGTERM)
    assert one.end()[0] == 0
    assert os.listdir(mnt) == []
    assert not mountpoint.is_ours(str(mnt))


def test_a_start_recovers_what_a_killed_daemon_left(start: Start, mnt: Path) -> None:
    one = start()
    one.process.kill()
    one.process.wait()
    two = start()
    two.wait_for("held")
    assert two.read("1/comm") == "redis-server\n"
    code, log = two.end()
    assert code == 0
    assert "recovered the mount" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_while_the_kernels_are_compiled(
    script: Path, tmp_path: Path, mnt: Path, number: int, unused_port: int
) -> None:
    """A first start, which takes minutes; it is not ready as long as they last."""
    trace, cache = write_trace(tmp_path / "trace.jsonl", HELD), tmp_path / "cache"
    metrics = f"127.0.0.1:{unused_port}"
    command = [str(script), "run", "--trace", str(trace), "--mount", str(mnt), "--metrics-address", metrics]
    process = subprocess.Popen(
        command, env={**os.environ, "PTEREFD_CACHE": str(cache)}, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: (mnt / "sys/pterefd/pid").exists() and any(cache.rglob("*.nbi")))
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://{metrics}/-/ready", timeout=10)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == 0
        assert time.monotonic() - began < 5
        assert process.stderr is not None
        said = process.stderr.read()
        assert said.splitlines()[-1].endswith("stopped")
        assert "Traceback" not in said
        assert not mountpoint.is_ours(str(mnt))
        assert os.listdir(mnt) == []
    finally:
        process.kill()
        process.communicate()


def test_it_stops_in_the_middle_of_a_replay(start: Start) -> None:
    one = start("--speed", "0.000001")
    assert one.state() == "running"
    began = time.monotonic()
    assert one.end()[0] == 0
    assert time.monotonic() - began < 5


def test_somebody_inside_does_not_keep_it_from_stopping(start: Start, mnt: Path) -> None:
    one = start()
    inside = os.open(mnt, os.O_RDONLY)
    try:
        code, log = one.end()
        assert code == 0
        assert "somebody was still inside" in log
    finally:
        os.close(inside)


def test_an_unmount_from_outside_ends_it(start: Start, mnt: Path) -> None:
    one = start()
    one.wait_for("held")
    mountpoint.unmount(str(mnt))
    assert one.process.wait(10) == EXIT_MISSING
    assert one.err().splitlines()[-1] == f"pterefd: {mnt}: unmounted from outside"


def test_writes_while_it_runs(start: Start, mnt: Path) -> None:
    one = start("--speed", "0.000001")
    (mnt / "sys/pterefd/replay/state").write_text("pause\n")
    assert one.state() == "paused"
    (mnt / "sys/pterefd/replay/speed").write_text("max\n")
    (mnt / "sys/pterefd/replay/state").write_text("resume\n")
    one.wait_for("held")
    assert one.read("sys/pterefd/replay/position") == f"{len(HELD) - 1}/{len(HELD)}\n"
    assert pids(mnt) == {1, 7}
    (mnt / "sys/pterefd/replay/state").write_text("resume\n")
    one.wait_for("ended")
    assert pids(mnt) == {7}


def test_several_traces_share_the_host(start: Start, tmp_path: Path, mnt: Path) -> None:
    second = write_trace(tmp_path / "second.jsonl", HELD)
    one = start("--trace", second)
    one.wait_for("held")
    while one.read("sys/pterefd/replay/1/state") != "held\n":
        time.sleep(0.01)
    # The second's pids begin above the highest pid or tid of the first.
    assert pids(mnt) == {1, 7, 8, 14}
    assert one.read("8/comm") == "redis-server\n"


def test_a_host_that_is_short_of_memory_kills_and_says_so(start: Start, mnt: Path) -> None:
    """pid 1 writes 6 MiB, the host has 4; pid 7, with 2 MiB, lives."""
    text = "daemon.log_format = 'json'\nhost.memory = '4MiB'\nhost.vm.overcommit_memory = 1"
    one = start(text=text, events=[*EVENTS, {"op": "exit", "pid": 1}])
    one.wait_for("held")
    assert pids(mnt) == {7}
    assert (mnt / "sys/vm/swappiness").read_text() == "60\n"
    scraped = one.scrape()
    assert scraped["pterefd_oom_kills_total", "", "simulated"] == 1
    assert scraped["pterefd_host_memory_bytes", "simulated", "total"] == 4 << 20
    lines = [json.loads(line) for line in one.end()[1].splitlines()]
    killed = next(line for line in lines if line["event"] == "oom-kill")
    assert (killed["pid"], killed["comm"], killed["group"]) == (1, "redis-server", "")
    assert killed["freed_bytes"] >= 3 << 20


def test_the_kill_of_the_page_about_memory(start: Start, root: Path) -> None:
    """docs/memory.md: its configuration gives the log line and the metric that it shows."""
    text = (root / "docs" / "memory.md").read_text()
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(\[warning .*?)```", text, re.DOTALL)
    one = start(text=settings)
    until(lambda: "oom-kill" in one.err())
    (logged,) = [line for line in one.err().splitlines() if "oom-kill" in line]
    *line, name, number = shown.split()
    assert logged.split()[1:] == line  # behind the time of day
    assert f"{name} {number}" in urllib.request.urlopen(one.metrics, timeout=10).read().decode()


CROWD = """
[host]
memory = "96MiB"
swap = "4MiB"

[[mm]]
workload = "hungry"
parameters = { size_mib = 64, rate_mib = 128, hold_s = 0.2, rest_s = 0.1 }
oom_score_adj = 300

[[mm]]
workload = "jemalloc"
parameters = { arenas = 2, peak_mib = 24, cycles = 2, busy_ms = 400, rest_ms = 200 }
copies = 3
seed = 7
"""


@pytest.mark.parametrize("speed", ["max", 1.0])
def test_the_same_are_killed_as_in_a_comparison_whatever_the_machine_does(
    start: Start, script: Path, tmp_path: Path, speed: str | float
) -> None:
    """Workloads that are made while they run, short of memory: as `compare` has it, which knows no clock."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(f"scenario.title = 'crowd'\n{CROWD}\n[compare]\ntriggers = ['none']\n")
    compared = subprocess.run([str(script), "compare", scenario, "--json"], capture_output=True, text=True, check=True)
    (run,) = json.loads(compared.stdout)["runs"]
    expected = [(killed["time_ns"], killed["pid"], killed["comm"]) for killed in run["killed"]]
    assert len(expected) >= 3
    one = start("--speed", str(speed), text=f"daemon.log_format = 'json'\nreplay.hold = false\n{CROWD}")
    replays = one.mount / "sys/pterefd/replay"
    until(lambda: all((replays / f"{n}/state").read_text() == "ended\n" for n in range(4)))
    lines = [json.loads(line) for line in one.err().splitlines()]
    assert [(line["time_ns"], line["pid"], line["comm"]) for line in lines if line["event"] == "oom-kill"] == expected


def test_the_log_says_who_wrote_what(start: Start, mnt: Path) -> None:
    one = start(text="daemon.log_format = 'json'")
    one.wait_for("held")
    for path, value in (
        ("sys/vm/free_ptes", "1"),
        ("sys/vm/pt_reclaim/policy", "largest_first"),
        ("sys/pterefd/replay/speed", "2"),
    ):
        (mnt / path).write_text(value)
    lines = [json.loads(line) for line in one.end()[1].splitlines()]
    assert [line["event"] for line in lines] == ["started", "reclaimed", "policy set", "replay speed set", "stopped"]
    for line in lines[1:4]:
        assert (line["by_uid"], line["by_pid"]) == (os.geteuid(), os.getpid())
    assert lines[1]["pid"] == 1
    assert lines[1]["empty_bytes"] + lines[1]["zero_bytes"] == 7 * 4096
    assert lines[1]["seconds"] >= 0


def test_reads_go_on_while_it_replays_and_writers_free(start: Start, mnt: Path) -> None:
    """Eight thousand events on whole spans at full speed, a writer and two readers: every answer is whole."""
    churn = [
        event
        for i in range(4000)
        for event in (fault(1, AT + i % 10 * SPAN, SPAN, write=i % 3 > 0), mmap(1, AT + i % 10 * SPAN, SPAN))
    ]
    one = start("--speed", "0.000001", events=[*EVENTS, *churn, {"op": "exit", "pid": 1}])
    while not (mnt / "1").exists():
        time.sleep(0.01)
    wrong: list[str] = []
    stopping = threading.Event()

    def write() -> None:
        while not stopping.is_set():
            (mnt / "sys/vm/free_ptes").write_text("0")

    def read() -> None:
        while not stopping.is_set():
            text = one.read("1/status")
            if not text.startswith("Name:\tredis-server\n") or not text.endswith("nonvoluntary_ctxt_switches:\t0\n"):
                wrong.append(text)

    threads = [threading.Thread(target=write), threading.Thread(target=read), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    (mnt / "sys/pterefd/replay/speed").write_text("max")
    one.wait_for("held")
    stopping.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert one.end()[0] == 0


# -- plugins -----------------------------------------------------------------------------------------


def of_the_page(language: str, number: int = 0) -> str:
    """A block of code of docs/plugins.md in a language, by its number."""
    text = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_policy_of_ones_own_as_the_page_says(start: Start, mnt: Path, tmp_path: Path, root: Path) -> None:
    """docs/plugins.md, step by step: its directories, its configuration, its file, its commands.

    The trace is another one, of which every page that can be freed is known.
    """
    assert subprocess.run(["sh", "-ec", of_the_page("sh")], cwd=tmp_path).returncode == 0
    assert of_the_page("sh", 1) == "pterefd run -c mine.toml\n"
    assert [(root / name).exists() for name in tomllib.loads(of_the_page("toml"))["replay"]["traces"]] == [True]
    one = start("--speed", "max", "--metrics-address", "127.0.0.1:0", whole=of_the_page("toml"))
    one.wait_for("held")
    reclaim = mnt / "sys/vm/pt_reclaim"
    assert "patient" not in (reclaim / "available_policies").read_text()
    path = tmp_path / "my-plugins" / "patient.py"
    path.write_text(of_the_page("python"))
    until(lambda: "patient" in (reclaim / "available_policies").read_text().split())
    commands = [line for line in of_the_page("sh", 2).splitlines() if line.startswith(("cat", "echo"))]
    assert len(commands) == 3
    for line in commands[:2]:
        assert subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True).returncode == 0
    assert (reclaim / "policy").read_text() == "patient\n"
    # 16 pages, all that there are: 64K
    assert subprocess.run(["sh", "-c", commands[2]], cwd=tmp_path).returncode == 0
    again = subprocess.run(["sh", "-c", commands[2]], cwd=tmp_path, capture_output=True)
    assert again.returncode != 0  # nothing is left: EAGAIN
    freed = {key[2]: value for key, value in one.scrape().items() if key[0] == "pterefd_reclaimed_pt_bytes_total"}
    assert freed == {"empty": 14 * 4096, "zero": 2 * 4096}
    path.write_text("1/0\n")
    until(lambda: "plugin refused" in one.err())
    time.sleep(1)
    log = one.end()[1]
    acts = [line.split("]")[1].strip() for line in log.splitlines()]
    assert [act.split("  ")[0] for act in acts] == [
        *("started", "plugins reloaded", "policy set", "reclaimed", "reclaimed", "plugin refused", "stopped")
    ]
    assert "policy=patient" in acts[3]
    assert f"{path}: cannot be imported: ZeroDivisionError: division by zero" in acts[5]


def test_a_write_takes_up_what_is_new_and_takes_back_what_was_put_aside(
    start: Start, mnt: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    plugin(folder, "bad", policy("while True: pass"))
    options = "directories = ['p']\npolicy = 'mine'\ndeadline = '100ms'\nfailures = 1"
    trigger = "[plugins.trigger.interval]\nperiod_ms = 50\npolicy = 'none'"
    one = start(text=f"[plugins]\n{options}\n{trigger}")
    one.wait_for("held")
    reclaim = mnt / "sys/vm/pt_reclaim"
    assert (reclaim / "trigger/interval/policy").read_text() == "none\n"
    assert (reclaim / "trigger/interval/period_ms").read_text() == "50\n"
    (mnt / "sys/vm/free_ptes").write_text("7")
    assert one.read("7/reclaimable_pt_bytes") == "0\n"
    assert (reclaim / "put_aside").read_text() == "policy mine\n"
    scraped = one.scrape()
    assert scraped["pterefd_plugin_put_aside", "simulated", "policy", "mine"] == 1
    assert scraped["pterefd_plugin_errors_total", "simulated", "mine"] == 1
    (reclaim / "put_aside").write_text("mine")
    assert (reclaim / "put_aside").read_text() == ""
    plugin(folder, "bad", policy("yield Choice(1, bytes=4096)"))
    plugin(folder, "worse", "1/0")
    with pytest.raises(OSError, match="Invalid argument"):
        (reclaim / "reload").write_text("1")
    with pytest.raises(OSError, match="Invalid argument"):  # as long as it lies there
        (reclaim / "reload").write_text("1")
    (folder / "worse.py").unlink()
    (reclaim / "reload").write_text("1")
    (mnt / "sys/vm/free_ptes").write_text("1")
    assert one.read("1/reclaimable_pt_bytes") == f"{6 * 4096}\n"
    assert one.end()[0] == 0


# -- what keeps it from starting ---------------------------------------------------------------------


def test_a_missing_trace(script: Path, tmp_path: Path, mnt: Path) -> None:
    code, line = refused(script, tmp_path, "--mount", mnt, "--trace", "none.parquet")
    assert (code, line) == (EXIT_BAD_INPUT, f"pterefd: {tmp_path}/none.parquet: no such file")


def test_a_truncated_trace(script: Path, tmp_path: Path, mnt: Path, traces: list[Path]) -> None:
    (tmp_path / "cut.parquet").write_bytes(traces[0].read_bytes()[:-100])
    code, line = refused(script, tmp_path, "--mount", mnt, "--trace", "cut.parquet")
    assert code == EXIT_BAD_INPUT
    assert f"{tmp_path}/cut.parquet: " in line


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "mount point does not exist (mkdir it first)"),
        (lambda path: path.write_text(""), "mount point is not a directory"),
        (lambda path: (path.mkdir(), (path / "x").write_text("")), "mount point is not empty"),
    ],
)
def test_a_bad_mount_point(script: Path, tmp_path: Path, make: Callable[[Path], Any], reason: str) -> None:
    point = tmp_path / "point"
    make(point)
    code, line = refused(script, tmp_path, "--mount", "point")
    assert (code, line) == (EXIT_BAD_INPUT, f"pterefd: {point}: {reason}")


def test_a_port_in_use(script: Path, tmp_path: Path, mnt: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = refused(script, tmp_path, "--mount", mnt, "--metrics-address", address)
    other = "--metrics-address names another, or off"
    assert (code, line) == (EXIT_MISSING, f"pterefd: metrics: {address}: Address already in use ({other})")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("host.profile = 'v2.4'", "profile 'v2.4': not one of"),
        ("plugins.policy = 'nobody'", "no policy 'nobody'"),
        ("plugins.triggers = ['nobody']", "no trigger 'nobody'"),
        ("plugins.policies.nobody.x = 1", "tunables for a policy 'nobody'"),
        ("plugins.trigger.nobody.x = 1", "tunables for a trigger 'nobody'"),
        ("plugins.trigger.pre_oom.policy = 'nobody'", "no policy 'nobody'"),
        ("plugins.deadline = '0s'", "plugins.deadline: should be a duration from 1ms to a day"),
        ("plugins.directories = ['nowhere']", "nowhere: no such plugin directory"),
        ("host.swap = '1GiB'", "host.swap: swap needs host.memory"),
        ("host.memory = 4096", "host.memory: 4096 is less than 1MiB, the least"),
        ("host.memory = '1 GiBi'", "host.memory: '1 GiBi': unknown unit"),
        ("[[group]]\nname = 'web'", "group: groups need host.memory"),
        ("[[mm]]\nworkload = 'hungry'\ngroup = 'web'", "mm.0.group: no [[group]] is named 'web'; there are: none"),
        ("daemon.mount = 1", "refused.toml: daemon.mount: should be a path, not 1"),
    ],
)
def test_a_bad_configuration(script: Path, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "mnt").mkdir()
    code, line = refused(script, tmp_path, text=text)
    assert code == EXIT_BAD_INPUT
    assert reason in line


def test_a_mount_point_where_another_daemon_lives(start: Start, script: Path, tmp_path: Path, mnt: Path) -> None:
    one = start()
    done = subprocess.run(
        [str(script), "run", "--mount", str(mnt), "--metrics-address", "off"], capture_output=True, text=True
    )
    assert done.returncode == EXIT_MISSING
    assert done.stderr == f"pterefd: {mnt}: another pterefd (pid {one.process.pid}) is mounted there\n"
    assert one.read("sys/pterefd/pid") == f"{one.process.pid}\n"


def test_a_trace_that_turns_out_to_be_bad_ends_it(script: Path, tmp_path: Path, mnt: Path) -> None:
    path = write_trace(tmp_path / "bad.jsonl", [*EVENTS, {"op": "munmap", "pid": 99, "addr": 4096, "len": 4096}])
    settings = tmp_path / "bad.toml"
    settings.write_text(
        f"daemon.mount = 'mnt'\nmetrics.address = 'off'\nreplay = {{ traces = ['{path}'], speed = 'max' }}"
    )
    done = subprocess.run(
        [str(script), "run", "-c", settings], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_BAD_INPUT
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"pterefd: {path}:{len(EVENTS) + 2}: ")
    assert os.listdir(mnt) == []


# -- in this process ---------------------------------------------------------------------------------


def settings_of(tmp_path: Path, mnt: Path) -> config.Config:
    return config.load(
        mount=mnt, traces=[write_trace(tmp_path / "trace.jsonl", HELD)], metrics_address="off", speed="max"
    )


def works_of(one: daemon.Daemon) -> simulation.Simulation:
    assert isinstance(one.works, simulation.Simulation)
    return one.works


def test_run_until_an_event(tmp_path: Path, mnt: Path) -> None:
    out, err, stop = StringIO(), StringIO(), threading.Event()
    seen: list[daemon.Daemon] = []

    def started(one: daemon.Daemon) -> None:
        seen.append(one)
        assert "sys" in os.listdir(mnt)
        stop.set()

    assert daemon.run(settings_of(tmp_path, mnt), stop_event=stop, out=out, err=err, started=started) == 0
    assert os.listdir(mnt) == []
    assert "echo 1 > " in out.getvalue()
    assert "metrics: " not in out.getvalue()
    assert seen[0].status().replay is not None


def test_memory_of_the_command_line_is_the_hosts(start: Start) -> None:
    """Without it there are no accounts of memory, and no knobs that need them."""
    one = start("--memory", "1GiB", "--swap", "64MiB")
    assert one.read("meminfo").startswith(f"MemTotal:       {1 << 20:8d} kB\n")
    assert re.search(r"^SwapTotal: +65536 kB$", one.read("meminfo"), re.MULTILINE)
    assert one.read("sys/vm/swappiness") == "60\n"


def test_it_says_that_kernels_are_compiled(tmp_path: Path, mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes minutes, once; a start that finds them says nothing."""
    settings, errs, stop = settings_of(tmp_path, mnt), (StringIO(), StringIO()), threading.Event()
    warm()
    for err in errs:
        stop.clear()
        assert daemon.run(settings, stop_event=stop, out=StringIO(), err=err, started=lambda _: stop.set()) == 0
        monkeypatch.setattr(simulation, "warm", lambda compiling: compiling())
    assert [err.getvalue().count("compiling the kernels, once: two to three minutes") for err in errs] == [0, 1]


def test_what_a_replay_raises_ends_the_daemon(tmp_path: Path, mnt: Path) -> None:
    def started(one: daemon.Daemon) -> None:
        works_of(one).failure = BadInput("trace: broken")

    with pytest.raises(BadInput, match="trace: broken"):
        daemon.run(settings_of(tmp_path, mnt), out=StringIO(), err=StringIO(), started=started)
    assert os.listdir(mnt) == []


def test_a_replay_that_nobody_runs_any_more_ends_the_daemon(tmp_path: Path, mnt: Path) -> None:
    """Its thread is gone, and raised nothing."""

    def started(one: daemon.Daemon) -> None:
        assert one.replays[0].state != "ended"
        works_of(one).conductor.stop()

    with pytest.raises(RuntimeError, match=r"replay's thread is gone, replays \[0\] are not at their end"):
        daemon.run(settings_of(tmp_path, mnt), out=StringIO(), err=StringIO(), started=started)
    assert os.listdir(mnt) == []


def test_a_terminal_has_a_live_line(script: Path, tmp_path: Path, mnt: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", HELD)
    master, slave = pty.openpty()
    arguments = ["run", "--trace", str(trace), "--mount", str(mnt), "--metrics-address", "off", "--speed", "max"]
    process = subprocess.Popen([str(script), *arguments], stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    screen = ""
    try:
        deadline = time.monotonic() + 60
        while "held, event" not in screen and time.monotonic() < deadline:
            screen += os.read(master, 4096).decode()
        assert "2 mms | VmPTE" in screen
        assert "reclaimable 64 kB" in screen
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
