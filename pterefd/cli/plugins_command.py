"""`pterefd plugins`: what there is, whether a file keeps the contract, and a starting point for a new one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pterefd import paths
from pterefd.cli.options import FILE
from pterefd.errors import EXIT_DIFFERS, EXIT_DONE, BadInput

if TYPE_CHECKING:
    from pterefd.hookspecs import Tunables
    from pterefd.reclaim.plugins import Plugins

KINDS = ("policy", "trigger", "workload")


@click.group("plugins")
def command() -> None:
    """Show, check and begin plugins: triggers, policies, workloads."""


@command.command("list")
@click.option("-c", "--config", "file", type=FILE, metavar="FILE", help="Default: the shipped etc/pterefd.toml.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def list_plugins(file: Path | None, as_json: bool) -> int:
    """What there is, where it comes from and what can be set of it.

    Looked for beside pterefd, in the directories that the configuration names, and among installed packages.
    """
    from pterefd import config
    from pterefd.reclaim.plugins import Plugins

    settings = config.load(file if file is not None else paths.share("etc/pterefd.toml"))
    plugins = Plugins()
    plugins.load([paths.share("plugins"), *settings.plugins.directories])
    rows = list(_rows(plugins))
    if as_json:
        click.echo(json.dumps({"plugins": rows}))
        return EXIT_DONE
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['kind']:<9} {row['name']:<{width}}  {row['about']}")
        click.echo(f"{'':<{width + 12}}from {row['origin']}")
        for tunable in row["tunables"]:
            click.echo(f"{'':<{width + 12}}{tunable['name']} = {tunable['default']}  {tunable['about']}")
    return EXIT_DONE


def _rows(plugins: Plugins) -> Any:
    for kind, classes in sorted(plugins.classes.items()):
        for name, cls in sorted(classes.items()):
            yield {
                "kind": kind,
                "name": name,
                "about": (inspect.getdoc(cls) or "").partition("\n")[0],
                "origin": plugins.origin[f"{kind} {name}"],
                "tunables": list(_tunables(cls.Tunables)),
            }


def _tunables(model: type[Tunables]) -> Any:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        yield {
            "name": name,
            "default": str(getattr(default, "text", default)),
            "about": field.description or "",
        }


@command.command("check")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def check(file: Path, as_json: bool) -> int:
    """Hold a plugin file against the contract: exit code 1, and one line each, for what does not keep it.

    FILE is asked for decisions on a small recorded host, in two processes with the same seed. It fails where it
    raises, answers nonsense, chooses mms that do not exist, does not come to an end, reads the wall clock, takes
    randomness that no seed gives, gives other answers in the second run, or goes on differently after state() and
    restore().
    """
    from pterefd.session import contract

    if file.is_dir():
        raise BadInput(f"{file}: is a directory: name a plugin file in it")
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    if file.suffix != ".py":
        raise BadInput(f"{file}: is no plugin: not a .py file")
    verdict = contract.check(file)
    if as_json:
        shown = {"file": str(file), "plugins": verdict.classes, "decisions": verdict.decisions}
        click.echo(json.dumps({**shown, "findings": verdict.findings}))
    else:
        for finding in verdict.findings:
            click.echo(finding if finding.startswith(str(file.resolve())) else f"{file}: {finding}")
        if not verdict.findings:
            names = ", ".join(f"{kind} {name}" for kind, name in verdict.classes) or "observer"
            click.echo(f"{file}: {names}: keeps the contract (answers: {verdict.decisions}, the same in two runs)")
    return EXIT_DIFFERS if verdict.findings else EXIT_DONE


@command.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is to be.")
@click.option("--directory", type=FILE, default=Path(), metavar="DIR", help="Where; default: here.")
def new(name: str, kind: str, directory: Path) -> int:
    """Write a commented starting point into the directory NAME: a package with entry point and test.

    After `pip install -e 'NAME[test]'` in the environment that pterefd is in, it is in `pterefd plugins list`, and
    `pytest` in NAME passes. Its README has the steps.
    """
    from pterefd.session.scaffold import write_package

    for path in write_package(name, kind, directory):
        click.echo(str(path))
    return EXIT_DONE
