"""A changed configuration taken up while the daemon runs: what can be is, what cannot is named, and nothing by halves.

A new configuration is checked as a whole before anything is changed; what only the daemon itself can judge comes first
and is taken back where something of it is refused. Only what differs from the configuration before is set: what was
written to the mount meanwhile stays, where the file says what it said. Plugin files that have changed where files
were looked for before are apart from that: they are as they are, and taken up whatever becomes of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from pterefd import log, paths
from pterefd.config import Config
from pterefd.errors import PterefdError
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.seats import Seats

if TYPE_CHECKING:
    from pterefd.metrics import MmCollector
    from pterefd.reclaim.reclaimer import Reclaimer


class Works(Protocol):
    """What runs on the host."""

    def take_up(self, before: Config, now: Config) -> None:
        """Set what differs, of what can be set while it runs."""


class Running(Protocol):
    """The daemon, as far as a configuration sets it. settings: those in force.  stream: what is logged to."""

    settings: Config
    log: Any
    stream: log.Stream | None
    reclaimer: Reclaimer
    collector: MmCollector

    @property
    def works(self) -> Works:
        """What runs on the host."""

    def serve_metrics(self, address: tuple[str, int] | None) -> None:
        """Serve the metrics there, None for nowhere. Missing, with nothing changed."""


Take = Callable[["Running", Config, Config], None]  # daemon, configuration before, now

# What a restart takes, and why.
RESTART = {
    "host.kind": "the host is of that kind",
    "daemon.mount": "it is mounted",
    "daemon.allow_other": "an option of the mount",
    "daemon.mount_helper": "it has mounted",
    "host.profile": "the mms have lived under it",
    "host.memory": "the host began with it",
    "host.swap": "the host began with it",
    "host.zones": "the host began with them",
    "host.seed": "the host began with it",
    "group": "the mms are charged to them",
    "replay.traces": "what runs is begun with",
    "replay.hold": "what runs is begun with",
    "mm": "what runs is begun with",
}


def _log(daemon: Running, _: Config, now: Config) -> None:
    log.setup(now.daemon.log_format, now.daemon.log_level, daemon.stream)


def _metrics_address(daemon: Running, _: Config, now: Config) -> None:
    daemon.serve_metrics(now.metrics.address)


def _max_mms(daemon: Running, _: Config, now: Config) -> None:
    daemon.collector.max_mms = now.metrics.max_mms


def _works(daemon: Running, before: Config, now: Config) -> None:
    daemon.works.take_up(before, now)


def _policy(daemon: Running, _: Config, now: Config) -> None:
    daemon.reclaimer.set_policy(now.plugins.policy)


def _triggers(daemon: Running, _: Config, now: Config) -> None:
    daemon.reclaimer.set_triggers(list(now.plugins.triggers))


def _policies(daemon: Running, before: Config, now: Config) -> None:
    for name, values in _changed(before.plugins.policies, now.plugins.policies):
        daemon.reclaimer.set_tunables("policy", name, values)


def _trigger(daemon: Running, before: Config, now: Config) -> None:
    for name, values in _changed(before.plugins.trigger_tunables(), now.plugins.trigger_tunables()):
        daemon.reclaimer.set_tunables("trigger", name, values)
    old, new = before.plugins.policies_by_trigger(), now.plugins.policies_by_trigger()
    for name in old.keys() | new.keys():
        if old.get(name) != new.get(name):
            daemon.reclaimer.set_policy_of(name, new.get(name))


def _changed(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each plugin the tunables that differ; None where the file says nothing of one any more."""
    for name in sorted(old.keys() | new.keys()):
        was, is_ = old.get(name, {}), new.get(name, {})
        values = {key: is_.get(key) for key in was.keys() | is_.keys() if was.get(key) != is_.get(key)}
        if values:
            yield name, values


def _limits(daemon: Running, _: Config, now: Config) -> None:
    daemon.reclaimer.set_limits(now.plugins.deadline, now.plugins.failures)


def _new_plugins(daemon: Running, before: Config, now: Config) -> list[str]:
    """What was loaded aside may meet names here that stay until a restart. Returns what came in. BadInput."""
    section = now.plugins
    with now.blamed("plugins"):
        came = daemon.reclaimer.reload(within=[paths.share("plugins"), *section.directories])
        by_trigger = section.policies_by_trigger()
        daemon.reclaimer.check_known([section.policy, *by_trigger.values()], [*section.triggers, *by_trigger])
        for name, values in _changed(before.plugins.policies, section.policies):
            daemon.reclaimer.check_tunables("policy", name, values)
        for name, values in _changed(before.plugins.trigger_tunables(), section.trigger_tunables()):
            daemon.reclaimer.check_tunables("trigger", name, values)
    return came


def _directories(daemon: Running, before: Config, now: Config) -> None:
    gone = [str(path) for path in before.plugins.directories if path not in now.plugins.directories]
    if gone:
        daemon.log.warning("what is in stays until a restart", key="plugins.directories", directories=gone)


def _at_the_next_look(_: Running, __: Config, ___: Config) -> None:
    """The main loop reads it of the settings."""


# What a reload takes up, in this order; only the first may be refused, by the machine.
TAKEN: dict[str, Take] = {
    "metrics.address": _metrics_address,
    "metrics.max_mms": _max_mms,
    "daemon.log_format": _log,
    "daemon.log_level": _log,
    "host.vm": _works,
    "replay.speed": _works,
    "live.pid": _works,
    "live.comm": _works,
    "live.cgroup": _works,
    "live.user": _works,
    "live.budget": _works,
    "live.interval": _works,
    "plugins.directories": _directories,
    "plugins.policies": _policies,
    "plugins.trigger": _trigger,
    "plugins.policy": _policy,
    "plugins.triggers": _triggers,
    "plugins.deadline": _limits,
    "plugins.failures": _limits,
    "plugins.reload": _at_the_next_look,
}

# What is to be said of some of them.
ABOUT = {
    "metrics.address": "taken up; where it cannot be had, all of the reload is refused",
    "host.vm": "taken up, each knob that differs; nothing where the host accounts no memory",
    "replay.speed": "taken up, for every replay",
    "plugins.directories": "new ones are taken up; what is in stays until a restart",
}


def keys(settings: Config) -> dict[str, Any]:
    """Every key of the configuration, such as host.profile, with its value; lists of tables are one key."""
    found: dict[str, Any] = {}
    for section in type(settings).model_fields:
        table = getattr(settings, section)
        if isinstance(table, tuple):
            found[section] = table
        else:
            found |= {f"{section}.{key}": getattr(table, key) for key in type(table).model_fields}
    return found


def check(settings: Config, *, sources: bool) -> None:
    """See that a configuration would do for a start, but for the machine's part. BadInput.

    sources: whether traces and workloads are tried, too. Plugins are loaded aside.
    """
    section, plugins = settings.plugins, Plugins()
    with settings.blamed("plugins.directories"):
        plugins.load([paths.share("plugins"), *section.directories])
    with settings.blamed("plugins"):
        policies = Seats("policy", plugins, section.policies)
        triggers = Seats("trigger", plugins, section.trigger_tunables())
        for name in (section.policy, *section.policies_by_trigger().values()):
            policies.known(name)
        for name in (*section.triggers, *section.policies_by_trigger()):
            triggers.known(name)
    if settings.host.kind == "live":
        return
    from pterefd.session.machine import memory_of, profile_of  # with them comes the engine
    from pterefd.session.sources import open_sources

    with settings.blamed("host"):
        memory_of(settings.host, settings.group, settings.mms)
    with settings.blamed("host.profile"):
        profile_of(settings.host.profile, ())
    if sources:
        open_sources(settings.mms, plugins.workloads, settings.where_mm)


def take_up(daemon: Running, now: Config) -> None:
    """Set what differs; log it, and what has to wait for a restart. Raises PterefdError, with nothing changed."""
    before = daemon.settings
    old, new = keys(before), keys(now)
    differ = [key for key in new if new[key] != old[key]]
    check(now, sources=not {"replay.traces", "mm"}.isdisjoint(differ))
    taken = [key for key in TAKEN if key in differ]
    directories = daemon.reclaimer.look_into(now.plugins.directories)
    came: list[str] = []
    try:
        came = _new_plugins(daemon, before, now)
        for key in taken:
            TAKEN[key](daemon, before, now)
    except PterefdError:
        daemon.reclaimer.forget(directories)
        known = {f"policy {name}" for name in daemon.reclaimer.available_policies()}
        known |= {f"trigger {name}" for name in daemon.reclaimer.available_triggers()}
        if stay := [name for name in came if name in known]:  # of files where files were looked for before
            daemon.log.info("plugins reloaded", plugins=stay)
        raise
    daemon.settings = _kept(before, now)
    if came:
        daemon.log.info("plugins reloaded", plugins=came)
    daemon.log.info("configuration reloaded", keys=taken)
    for key in differ:
        if key in RESTART:
            daemon.log.warning("not taken up until a restart", key=key, reason=RESTART[key])


def _kept(before: Config, now: Config) -> Config:
    """What is in force: the new configuration, but for what has to wait."""
    values: dict[str, Any] = {}
    for key in RESTART:
        section, _, name = key.partition(".")
        if name:
            values[section] = values.get(section, getattr(now, section)).model_copy(
                update={name: getattr(getattr(before, section), name)}
            )
        else:
            values[section] = getattr(before, section)
    return now.model_copy(update=values)
