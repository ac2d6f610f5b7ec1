"""`pterefd run`: the daemon in the foreground."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from pterefd import paths
from pterefd.cli.options import FILE, parameters


@click.command("run")
@click.option("-c", "--config", "file", type=FILE, metavar="FILE", help="Default: the shipped etc/pterefd.toml.")
@click.option("--trace", "traces", type=FILE, multiple=True, metavar="FILE", help="Replay this instead; repeatable.")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME[,KEY=VALUE]...",
    help="Run this instead; repeatable.",
)
@click.option("--mount", type=FILE, metavar="DIR", help="Where the tree appears: an empty directory.")
@click.option("--metrics-address", metavar="HOST:PORT", help="Where Prometheus scrapes; or off.")
@click.option("--speed", metavar="1|N|max", help="Factor of real time, or as fast as it goes.")
@click.option("--profile", metavar="P", help="Which kernel's rules the mms live under (docs/profiles.md).")
@click.option("--memory", metavar="SIZE", help="Of the host, which accounts none without it.")
@click.option("--swap", metavar="SIZE", help="Of the host; needs memory.")
def command(
    file: Path | None,
    traces: tuple[Path, ...],
    workloads: tuple[str, ...],
    mount: Path | None,
    metrics_address: str | None,
    speed: str | None,
    profile: str | None,
    memory: str | None,
    swap: str | None,
) -> int | None:
    """Run the daemon: replay traces, run workloads, mount the tree, serve the metrics, until Ctrl-C or SIGTERM.

    What is given here stands before what the configuration says.
    """
    from pterefd import config

    load = functools.partial(
        config.load,
        file if file is not None else paths.share("etc/pterefd.toml"),
        mount=mount,
        traces=traces,
        workloads=[mm_table(text) for text in workloads],
        metrics_address=metrics_address,
        speed=speed,
        profile=profile,
        memory=memory,
        swap=swap,
    )
    settings = load()
    # The daemon brings numba with it, which takes longer to load than a bad configuration to be told.
    from pterefd import daemon

    return daemon.run(settings, load=load)


def mm_table(text: str) -> dict[str, Any]:
    """`NAME,KEY=VALUE` as an [[mm]] table; what its values should be is said by the workload."""
    name, *rest = text.split(",")
    return {"workload": name, "parameters": parameters(rest)}
