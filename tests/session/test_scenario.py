"""Scenario files: what they say, one line for each mistake, and which runs come of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pterefd.errors import BadInput
from pterefd.session.comparison import render_mail, render_markdown, render_table
from pterefd.session.outcome import BOUND, Combination, Outcome, Result, Series
from pterefd.session.scenario import OTHERWISE, Choices, Plan, comparison, load, plan
from tests.house import write_trace

GOOD = """
[scenario]
title = "A small machine"
about = "Two paragraphs."

[host]
memory = "64MB"

[[mm]]
trace = "traces/a.jsonl"

[compare]
triggers = ["none", "pre_oom", "watermark+pre_oom"]
policies = ["largest_first", "empty_only"]
"""


@pytest.fixture
def write(tmp_path: Path) -> Path:
    (tmp_path / "traces").mkdir()
    write_trace(tmp_path / "traces" / "a.jsonl")
    return tmp_path / "scenario.toml"


def plan_of(path: Path, text: str, *, choices: Choices | None = None) -> Plan:
    path.write_text(text)
    return plan(load(path), choices or Choices())


def whose(done: Plan) -> list[tuple[str, str, str, int]]:
    return [(c.profile, c.trigger, c.policy, c.memory_bytes >> 20) for c in done.combinations]


def test_every_combination_once_in_order(write: Path) -> None:
    """Without a trigger no policy is asked, so one run stands for all of them."""
    assert whose(plan_of(write, GOOD)) == [
        ("rfc-2022", "none", "none", 64),
        ("rfc-2022", "pre_oom", "largest_first", 64),
        ("rfc-2022", "pre_oom", "empty_only", 64),
        ("rfc-2022", "watermark+pre_oom", "largest_first", 64),
        ("rfc-2022", "watermark+pre_oom", "empty_only", 64),
    ]


def test_the_command_line_stands_before_the_file(write: Path) -> None:
    choices = Choices(
        profiles=["v6.18", "v5.19"], policies=["none"], triggers=["interval"], memories=["0.5x", "1GB"], bound=True
    )
    assert whose(plan_of(write, GOOD, choices=choices)) == [
        (profile, *run, memory)
        for profile in ("v6.18", "v5.19")
        for memory in (32, 1024)
        for run in (("interval", "none"), ("none", BOUND))
    ]


def test_the_same_work_has_the_same_digest_wherever_its_files_are(write: Path, tmp_path: Path) -> None:
    here = plan_of(write, GOOD)
    (tmp_path / "elsewhere" / "traces").mkdir(parents=True)
    trace = tmp_path / "elsewhere" / "traces" / "a.jsonl"
    trace.write_bytes((tmp_path / "traces" / "a.jsonl").read_bytes())
    there = plan_of(tmp_path / "elsewhere" / "scenario.toml", GOOD.replace("A small machine", "Another title"))
    assert [task.digest for task in here.tasks] == [task.digest for task in there.tasks]
    assert len({task.digest for task in here.tasks}) == len(here.tasks)
    trace.write_text(trace.read_text().replace("server", "servant"))
    changed = plan_of(tmp_path / "elsewhere" / "scenario.toml", GOOD)
    assert not {task.digest for task in changed.tasks} & {task.digest for task in here.tasks}
    swapping = plan_of(write, GOOD.replace("[host]", "[host]\nswap = '16MB'"))
    assert not {task.digest for task in swapping.tasks} & {task.digest for task in here.tasks}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[scenario]", "[scenario", r"scenario\.toml:2:10: not TOML: "),
        ("[host]", "[hots]", "hots: no such key"),
        ('memory = "64MB"', 'memory = "64 apples"', "host.memory: '64 apples': unknown unit 'apples' of size"),
        ('[[mm]]\ntrace = "traces/a.jsonl"\n', "", r"no \[\[mm\]\]: nothing to run"),
        ('"none", "pre_oom"', '"none", "pre_oops"', "no trigger 'pre_oops'; there are: interval, on_demand, pre_oom"),
        ('"empty_only"', '"emptiest"', "no policy 'emptiest'; there are: empty_only, "),
        ("[compare]", '[compare]\nprofiles = ["v9.9"]', "profile 'v9.9': not one of v5.19, "),
        ("[compare]", '[compare]\nmemory = ["half"]', "'half' is not a size"),
        ("[compare]", '[compare]\nquantum = "ten"', "'ten' is not a duration"),
        ("[compare]", "[compare]\nreread = 1.5", "compare.reread"),
        ("traces/a.jsonl", "traces/b.jsonl", r"traces/b\.jsonl: no such file"),
        ("[compare]", '[[expect]]\nkils = "== 0"\n[compare]', "expect.0.kils: no such measure; there are: "),
        ("[compare]", '[[expect]]\nkills = "none"\n[compare]', "expect.0.kills: 'none' is not a sign and a number"),
        ("[compare]", '[[expect]]\nkills = "== no"\n[compare]', "expect.0.kills: could not convert string to float"),
        (
            "[compare]",
            '[[expect]]\nset = "a=b"\nkills = "== 0"\n[compare]',
            "expect.0.set: should be a list of KEY=VALUE",
        ),
        ("[compare]", '[[expect]]\ntrigger = "none"\n[compare]', "expect.0: should have one measure, such as kills"),
    ],
)
def test_each_mistake_is_one_line(old: str, new: str, message: str, write: Path) -> None:
    assert old in GOOD
    with pytest.raises(BadInput, match=message) as caught:
        plan_of(write, GOOD.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_what_is_expected_is_held_against_the_runs_that_it_is_about(write: Path) -> None:
    text = (
        GOOD
        + """
[[expect]]
trigger = "none"
kills = ">= 1"

[[expect]]
policy = "empty_only"
freed_bytes = "< 1MB"

[[expect]]
memory = "0.5x"
lost = "== 0"
"""
    )
    done = plan_of(write, text, choices=Choices(memories=["1x", "32MB"], triggers=["none", "pre_oom"]))
    outcomes = [Outcome(kills=1, freed_zero_bytes=n << 20, lost=n) for n in range(6)]
    results = [Result(c, o, Series()) for c, o in zip(done.combinations, outcomes, strict=True)]
    held = [(h.run, h.text, h.value, h.shown(), h.holds) for h in comparison(done, results).held]
    assert held == [
        (1, "trigger none, kills >= 1", 1, "1", True),
        (3, "policy empty_only, freed_bytes < 1MB", 2 << 20, "2 MiB", False),
        (4, "memory 0.5x, lost == 0", 3, "3", False),
        (5, "memory 0.5x, lost == 0", 4, "4", False),
        (6, "memory 0.5x, lost == 0", 5, "5", False),
    ]


def test_a_key_is_set_otherwise(write: Path) -> None:
    write.write_text(GOOD)
    keys = ["host.memory = 2x", "mm.0.start=1.5", "mm.0.group = cart", "host.vm.swappiness=100", "scenario.title=B"]
    scenario = load(write, keys).scenario
    assert scenario.host.memory == 128 << 20
    assert (scenario.mm[0].start, scenario.mm[0].group) == (1.5, "cart")
    assert scenario.host.vm.swappiness == 100
    assert scenario.scenario.title == "B"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("host.memory", "not KEY=VALUE, such as"),
        ("hots.memory=1GB", "hots: no such key"),
        ("host.memory.size=1GB", "host.memory is no table of the scenario"),
        ("mm.1.start=2", "mm.1 is no table of the scenario"),
        ("mm.start=2", "mm is a list: name one of its tables by number, from 0 on"),
        ("host.swap=2x", "the scenario gives no number there"),
        ("host.swop=1", "host.swop: no such key"),
    ],
)
def test_a_key_that_cannot_be_set(setting: str, message: str, write: Path) -> None:
    write.write_text(GOOD)
    with pytest.raises(BadInput, match=message) as caught:
        load(write, [setting])
    assert "\n" not in str(caught.value)


def test_what_is_expected_of_other_settings_is_held_with_them_alone(write: Path) -> None:
    text = (
        GOOD
        + """
[[expect]]
kills = "== 1"
trigger = ["none", "pre_oom"]
policy = ["none", "largest_first"]

[[expect]]
set = ["host.memory = 2x"]
kills = "== 0"
"""
    )
    write.write_text(text)
    for settings, runs in (((), [1, 2]), (("host.memory=2x",), [1, 2, 3, 4, 5]), (("host.memory=3x",), [])):
        done = plan(load(write, settings), Choices())
        results = [Result(c, Outcome(), Series()) for c in done.combinations]
        held = comparison(done, results).held
        assert [h.run for h in held] == runs
    assert comparison(done, results).title == "A small machine (host.memory=3x)"


@pytest.mark.parametrize(
    ("settings", "choices", "title"),
    [
        ((), Choices(), "A small machine"),
        ((), Choices(memories=["64MB"], seeds=[0], policies=["none"], triggers=["interval"]), "A small machine"),
        ((), Choices(memories=["0.5x"]), "A small machine (memory 0.5x)"),
        ((), Choices(memories=["1x", "32MB"]), "A small machine (memory 1x and 32MB)"),
        ((), Choices(seeds=[3]), "A small machine (seed 3)"),
        (("host.memory = 2x",), Choices(memories=["3x"]), "A small machine (host.memory=2x, memory 3x)"),
    ],
)
def test_what_was_changed_is_in_the_title_and_before_what_the_file_says(
    settings: tuple[str, ...], choices: Choices, title: str, write: Path
) -> None:
    """What the file says of its outcome is about the scenario as it is there."""
    write.write_text(GOOD)
    done = plan(load(write, settings), choices)
    compared = comparison(done, [Result(c, Outcome(), Series()) for c in done.combinations])
    assert compared.title == title
    changed = title != "A small machine"
    assert compared.about == (f"{OTHERWISE}\n\n" if changed else "") + "Two paragraphs."
    for render in (render_table, render_mail, render_markdown):
        assert (OTHERWISE in " ".join(render(compared).split())) == changed
    assert compared.as_dict()["scenario"] == title


def test_nothing_is_put_before_nothing(write: Path) -> None:
    write.write_text(GOOD.replace('about = "Two paragraphs."\n', ""))
    done = plan(load(write), Choices(memories=["2x"]))
    assert comparison(done, [Result(c, Outcome(), Series()) for c in done.combinations]).about == ""


def test_combinations_are_named_in_one_word() -> None:
    assert Combination("v6.18", "none", ()).trigger == "none"
    assert Combination("v6.18", "x", ("a", "b")).trigger == "a+b"
