"""PID/maps beside the running kernel's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pterefd.host.maps import VmaRow
from pterefd.procfs.maps import map_line

LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (...)(.) ([0-9a-f]+) ([0-9a-f:]+) (\d+) *(.*)\n")


def row(**values: object) -> VmaRow:
    fields: dict[str, object] = {
        "start": 0x1000,
        "end": 0x2000,
        "prot": "rw-",
        "shared": False,
        "offset": 0,
        "path": "",
        "flags": frozenset(),
    }
    return VmaRow(**(fields | values))  # type: ignore[arg-type]


@pytest.mark.kernel
def test_each_line_of_a_live_process_is_written_as_the_kernel_writes_it() -> None:
    lines = Path("/proc/self/maps").read_text().splitlines(keepends=True)
    assert len(lines) > 50
    for line in lines:
        start, end, prot, sharing, offset, device, inode, path = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
        ours = map_line(
            row(
                start=int(start, 16),
                end=int(end, 16),
                prot=prot,
                shared=sharing == "s",
                offset=int(offset, 16),
                path=path,
            )
        )
        # Of a file we know neither device nor inode: the kernel's digits are put in their place.
        ours_numbers = LINE.fullmatch(ours).group(6, 7)  # type: ignore[union-attr]
        head, _, name = line.partition(f"{device} {inode}")
        ours_head, _, ours_name = ours.partition(" ".join(ours_numbers))
        assert (ours_head, ours_name.lstrip(" ")) == (head, name.lstrip(" ")) or not path
        assert ours.find(path) == line.find(path)
        if not path:
            assert ours == line


def test_the_name_begins_in_the_kernels_column() -> None:
    line = map_line(row(start=0x55E1C0000000, end=0x55E1C0001000, offset=0x2000, path="/usr/bin/cat"))
    assert line.index("/usr/bin/cat") == 73
    wide = map_line(row(start=0xFFFFFFFFFF600000, end=0xFFFFFFFFFF601000, offset=1 << 40, path="[vsyscall]"))
    assert wide.index("[vsyscall]") == 73


def test_low_addresses_have_eight_digits_and_anonymous_lines_end_in_a_blank() -> None:
    assert map_line(row()) == "00001000-00002000 rw-p 00000000 00:00 0 \n"


def test_shared_anonymous_memory_is_named_as_the_kernel_names_it() -> None:
    line = map_line(row(shared=True))
    assert line.startswith("00001000-00002000 rw-s 00000000 00:00 ")
    assert line.endswith(" /dev/zero (deleted)\n")


def test_a_newline_in_a_path_stays_on_its_line() -> None:
    assert map_line(row(path="/tmp/a\nb")).endswith("/tmp/a\\012b\n")


def test_files_of_one_name_have_one_inode_and_no_file_has_none() -> None:
    inodes = [map_line(row(path=path)).split()[4] for path in ("/a", "/a", "/b", "[heap]", "")]
    assert inodes[0] == inodes[1] != inodes[2] != "0"
    assert inodes[3:] == ["0", "0"]
