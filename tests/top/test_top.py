"""pterefd top: the numbers of a mounted tree and of running processes, on a terminal and as lines."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from pterefd.top.screen import History
from pterefd.top.sources import Row
from tests.clients.simulated import Simulated, smallest
from tests.clients.terminal import Terminal
from tests.conftest import SCRIPT, Run
from tests.live.grower_process import Grower


@pytest.fixture(scope="module")
def mounted() -> Iterator[Simulated]:
    """The small host of tests/house.py: pid 7 has 9 empty PTE pages, pid 1 has 5 and 2 zero ones."""
    with smallest() as running:
        while running.read("sys/pterefd/replay/state") != "ended\n":
            time.sleep(0.05)
        yield running


def rows(text: str) -> dict[int, list[str]]:
    """pid -> the words of its line."""
    lines = [line.split() for line in text.splitlines()]
    return {int(words[0]): words for words in lines if words and words[0].isdecimal()}


def test_lines_of_a_mounted_tree(mounted: Simulated, pterefd: Run) -> None:
    done = pterefd("top", "--mount", mounted.mount, "--batch", "--times", "1")
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    vm_pte = mounted.kb(7, "VmPTE")
    assert found[7] == ["7", "largest", str(vm_pte), "36", "36", "0", "0", str(mounted.kb(7, "VmRSS"))]
    assert found[1][2:7] == [str(mounted.kb(1, "VmPTE")), "28", "20", "8", "0"]
    assert next(iter(found)) == 7  # most first
    total = sum(int(mounted.read(f"{pid}/reclaimable_pt_bytes")) for pid in found)
    assert f"reclaimable {total >> 10} KiB" in done.stdout.splitlines()[0]


def test_keys_choose_free_and_end(mounted: Simulated) -> None:
    command = (SCRIPT, "top", "--mount", str(mounted.mount), "--interval", "200ms")
    with Terminal(*command, lines=24, columns=140, TERM="xterm") as terminal:
        terminal.wait_for_screen(lambda lines: any("largest" in line and "36" in line for line in lines))
        terminal.type("j")
        terminal.type("k")
        terminal.type("f")
        terminal.wait_for_screen(lambda lines: any("7 largest: freed 36 kB of page tables" in line for line in lines))
        assert mounted.read("7/reclaimable_pt_bytes") == "0\n"
        terminal.wait_for_screen(lambda lines: "redis-server" in lines[2])  # the order has changed
        terminal.type("q")
        assert terminal.end() == 0


def test_running_processes(grower: Grower, pterefd: Run) -> None:
    grower.do("touch", 0, 1, 1)
    grower.do("read", 100 << 20, 64 * 512, 1)
    done = pterefd("top", "--live", "--batch", "--times", "2", "--interval", "100ms", "--budget", "100")
    found = rows(done.stdout)
    assert found[grower.pid][5] == "256"  # 64 zero PTE pages
    assert int(found[grower.pid][3]) >= 256


def test_a_tree_that_goes_ends_it() -> None:
    with smallest() as running:
        command = [SCRIPT, "top", "--mount", str(running.mount), "--batch", "--interval", "100ms"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
            assert top.stdout is not None
            assert top.stdout.readline().startswith(str(running.mount))
            running.process.terminate()
            _, err = top.communicate(timeout=60)
    assert top.returncode == 3
    assert err.startswith("pterefd: ")
    assert err.endswith("the pterefd that was mounted there is gone\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--live", "--mount", "/x"), "--live and --mount exclude each other"),
        (("--times", "1"), "--times goes with --batch"),
        (("--live",), "no terminal here: --batch prints lines"),
        (("--live", "--batch", "--budget", "0"), "Invalid value for '--budget': 0.0 is not in the range 0<x<=100"),
        (("--mount", "/tmp"), "/tmp: no pterefd is mounted there"),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], message: str, pterefd: Run) -> None:
    done = pterefd("top", *args)
    assert done.returncode == 2
    assert done.stderr.startswith(f"pterefd: {message}")
    assert done.stderr.count("\n") == 1


def test_bars_are_drawn_from_nothing_to_the_highest() -> None:
    history = History()
    for value in (0, 7, 14, 3):
        history.note([Row((1, 0), "a", 0, value, 0, 0, 0, 0)])
    assert history.bars((1, 0)) == "▁▄█▂"
    history.note([])
    assert history.bars((1, 0)) == ""
