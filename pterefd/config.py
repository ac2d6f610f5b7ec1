"""The daemon's configuration: a TOML file, checked by pydantic before anything is started.

Imports nothing of pterefd but errors, paths and quantities. What is wrong is said in one line that names
the file, the key and the reason. Paths of the file are relative to the file itself, but for the
mount point, which is relative to the working directory, and for share:NAME, which comes with the
program that reads it, wherever that is installed; after loading all are absolute.
"""

from __future__ import annotations

import os
import pwd
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from pterefd import paths, quantities
from pterefd.errors import BadInput

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
SHARE = "share:"

# What pydantic says of a type, in the words of TOML.
WORDS = {
    "path_type": "should be a path",
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "string_type": "should be a string",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "int_parsing": "should be an integer",
    "int_from_float": "should be an integer",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_parsing": "should be true or false",
}
# ... and of a range.
RANGES = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def _off_or_address(value: Any) -> tuple[str, int] | None:
    if value == "off":
        return None
    return quantities.address(_string(value, "HOST:PORT or off"))


def _off_or_path(value: Any) -> str | None:
    path = _string(value, "an absolute path or off")
    if path == "off":
        return None
    if not path.startswith("/"):
        raise BadInput(f"{path!r} is not an absolute path or off")
    return path


def _file(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(SHARE):
        return value
    try:
        return paths.share(value.removeprefix(SHARE))
    except FileNotFoundError:
        raise BadInput(f"{value!r} does not come with this pterefd") from None


def _speed(value: Any) -> float | None:
    if isinstance(value, bool):
        raise BadInput("a speed is a factor of real time greater than 0, or max")
    return quantities.speed(str(value))


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
        raise BadInput(f"{value!r} is not a size (such as 1GiB)")
    return quantities.size(str(value))


def _memory(value: Any) -> int:
    nbytes = _size(value)
    if nbytes < 1 << 20:
        raise BadInput(f"{value!r} is less than 1MiB, the least that a host can have (such as 1GiB)")
    return nbytes


def _tunable(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise BadInput("should be a number, a string, true or false")
    return value


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadInput("should be a duration, such as 200ms or 1s")
    seconds = quantities.seconds(str(value))
    if not 0.001 <= seconds <= 86_400:
        raise BadInput("should be a duration from 1ms to a day")
    return seconds


def _interval(value: Any) -> float:
    seconds = _duration(value)
    if not 0.1 <= seconds <= 60:
        raise BadInput("should be a duration from 100ms to 60s")
    return seconds


def _user(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    name = _string(value, "a user's name or number")
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise BadInput(f"there is no user {name!r}") from None


def _cgroup(value: Any) -> str:
    path = _string(value, "a path of a cgroup")
    if not path.startswith(("/", "*")):
        raise BadInput(f"{path!r} is not a path of a cgroup, such as /system.slice or *.service")
    return path


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{value!r} is not {what}")
    return value


def _told(parse: Any) -> BeforeValidator:
    """A parser of the house as a pydantic validator: BadInput becomes the field's message."""

    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except BadInput as e:
            raise ValueError(str(e)) from e

    return BeforeValidator(validate)


Address = Annotated[tuple[str, int] | None, _told(_off_or_address)]
Helper = Annotated[str | None, _told(_off_or_path)]
File = Annotated[Path, _told(_file)]
Size = Annotated[int, _told(_size)]
MemorySize = Annotated[int, _told(_memory)]
Tunable = Annotated[Any, _told(_tunable)]
Duration = Annotated[float, _told(_duration)]
Interval = Annotated[float, _told(_interval)]
User = Annotated[StrictInt, Field(ge=0, le=(1 << 32) - 2), _told(_user)]
Cgroup = Annotated[str, _told(_cgroup)]
Speed = Annotated[float | None, _told(_speed), PlainSerializer(lambda speed: "max" if speed is None else speed)]


class _Section(BaseModel):
    """A table of the file. A key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonSection(_Section):
    """[daemon]. mount_helper: path of the mount helper's socket, None: the daemon mounts by itself."""

    mount: Path = Path("mnt")
    allow_other: StrictBool = False
    mount_helper: Helper = None
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsSection(_Section):
    """[metrics]. address: (host, port), None for off.  max_mms: mms with series of their own."""

    address: Address = ("127.0.0.1", 9738)
    max_mms: Annotated[StrictInt, Field(ge=0, le=100_000)] = 100


class ZoneTable(_Section):
    """A zone of [host] zones: its name in /proc/zoneinfo, its managed pages."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    managed_pages: Annotated[StrictInt, Field(ge=1, le=1 << 40)]


class VmTable(_Section):
    """[host.vm]: knobs of sys/vm at the start. None: the kernel's default."""

    min_free_kbytes: Annotated[StrictInt, Field(ge=0, le=(1 << 31) - 1)] | None = None
    watermark_scale_factor: Annotated[StrictInt, Field(ge=1, le=3000)] = 10
    swappiness: Annotated[StrictInt, Field(ge=0, le=200)] = 60
    overcommit_memory: Annotated[StrictInt, Field(ge=0, le=2)] = 0
    overcommit_ratio: StrictInt = 50
    max_map_count: Annotated[StrictInt, Field(ge=0, le=(1 << 31) - 1)] = 65530
    oom_kill_allocating_task: StrictInt = 0
    panic_on_oom: Annotated[StrictInt, Field(ge=0, le=2)] = 0


class HostSection(_Section):
    """[host]. kind: simulated mms, or the processes of this machine.

    memory: bytes of the simulated machine, None: nothing is accounted.  swap: bytes.  zones: what memory consists of;
    memory may be left out then.
    """

    kind: Literal["simulated", "live"] = "simulated"
    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._+-]*$")] = "rfc-2022"
    memory: MemorySize | None = None
    swap: Size = 0
    zones: tuple[ZoneTable, ...] = ()
    vm: VmTable = Field(default_factory=VmTable)
    seed: Annotated[StrictInt, Field(ge=0, le=(1 << 63) - 1)] = 0


class LiveSection(_Section):
    """[live]: which of this machine's processes are watched, and how. All where pid, comm, cgroup and user are empty.

    comm, cgroup: names and paths, with * ? [] as in a shell; a path without them is with all below it.
    user: effective uids.  budget: CPU time for scans, in percent of a core.  interval: seconds between looks.
    """

    pid: tuple[Annotated[StrictInt, Field(ge=1, le=1 << 22)], ...] = ()
    comm: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    cgroup: tuple[Cgroup, ...] = ()
    user: tuple[User, ...] = ()
    budget: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    interval: Interval = 1.0


class GroupTable(_Section):
    """[[group]]: mms with a limit in common, as a memory cgroup. limit: bytes of memory.max, None: no limit."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    limit: Size | None = None


class ReplaySection(_Section):
    """[replay]. speed: factor of real time, None for max.  hold: each source before its pid 1 exits."""

    traces: tuple[File, ...] = ()
    speed: Speed = 1.0
    hold: StrictBool = True


class MmSection(_Section):
    """[[mm]]: a recording or a workload that runs on the host, `copies` times.

    parameters: the workload's.  seed: of the first copy, the others count on from it.  start: seconds into the host's
    time.  pace: factor on its own speed, at 2 its times are halved.  group: of its mms, "" for none.  pid_base: added
    to the first copy's pids; None puts them past the highest in use.  oom_score_adj: of its programs, None leaves it.
    """

    trace: File | None = None
    workload: Name | None = None
    parameters: dict[Name, Tunable] = Field(default_factory=dict)
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    start: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    pace: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    group: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]*$")] = ""
    pid_base: Annotated[StrictInt, Field(ge=0)] | None = None
    oom_score_adj: Annotated[StrictInt, Field(ge=-1000, le=1000)] | None = None
    copies: Annotated[StrictInt, Field(ge=1, le=100_000)] = 1

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.trace is None) == (self.workload is None):
            raise ValueError("give either a trace or a workload")
        if self.trace is not None and self.parameters:
            raise ValueError("parameters are a workload's, and a trace has none")
        return self


class PluginsSection(_Section):
    """[plugins]. policies, trigger: values of tunables by the plugin's name; a trigger's may name its policy.

    reload: take up new and changed plugin files while running.  deadline: seconds for one decision of a plugin.
    failures: of a plugin, in a row, before it is put aside.
    """

    directories: tuple[File, ...] = ()
    policy: Name = "largest_first"
    triggers: tuple[Name, ...] = ("on_demand",)
    policies: dict[Name, dict[Name, Tunable]] = Field(default_factory=dict)
    trigger: dict[Name, dict[Name, Tunable]] = Field(default_factory=dict)
    reload: StrictBool = False
    deadline: Duration = 1.0
    failures: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 3

    def trigger_tunables(self) -> dict[str, dict[str, Any]]:
        """Tunables of triggers, without their policies."""
        return {
            name: {key: value for key, value in table.items() if key != "policy"}
            for name, table in self.trigger.items()
        }

    def policies_by_trigger(self) -> dict[str, str]:
        """Policies of triggers that do not take the one in charge."""
        named = {name: str(table["policy"]) for name, table in self.trigger.items() if "policy" in table}
        return {name: policy for name, policy in named.items() if policy != "default"}


class Config(_Section):
    """A whole configuration. Tables that are absent have the defaults of their class."""

    daemon: DaemonSection = Field(default_factory=DaemonSection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    host: HostSection = Field(default_factory=HostSection)
    live: LiveSection = Field(default_factory=LiveSection)
    group: tuple[GroupTable, ...] = ()
    replay: ReplaySection = Field(default_factory=ReplaySection)
    mm: tuple[MmSection, ...] = ()
    plugins: PluginsSection = Field(default_factory=PluginsSection)
    _source: str = PrivateAttr("configuration")
    _overridden: frozenset[str] = PrivateAttr(frozenset())

    @property
    def mms(self) -> tuple[MmSection, ...]:
        """What runs on the host, in order: the traces of [replay], then each [[mm]]."""
        return (*(MmSection(trace=trace) for trace in self.replay.traces), *self.mm)

    @contextmanager
    def blamed(self, key: str) -> Iterator[None]:
        """What is wrong with a value that only its user can judge is said with its file and key."""
        try:
            yield
        except BadInput as error:
            raise BadInput(f"{self.where(key)}: {key}: {error}") from error

    def where_mm(self, number: int) -> str:
        """Where the mm of this number, among mms, was given: `FILE: mm.0.`; nothing for one of the command line."""
        traces = len(self.replay.traces)
        if "mm" in self._overridden:
            return ""
        return (
            f"{self._source}: replay.traces.{number}" if number < traces else f"{self._source}: mm.{number - traces}."
        )

    def where(self, key: str) -> str:
        """Where the value of a key, such as host.profile, was given: the file, or the command line."""
        return "command line" if key in self._overridden else self._source


# What a host of one kind alone has. Of a section all, or these keys.
_ONLY: dict[str, dict[str, tuple[str, ...] | None]] = {
    "simulated": {"host": ("profile", "memory", "swap", "zones", "vm"), "replay": None, "group": None, "mm": None},
    "live": {"live": None},
}


def load(
    path: Path | None = None,
    *,
    mount: Path | None = None,
    traces: Sequence[Path] = (),
    metrics_address: str | tuple[str, int] | None = None,
    speed: str | float | None = None,
    profile: str | None = None,
    memory: str | None = None,
    swap: str | None = None,
    workloads: Sequence[dict[str, Any]] = (),
    live: bool = False,
    matching: Mapping[str, Sequence[Any]] | None = None,
    shipped: bool = False,
) -> Config:
    """Read a configuration; what the command line gives stands before what the file says.

    path: None for the defaults alone.  Arguments that are None, or no traces, leave the file's value;
    paths among them are relative to the working directory.  metrics_address: HOST:PORT or off.
    speed: a factor or "max".  memory: a size, in place of the file's zones, too.  workloads: [[mm]] tables.
    Traces and workloads stand in place of all traces and [[mm]] tables of the file.
    live: a live host.  matching: keys of [live] by name; one without values leaves the file's.
    shipped: nobody has written the file for this run: what it says of a simulated host is not for a live one.
    Raises BadInput.
    """
    name = str(path) if path is not None else "configuration"
    given = read(path) if path is not None else {}
    if live and shipped:
        given = {
            section: values for section, values in given.items() if section not in ("host", "group", "replay", "mm")
        }
    config = _checked(name, given)
    _resolve(given, config, Path.cwd() if path is None else Path(path).absolute().parent)
    overrides: dict[str, dict[str, Any]] = {}
    for section, key, value in (
        ("daemon", "mount", None if mount is None else Path(os.path.abspath(mount))),
        ("replay", "traces", tuple(Path(os.path.abspath(t)) for t in traces) if traces or workloads else None),
        ("metrics", "address", _as_text(metrics_address)),
        ("replay", "speed", speed),
        ("host", "profile", profile),
        ("host", "memory", memory),
        ("host", "zones", None if memory is None else ()),
        ("host", "swap", swap),
        ("host", "kind", "live" if live else None),
        *(("live", key, tuple(values) or None) for key, values in (matching or {}).items()),
    ):
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    for section, values in overrides.items():
        given[section] = {**given.get(section, {}), **values}
    if traces or workloads:
        given["mm"] = list(workloads)
    config = _checked("command line" if overrides else name, given)
    config._source = name
    keys = {f"{section}.{key}" for section, values in overrides.items() for key in values}
    config._overridden = frozenset(keys | ({"mm"} if traces or workloads else set()))
    _check_kind(config, given)
    return config


def _check_kind(config: Config, given: dict[str, Any]) -> None:
    """What is given and would have no effect on a host of this kind is told, in one line."""
    other = "live" if config.host.kind == "simulated" else "simulated"
    wrong = []
    for section, keys in _ONLY[other].items():
        values = given.get(section) or {}
        if isinstance(values, dict):
            wrong += [
                f"{section}.{key}" for key, value in values.items() if (keys is None or key in keys) and value != ()
            ]
        else:
            wrong.append(section)
    if wrong:
        where = config.where(wrong[0])
        raise BadInput(f"{where}: {', '.join(wrong)}: of a {other} host, and host.kind is {config.host.kind}")


def _as_text(address: str | tuple[str, int] | None) -> str | None:
    return f"[{address[0]}]:{address[1]}" if isinstance(address, tuple) else address


def _resolve(given: dict[str, Any], config: Config, base: Path) -> None:
    """Make the paths of a checked file absolute, in place."""
    given["daemon"] = {**given.get("daemon", {}), "mount": Path(os.path.abspath(config.daemon.mount))}
    given["replay"] = {**given.get("replay", {}), "traces": _under(base, config.replay.traces)}
    given["mm"] = [
        table if mm.trace is None else {**table, "trace": _under(base, (mm.trace,))[0]}
        for table, mm in zip(given.get("mm", ()), config.mm, strict=True)
    ]
    given["plugins"] = {**given.get("plugins", {}), "directories": _under(base, config.plugins.directories)}


def _under(base: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(Path(os.path.abspath(base / file.expanduser())) for file in files)


def read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as f:
            return tomllib.load(f)
    except tomllib.TOMLDecodeError as e:
        at = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(e))
        where, why = (f"{path}:{at[2]}:{at[3]}", at[1]) if at else (str(path), str(e))
        raise BadInput(f"{where}: not TOML: {why}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not TOML: not UTF-8") from None
    except OSError as e:
        raise BadInput(f"{path}: {e.strerror}") from None


def _checked(name: str, given: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(given)
    except ValidationError as e:
        raise BadInput(f"{name}: " + "; ".join(reason(error) for error in e.errors())) from None


def reason(error: Any) -> str:
    """`replay.speed: ...` of one of pydantic's errors, in words."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: {said(error)}"


def said(error: Any) -> str:
    """`should be at least 10, not 0` of one of pydantic's errors about a value."""
    if error["type"] in RANGES:
        words, limit = RANGES[error["type"]]
        message = f"should be {words} {error['ctx'][limit]:g}"
    else:
        message = WORDS.get(error["type"]) or error["msg"]
        for begin in ("Input ", "String ", "Value error, "):
            message = message.removeprefix(begin)
        message = " ".join((message[:1].lower() + message[1:]).split())
    shown = repr(error["input"])
    return f"{message}, not {shown}" if len(shown) < 80 else message
