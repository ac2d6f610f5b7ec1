"""Scenario files: a host, what runs on it, what is compared, and what is expected of the outcome.

The tables [host], [[group]], [[mm]] and [plugins] are those of the daemon's configuration (config.py); paths are
relative to the file. docs/compare.md describes all of them.

    [scenario]
    title = "..."

    [host]
    memory = "512MiB"

    [[mm]]
    trace = "redis.parquet"

    [compare]
    triggers = ["none", "pre_oom"]

    [[expect]]
    trigger = "pre_oom"
    kills = "== 0"
"""

from __future__ import annotations

import operator
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError

from pterefd import config, paths, quantities
from pterefd.config import GroupTable, HostSection, MmSection, PluginsSection
from pterefd.errors import BadInput
from pterefd.host.memory import Memory
from pterefd.mm.profile import named
from pterefd.reclaim.plugins import Plugins
from pterefd.session import costs as costs_table
from pterefd.session.comparison import Comparison, Held
from pterefd.session.costs import Costs
from pterefd.session.experiment import Setting
from pterefd.session.machine import memory_of
from pterefd.session.outcome import BOUND, NO_TRIGGER, Combination, Outcome, Result
from pterefd.session.sources import open_sources
from pterefd.session.sweep import Task, make_tasks
from pterefd.source.source import Source

NO_POLICY = "none"
OTHERWISE = "About the scenario as its file has it; here something else was set:"
FACTOR = re.compile(r"(\d+(?:\.\d+)?|\.\d+)x")
CONDITION = re.compile(r"(==|!=|<=|>=|<|>)\s*(\S.*)")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
WHOSE = ("profile", "policy", "trigger", "memory", "seed")
MEASURES = frozenset(f.name for f in fields(Outcome)) - {"killed", "freed_by_trigger", "panicked"} | {"freed_bytes"}
SIZES = frozenset(name for name in MEASURES if name.endswith("_bytes"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScenarioSection(_Section):
    """[scenario]. title: of the report, "" for the file's name.  about: paragraphs that stand before its tables."""

    title: str = ""
    about: str = ""


class CompareSection(_Section):
    """[compare]: what is compared where the command line does not say otherwise.

    triggers: `none`, or names with + between those that are armed together.  memory: sizes, or `0.5x` of [host]'s.
    quantum: of the trace's time, between two ticks.  reread: share of freed zero entries that is read again.
    """

    profiles: tuple[str, ...] = ("rfc-2022",)
    policies: tuple[str, ...] = ("largest_first",)
    triggers: tuple[str, ...] = (NO_TRIGGER, "watermark", "pre_oom")
    memory: tuple[str, ...] = ("1x",)
    seeds: tuple[Annotated[StrictInt, Field(ge=0)], ...] = (0,)
    bound: StrictBool = False
    reread: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] = 1.0
    quantum: str = "10ms"


class Scenario(_Section):
    """A whole file."""

    scenario: ScenarioSection = Field(default_factory=ScenarioSection)
    host: HostSection = Field(default_factory=HostSection)
    group: tuple[GroupTable, ...] = ()
    mm: tuple[MmSection, ...]
    plugins: PluginsSection = Field(default_factory=PluginsSection)
    compare: CompareSection = Field(default_factory=CompareSection)
    expect: tuple[dict[str, Any], ...] = ()


class Expectation(NamedTuple):
    """Of the runs that `whose` fits, `measure` of the outcome is `sign` than `value`. text: as the file says it.

    settings: what has to be set otherwise in the scenario (`--set`); none: nothing may be.
    """

    whose: dict[str, list[str]]
    settings: frozenset[str]
    measure: str
    sign: str
    value: float
    text: str


# ---- reading a file ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """A scenario that has been read: its paths are absolute, its expectations understood.

    settings: what was set otherwise than the file has it, as given.
    """

    path: Path
    scenario: Scenario
    expectations: tuple[Expectation, ...]
    settings: frozenset[str] = frozenset()


def load(path: Path, settings: Sequence[str] = ()) -> Loaded:
    """Read a scenario file, with some of its keys set otherwise: `mm.0.parameters.ram_mib=2x`.

    BadInput: one line with the file, the key and the reason.
    """
    given = config.read(path)
    for setting in settings:
        _set(given, setting)
    if not given.get("mm"):
        raise BadInput(f"{path}: no [[mm]]: nothing to run")
    try:
        scenario = Scenario.model_validate(given)
    except ValidationError as error:
        raise BadInput(f"{path}: " + "; ".join(config.reason(e) for e in error.errors())) from None
    base = path.absolute().parent
    plugins = scenario.plugins.model_copy(
        update={"directories": tuple(_under(base, directory) for directory in scenario.plugins.directories)}
    )
    mms = tuple(
        mm if mm.trace is None else mm.model_copy(update={"trace": _under(base, mm.trace)}) for mm in scenario.mm
    )
    scenario = scenario.model_copy(update={"plugins": plugins, "mm": mms})
    expectations = tuple(
        _expectation(f"{path}: expect.{number}", table) for number, table in enumerate(scenario.expect)
    )
    return Loaded(path, scenario, expectations, frozenset(_plain(setting) for setting in settings))


def inputs(loaded: Loaded, costs: Path | None = None) -> list[Path]:
    """Files that are read for a comparison: none of its outputs may take the place of one."""
    scenario = loaded.scenario
    traces = [mm.trace for mm in scenario.mm if mm.trace is not None]
    given = [loaded.path, *([costs] if costs is not None else []), *traces]
    return [*given, *plugin_files(scenario.plugins.directories)]


def _plain(setting: str) -> str:
    """Without white space: `a.b = 2x` and `a.b=2x` are the same."""
    return "".join(setting.split())


def _set(given: dict[str, Any], setting: str) -> None:
    """Change one key in place: to a value as TOML has it, or to N times the number or size that is there."""
    name, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not text:
        raise BadInput(f"--set {setting!r}: not KEY=VALUE, such as mm.0.parameters.ram_mib=2x")
    *tables, last = name.split(".")
    at: Any = given
    for number, part in enumerate(tables, 1):
        at = _item(at, part)
        if not isinstance(at, dict | list):
            raise BadInput(f"--set {setting!r}: {'.'.join(tables[:number])} is no table of the scenario")
    if isinstance(at, list):
        raise BadInput(f"--set {setting!r}: {'.'.join(tables)} is a list: name one of its tables by number, from 0 on")
    factor = FACTOR.fullmatch(text)
    at[last] = _value(text) if factor is None else _times(at.get(last), float(factor[1]), setting)


def _item(at: Any, part: str) -> Any:
    """A table of a table, which is there from now on, or one of a list by its number."""
    if isinstance(at, list):
        return at[int(part)] if part.isdecimal() and int(part) < len(at) else None
    return at.setdefault(part, {})


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _times(value: Any, factor: float, setting: str) -> Any:
    """A number, or a size with its unit, times a factor; whole numbers stay whole."""
    if isinstance(value, str):
        return round(quantities.size(value) * factor)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"--set {setting!r}: the scenario gives no number there")
    return round(value * factor) if isinstance(value, int) else value * factor


def _under(base: Path, path: Path) -> Path:
    return Path(os.path.abspath(base / path.expanduser()))


def _expectation(where: str, table: dict[str, Any]) -> Expectation:
    """`{profile = ..., trigger = ..., kills = "== 0"}`: whose runs, and one measure."""
    whose = {key: _names(table[key]) for key in WHOSE if key in table}
    settings = table.get("set", [])
    if not isinstance(settings, list) or not all(isinstance(setting, str) for setting in settings):
        raise BadInput(f"{where}.set: should be a list of KEY=VALUE")
    measures = [key for key in table if key not in (*WHOSE, "set")]
    for key in measures:
        if key not in MEASURES:
            raise BadInput(f"{where}.{key}: no such measure; there are: {', '.join(sorted(MEASURES))}")
    if len(measures) != 1:
        raise BadInput(f"{where}: should have one measure, such as kills = '== 0'")
    (measure,) = measures
    condition = CONDITION.fullmatch(str(table[measure]).strip())
    if condition is None:
        raise BadInput(f"{where}.{measure}: {table[measure]!r} is not a sign and a number, such as '== 0'")
    sign, text = condition[1], condition[2]
    try:
        value = float(quantities.size(text)) if measure in SIZES else float(text)
    except (BadInput, ValueError) as error:
        raise BadInput(f"{where}.{measure}: {error}") from None
    about = [*settings, *(f"{key} {' or '.join(names)}" for key, names in whose.items()), f"{measure} {sign} {text}"]
    return Expectation(whose, frozenset(map(_plain, settings)), measure, sign, value, ", ".join(about))


def _names(value: Any) -> list[str]:
    """One name, or a list of them: any of these."""
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


# ---- what is run ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line gives; empty or None: as the scenario has it."""

    profiles: Sequence[str] = ()
    policies: Sequence[str] = ()
    triggers: Sequence[str] = ()
    memories: Sequence[str] = ()
    seeds: Sequence[int] = ()
    bound: bool | None = None
    reread: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a comparison, in the order of the table."""

    loaded: Loaded
    combinations: list[Combination]
    tasks: list[Task]
    costs: Costs
    narrowed: bool  # the command line says otherwise than the scenario what is compared
    otherwise: tuple[str, ...] = ()  # what it says that changes what any run comes to: settings, memories, seeds


def plan(loaded: Loaded, choices: Choices, costs_file: Path | None = None) -> Plan:
    """Every combination of what was chosen. BadInput: a name or a size that there is not."""
    scenario = loaded.scenario
    costs = costs_table.load(costs_file) if costs_file is not None else costs_table.load()
    reread = scenario.compare.reread if choices.reread is None else choices.reread
    shared = {
        "host": scenario.host.model_dump(mode="json"),
        "group": [group.model_dump(mode="json") for group in scenario.group],
        "mm": [mm.model_dump(mode="json") for mm in scenario.mm],
        "plugins": scenario.plugins.model_dump(mode="json"),
        "costs": costs.model_dump(mode="json"),
        "reread": reread,
        "quantum_ns": round(quantities.seconds(scenario.compare.quantum) * 1e9),
    }
    combinations = _combinations(loaded, choices, _plugins(scenario.plugins.directories))
    setting_of(shared, f"{loaded.path}: ").sources(0)  # says now what would fail in every worker
    traces = [mm.trace for mm in scenario.mm if mm.trace is not None]
    files = sorted({*traces, *plugin_files(scenario.plugins.directories)})
    narrowed = choices != Choices(reread=choices.reread)
    tasks = make_tasks(shared, files, combinations)
    return Plan(loaded, combinations, tasks, costs, narrowed, tuple(_otherwise(loaded, choices)))


def _otherwise(loaded: Loaded, choices: Choices) -> Iterator[str]:
    """What the command line changes of the scenario's own host and events, as a title names it."""
    compare = loaded.scenario.compare
    yield from sorted(loaded.settings)
    own = {_memory(loaded, text) for text in compare.memory}
    if any(_memory(loaded, text) not in own for text in choices.memories):
        yield f"memory {' and '.join(choices.memories)}"
    if set(choices.seeds) - set(compare.seeds):
        yield f"seed {' and '.join(map(str, choices.seeds))}"


def _combinations(loaded: Loaded, choices: Choices, plugins: Plugins) -> list[Combination]:
    """Profiles by memories by seeds; in each of them every trigger by every policy, and the bound."""
    compare = loaded.scenario.compare
    profiles = list(choices.profiles or compare.profiles)
    policies = list(choices.policies or compare.policies)
    triggers = [_triggers(text) for text in choices.triggers or compare.triggers]
    with _of(loaded, choices.profiles, "--profile", "profiles"):
        for profile in profiles:
            named(profile)
    with _of(loaded, choices.policies, "--policy", "policies"):
        _check("policy", policies, plugins.policies)
    with _of(loaded, choices.triggers, "--trigger", "triggers"):
        _check("trigger", [name for names in triggers for name in names], plugins.triggers)
    with _of(loaded, choices.memories, "--memory", "memory"):
        memories = [_memory(loaded, text) for text in choices.memories or compare.memory]
    seeds = list(choices.seeds or compare.seeds)
    bound = compare.bound if choices.bound is None else choices.bound
    found: list[Combination] = []
    for profile, memory, seed in product(profiles, memories, seeds):
        for names, policy in product(triggers, policies):
            # without a trigger no policy is ever asked: one run stands for all
            found.append(Combination(profile, policy if names else NO_POLICY, names, memory, seed))
        if bound:
            found.append(Combination(profile, BOUND, (), memory, seed))
    return list(dict.fromkeys(found))


@contextmanager
def _of(loaded: Loaded, given: Sequence[str], option: str, key: str) -> Iterator[None]:
    """What is wrong is said with where it was given: the option, or the file and its key."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{option if given else f'{loaded.path}: compare.{key}'}: {error}") from None


def _triggers(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split("+")]
    return () if names == [NO_TRIGGER] else tuple(dict.fromkeys(names))


def _check(kind: str, names: Sequence[str], known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"no {kind} {name!r}; there are: {', '.join(sorted(known))}")


def _memory(loaded: Loaded, text: str) -> int:
    """Bytes of a size, or of `0.5x` of the scenario's memory; 0 where it has none and is left alone."""
    host = loaded.scenario.host
    own = host.memory or sum(zone.managed_pages for zone in host.zones) * 4096
    factor = FACTOR.fullmatch(text)
    if factor is None:
        return quantities.size(text)
    if not own and float(factor[1]) != 1:
        raise BadInput(f"{text}: {loaded.path} has no host.memory that it could be a multiple of")
    return int(own * float(factor[1])) // 4096 * 4096


def processors() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0))


def plugin_files(directories: Sequence[Path]) -> Iterator[Path]:
    """Plugin files of these directories and of those that come with pterefd."""
    for directory in (paths.share("plugins"), *directories):
        yield from sorted(directory.glob("*.py"))


@cache
def _plugins(directories: tuple[Path, ...]) -> Plugins:
    """Loaded once in a process: runs make instances of their own."""
    plugins = Plugins()
    plugins.load([paths.share("plugins"), *directories])
    return plugins


def setting_of(shared: dict[str, Any], where: str = "") -> Setting:
    """What plan() wrote for the workers, made into what a run needs. where: begins what is said of [[mm]]."""
    host = HostSection.model_validate(shared["host"])
    groups = [GroupTable.model_validate(table) for table in shared["group"]]
    mms = [MmSection.model_validate(table) for table in shared["mm"]]
    given = PluginsSection.model_validate(shared["plugins"])
    plugins = _plugins(given.directories)

    def sources(seed: int) -> Sequence[Source]:
        seeded = [mm.model_copy(update={"seed": mm.seed + seed}) for mm in mms]
        return open_sources(seeded, plugins.workloads, (lambda n: f"{where}mm.{n}.") if where else lambda _: "")

    def memory(nbytes: int) -> Memory | None:
        return memory_of(_resized(host, nbytes), groups)

    return Setting(
        sources=sources,
        memory=memory,
        plugins=plugins,
        costs=Costs.model_validate(shared["costs"]),
        policy_tunables=given.policies,
        trigger_tunables=given.trigger_tunables(),
        policies_by_trigger=given.policies_by_trigger(),
        reread=shared["reread"],
        quantum_ns=shared["quantum_ns"],
    )


def _resized(host: HostSection, nbytes: int) -> HostSection:
    """The machine with another memory; its zones keep their shares."""
    if not nbytes:
        return host
    if not host.zones:
        return host.model_copy(update={"memory": nbytes})
    own = sum(zone.managed_pages for zone in host.zones)
    pages = nbytes // 4096
    if own == pages:
        return host
    zones = tuple(
        zone.model_copy(update={"managed_pages": max(zone.managed_pages * pages // own, 1)}) for zone in host.zones
    )
    return host.model_copy(update={"memory": None, "zones": zones})


# ---- what came of it --------------------------------------------------------------------------------


def comparison(done: Plan, results: Sequence[Result]) -> Comparison:
    """The results beside what the scenario expects of them.

    An expectation that is about none of the scenario's own runs does not hold. Where the command line says what is
    compared, those about other runs are left out.
    """
    section = done.loaded.scenario.scenario
    held: list[Held] = []
    for expectation in done.loaded.expectations:
        fitting = [
            _held(expectation, number, result.outcome)
            for number, result in enumerate(results, 1)
            if _fits(expectation, result.combination, done.loaded)
        ]
        if not fitting and not done.narrowed and expectation.settings == done.loaded.settings:
            fitting = [Held(expectation.text, None, None, False)]
        held += fitting
    title, about = section.title or done.loaded.path.stem, section.about
    if done.otherwise:
        title += f" ({', '.join(done.otherwise)})"
        about = about and f"{OTHERWISE}\n\n{about.strip()}"
    return Comparison(title, list(results), done.costs.about, held, about)


def _fits(expectation: Expectation, combination: Combination, loaded: Loaded) -> bool:
    """Is the expectation about this run? About the bound and other memories than the scenario's only by name."""
    if expectation.settings != loaded.settings:
        return False
    whose = expectation.whose
    if combination.policy == BOUND and BOUND not in whose.get("policy", ()):
        return False
    if combination.memory_bytes not in [_memory(loaded, text) for text in whose.get("memory", ["1x"])]:
        return False
    theirs = combination.as_dict()
    return all(str(theirs[key]) in names for key, names in whose.items() if key != "memory")


def _held(expectation: Expectation, number: int, outcome: Outcome) -> Held:
    value = getattr(outcome, expectation.measure)
    holds = value is not None and OPERATORS[expectation.sign](value, expectation.value)
    return Held(expectation.text, number, value, holds, expectation.measure in SIZES)
