"""Plugin files that are new or have changed are taken up; what does not fit leaves all as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from pterefd.errors import BadInput
from pterefd.reclaim import reclaimer as reclaimer_module
from tests.reclaim.built import make, plugin, policy, trigger, wasteful

TUNED = """
from pydantic import Field
class Mine(Policy):
    name = "mine"
    class Tunables(Tunables):
        most: int = Field({default}, ge=1, le={le})
        {more}
    def choose(self, view, request):
        yield Choice({pid}, bytes=self.tunables.most * 4096)

@hookimpl
def pterefd_register_policies(register):
    register(Mine)
"""


def test_a_new_file_comes_in_and_a_changed_one_in_its_place(tmp_path: Path) -> None:
    reclaimer, log = make(wasteful(), tmp_path)
    assert reclaimer.reload() == []
    plugin(tmp_path, "p", policy("yield Choice(1)"))
    assert reclaimer.reload() == ["policy mine"]
    reclaimer.set_policy("mine")
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert result.freed == ((1, 2 * 4096),)
    # of the same length, within the same second
    plugin(tmp_path, "p", policy("yield Choice(3)"))
    assert reclaimer.reload() == ["policy mine"]
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert result.freed == ((3, 4096),)
    assert ("plugins reloaded", {"plugins": ["policy mine"]}) in log.lines


def test_what_was_set_stays_set_where_it_still_fits(tmp_path: Path) -> None:
    plugin(tmp_path, "p", TUNED.format(default=3, le=9, more="gone: int = 1", pid=1))
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine", policy_tunables={"mine": {"most": 4}})
    reclaimer.policy_tunables()["mine"].most = 5  # type: ignore[attr-defined]
    plugin(tmp_path, "p", TUNED.format(default=3, le=9, more="new: int = 7", pid=2))
    reclaimer.reload()
    assert reclaimer.policy_tunables()["mine"].model_dump() == {"most": 5, "new": 7}
    plugin(tmp_path, "p", TUNED.format(default=1, le=2, more="new: int = 8", pid=2))
    reclaimer.reload()
    assert reclaimer.policy_tunables()["mine"].model_dump() == {"most": 1, "new": 7}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("1/0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", "cannot be imported: SystemExit"),
        ("PTEREFD_API = 2\n", "PTEREFD_API is 2, this pterefd has 1"),
        (policy("pass", "largest_first"), "policy 'largest_first' is registered by .*largest_first.py already"),
        (policy("pass") + "\n@hookimpl\ndef pterefd_nothing():\n    pass\n", "unknown hook"),
        (policy("pass", more="def __init__(self, tunables): 1/0"), "plugin mine: cannot be made: ZeroDivisionError"),
    ],
)
def test_a_bad_file_is_one_line_and_what_was_there_carries_on(tmp_path: Path, body: str, reason: str) -> None:
    plugin(tmp_path, "p", policy("yield Choice(2)"))
    reclaimer, log = make(wasteful(), tmp_path, policy="mine")
    path = plugin(tmp_path, "p", body)
    plugin(tmp_path, "q", trigger("return None", "other"))
    with pytest.raises(BadInput, match=reason) as refused:
        reclaimer.reload()
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value) or "plugin mine" in str(refused.value)
    assert [fields["error"] for event, fields in log.lines if event == "plugin refused"] == [str(refused.value)]
    assert "other" in reclaimer.available_triggers()
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert (result.policy, result.freed) == ("mine", ((2, 5 * 4096),))
    assert reclaimer.changed_files() == {}  # by itself it is not tried again before it changes
    with pytest.raises(BadInput, match=reason):
        reclaimer.reload()  # who asks is told, as long as it lies there
    path.unlink()
    assert reclaimer.reload() == []


def test_a_file_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaimer_module, "IMPORT_SECONDS", 0.2)
    reclaimer, _ = make(wasteful(), tmp_path, deadline=0.1)
    path = plugin(tmp_path, "p", "while True: pass\n")
    plugin(tmp_path, "q", policy("yield Choice(1)"))
    with pytest.raises(BadInput, match=f"^{path}: took longer than 0.2 s$"):
        reclaimer.reload()
    assert "mine" in reclaimer.available_policies()
    result = reclaimer.free_ptes(None)
    assert result is not None
    assert result.bytes == 8 * 4096


def test_a_plugin_that_was_put_aside_is_back_when_it_has_changed(tmp_path: Path) -> None:
    plugin(tmp_path, "p", policy("1/0"))
    reclaimer, _ = make(wasteful(), tmp_path, policy="mine", failures=1)
    reclaimer.free_ptes(None)
    assert list(reclaimer.put_aside()) == [("policy", "mine")]
    plugin(tmp_path, "p", policy("yield Choice(1, bytes=0)"))
    reclaimer.reload()
    assert reclaimer.put_aside() == {}


def test_a_policy_that_a_changed_file_has_no_more_gives_way_to_the_default(tmp_path: Path) -> None:
    plugin(tmp_path, "p", policy("yield Choice(2)"))
    plugin(tmp_path, "q", trigger("return None", "other"))
    reclaimer, log = make(
        wasteful(),
        tmp_path,
        policy="mine",
        triggers=("on_demand", "other"),
        policies_by_trigger={"on_demand": "mine"},
    )
    plugin(tmp_path, "p", policy("yield Choice(2)", "renamed"))
    plugin(tmp_path, "q", trigger("return None", "another"))
    assert reclaimer.reload() == ["policy renamed", "trigger another"]
    assert log.lines[:3] == [
        ("policy is gone", {"policy": "mine", "instead": "largest_first"}),
        ("policy is gone", {"policy": "mine", "trigger": "on_demand", "instead": "largest_first"}),
        ("trigger is gone", {"trigger": "other"}),
    ]
    assert (reclaimer.policy, reclaimer.policy_of("on_demand")) == ("largest_first", None)
    assert "mine" not in reclaimer.available_policies()


def test_directories_that_are_forgotten_leave_nothing_behind(tmp_path: Path) -> None:
    plugin(tmp_path / "old", "p", policy("yield Choice(2)", "old"))
    reclaimer, log = make(wasteful(), tmp_path / "old")
    before = reclaimer.available_policies()
    path = plugin(tmp_path / "new", "p", policy("yield Choice(2)"))
    plugin(tmp_path / "new", "q", "1/0\n")
    new = reclaimer.look_into([tmp_path / "old", tmp_path / "new"])
    assert new == [tmp_path / "new"]
    with pytest.raises(BadInput, match="q.py: cannot be imported"):
        reclaimer.reload(within=new)
    assert log.lines == []
    reclaimer.set_policy("mine")
    reclaimer.forget(new)
    assert reclaimer.available_policies() == before
    assert reclaimer.policy == "largest_first"
    assert reclaimer.reload() == []
    assert reclaimer.look_into(new) == new
    (tmp_path / "new" / "q.py").unlink()
    assert (reclaimer.reload(), path.exists()) == (["policy mine"], True)


def test_a_tunable_may_not_be_called_as_the_file_beside_it(tmp_path: Path) -> None:
    plugin(tmp_path, "t", trigger("pass", more="class Tunables(Tunables):\n        policy: int = 1"))
    with pytest.raises(BadInput, match="trigger 'mine': a tunable may not be called 'policy'"):
        make(wasteful(), tmp_path)
