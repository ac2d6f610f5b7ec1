"""`pterefd run`: the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pterefd import paths, quantities
from pterefd.cli.options import FILE, Quantity


@click.command("run")
@click.option("-c", "--config", "config_file", type=FILE, metavar="FILE", help="Default: the shipped etc/pterefd.toml.")
@click.option("--trace", "traces", type=FILE, multiple=True, metavar="FILE", help="Replay this instead; repeatable.")
@click.option("--mount", type=FILE, metavar="DIR", help="Where the tree appears: an empty directory.")
@click.option(
    "--metrics-address",
    type=Quantity("address", quantities.address),
    metavar="HOST:PORT",
    help="Where Prometheus scrapes.",
)
@click.option("--speed", type=Quantity("speed", quantities.speed), metavar="1|N|max", help="Factor of real time.")
@click.option("--profile", metavar="P", help="Which kernel's rules the mms live under.")
def command(config_file: Path | None, **overrides: Any) -> int:
    """Run the daemon: replay traces, mount the tree, serve the metrics, until Ctrl-C or SIGTERM."""
    from pterefd import config, daemon

    settings = config.load(config_file or paths.share("etc") / "pterefd.toml")
    return daemon.run(settings)
