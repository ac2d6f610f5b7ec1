"""The shipped scenarios come to what they say, as they are and with a parameter halved or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from pterefd.session.scenario import Choices, comparison, load, plan, processors
from pterefd.session.sweep import Kept, here, run_all
from tests.conftest import ROOT

FILES = sorted((ROOT / "etc" / "scenarios").glob("*.toml"))
CASES = [
    pytest.param(path, settings, id=f"{path.stem}{'+' if settings else ''}{'+'.join(sorted(settings))}")
    for path in FILES
    for settings in dict.fromkeys(expectation.settings for expectation in load(path).expectations)
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "settings"), CASES)
def test_it_comes_to_what_it_says(path: Path, settings: frozenset[str]) -> None:
    loaded = load(path, sorted(settings))
    # With another parameter the profiles that are named suffice, or else two.
    named = {name for e in loaded.expectations if e.settings == settings for name in e.whose.get("profile", ())}
    profiles = sorted(named) or ["rfc-2022", "v6.18"] if settings else ()
    planned = plan(loaded, Choices(profiles=profiles, bound=False if settings else None))
    held = comparison(planned, run_all(planned.tasks, here(processors()), Kept(None))).held
    assert {h.text for h in held} == {e.text for e in loaded.expectations if e.settings == settings}
    assert [f"run {h.run}: {h.text}: {h.value}" for h in held if not h.holds] == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_expected_of_a_policy_that_somebody_tries_out(path: Path) -> None:
    """Whatever one it is: here the one that frees nothing, with which nothing that a trigger saves holds."""
    planned = plan(load(path), Choices(profiles=["rfc-2022"], policies=["none"], bound=False))
    held = comparison(planned, run_all(planned.tasks, here(processors()), Kept(None))).held
    assert [f"run {h.run}: {h.text}: {h.value}" for h in held if not h.holds] == []


def test_every_scenario_is_held_with_a_parameter_halved_and_doubled() -> None:
    assert len(FILES) == 5
    for path in FILES:
        factors = {setting.partition("=")[2] for e in load(path).expectations for setting in e.settings}
        assert {"0.5x", "2x"} <= factors, path
