"""The instances of policies and triggers, their tunables, and which plugins are put aside for failing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import ValidationError

from pterefd.errors import BadInput
from pterefd.hookspecs import Tunables
from pterefd.reclaim.guard import Plugin, plain
from pterefd.reclaim.plugins import Plugins


class Seats:
    """One instance of each plugin of a kind. values: of their tunables, by name, from the configuration. BadInput."""

    def __init__(self, kind: str, plugins: Plugins, values: dict[str, dict[str, Any]]) -> None:
        self.kind = kind
        self._plugins = plugins
        self._values = values
        classes = plugins.classes[kind]
        for name in values:
            if name not in classes:
                raise BadInput(f"tunables for a {kind} {name!r} that no plugin registers")
        self._instances = {name: plugins.make(cls, values.get(name, {})) for name, cls in classes.items()}

    def __getitem__(self, name: str) -> Any:
        return self._instances[name]

    def __contains__(self, name: object) -> bool:
        return name in self._instances

    def names(self) -> list[str]:
        """In alphabetical order."""
        return sorted(self._instances)

    def known(self, name: str) -> str:
        """The name again. BadInput where there is no plugin of it."""
        if name not in self._instances:
            raise BadInput(f"no {self.kind} {name!r}; there are: {', '.join(self.names())}")
        return name

    def tunables(self) -> dict[str, Tunables]:
        """Tunables of the plugins that declare any."""
        found = {name: instance.tunables for name, instance in sorted(self._instances.items())}
        return {name: tunables for name, tunables in found.items() if type(tunables).model_fields}

    def set_values(self, name: str, values: dict[str, Any]) -> None:
        """Other tunables from the configuration: all of these at once, the others keep theirs. BadInput."""
        self._instances[self.known(name)].tunables = self.with_values(name, values)
        self._values = {**self._values, name: self._values.get(name, {}) | values}

    def with_values(self, name: str, values: dict[str, Any]) -> Tunables:
        """What the tunables would be with these values. BadInput."""
        instance = self._instances[self.known(name)]
        now = {field: getattr(instance.tunables, field) for field in type(instance.tunables).model_fields}
        return self._plugins.tunables(type(instance), now | values)

    def default(self, name: str, field: str) -> Any:
        """What a tunable is where nothing sets it. BadInput."""
        return getattr(self._plugins.tunables(type(self._instances[self.known(name)]), {}), field)

    def remake(self, name: str) -> None:
        """An instance of the class that is there now; tunables keep their values where they may. BadInput."""
        old = self._instances.get(name)
        values = dict(self._values.get(name, {}))
        if old is not None:
            values |= {field: getattr(old.tunables, field, None) for field in type(old.tunables).model_fields}
        cls = self._plugins.classes[self.kind][name]
        self._instances[name] = self._plugins.make(cls, _fitting(cls.Tunables, values))

    def drop_missing(self) -> None:
        """Forget what no plugin registers any more."""
        self._instances = {name: i for name, i in self._instances.items() if name in self._plugins.classes[self.kind]}

    def state(self) -> dict[str, Any]:
        """What each plugin remembers, where it remembers something."""
        states = {name: instance.state() for name, instance in sorted(self._instances.items())}
        return {name: state for name, state in states.items() if state}

    def restore(self, states: dict[str, Any]) -> None:
        """Go on from a state()."""
        for name, state in states.items():
            self._instances[self.known(name)].restore(state)


def _fitting(model: type[Tunables], values: dict[str, Any]) -> dict[str, Any]:
    """The values that a model takes, each for itself."""
    found = {}
    for name, value in values.items():
        try:
            model(**{name: value})
        except (ValidationError, TypeError, ValueError):
            continue
        found[name] = value
    return found


class Conduct:
    """Failures of plugins: counted, and after so many in a row the plugin is put aside until somebody takes it back."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._row: Counter[Plugin] = Counter()
        self.errors: Counter[str] = Counter()
        self.aside: dict[Plugin, str] = {}  # with the last error

    def bear(self, most: int) -> None:
        """Another number of failures in a row, from the next one on."""
        self._most = most

    def failed(self, plugin: Plugin, error: BaseException, *, may_go: bool = True) -> bool:
        """Count a failure. True where the plugin is put aside for it."""
        self.errors[plugin[1]] += 1
        self._row[plugin] += 1
        if not may_go or plugin in self.aside or self._row[plugin] < self._most:
            return False
        self.aside[plugin] = plain(error)
        return True

    def served(self, plugin: Plugin) -> None:
        """It did what it should."""
        if plugin in self._row:
            del self._row[plugin]

    def take_back(self, plugin: Plugin) -> bool:
        """Whether it was aside."""
        self._row.pop(plugin, None)
        return self.aside.pop(plugin, None) is not None
