"""`pterefd scan`: page-table memory of running processes that maps nothing."""

from __future__ import annotations

import click

from pterefd import quantities
from pterefd.cli.options import Quantity, print_json
from pterefd.errors import EXIT_DONE, EXIT_PARTLY


@click.command("scan")
@click.argument("pids", metavar="[PID]...", type=Quantity("pid", quantities.pid), nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Every process of this machine.")
@click.option("--explain", "explaining", is_flag=True, help="Say what likely caused it, and what would help.")
@click.option("--by", type=click.Choice(["cgroup", "comm", "user"]), help="Sums of the processes that are alike in it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, sizes in bytes.")
def command(pids: tuple[int, ...], everyone: bool, explaining: bool, by: str | None, as_json: bool) -> int:
    """Say how much page-table memory of running processes is empty or maps nothing but the zero page.

    Stops nothing and changes nothing. Those with the most to give back come first.
    """
    from pterefd.live import machine, report
    from pterefd.live.explain import explain
    from pterefd.live.scan import NotSeen, Seen, scan_all

    if bool(pids) == everyone:
        raise click.UsageError("which processes? PID... or --all")
    machine.check_arch("scanning")
    found: list[Seen] = []
    not_seen: list[NotSeen] = []
    for one in scan_all(pids or None):
        if isinstance(one, NotSeen):
            not_seen.append(one)
        else:
            found.append(one)
    if not found and len(not_seen) == 1:
        raise not_seen[0]
    found.sort(key=lambda seen: (-seen.use.reclaimable, -seen.use.vm_pte, seen.use.pid))
    uses = [seen.use for seen in found]
    causes = {seen.use.pid: explain(seen) for seen in found} if explaining else {}
    if as_json:
        print_json(report.as_json(uses, not_seen, causes, by))
    else:
        click.echo(report.render(uses, not_seen, causes, by), nl=False)
    return EXIT_PARTLY if not_seen else EXIT_DONE
