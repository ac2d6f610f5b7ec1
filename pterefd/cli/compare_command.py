"""`pterefd compare`: what each policy, trigger, profile and memory would have saved, and what it would have cost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from pterefd import outputs
from pterefd.cli.options import FILE, force, output, print_json, progress
from pterefd.errors import EXIT_DIFFERS, EXIT_DONE, BadInput

RATE = click.FloatRange(0, 1)


@click.command("compare")
@click.argument("scenario", type=FILE, metavar="SCENARIO.toml")
@click.option(
    "--profile", "profiles", multiple=True, metavar="P", help="Kernel's rules (docs/profiles.md); repeatable."
)
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Which mms are reclaimed from; repeatable.")
@click.option(
    "--trigger", "triggers", multiple=True, metavar="A[+B]|none", help="When; several at once with +; repeatable."
)
@click.option(
    "--memory", "memories", multiple=True, metavar="SIZE|Nx", help="Of the host, or N times the scenario's; repeatable."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE|Nx", help="Another value in the scenario; repeatable."
)
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), metavar="N", help="Repeatable.")
@click.option("--bound/--no-bound", default=None, help="Also the optimum that knows the future, and each one's regret.")
@click.option("--costs", type=FILE, metavar="FILE", help="Of `pterefd calibrate -o`; default: the shipped ones.")
@click.option(
    "--reread", type=RATE, metavar="0..1", help="Assumed share of a freed zero PTE page's entries that is read again."
)
@click.option("--format", "form", type=click.Choice(["table", "markdown", "mail"]), help="[default: table]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@output("--csv", what="Every number, a line a run.")
@click.option("--plot", "plots", type=FILE, multiple=True, metavar="FILE", help=".png, .svg or .html; repeatable.")
@force("FILE of --csv and --plot")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes.  [default: as many as processors]")
@click.option("--resume", type=FILE, metavar="DIR", help="Keep each result there, and go on from what is there.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Run on a Dask cluster that is trusted; tls:// too.")
def command(
    scenario: Path,
    profiles: tuple[str, ...],
    policies: tuple[str, ...],
    triggers: tuple[str, ...],
    memories: tuple[str, ...],
    settings: tuple[str, ...],
    seeds: tuple[int, ...],
    bound: bool | None,
    costs: Path | None,
    reread: float | None,
    form: str | None,
    as_json: bool,
    csv: Path | None,
    plots: tuple[Path, ...],
    force: bool,
    jobs: int | None,
    resume: Path | None,
    scheduler: str | None,
) -> int:
    """Run every combination on the same events and show what each saves and costs (docs/compare.md).

    What is not given is as the scenario has it. Exit code 1 where an outcome that it expects does not hold.
    """
    if jobs is not None and scheduler is not None:
        raise click.UsageError("--jobs is for this machine, --scheduler for others")
    if as_json and form is not None:
        raise click.UsageError("--json is a form of its own: leave --format out")
    from pterefd.session import cluster, sweep
    from pterefd.session import scenario as scenarios
    from pterefd.session.comparison import RENDERERS
    from pterefd.session.plots import check_format, save

    for path in plots:
        check_format(path)
    given = scenarios.Choices(profiles, policies, triggers, memories, seeds, bound, reread)
    read = scenarios.load(scenario, settings)
    _check_outputs(csv, plots, scenarios.inputs(read, costs), force)
    plan = scenarios.plan(read, given, costs)
    runner = cluster.on(scheduler) if scheduler is not None else sweep.here(jobs or scenarios.processors())
    with progress(f"comparing {scenario}", "runs") as tell:
        results = sweep.run_all(plan.tasks, runner, sweep.Kept(resume), tell)
    comparison = scenarios.comparison(plan, results)
    if csv is not None:
        _write(csv, lambda: csv.write_text(comparison.as_csv()))
    for path in plots:
        save(comparison, path)
    if as_json:
        print_json(comparison.as_dict())
    else:
        click.echo(RENDERERS[form or "table"](comparison), nl=False)
    failed = [held for held in comparison.held if not held.holds]
    for held in failed:
        why = f"expect: {held.text}: about no run" if held.run is None else f"run {held.run}: {held.text} does not hold"
        print(f"pterefd: {scenario}: {why}", file=sys.stderr)
    return EXIT_DIFFERS if failed else EXIT_DONE


def _check_outputs(csv: Path | None, plots: Sequence[Path], inputs: Sequence[Path], force: bool) -> None:
    """Before hours of work: whether all that is asked for may be written, each to a file of its own."""
    if csv is not None:
        outputs.check(csv, force=force, ending=".csv", inputs=inputs)
    for path in plots:
        outputs.check(path, force=force, inputs=inputs)
    names = [os.path.realpath(path) for path in (*([csv] if csv is not None else []), *plots)]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"{name} is to be written {names.count(name)} times: give each its own file")


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
