"""Plugins that hang, go on for ever, end the process, fail again and again, or reach for what is not theirs."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from pterefd.errors import BadInput
from tests.reclaim.built import make, plugin, policy, trigger, wasteful

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(30)"


@pytest.mark.parametrize(
    "choose",
    [
        SPIN,
        SLEEP,
        f"yield Choice(2, bytes=4096)\n        {SPIN}",
        f"try: {SLEEP}\n        finally: yield Choice(1)",
        # every step is quick, all together are not
        "import time\n        for _ in range(1000): time.sleep(0.01); yield Choice(3, bytes=0)",
    ],
)
def test_a_policy_that_takes_too_long_is_left_behind(tmp_path: Path, choose: str) -> None:
    plugin(tmp_path, "slow", policy(choose))
    reclaimer, log = make(wasteful(), tmp_path, policy="mine", deadline=0.2)
    began = time.monotonic()
    result = reclaimer.free_ptes(None)
    assert time.monotonic() - began < 60
    assert result is not None
    assert (result.policy, result.bytes) == ("largest_first", 8 * 4096)
    assert reclaimer.plugin_errors == {"mine": 1}
    assert log.lines[0][1]["error"] == "TookTooLong: took longer than 0.2 s"


def test_a_loop_that_was_left_behind_ends() -> None:
    """The thread of a policy that loops in Python is stopped: it would take the processor from all others."""
    deadline = time.monotonic() + 10
    while True:
        inside = [frame for frame in sys._current_frames().values() if "slow.py" in frame.f_code.co_filename]
        spinning = [frame for frame in inside if frame.f_code.co_name == "choose" and "while True" in _line(frame)]
        if not spinning:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _line(frame: object) -> str:
    import linecache

    return linecache.getline(frame.f_code.co_filename, frame.f_lineno)  # type: ignore[attr-defined]


def test_triggers_and_observers_that_hang(tmp_path: Path) -> None:
    body = trigger(SPIN) + f"\n@hookimpl\ndef pterefd_reclaimed(result):\n    {SLEEP}\n"
    plugin(tmp_path, "slow", body)
    reclaimer, _ = make(wasteful(), tmp_path, triggers=("mine", "on_demand"), deadline=0.1)
    result = reclaimer.free_ptes(1)
    assert result is not None
    assert (result.trigger, result.bytes) == ("on_demand", 2 * 4096)
    assert reclaimer.plugin_errors == {"mine": 1, "slow": 1}


@pytest.mark.parametrize(
    ("choose", "error"),
    [
        ("while True: yield Choice(1, bytes=0)", "ValueError: made 71 choices in a row that freed nothing"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('out')", "BaseException: out"),
        ("yield Choice(True)", "TypeError: pid is True"),
        ("yield Choice('1')", "TypeError: pid is '1'"),
        ("yield Choice(1, bytes=-1)", "ValueError: chose -1 bytes"),
        ("yield Choice(1, kinds=3)", "TypeError: chose kinds 3"),
        ("view.pid[0] = 9; yield Choice(1)", "ValueError: assignment destination is read-only"),
        ("view.pid.flags.writeable = True", "ValueError: cannot set WRITEABLE flag"),
        ("view.last_fault_ns.sort()", "ValueError: .*read-only"),
        ("view.time_ns = 0", "AttributeError: "),
        ("view.host.free = 0", "AttributeError: "),
        ("view.anything = 0", "AttributeError: "),
        ("object.__setattr__(request, 'pid', None); view.fault_rate[:] = 0", "ValueError: .*read-only"),
    ],
)
def test_nonsense_is_a_failure_and_harms_nobody(tmp_path: Path, choose: str, error: str) -> None:
    plugin(tmp_path, "bad", policy(choose))
    reclaimer, log = make(wasteful(), tmp_path, policy="mine")
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert (result.policy, result.bytes) == ("largest_first", 8 * 4096)
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(log.lines[0][1]["error"])


@pytest.mark.parametrize(
    "request_",
    ["return ReclaimRequest(bytes_wanted=0)", "return ReclaimRequest(pid=77)", "return ReclaimRequest(kinds=Kinds(0))"],
)
def test_a_request_that_nobody_can_serve(tmp_path: Path, request_: str) -> None:
    plugin(tmp_path, "bad", trigger(request_))
    reclaimer, _ = make(wasteful(), tmp_path, triggers=("mine", "on_demand"))
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert (result.trigger, reclaimer.plugin_errors) == ("on_demand", {"mine": 1})


def test_who_fails_again_and_again_is_put_aside_until_taken_back(tmp_path: Path) -> None:
    plugin(tmp_path, "bad", policy("raise ValueError('no')"))
    reclaimer, log = make(wasteful(), tmp_path, policy="mine", failures=2)
    for _ in range(4):
        result = reclaimer.free_ptes(None)
        assert result is not None
        assert result.policy == "largest_first"
    assert reclaimer.plugin_errors == {"mine": 2}
    assert reclaimer.put_aside() == {("policy", "mine"): "ValueError: no"}
    assert [event for event, _ in log.lines if event == "plugin put aside"] == ["plugin put aside"]
    assert reclaimer.policy == "mine"
    with pytest.raises(BadInput, match="'largest_first' is not put aside"):
        reclaimer.take_back("largest_first")
    reclaimer.take_back("mine")
    reclaimer.free_ptes(None)
    assert reclaimer.plugin_errors == {"mine": 3}
    assert reclaimer.put_aside() == {}


def test_failures_must_be_in_a_row(tmp_path: Path) -> None:
    body = policy("self.n += 1\n        if self.n % 2: raise ValueError('odd')\n        yield Choice(1)", more="n = 0")
    plugin(tmp_path, "odd", body)
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine", failures=2)
    for _ in range(6):
        reclaimer.free_ptes(None)
    assert (reclaimer.plugin_errors, reclaimer.put_aside()) == ({"mine": 3}, {})


def test_without_a_deadline_no_thread_is_used(tmp_path: Path) -> None:
    plugin(
        tmp_path,
        "here",
        policy(f"assert __import__('threading').get_ident() == {threading.get_ident()}; yield Choice(1)"),
    )
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine", deadline=None)
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert (result.policy, reclaimer.plugin_errors) == ("mine", {})


@pytest.mark.parametrize("raised", ["raise SystemExit(0)", "import sys; sys.exit('bye')", "raise BaseException('x')"])
def test_a_plugin_that_ends_the_process_at_import_stops_the_start(tmp_path: Path, raised: str) -> None:
    path = plugin(tmp_path, "bad", f"{raised}\n")
    with pytest.raises(BadInput, match=f"{path}: cannot be imported: (SystemExit|BaseException): "):
        make(wasteful(), tmp_path)


def test_a_plugin_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    plugin(tmp_path, "bad", policy("yield", more="def __init__(self, tunables): raise SystemExit(1)"))
    with pytest.raises(BadInput, match="plugin mine: cannot be made: SystemExit: 1"):
        make(wasteful(), tmp_path)


def test_what_a_plugin_prints_is_no_part_of_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plugin(
        tmp_path,
        "loud",
        "print('at import'); __import__('sys').stdout.write('written')\n" + policy("print('now'); yield Choice(1)"),
    )
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine")
    reclaimer.free_ptes(1)
    assert reclaimer.plugin_errors == {}
    assert "written" not in capfd.readouterr().out
