"""Plugins: files in directories and entry points; strict at start, guarded while running.

At start a plugin that cannot be loaded, names another version of the contract, has an unknown hook
or registers a name twice stops the start with one line that names it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy
from pydantic import ValidationError

from pterefd import hookspecs
from pterefd.errors import BadInput
from pterefd.hookspecs import API_VERSION, PROJECT, Policy, Trigger, Tunables

_NAME = re.compile(r"[a-z][a-z0-9_]*")
C = TypeVar("C", bound=type[Policy] | type[Trigger])


class Plugins:
    """The plugins of a process: classes by name, and the hooks that observe."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.triggers: dict[str, type[Trigger]] = {}
        self.policies: dict[str, type[Policy]] = {}
        self.origin: dict[str, str] = {}  # "policy largest_first" -> the plugin that registered it

    def load(self, directories: Iterable[Path]) -> None:
        """Load entry points and every .py file of the directories, then register what they bring. BadInput."""
        try:
            self.manager.load_setuptools_entrypoints(PROJECT)
        except Exception as error:
            raise BadInput(f"a plugin's entry point in group {PROJECT!r} cannot be loaded: {error}") from error
        for directory in directories:
            if not directory.is_dir():
                raise BadInput(f"{directory}: no such plugin directory")
            for path in sorted(directory.glob("*.py")):
                self.load_file(path)
        self._register_all()

    def load_file(self, path: Path) -> ModuleType:
        """Import one plugin file and give its hooks to pluggy."""
        name = f"pterefd_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise BadInput(f"{path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pydantic looks annotations up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise BadInput(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
        version = getattr(module, "PTEREFD_API", None)
        if version != API_VERSION:
            raise BadInput(f"{path}: PTEREFD_API is {version!r}, this pterefd has {API_VERSION}")
        try:
            self.manager.register(module, name=str(path))
        except (ValueError, pluggy.PluginValidationError) as error:
            raise BadInput(f"{path}: {_one_line(error)}") from error
        return module

    def _register_all(self) -> None:
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise BadInput(f"{self.manager.get_name(error.plugin)}: {_one_line(error)}") from error
        for hook, table, base in (
            (self.manager.hook.pterefd_register_triggers, self.triggers, Trigger),
            (self.manager.hook.pterefd_register_policies, self.policies, Policy),
        ):
            for implementation in hook.get_hookimpls():
                self._register(implementation, table, base)

    def _register(self, implementation: Any, table: dict[str, Any], base: type[Any]) -> None:
        """Call one plugin's register hook; each class that it gives is checked."""
        plugin = implementation.plugin_name
        kind = base.__name__.lower()

        def register(cls: type[Any]) -> type[Any]:
            if not (isinstance(cls, type) and issubclass(cls, base)):
                raise BadInput(f"{plugin}: registers {cls!r} as a {kind}, which is no subclass of {base.__name__}")
            name = getattr(cls, "name", None)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise BadInput(f"{plugin}: {kind} {cls.__name__}: name {name!r} is not of the form [a-z][a-z0-9_]*")
            if name in table:
                raise BadInput(f"{plugin}: {kind} {name!r} is registered by {self.origin[f'{kind} {name}']} already")
            table[name] = cls
            self.origin[f"{kind} {name}"] = plugin
            return cls

        try:
            implementation.function(register)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"{plugin}: {implementation.function.__name__} raised {error!r}") from error

    def make(self, cls: C, values: dict[str, Any]) -> Any:
        """An instance with tunables from the configuration. BadInput names plugin, tunable or class, and reason."""
        try:
            tunables: Tunables = cls.Tunables(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInput(f"plugin {cls.name}: {where}: {first['msg']}") from error
        try:
            return cls(tunables)
        except Exception as error:
            kind = "policy" if issubclass(cls, Policy) else "trigger"
            plugin = self.origin.get(f"{kind} {cls.name}", cls.name)
            raise BadInput(f"{plugin}: {cls.__name__}.__init__ raised {error!r}") from error

    def names_of(self, implementation: Any) -> str:
        """The name by which an observer's errors are counted."""
        return Path(implementation.plugin_name).stem


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
