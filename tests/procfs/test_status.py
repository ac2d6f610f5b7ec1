"""PID/status beside the running kernel's own: the same numbers in, the same lines out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pterefd.host.counters import MmCounters
from pterefd.host.process import Process
from pterefd.procfs.status import MEMORY_KEYS, escaped, memory_sizes, status

# Written by the kernel, and not here: what is not simulated is left out.
LEFT_OUT = re.compile(
    r"Cap|NoNewPrivs|Seccomp|Speculation|x86_|Cpus_allowed|Mems_allowed|untag_mask|AuxiliaryGroups|SigQ_"
)
FIELDS = {
    "VmPeak": "hiwater_vm_bytes",
    "VmSize": "total_vm_bytes",
    "VmLck": "locked_vm_bytes",
    "VmHWM": "hiwater_rss_bytes",
    "RssAnon": "anon_bytes",
    "RssFile": "file_bytes",
    "RssShmem": "shmem_bytes",
    "VmData": "data_vm_bytes",
    "VmStk": "stack_vm_bytes",
    "VmExe": "exec_vm_bytes",
    "VmPTE": "pgtables_bytes",
    "VmSwap": "swap_bytes",
}


def counters(**values: int) -> MmCounters:
    return MmCounters(**(dict.fromkeys(MmCounters._fields, 0) | values))


def rendered(process: Process, mm: MmCounters) -> str:
    host = SimpleNamespace(process=lambda _: process, counters=lambda _: mm)
    return status(SimpleNamespace(host=host), process.pid)  # type: ignore[arg-type]


def kernel_status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def ours_of(kernel: list[str]) -> list[str]:
    """Our file, of a process and an mm that have the numbers of the kernel's."""
    values = {key: rest.split() for key, _, rest in (line.partition(":\t") for line in kernel)}
    process = Process(
        pid=int(values["Pid"][0]),
        mm=0,
        serial=1,
        comm=values["Name"][0],
        uid=int(values["Uid"][0]),
        gid=int(values["Gid"][0]),
        ppid=int(values["PPid"][0]),
        tids=set(range(int(values["Threads"][0]) - 1)),
    )
    mm = counters(**{field: int(values[key][0]) << 10 for key, field in FIELDS.items()})
    return rendered(process, mm).splitlines()


@pytest.mark.kernel
def test_the_lines_and_their_order_are_the_kernels() -> None:
    kernel = [line.partition(":")[0] for line in kernel_status()]
    ours = [line.partition(":")[0] for line in ours_of(kernel_status())]
    assert ours == [key for key in kernel if not LEFT_OUT.match(key)]


@pytest.mark.kernel
def test_every_line_of_memory_is_the_kernels_to_the_byte() -> None:
    kernel = kernel_status()
    expected = [line for line in kernel if re.match("Vm(?!Lib)|Rss|Huge", line)]
    assert [line for line in ours_of(kernel) if re.match("Vm(?!Lib)|Rss|Huge", line)] == expected


@pytest.mark.kernel
def test_every_other_line_has_the_kernels_spacing() -> None:
    def shape(line: str) -> str:
        """A line with its words and numbers made alike."""
        return re.sub(r"[^\s:]+", "x", line.partition(":")[2])

    kernel = {line.partition(":")[0]: shape(line) for line in kernel_status()}
    ours = {line.partition(":")[0]: shape(line) for line in ours_of(kernel_status())}
    if os.getgroups():
        del kernel["Groups"], ours["Groups"]  # none here
    del ours["VmLib"]  # 0 here, as VmExe has all
    assert ours == {key: kernel[key] for key in ours}


@pytest.mark.kernel
def test_ids_are_those_of_the_process() -> None:
    kernel = dict(line.split(":", 1) for line in kernel_status())
    ours = dict(line.split(":", 1) for line in ours_of(list(map(":".join, kernel.items()))))
    for key in ("Name", "Tgid", "Pid", "PPid", "Uid", "Gid", "Threads", "NStgid", "NSpid", "TracerPid", "Kthread"):
        assert ours[key] == kernel[key]


def test_peaks_are_never_below_what_is_now() -> None:
    sizes = memory_sizes(counters(total_vm_bytes=8192, anon_bytes=4096, file_bytes=4096, hiwater_vm_bytes=4096))
    lines = dict(zip(MEMORY_KEYS, sizes, strict=True))
    assert (lines["VmPeak"], lines["VmSize"], lines["VmHWM"], lines["VmRSS"]) == (8, 8, 8, 8)


def test_a_name_with_a_newline_stays_on_its_line() -> None:
    assert escaped("a\nb\\c d)") == "a\\nb\\\\c d)"


def test_a_process_whose_owner_is_not_known_is_the_daemons() -> None:
    lines = rendered(Process(pid=1, mm=0, serial=1), counters()).splitlines()
    uid, gid = os.geteuid(), os.getegid()
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in lines
    assert f"Gid:\t{gid}\t{gid}\t{gid}\t{gid}" in lines
