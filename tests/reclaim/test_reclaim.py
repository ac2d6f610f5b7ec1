"""Plugins are strict at start and guarded while running; every act is counted and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pterefd.errors import BadInput, NoSuchMm
from pterefd.hookspecs import Cause, Moment, ReclaimResult
from tests.build import host
from tests.reclaim.built import HEAD, POLICIES, make, plugin, policy, wasteful


def test_a_write_frees_one_mm_or_all() -> None:
    machine = wasteful()
    reclaimer, log = make(machine)
    seen: list[ReclaimResult] = []
    reclaimer.on_result(seen.append)
    one = reclaimer.free_ptes(1)
    assert one is not None
    assert (one.empty_bytes, one.zero_bytes, one.freed, one.outcome) == (8192, 0, ((1, 8192),), "done")
    every = reclaimer.free_ptes(None)
    assert every is not None
    assert every.freed == ((2, 5 * 4096), (3, 4096))
    nothing = reclaimer.free_ptes(1)
    assert nothing is not None
    assert nothing.outcome == "nothing"
    assert seen == [one, every, nothing]
    assert reclaimer.totals["on_demand", "largest_first", "empty"] == 8 * 4096
    assert reclaimer.runs == {("on_demand", "largest_first", "done"): 2, ("on_demand", "largest_first", "nothing"): 1}
    assert [line[0] for line in log.lines] == ["reclaimed"] * 3
    assert [line[1].get("pid", "left out") for line in log.lines] == [1, "left out", 1]
    with pytest.raises(NoSuchMm):
        reclaimer.free_ptes(77)


def test_a_policy_of_ones_own_decides(tmp_path: Path) -> None:
    plugin(tmp_path, "smallest", policy("yield from (Choice(p, bytes=4096) for p in (3, 2))"))
    reclaimer, _ = make(wasteful(), tmp_path)
    assert reclaimer.available_policies() == sorted([*POLICIES, "mine"])
    reclaimer.set_policy("mine")
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert (result.policy, result.freed) == ("mine", ((3, 4096), (2, 4096)))


@pytest.mark.parametrize(
    "choose",
    ["raise ValueError('no')", "yield 7", "return 5", "yield Choice(99)"],
)
def test_a_policy_that_fails_is_counted_and_the_default_carries_on(tmp_path: Path, choose: str) -> None:
    plugin(tmp_path, "bad", policy(choose))
    reclaimer, log = make(wasteful(), tmp_path, policy="mine")
    result = reclaimer.free_ptes(2)
    assert result is not None
    assert (result.policy, result.bytes) == ("largest_first", 5 * 4096)
    assert reclaimer.plugin_errors == {"mine": 1}
    assert log.lines[0][0] == "plugin failed"
    assert log.lines[0][1]["plugin"] == "mine"


def test_a_failing_trigger_and_a_failing_observer_change_nothing(tmp_path: Path) -> None:
    body = """
class Never(Trigger):
    name = "never"
    def request(self, view, moment):
        return "now"

@hookimpl
def pterefd_register_triggers(register):
    register(Never)

@hookimpl
def pterefd_reclaimed(result):
    raise RuntimeError(result.policy)
"""
    plugin(tmp_path, "odd", body)
    reclaimer, _ = make(wasteful(), tmp_path, triggers=("never", "on_demand"))
    result = reclaimer.free_ptes(2)
    assert result is not None
    assert result.bytes == 5 * 4096
    assert reclaimer.plugin_errors == {"never": 1, "odd": 1}
    assert reclaimer.moment(Moment(Cause.TICK, 0)) is None


def test_tunables_come_from_the_configuration(tmp_path: Path) -> None:
    body = """
from pydantic import Field
class Mine(Policy):
    name = "mine"
    class Tunables(Tunables):
        most: int = Field(3, ge=1, le=9)
    def choose(self, view, request):
        yield Choice(2, bytes=self.tunables.most * 4096)

@hookimpl
def pterefd_register_policies(register):
    register(Mine)
"""
    plugin(tmp_path, "tuned", body)
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine", policy_tunables={"mine": {"most": 4}})
    result = reclaimer.free_ptes(2)
    assert result is not None
    assert result.bytes == 4 * 4096
    assert set(reclaimer.policy_tunables()) - POLICIES == {"mine"}
    for values, reason in (({"most": 10}, "most: should be at most 9"), ({"least": 1}, "least: no such tunable")):
        with pytest.raises(BadInput, match=reason):
            make(wasteful(), tmp_path, policy_tunables={"mine": values})
    with pytest.raises(BadInput, match="'other' that no plugin registers"):
        make(wasteful(), tmp_path, policy_tunables={"other": {}})


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        ("", "x = 1\n", "PTEREFD_API is missing, this pterefd has 1"),
        ("", "PTEREFD_API = 2\n", "PTEREFD_API is 2"),
        (HEAD, "1/0\n", "cannot be imported: ZeroDivisionError"),
        (HEAD, "def (:\n", "cannot be imported: SyntaxError"),
        (HEAD, "@hookimpl\ndef pterefd_registre_policies(register):\n    pass\n", "unknown hook"),
        (HEAD, "@hookimpl\ndef pterefd_reclaimed(result, more):\n    pass\n", "more"),
        (HEAD, policy("pass", "largest_first"), "'largest_first' is registered by"),
        (HEAD, policy("pass", "Mine"), "name 'Mine' is not of the form"),
        (HEAD, "@hookimpl\ndef pterefd_register_policies(register):\n    register(int)\n", "no subclass of Policy"),
        (HEAD, "@hookimpl\ndef pterefd_register_policies(register):\n    1/0\n", "raised ZeroDivisionError"),
    ],
)
def test_a_plugin_that_does_not_fit_stops_the_start(tmp_path: Path, head: str, body: str, reason: str) -> None:
    path = plugin(tmp_path, "bad", body, head)
    with pytest.raises(BadInput, match=reason) as raised:
        make(host(), tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no policy 'best'; there are: empty_only, idle_first"):
        make(host(), policy="best")
    with pytest.raises(BadInput, match="no trigger 'x'; there are: interval, on_demand"):
        make(host(), triggers=("x",))
    with pytest.raises(BadInput, match="no such plugin directory"):
        make(host(), tmp_path / "none")
