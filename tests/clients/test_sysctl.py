"""sysctl: reads, writes and lists sys/vm of the simulated host, and never the running kernel's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.simulated import Simulated

pytestmark = pytest.mark.mount

KERNELS = Path("/proc/sys/vm/swappiness")


@pytest.mark.client("sysctl NAME", "procps", "vm.swappiness, vm.min_free_kbytes, vm.max_map_count")
def test_it_reads(simulated: Simulated) -> None:
    """min_free_kbytes of 512 MiB: int_sqrt(524288 * 16)."""
    names = ["vm.swappiness", "vm.min_free_kbytes", "vm.max_map_count"]
    assert simulated.in_shell("sysctl", "-n", *names).split() == ["60", "2896", "65530"]


@pytest.mark.client("sysctl -w", "procps", "vm.swappiness before and after; refused values")
def test_it_writes(simulated: Simulated) -> None:
    kernels = KERNELS.read_text()
    try:
        assert simulated.in_shell("sysctl", "-w", "vm.swappiness=73") == "vm.swappiness = 73\n"
        assert simulated.read("sys/vm/swappiness") == "73\n"
        assert simulated.bound("sysctl", "vm/swappiness=0x20") == "vm.swappiness = 0x20\n"
        assert simulated.read("sys/vm/swappiness") == "32\n"
        simulated.in_shell("sysctl", "-w", "vm.swappiness=201", code=1)
        assert "Invalid argument" in simulated.stderr
        assert simulated.read("sys/vm/swappiness") == "32\n"
        assert KERNELS.read_text() == kernels
    finally:
        (simulated.mount / "sys/vm/swappiness").write_text("60")


@pytest.mark.client("sysctl -a", "procps", "every readable file of sys/vm")
def test_it_lists_all(simulated: Simulated) -> None:
    said = dict(line.split(" = ", 1) for line in simulated.in_shell("sysctl", "-a").splitlines() if " = " in line)
    directory = simulated.mount / "sys/vm"
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_mode & 0o400]
    assert len(files) > 15
    for path in files:
        name = "vm." + str(path.relative_to(directory)).replace("/", ".")
        text = path.read_text().rstrip("\n")
        assert said.get(name, "") == text.split("\n")[-1], name
    assert not {name for name in said if name.startswith(("net.", "fs.", "hostproc"))}
    assert "vm.free_ptes" not in said


def test_a_host_without_memory_has_no_such_knobs_and_4_tib(shipped: Simulated) -> None:
    shipped.in_shell("sysctl", "vm.swappiness", code=1)
    assert shipped.stderr.strip().endswith("vm/swappiness: No such file or directory")
    assert shipped.in_shell("free", "-k").split()[7] == str(4 << 30)
