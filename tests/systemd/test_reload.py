"""SIGHUP: what a changed configuration sets while the daemon runs, what it cannot, and what is refused."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pterefd import config
from pterefd.procfs import mountpoint
from pterefd.reload import RESTART, TAKEN, keys
from tests.house import write_trace
from tests.reclaim.built import plugin, policy
from tests.systemd.manager import HELD, Manager, starting

pytestmark = pytest.mark.mount

Start = Callable[..., Manager]
RECLAIM = "sys/vm/pt_reclaim/"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as (start, managers):
        yield start
        assert [one.stop() for one in managers] == [0] * len(managers)


def events(lines: list[str]) -> list[tuple[str, dict[str, object]]]:
    """Lines of a JSON log as (event, fields)."""
    found = [json.loads(line) for line in lines]
    return [(line.pop("event"), line) for line in found]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


JSON = "daemon.log_format = 'json'\n"


def test_every_key_is_taken_up_or_needs_a_restart() -> None:
    assert TAKEN.keys() & RESTART.keys() == set()
    assert TAKEN.keys() | RESTART.keys() == keys(config.load()).keys()


def test_what_can_change_does(start: Start, tmp_path: Path) -> None:
    """All of it at once, and each seen where it shows."""
    first, second = free_port(), free_port()
    memory = "host.memory = '1GiB'\n"
    one = start(JSON + memory + f"metrics.address = '127.0.0.1:{first}'\nmetrics.max_mms = 100")
    one.until(lambda: one.read("sys/pterefd/replay/state") == "held\n")
    assert 'pid="7"' in scrape(first)
    plugin(tmp_path / "p", "mine", policy("yield Choice(7)"))
    text = f"""
        host.vm = {{ swappiness = 10, max_map_count = 1000 }}
        metrics.address = '127.0.0.1:{second}'
        metrics.max_mms = 0
        replay.speed = 2.5
        daemon.log_level = 'warning'
        [plugins]
        directories = ['p']
        policy = 'mine'
        triggers = ['on_demand', 'interval']
        deadline = '2s'
        failures = 5
        reload = true
        [plugins.policies.round_robin]
        turn_bytes = 8192
        [plugins.trigger.interval]
        period_ms = 1234
        policy = 'smallest_first'
    """
    lines = one.reload(JSON + memory + text)
    assert scrape(second).count('pid="') == scrape(second).count('pid="other"') > 0
    with pytest.raises(urllib.error.URLError):
        scrape(first)
    assert one.read("sys/vm/swappiness") == "10\n"
    assert one.read("sys/vm/max_map_count") == "1000\n"
    assert one.read("sys/pterefd/replay/0/speed") == "2.5\n"
    assert one.read(RECLAIM + "policy") == "mine\n"
    assert one.read(RECLAIM + "triggers") == "on_demand interval\n"
    assert one.read(RECLAIM + "policies/round_robin/turn_bytes") == "8192\n"
    assert one.read(RECLAIM + "trigger/interval/period_ms") == "1234\n"
    assert one.read(RECLAIM + "trigger/interval/policy") == "smallest_first\n"
    assert events(lines) == []  # the new level is above what there is to say
    lines = one.reload(JSON + memory)
    done = next(fields for event, fields in events(lines) if event == "configuration reloaded")
    simulated = {key for key in TAKEN if not key.startswith("live.")}  # tests/test_daemon_live.py has the others
    assert set(done["keys"]) == simulated - {"daemon.log_format"}
    assert one.read("sys/vm/swappiness") == "60\n"
    assert one.read(RECLAIM + "policies/round_robin/turn_bytes") != "8192\n"
    assert one.read(RECLAIM + "trigger/interval/policy") == "default\n"
    with pytest.raises(urllib.error.URLError):
        scrape(second)


def test_what_was_written_stays_where_the_file_says_what_it_said(start: Start) -> None:
    text = JSON + "host.memory = '1GiB'\n"
    one = start(text)
    (one.mount / RECLAIM / "policy").write_text("none")
    (one.mount / "sys/vm/swappiness").write_text("33")
    lines = one.reload(text + "plugins.failures = 7\nhost.vm.max_map_count = 1000")
    ((event, fields),) = events(lines)
    assert (event, fields["keys"]) == ("configuration reloaded", ["host.vm", "plugins.failures"])
    assert one.read("sys/vm/max_map_count") == "1000\n"
    assert one.read("sys/vm/swappiness") == "33\n"
    assert one.read(RECLAIM + "policy") == "none\n"


def test_what_cannot_change_is_named_each_in_a_line_until_it_is_undone(start: Start, tmp_path: Path) -> None:
    one = start(JSON)
    (tmp_path / "other").mkdir()
    text = """
        daemon.allow_other = true
        daemon.mount_helper = '/run/x'
        host = { profile = 'v6.18', memory = '2GiB', swap = '1GiB', seed = 4 }
        group = [{ name = 'web' }]
        replay.traces = ['trace.jsonl', 'trace.jsonl']
    """
    wanted = {"daemon.allow_other", "daemon.mount_helper", "group", "replay.traces"}
    wanted |= {f"host.{key}" for key in ("profile", "memory", "swap", "seed")}
    for _ in range(2):
        done, *waiting = events(one.reload(JSON + text))
        assert (done[0], done[1]["keys"]) == ("configuration reloaded", [])
        assert {event for event, _ in waiting} == {"not taken up until a restart"}
        assert {fields["key"] for _, fields in waiting} == wanted
        assert all(fields["reason"] == RESTART[str(fields["key"])] for _, fields in waiting)
    assert len(events(one.reload(JSON))) == 1
    assert one.read("sys/pterefd/profile") == "rfc-2022\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("daemon.log_level = 'loud'", "pterefd.toml: daemon.log_level: "),
        ("host.no_such_key = 1", "pterefd.toml: host.no_such_key: no such key"),
        ("[[[", ": not TOML: "),
        ("plugins.policy = 'nobody'", "pterefd.toml: plugins: no policy 'nobody'"),
        ("plugins.triggers = ['nobody']", "pterefd.toml: plugins: no trigger 'nobody'"),
        ("plugins.policies.round_robin.turn_bytes = 'x'", "plugin round_robin: turn_bytes: "),
        ("plugins.directories = ['nowhere']", "pterefd.toml: plugins.directories: "),
        ("plugins.directories = ['bad']", "bad.py: cannot be imported: ZeroDivisionError"),
        ("host.profile = 'v2.4'", "pterefd.toml: host.profile: profile 'v2.4': not one of"),
        ("host.swap = '1GiB'", "pterefd.toml: host: host.swap: swap needs host.memory"),
        ("replay.traces = ['none.parquet']", "none.parquet: no such file"),
        ("[[mm]]\nworkload = 'nobody'", "pterefd.toml: mm.0.workload: there is no workload 'nobody'"),
    ],
)
def test_a_bad_configuration_is_one_line_and_changes_nothing(
    start: Start, tmp_path: Path, text: str, reason: str
) -> None:
    plugin(tmp_path / "bad", "bad", "1/0")
    one = start(JSON)
    ((event, fields),) = events(one.reload(JSON + "metrics.max_mms = 7\nreplay.speed = 9\n" + text))
    assert event == "configuration refused, the old one stays"
    assert reason in str(fields["error"])
    assert one.read("sys/pterefd/replay/speed") == "max\n"
    assert one.read(RECLAIM + "policy") == "largest_first\n"


def test_a_port_in_use_is_refused_and_the_old_one_goes_on(start: Start) -> None:
    port = free_port()
    one = start(JSON + f"metrics.address = '127.0.0.1:{port}'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ((event, fields),) = events(one.reload(JSON + f"metrics.address = '{address}'\nreplay.speed = 9"))
    assert (event, fields["error"]) == (
        "configuration refused, the old one stays",
        f"metrics: {address}: Address already in use ([metrics] address names another, or off)",
    )
    assert "pterefd_build_info" in scrape(port)
    assert one.read("sys/pterefd/replay/speed") == "max\n"


def test_a_reload_takes_changed_plugin_files_too(start: Start, tmp_path: Path) -> None:
    plugin(tmp_path / "p", "mine", policy("yield Choice(7)"))
    text = JSON + "plugins.directories = ['p']\n"
    one = start(text)
    plugin(tmp_path / "p", "further", policy("yield Choice(7)", name="further"))
    one.reload(text)
    assert "further" in one.read(RECLAIM + "available_policies").split()


BOTH = """
class Foo(Policy):
    name = "foo"

class Bar(Policy):
    name = "bar"

@hookimpl
def pterefd_register_policies(register):
    register(Foo)
    register(Bar)
"""


def test_new_plugins_that_do_not_go_with_those_that_stay_change_nothing(start: Start, tmp_path: Path) -> None:
    """By itself the new configuration would do; `foo` is in until a restart."""
    plugin(tmp_path / "pa", "foo", policy("yield Choice(7)", name="foo"))
    plugin(tmp_path / "pb", "both", BOTH)
    plugin(tmp_path / "pb", "other", policy("yield Choice(7)", name="other"))
    plugin(tmp_path / "pc", "baz", policy("yield Choice(7)", name="baz"))
    ports = free_port(), free_port()
    first, second = (f"metrics.address = '127.0.0.1:{port}'\n" for port in ports)
    one = start(JSON + first + "plugins.directories = ['pa']")
    available = one.read(RECLAIM + "available_policies")
    bad = JSON + second + "plugins.directories = ['pb']\nplugins.policy = 'bar'\nreplay.speed = 9"
    for _ in range(2):
        ((event, fields),) = events(one.reload(bad))
        assert event == "configuration refused, the old one stays"
        assert str(fields["error"]).endswith(
            f"pterefd.toml: plugins: {tmp_path}/pb/both.py: policy 'foo' is registered by {tmp_path}/pa/foo.py already"
        )
        assert "pterefd_build_info" in scrape(ports[0])
        with pytest.raises(urllib.error.URLError):
            scrape(ports[1])
        assert one.read(RECLAIM + "available_policies") == available
        assert one.read(RECLAIM + "policy") == "largest_first\n"
        assert one.read("sys/pterefd/replay/speed") == "max\n"
    good = JSON + second + "plugins.directories = ['pc']\nplugins.policy = 'baz'"
    assert ("configuration reloaded", "plugins.policy") in {
        (event, key)
        for event, fields in events(one.reload(good))
        for key in fields.get("keys", [])  # type: ignore[attr-defined]
    }
    assert "pterefd_build_info" in scrape(ports[1])
    assert one.read(RECLAIM + "policy") == "baz\n"
    assert "foo" in one.read(RECLAIM + "available_policies").split()


def test_new_plugins_are_not_in_where_the_machine_refuses(start: Start, tmp_path: Path) -> None:
    plugin(tmp_path / "p", "mine", policy("yield Choice(7)"))
    one = start(JSON)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ((event, _),) = events(one.reload(JSON + f"metrics.address = '{address}'\nplugins.directories = ['p']"))
    assert event == "configuration refused, the old one stays"
    assert "mine" not in one.read(RECLAIM + "available_policies").split()
    one.reload(JSON + "plugins.directories = ['p']")
    assert "mine" in one.read(RECLAIM + "available_policies").split()


def test_tunables_that_do_not_go_with_what_was_written_change_nothing(start: Start, tmp_path: Path) -> None:
    """The file alone is well: two tunables are held against each other, and one was written to the mount."""
    more = """
        def both(self):
            assert self.low <= self.high
            return self
    """
    head = "from pydantic import model_validator\n"
    tunables = "class Tunables(Tunables):\n        low: int = 1\n        high: int = 9\n"
    body = policy("yield Choice(7)", more=f"{tunables}\n        @model_validator(mode='after'){more}")
    plugin(tmp_path / "p", "mine", head + body)
    text = JSON + "plugins.directories = ['p']\n"
    one = start(text)
    (one.mount / RECLAIM / "policies/mine/high").write_text("3")
    ((event, fields),) = events(one.reload(text + "replay.speed = 9\nplugins.policies.mine.low = 5"))
    assert event == "configuration refused, the old one stays"
    assert "plugin mine: " in str(fields["error"])
    assert one.read("sys/pterefd/replay/speed") == "max\n"
    one.reload(text + "replay.speed = 9\nplugins.policies.mine.low = 2")
    assert one.read(RECLAIM + "policies/mine/low") == "2\n"


def test_the_manager_hears_of_it(start: Start) -> None:
    one = start()
    one.reload("replay.speed = 3")
    at = one.heard.index("RELOADING=1")
    assert one.heard[at + 1].startswith("MONOTONIC_USEC=")
    assert one.heard[at + 2] == "READY=1"


# -- where there is no manager ----------------------------------------------------------------------


def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "mnt").mkdir()
    trace = write_trace(tmp_path / "trace.jsonl", HELD)
    options = ["--trace", trace, "--mount", tmp_path / "mnt", "--metrics-address", "off", "--speed", "max"]
    return [sys.executable, "-m", "pterefd", "run", *map(str, options)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 280
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_terminal_it_is_a_reload(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(arguments(tmp_path), stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: "started" in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in (tmp_path / "log").read_text())
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("ignored", [False, True], ids=["plain", "nohup"])
def test_a_terminal_that_is_hung_up_ends_it_but_under_nohup(tmp_path: Path, ignored: bool) -> None:
    """The kernel sends SIGHUP itself, when the terminal goes."""
    command = [*(["nohup"] if ignored else []), *arguments(tmp_path)]
    log = tmp_path / "log"
    pid, master = pty.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)
    try:
        until(lambda: log.exists() and "started" in log.read_text())
        os.close(master)
        if ignored:
            time.sleep(1)
            assert mountpoint.is_ours(str(tmp_path / "mnt"))
            os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert not mountpoint.is_ours(str(tmp_path / "mnt"))
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
