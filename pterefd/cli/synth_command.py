"""`pterefd synth`: a workload's events as a trace."""

from __future__ import annotations

from pathlib import Path

import click

from pterefd import paths
from pterefd.cli.options import FILE, force, output, parameters, progress


@click.command("synth")
@click.argument("name")
@click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help="A parameter of the workload; repeatable.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Equal seeds give equal events.")
@output("-o", "--output", metavar="OUT", stdout=True, what="Parquet, or JSON Lines where it ends in .jsonl.")
@click.option("--plugins", type=FILE, multiple=True, metavar="DIR", help="Where further plugins lie; repeatable.")
@force()
def command(
    name: str, given: tuple[str, ...], seed: int, output: Path | None, plugins: tuple[Path, ...], force: bool
) -> int:
    """Write what the workload NAME does as a trace, to be shared, replayed and re-enacted (docs/workloads.md).

    Without OUT, or with -, it goes to standard output, as JSON Lines.
    """
    from pterefd.config import MmSection
    from pterefd.reclaim.plugins import Plugins
    from pterefd.session.sources import workload_source
    from pterefd.source.convert import write_trace

    known = Plugins()
    known.load([paths.share("plugins"), *plugins])
    mm = MmSection.model_construct(workload=name, parameters=parameters(given))
    source = workload_source(mm, known.workloads, seed)
    with progress("writing") as tell:
        write_trace(source, output, force=force, progress=tell)
    return 0
