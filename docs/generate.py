"""Writes the made parts of the pages here: `make docs`. tests/test_docs.py sees that they are up to date.

A made part stands between `<!-- made: NAME -->` and `<!-- end -->`; everything else is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click
from prometheus_client import Metric
from pydantic.fields import FieldInfo

from pterefd import hookspecs, log, paths
from pterefd.cli.group import COMMANDS, cli
from pterefd.host.host import Host
from pterefd.host.memory import GroupLimit, Memory
from pterefd.live.host import LiveHost
from pterefd.metrics import HostCollector
from pterefd.metrics_live import LiveCollector
from pterefd.mm.profile import OPTIONS, PROFILES, Profile, named
from pterefd.procfs.faces import Faces
from pterefd.procfs.live.root import LIVE_ROOT
from pterefd.procfs.root import ROOT
from pterefd.procfs.tree import Content, Dir, Family, File, Link, Rows
from pterefd.reclaim.plugins import Plugins
from pterefd.reclaim.reclaimer import Reclaimer
from pterefd.reload import ABOUT, RESTART, TAKEN

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.kernel import exactness  # noqa: E402 - of the checkout, which is no installed package

PAGES = (HERE.parent / "README.md", *sorted(HERE.glob("*.md")))
MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def commands() -> str:
    """`--help` of every command."""
    parts = []
    context = click.Context(cli, info_name="pterefd", **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        parts += _helps(command, name, context, "##")
    return "\n".join(parts)


def _helps(command: click.Command, name: str, parent: click.Context, mark: str) -> Iterator[str]:
    """`--help` of a command, and of those of its own that it has."""
    shown = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    yield f"{mark} {shown.command_path}\n\n```text\n{command.get_help(shown).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for below in command.list_commands(shown):
            found = command.get_command(shown, below)
            assert found is not None
            yield from _helps(found, below, shown, f"{mark}#")


def nodes() -> str:
    """Every file of the mount, as its tables declare it."""
    return _table_of(ROOT)


def live_nodes() -> str:
    """The same of a live host; what the kernel has in a directory is one row."""
    return _table_of(LIVE_ROOT)


def _table_of(root: Dir) -> str:
    head = "| path | mode | what it is |\n| --- | --- | --- |\n"
    return head + "".join(f"| `{path}` | {mode} | {what} |\n" for path, mode, what in _nodes(root, ""))


def _nodes(directory: Dir, path: str) -> Iterator[tuple[str, str, str]]:
    for entry in directory.entries:
        match entry:
            case File():
                yield f"{path}{entry.name}", f"{entry.mode:04o}", _what(entry)
            case Link():
                yield f"{path}{entry.name}", "link", entry.help
            case Dir():
                yield from _nodes(entry, f"{path}{entry.name}/")
            case Family(each=Link()):
                yield f"{path}{entry.label}", "link", entry.help
            case Family(label=label) if path.endswith(f"/{label}/"):
                pass  # directories within directories
            case Family(each=Dir() as each):
                yield f"{path}{entry.label}/", "0555", entry.help
                yield from _nodes(each, f"{path}{entry.label}/")
            case Rows(find=None):
                yield f"{path}{entry.label}", "0644", entry.help
            case Rows():
                yield f"{path}{entry.label}", "0444", entry.help


@cache
def _hosts() -> tuple[Faces, Faces]:
    """Without memory of its own, and with it."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    hosts = Host(named("rfc-2022")), Host(named("rfc-2022"), memory=Memory(1 << 30))
    without, having = (Faces(host, Reclaimer(host, plugins, log.get(), triggers=())) for host in hosts)
    return without, having


def _needs_memory(file: File) -> bool:
    """Whether it is there only where the host has memory of its own."""
    without, having = _hosts()
    return (
        file.exists is not None and file.open is None and file.exists(having, None) and not file.exists(without, None)
    )


def _what(file: File) -> str:
    notes = [file.unit] if file.unit else []
    if file.content is Content.INT:
        notes.append(f"{file.low}..{file.high}")
    if _needs_memory(file):
        notes.append("there with `host.memory` only")
    return f"{file.help} ({', '.join(notes)})" if notes else file.help


def hooks() -> str:
    """Every hook with its exact arguments, and its contract."""
    parts = []
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("pterefd_"):
            arguments = str(inspect.signature(function)).replace("'", "")
            parts.append(f"### {name}\n\n```python\ndef {name}{arguments}\n```\n\n{inspect.getdoc(function)}\n")
    return "\n".join(parts)


def metrics() -> str:
    """Every metric that hosts without mms have, which is every one, and which kinds of host have it."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    host = Host(named("rfc-2022"), memory=Memory(1 << 30, groups=(GroupLimit("web"),)))
    live = LiveHost()
    found: dict[str, tuple[Metric, list[str]]] = {}
    for collector, kind in (
        (HostCollector(host, Reclaimer(host, plugins, log.get())), host.kind),
        (LiveCollector(live, Reclaimer(live, plugins, log.get())), live.kind),
    ):
        for family in collector.collect():
            found.setdefault(_exposed(family), (family, []))[1].append(kind)
    head = "| metric | type | labels | host | what it is |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join(
        f"| `{name}` | {family.type} | {', '.join(_labels(family))} | {', '.join(kinds)} | {family.documentation} |\n"
        for name, (family, kinds) in found.items()
    )


def _exposed(family: Metric) -> str:
    """The name as a scrape shows it."""
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def _labels(family: Metric) -> tuple[str, ...]:
    if family.type == "info":
        return tuple(family.samples[0].labels)
    return tuple(getattr(family, "_labelnames", ()))


def profiles() -> str:
    """Every profile, and how far it is checked."""
    head = "| profile | what it is | checked |\n| --- | --- | --- |\n"
    rows = (f"| `{p.name}` | {p.about} | {_checked(p)} |\n" for p in PROFILES.values())
    return head + "".join(rows) + f"\nOptions, behind a profile's name and a plus sign: `{'`, `'.join(OPTIONS)}`.\n"


def _checked(profile: Profile) -> str:
    return "measured on that kernel" if profile.measured else "from source"


def workloads() -> str:
    """Every workload file with what it says of itself, and the parameters of each of its workloads."""
    plugins = Plugins()
    plugins.load([paths.share("plugins")])
    files: dict[str, list[type[hookspecs.Workload]]] = {}
    for _, cls in sorted(plugins.workloads.items()):
        files.setdefault(cls.__module__, []).append(cls)
    parts = []
    for module, classes in files.items():
        names = ", ".join(f"`{cls.name}`" for cls in classes)
        about = inspect.cleandoc(sys.modules[module].__doc__ or "")
        parts.append(f"### {names}\n\n{about}\n\n{_parameters(classes)}")
    return "\n".join(parts)


def _parameters(classes: list[type[hookspecs.Workload]]) -> str:
    """One table of the parameters of some workloads; what not all of them have says whose it is."""
    head = "| parameter | default | range | what it is |\n| --- | --- | --- | --- |\n"
    names = dict.fromkeys(name for cls in classes for name in cls.Tunables.model_fields)
    rows = []
    for name in names:
        owners = [cls for cls in classes if name in cls.Tunables.model_fields]
        field = owners[0].Tunables.model_fields[name]
        note = "" if len(owners) == len(classes) else f" (`{'`, `'.join(cls.name for cls in owners)}`)"
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        rows.append(f"| `{name}` | {default} | {_range(field)} | {field.description}{note} |\n")
    return head + "".join(rows)


def _range(field: FieldInfo) -> str:
    """`1..100`, `more than 0, up to 1`, `true or false`."""
    if field.annotation is bool:
        return "true, false"
    limits = {key: getattr(rule, key) for rule in field.metadata for key in ("ge", "gt", "le") if hasattr(rule, key)}
    low = f"{limits['ge']}.." if "ge" in limits else f"more than {limits['gt']}, up to "
    return f"{low}{limits['le']}"


def reload() -> str:
    """Every key of the configuration, and whether a reload takes it up."""
    head = "| key | at a reload |\n| --- | --- |\n"
    rows = [(key, ABOUT.get(key, "taken up")) for key in TAKEN]
    rows += [(key, f"needs a restart: {why}") for key, why in RESTART.items()]
    return head + "".join(f"| `{key}` | {what} |\n" for key, what in sorted(rows))


def clients() -> str:
    """What the tests hold each client to: the arguments of their `client` markers."""
    rows = set()
    for path in sorted((HERE.parent / "tests" / "clients").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.client":
                client, package, compared = (ast.literal_eval(argument) for argument in node.args)
                rows.add(f"| `{client}` | {package} | {compared} |\n")
    return "| client | package | what is compared with the host |\n| --- | --- | --- |\n" + "".join(sorted(rows))


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "nodes": nodes,
    "live_nodes": live_nodes,
    "hooks": hooks,
    "metrics": metrics,
    "profiles": profiles,
    "workloads": workloads,
    "reload": reload,
    "clients": clients,
    **exactness.PARTS,
}


def renewed(page: Path) -> str:
    """The text of the page with its made parts made anew."""
    return MADE.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}{match[3]}", page.read_text())


def main() -> None:
    for page in PAGES:
        text = renewed(page)
        if text != page.read_text():
            page.write_text(text)
            print(f"{page.relative_to(HERE.parent)}: made anew", file=sys.stderr)


if __name__ == "__main__":
    main()
