"""The daemon's configuration: a TOML file, checked by pydantic before anything is started.

Imports nothing of pterefd but errors and quantities. What is wrong is said in one line that names
the file, the key and the reason. Paths of the file are relative to the file itself, but for the
mount point, which is relative to the working directory; after loading all are absolute.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

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
)

from pterefd import quantities
from pterefd.errors import BadInput

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]

# What pydantic says of a type, in the words of TOML.
WORDS = {
    "path_type": "should be a path",
    "tuple_type": "should be a list",
    "model_type": "should be a table",
    "dict_type": "should be a table",
    "string_type": "should be a string",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
}


def _off_or_address(value: Any) -> tuple[str, int] | None:
    if value == "off":
        return None
    return quantities.address(_string(value, "HOST:PORT or off"))


def _speed(value: Any) -> float | None:
    if isinstance(value, bool):
        raise BadInput("a speed is a factor of real time greater than 0, or max")
    return quantities.speed(str(value))


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
Tunable = Annotated[Any, _told(_tunable)]
Duration = Annotated[float, _told(_duration)]
Speed = Annotated[float | None, _told(_speed), PlainSerializer(lambda speed: "max" if speed is None else speed)]


class _Section(BaseModel):
    """A table of the file. A key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DaemonSection(_Section):
    """[daemon]"""

    mount: Path = Path("mnt")
    allow_other: StrictBool = False
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsSection(_Section):
    """[metrics]. address: (host, port), None for off.  max_mms: mms with series of their own."""

    address: Address = ("127.0.0.1", 9738)
    max_mms: Annotated[StrictInt, Field(ge=0, le=100_000)] = 100


class HostSection(_Section):
    """[host]"""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._+-]*$")] = "rfc-2022"


class ReplaySection(_Section):
    """[replay]. speed: factor of real time, None for max."""

    traces: tuple[Path, ...] = ()
    speed: Speed = 1.0


class PluginsSection(_Section):
    """[plugins]. policies, trigger: values of tunables by the plugin's name; a trigger's may name its policy.

    reload: take up new and changed plugin files while running.  deadline: seconds for one decision of a plugin.
    failures: of a plugin, in a row, before it is put aside.
    """

    directories: tuple[Path, ...] = ()
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
    replay: ReplaySection = Field(default_factory=ReplaySection)
    plugins: PluginsSection = Field(default_factory=PluginsSection)
    _source: str = PrivateAttr("configuration")
    _overridden: frozenset[str] = PrivateAttr(frozenset())

    def where(self, key: str) -> str:
        """Where the value of a key, such as host.profile, was given: the file, or the command line."""
        return "command line" if key in self._overridden else self._source


def load(
    path: Path | None = None,
    *,
    mount: Path | None = None,
    traces: Sequence[Path] = (),
    metrics_address: str | tuple[str, int] | None = None,
    speed: str | float | None = None,
    profile: str | None = None,
) -> Config:
    """Read a configuration; what the command line gives stands before what the file says.

    path: None for the defaults alone.  Arguments that are None, or no traces, leave the file's value;
    paths among them are relative to the working directory.  metrics_address: HOST:PORT or off.
    speed: a factor or "max".  Raises BadInput.
    """
    name = str(path) if path is not None else "configuration"
    given = _read(path) if path is not None else {}
    config = _checked(name, given)
    _resolve(given, config, Path.cwd() if path is None else Path(path).absolute().parent)
    overrides: dict[str, dict[str, Any]] = {}
    for section, key, value in (
        ("daemon", "mount", None if mount is None else Path(os.path.abspath(mount))),
        ("replay", "traces", tuple(Path(os.path.abspath(t)) for t in traces) or None),
        ("metrics", "address", _as_text(metrics_address)),
        ("replay", "speed", speed),
        ("host", "profile", profile),
    ):
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    for section, values in overrides.items():
        given[section] = {**given.get(section, {}), **values}
    config = _checked("command line" if overrides else name, given)
    config._source = name
    config._overridden = frozenset(f"{section}.{key}" for section, values in overrides.items() for key in values)
    return config


def _as_text(address: str | tuple[str, int] | None) -> str | None:
    return f"[{address[0]}]:{address[1]}" if isinstance(address, tuple) else address


def _resolve(given: dict[str, Any], config: Config, base: Path) -> None:
    """Make the paths of a checked file absolute, in place."""
    given["daemon"] = {**given.get("daemon", {}), "mount": Path(os.path.abspath(config.daemon.mount))}
    given["replay"] = {**given.get("replay", {}), "traces": _under(base, config.replay.traces)}
    given["plugins"] = {**given.get("plugins", {}), "directories": _under(base, config.plugins.directories)}


def _under(base: Path, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(Path(os.path.abspath(base / path.expanduser())) for path in paths)


def _read(path: Path) -> dict[str, Any]:
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
        raise BadInput(f"{name}: " + "; ".join(_reason(error) for error in e.errors())) from None


def _reason(error: Any) -> str:
    """`replay.speed: ...` of one of pydantic's errors, in words."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    message = WORDS.get(error["type"], error["msg"].removeprefix("Input ").removeprefix("String "))
    message = message[0].lower() + message[1:]
    shown = repr(error["input"])
    return f"{key}: {message}, not {shown}" if len(shown) < 80 else f"{key}: {message}"
