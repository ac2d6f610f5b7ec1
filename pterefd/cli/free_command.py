"""`pterefd free`: give back page tables of running processes, now."""

from __future__ import annotations

from typing import Any

import click

from pterefd import quantities
from pterefd.cli.options import Quantity, print_json
from pterefd.errors import EXIT_DONE, EXIT_MISSING, EXIT_PARTLY, BadInput

_KINDS = ("empty", "zero", "mixed")


def _stop_seconds(text: str) -> float:
    """As a helper's table has it, 1 to 1000 ms: a forgotten unit is not five seconds."""
    found = quantities.seconds(text)
    if not 0.001 <= found <= 1:
        raise BadInput(f"{text!r}: from 1ms to 1s")
    return found


@click.command("free")
@click.argument("pids", metavar="PID...", type=Quantity("pid", quantities.pid), nargs=-1, required=True)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(_KINDS),
    multiple=True,
    default=("empty", "zero"),
    show_default=True,
    help="Which PTE pages; repeatable.",
)
@click.option(
    "--stop",
    type=Quantity("DURATION", _stop_seconds),
    default="5ms",
    show_default=True,
    help="How long the process may stand at a time, 1ms to 1s.",
)
@click.option(
    "--patience",
    type=Quantity("DURATION", quantities.seconds),
    default="1s",
    show_default=True,
    help="How long to wait for a moment in which a stop changes no call.",
)
@click.option(
    "--writer",
    "writers",
    multiple=True,
    metavar="NAME",
    help="Accept a process that has one: io_uring, kvm, vhost, vfio, iommufd, rdma, aio, userfaultfd. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, sizes in bytes.")
def command(
    pids: tuple[int, ...],
    kinds: tuple[str, ...],
    stop: float,
    patience: float,
    writers: tuple[str, ...],
    as_json: bool,
) -> int:
    """Free page tables of running processes that hold nothing, or nothing but the zero page.

    Each is stopped for milliseconds at a time, and goes on as it was: docs/live.md says what is done to it.
    """
    from dataclasses import asdict

    from pterefd.freeing.refuse import WRITERS
    from pterefd.freeing.work import Request, free, prove_apart
    from pterefd.live import machine, procmem
    from pterefd.live.scan import start_time

    machine.check_arch("freeing")
    if unknown := set(writers) - WRITERS.keys():
        raise click.UsageError(f"no writer {min(unknown)!r}; there are: {', '.join(WRITERS)}")
    began: dict[int, int] = {}
    for pid in pids:
        try:
            began[pid] = start_time(pid)
        except procmem.GONE:
            raise click.UsageError(f"{pid}: no such process; nothing was done") from None
    prove_apart()
    answers: list[dict[str, Any]] = []
    for pid, start in began.items():
        freed = free(Request(pid, start, stop=stop, kinds=kinds, patience=patience, writers=writers))
        answers.append(asdict(freed) | {"empty": freed.empty})
        if not as_json:
            click.echo(_line(freed.put_off or freed.refused, answers[-1]))
    if as_json:
        print_json({"processes": answers})
    if any(answer["refused"] for answer in answers):
        return EXIT_MISSING
    return EXIT_PARTLY if any(answer["put_off"] for answer in answers) else EXIT_DONE


def _line(why: str, answer: dict[str, Any]) -> str:
    """What came of one."""
    pid = f"{answer['pid']}: "
    if not answer["stops"]:
        return pid + (f"nothing was done: {why.removeprefix(pid)}" if why else "there is nothing to free")
    times = "once" if answer["stops"] == 1 else f"{answer['stops']} times"
    text = (
        f"{pid}freed {answer['freed'] >> 10} kB of page tables (empty {answer['empty'] >> 10}, zero "
        f"{answer['zero'] >> 10}, mixed {answer['mixed'] >> 10}), VmPTE {answer['before'] >> 10} -> "
        f"{answer['after'] >> 10} kB; it stood {times}, {answer['longest_stop'] * 1000:.1f} ms at most"
    )
    return f"{text}; then: {why.removeprefix(pid)}" if why else text
