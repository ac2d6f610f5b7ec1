"""Plugins: files in directories and entry points; strict at start, guarded while running.

At start a plugin that cannot be loaded, names another version of the contract, has an unknown hook
or registers a name twice stops the start with one line that names it. Files that are new or have changed
since can be taken up later; one that does not fit is told in one line then, and what was there carries on.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import pluggy
from pydantic import ValidationError

from pterefd import hookspecs, log
from pterefd.config import said
from pterefd.errors import BadInput
from pterefd.hookspecs import API_VERSION, PROJECT, Policy, Trigger, Tunables, Workload
from pterefd.reclaim.guard import Abandoned, plain

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# kind -> hook that registers its classes, base of them
KINDS: dict[str, tuple[str, type[Any]]] = {
    "trigger": ("pterefd_register_triggers", Trigger),
    "policy": ("pterefd_register_policies", Policy),
    "workload": ("pterefd_register_workloads", Workload),
}
RESERVED = {"trigger": ("policy",)}  # names of files beside the tunables
OBSERVER = "observer"

Stamp = tuple[int, int]  # st_mtime_ns, st_size


@dataclass
class Loaded:
    """A plugin that is in: its module (or what its entry point named), and the classes that it registers."""

    origin: str
    plugin: Any
    classes: dict[str, dict[str, type[Any]]] = field(default_factory=dict)


class Reloaded(NamedTuple):
    """What a look for new and changed files brought. names: (kind, name) that are new or new again.

    errors: one line for each file that did not fit.
    """

    names: list[tuple[str, str]]
    errors: list[str]


class _Uncached(SourceFileLoader):
    """Python's cache of compiled files takes an edit within a second, of the same length, for no edit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def says(*words: Any, sep: str | None = " ", **_: Any) -> None:
    """What `print` is in a plugin file: a line of the log, as standard output may be a report."""
    log.get().info("plugin says", text=(" " if sep is None else sep).join(map(str, words)))


class Plugins:
    """The plugins of a process: classes by kind and name, and the hooks that observe."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.classes: dict[str, dict[str, type[Any]]] = {kind: {} for kind in KINDS}
        self.origin: dict[str, str] = {}  # "policy largest_first" -> the plugin that registered it
        self._loaded: dict[str, Loaded] = {}  # by origin
        self._directories: list[Path] = []
        self._stamps: dict[Path, Stamp] = {}  # of files as they were when they were last tried
        self.refused: set[Path] = set()  # files that did not fit when they were last tried

    @property
    def triggers(self) -> dict[str, type[Trigger]]:
        """Trigger classes by name."""
        return self.classes["trigger"]

    @property
    def policies(self) -> dict[str, type[Policy]]:
        """Policy classes by name."""
        return self.classes["policy"]

    @property
    def workloads(self) -> dict[str, type[Workload]]:
        """Workload classes by name."""
        return self.classes["workload"]

    # ---- loading ------------------------------------------------------------------------------

    def load(self, directories: Iterable[Path], *, installed: bool = True) -> None:
        """Load every .py file of the directories, then the entry points, and register what they bring. BadInput.

        installed: False leaves the entry points of installed packages out.
        """
        for directory in directories:
            if not directory.is_dir():
                raise BadInput(f"{directory}: no such plugin directory")
            self._directories.append(directory)
            for path in sorted(directory.glob("*.py")):
                self.load_file(path)
        if installed:
            for entry in sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda entry: entry.name):
                self._load_entry_point(entry)

    def load_file(self, path: Path) -> Any:
        """Import one plugin file and register what it brings; in place of what the file brought before. BadInput."""
        self._stamps[path] = _stamp(path)
        self.refused.add(path)  # until it is in
        name = f"pterefd_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
        spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
        if spec is None or spec.loader is None:
            raise BadInput(f"{path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        module.__dict__["print"] = says
        before = sys.modules.get(name)
        sys.modules[name] = module  # pydantic looks annotations up there
        try:
            with _strict(str(path), "cannot be imported"):
                spec.loader.exec_module(module)
            self._take(str(path), module, getattr(module, "PTEREFD_API", None))
        except BadInput:
            if before is not None:
                sys.modules[name] = before
            raise
        self.refused.discard(path)
        return module

    def _load_entry_point(self, entry: importlib.metadata.EntryPoint) -> None:
        dist = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        origin = f"{entry.value}{dist}"
        with _strict(origin, f"a plugin's entry point in group {PROJECT!r} cannot be loaded"):
            plugin = entry.load()
        module = plugin if isinstance(plugin, ModuleType) else sys.modules.get(getattr(plugin, "__module__", ""))
        if module is not None:
            module.__dict__.setdefault("print", says)
        version = getattr(plugin, "PTEREFD_API", getattr(module, "PTEREFD_API", None))
        self._take(origin, plugin, version)

    def _take(self, origin: str, plugin: Any, version: Any) -> None:
        """Check a plugin as a whole, then let it in, in place of what came from the same origin before. BadInput."""
        if version != API_VERSION:
            said = "is missing" if version is None else f"is {version!r}"
            raise BadInput(f"{origin}: PTEREFD_API {said}, this pterefd has {API_VERSION}")
        new = Loaded(origin, plugin)
        for kind, implementation in _registrations(origin, plugin):
            new.classes[kind] = self._classes_of(origin, kind, implementation)
        self._let_go(origin)
        for kind, classes in new.classes.items():
            self.classes[kind].update(classes)
            self.origin.update({f"{kind} {name}": origin for name in classes})
        self.manager.register(plugin, name=origin)
        self._loaded[origin] = new

    def _let_go(self, origin: str) -> None:
        """What came from there, if anything did, is in no more."""
        old = self._loaded.pop(origin, None)
        if old is not None:
            self.manager.unregister(old.plugin)
            for kind, classes in old.classes.items():
                for name in classes:
                    del self.classes[kind][name], self.origin[f"{kind} {name}"]

    def _classes_of(self, origin: str, kind: str, implementation: Any) -> dict[str, type[Any]]:
        """Call one plugin's register hook; each class that it gives is checked."""
        base = KINDS[kind][1]
        found: dict[str, type[Any]] = {}

        def register(cls: type[Any]) -> type[Any]:
            if not (isinstance(cls, type) and issubclass(cls, base)):
                raise BadInput(f"{origin}: registers {cls!r} as a {kind}, which is no subclass of {base.__name__}")
            name = getattr(cls, "name", None)
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise BadInput(f"{origin}: {kind} {cls.__name__}: name {name!r} is not of the form [a-z][a-z0-9_]*")
            by = origin if name in found else self.origin.get(f"{kind} {name}", origin)
            if name in found or by != origin:
                raise BadInput(f"{origin}: {kind} {name!r} is registered by {by} already")
            if not (isinstance(cls.Tunables, type) and issubclass(cls.Tunables, Tunables)):
                raise BadInput(f"{origin}: {kind} {name!r}: Tunables is no subclass of pterefd.hookspecs.Tunables")
            for reserved in RESERVED.get(kind, ()):
                if reserved in cls.Tunables.model_fields:
                    raise BadInput(f"{origin}: {kind} {name!r}: a tunable may not be called {reserved!r}")
            found[name] = cls
            return cls

        with _strict(origin, f"{implementation.function.__name__} raised", always=True):
            implementation.function(register)
        return found

    def look_into(self, directories: Iterable[Path]) -> list[Path]:
        """Directories whose files changed() and reload() are about, too, from now on. Returns those that are new."""
        new = [directory for directory in dict.fromkeys(directories) if directory not in self._directories]
        self._directories += new
        return new

    def forget(self, directories: Iterable[Path]) -> None:
        """Directories that are looked into no more; what their files have brought goes."""
        gone = set(directories)
        self._directories = [directory for directory in self._directories if directory not in gone]
        for path in [path for path in self._stamps if path.parent in gone]:
            del self._stamps[path]
            self.refused.discard(path)
            self._let_go(str(path))

    # ---- later --------------------------------------------------------------------------------

    def changed(self) -> dict[Path, Stamp]:
        """Files of the directories that are new, or not as they were when they were last tried."""
        files = {path: _stamp(path) for directory in self._directories for path in sorted(directory.glob("*.py"))}
        return {path: stamp for path, stamp in files.items() if self._stamps.get(path) != stamp}

    def to_try(self) -> list[Path]:
        """Files that are new or have changed, and those that did not fit and are still there."""
        return sorted({*self.changed(), *(path for path in self.refused if path.exists())})

    def reload(self, files: Iterable[Path] | None = None) -> Reloaded:
        """Take up new and changed files (these, or all that there are). What does not fit leaves all as it was."""
        names: list[tuple[str, str]] = []
        errors: list[str] = []
        for path in self.changed() if files is None else files:
            try:
                self.load_file(path)
            except BadInput as error:
                errors.append(str(error))
            else:
                classes = self._loaded[str(path)].classes
                names += [(kind, name) for kind in classes for name in classes[kind]]
        return Reloaded(names, errors)

    # ---- use ----------------------------------------------------------------------------------

    def make(self, cls: type[Any], values: dict[str, Any]) -> Any:
        """An instance with tunables from the configuration. BadInput names plugin, tunable and reason."""
        tunables = self.tunables(cls, values)
        name = f"plugin {cls.name}"
        with _strict(name, "cannot be made"):
            return cls(tunables)

    def tunables(self, cls: type[Any], values: dict[str, Any]) -> Tunables:
        """The tunables of a class, with values from the configuration. BadInput names plugin, tunable and reason."""
        name = f"plugin {cls.name}"
        try:
            made: Tunables = cls.Tunables(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = said(first)
            if first["type"] == "extra_forbidden":
                reason = f"no such tunable; there are: {', '.join(cls.Tunables.model_fields) or 'none'}"
            raise BadInput(f"{name}: {where}: {reason}") from error
        except Exception as error:
            raise BadInput(f"{name}: its tunables cannot be made: {plain(error)}") from error
        return made

    def observers(self) -> list[Any]:
        """Implementations of pterefd_reclaimed."""
        return list(self.manager.hook.pterefd_reclaimed.get_hookimpls())

    def name_of(self, implementation: Any) -> str:
        """The name by which an observer's errors are counted."""
        origin = str(implementation.plugin_name)
        return Path(origin).stem if origin.endswith(".py") else origin.partition(" ")[0]


def _registrations(origin: str, plugin: Any) -> Iterator[tuple[str, Any]]:
    """(kind, register hook) of a plugin, all of whose hooks are known. BadInput."""
    probe = pluggy.PluginManager(PROJECT)
    probe.add_hookspecs(hookspecs)
    try:
        probe.register(plugin, name=origin)
        probe.check_pending()
    except (ValueError, pluggy.PluginValidationError) as error:
        raise BadInput(f"{origin}: {' '.join(str(error).split())}") from error
    for kind, (hook, _) in KINDS.items():
        for implementation in getattr(probe.hook, hook).get_hookimpls():
            yield kind, implementation


@contextlib.contextmanager
def _strict(origin: str, what: str, *, always: bool = False) -> Iterator[None]:
    """A plugin's code at start: whatever it raises becomes one line; what it prints is no part of a report.

    Ctrl-C stays what it is.  always: no colon behind `what`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (BadInput, KeyboardInterrupt, Abandoned):
        raise
    except BaseException as error:
        raise BadInput(f"{origin}: {what}{'' if always else ':'} {plain(error)}") from error


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size
