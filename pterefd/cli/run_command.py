"""`pterefd run`: the daemon in the foreground."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from pterefd import paths, quantities
from pterefd.cli.options import FILE, Quantity, parameters


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
@click.option("--live", is_flag=True, help="Watch this machine's own processes instead (docs/live.md).")
@click.option("--pid", "pids", type=Quantity("pid", quantities.pid), multiple=True, help="Of these pids; repeatable.")
@click.option("--comm", "comms", metavar="NAME", multiple=True, help="... names, with * and ?; repeatable.")
@click.option("--cgroup", "cgroups", metavar="PATH", multiple=True, help="... cgroups and those below; repeatable.")
@click.option("--user", "users", metavar="USER", multiple=True, help="... users; repeatable.")
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
    live: bool,
    pids: tuple[int, ...],
    comms: tuple[str, ...],
    cgroups: tuple[str, ...],
    users: tuple[str, ...],
) -> int | None:
    """Run the daemon: replay traces, run workloads, mount the tree, serve the metrics, until Ctrl-C or SIGTERM.

    What is given here stands before what the configuration says. With --live it replays nothing: its mms are the
    processes of this machine, all of them or those that match.
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
        live=live,
        matching={"pid": pids, "comm": comms, "cgroup": cgroups, "user": users},
        shipped=file is None,
    )
    settings = load()
    # The daemon brings numba with it, which takes longer to load than a bad configuration to be told.
    from pterefd import daemon

    return daemon.run(settings, load=load)


def mm_table(text: str) -> dict[str, Any]:
    """`NAME,KEY=VALUE` as an [[mm]] table; what its values should be is said by the workload."""
    name, *rest = text.split(",")
    return {"workload": name, "parameters": parameters(rest)}
