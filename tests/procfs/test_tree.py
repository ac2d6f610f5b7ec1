"""The tree by itself: a table of every kind of entry, without FUSE and without a host."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pterefd.procfs.tree import Content, Dir, Family, File, Link, Rows, Tree

Values = dict[str, Any]


def set_value(values: Values, _: object, value: Any) -> None:
    values["value"] = value


def count_reads(values: Values, _: object) -> str:
    values["reads"] = values.get("reads", 0) + 1
    return f"{values['reads']}".rjust(9, "0") + "\n"


ROOT = Dir(
    "",
    (
        Dir(
            "sys",
            (
                File(
                    "knob",
                    0o644,
                    "",
                    Content.INT,
                    low=0,
                    high=200,
                    read=lambda v, _: f"{v['value']}\n",
                    write=set_value,
                ),
                File("write_only", 0o200, "", Content.INT, low=0, high=9, write=set_value),
                File("name", 0o644, "", Content.STRING, read=lambda v, _: v["value"] + "\n", write=set_value),
                File("fixed", 0o444, "", Content.STRING, read=lambda *_: "fixed\n"),
                Dir("gone", (), exists=lambda *_: False),
                Dir(
                    "first", (File("item", 0o444, "", read=lambda _, obj: f"{obj}\n"),), obj=lambda v, _: v["items"][0]
                ),
            ),
        ),
        File("count", 0o444, "", read=count_reads),
        Link("self", "", lambda *_: "7"),
        Family(
            "N",
            "",
            lambda v, _: map(str, v["items"]),
            lambda v, _, name: next((i for i in v["items"] if str(i) == name), None),
            Dir(
                "N",
                (
                    File("item", 0o444, "", read=lambda _, obj: f"{obj}\n"),
                    Dir("below", (File("item", 0o444, "", read=lambda _, obj: f"{obj}\n"),)),
                    Rows("ROW", "", lambda _, obj: [File(f"row{obj}", 0o444, "", read=lambda _, obj: f"row {obj}\n")]),
                ),
            ),
            owner=lambda _, obj: (1000 + obj, 2000 + obj),
        ),
    ),
)


@pytest.fixture
def tree() -> Tree:
    return Tree(ROOT, {"value": 60, "items": [7, 8]})


def refusal(call: Callable[..., Any], *args: Any) -> str:
    """Name of the errno that a call raises."""
    with pytest.raises(OSError) as refused:
        call(*args)
    return errno.errorcode[refused.value.errno or 0]


def read(tree: Tree, path: str) -> bytes:
    return tree.open(path, os.O_RDONLY).read(4096, 0)


def names(listing: Iterator[tuple[str, int]]) -> list[str]:
    return [name for name, _ in listing]


# -- looking things up ------------------------------------------------------------------------


def test_a_listing_shows_what_is_there_now_with_its_type(tree: Tree) -> None:
    assert list(tree.listing("/")) == [
        ("sys", 0o040555),
        ("count", 0o100444),
        ("self", 0o120777),
        ("7", 0o040555),
        ("8", 0o040555),
    ]
    assert names(tree.listing("/sys")) == ["knob", "write_only", "name", "fixed", "first"]
    assert names(tree.listing("/8")) == ["item", "below", "row8"]


def test_the_members_of_a_family_come_and_go(tree: Tree) -> None:
    tree.ctx["items"].remove(8)
    tree.ctx["items"].append(9)
    assert names(tree.listing("/"))[-2:] == ["7", "9"]
    assert refusal(tree.find, "/8/item") == "ENOENT"
    assert read(tree, "/9/below/item") == b"9\n"


def test_readers_are_handed_what_their_family_found(tree: Tree) -> None:
    assert read(tree, "/8/item") == b"8\n"
    assert read(tree, "/8/row8") == b"row 8\n"
    assert read(tree, "/sys/first/item") == b"7\n"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nothing", "ENOENT"),
        ("/sys/gone", "ENOENT"),
        ("/9", "ENOENT"),
        ("/8/row7", "ENOENT"),
        ("/sys/knob/x", "ENOTDIR"),
    ],
)
def test_a_path_that_leads_nowhere(tree: Tree, path: str, code: str) -> None:
    assert refusal(tree.attributes, path) == code
    assert refusal(tree.open, path, os.O_RDONLY) == code


def test_a_directory_is_no_file_and_a_file_no_directory(tree: Tree) -> None:
    assert refusal(tree.open, "/sys", os.O_RDONLY) == "EISDIR"
    assert refusal(tree.truncate, "/sys") == "EISDIR"
    assert refusal(tree.listing, "/sys/knob") == "ENOTDIR"
    assert refusal(tree.readlink, "/sys/knob") == "EINVAL"
    assert tree.readlink("/self") == "7"


def test_the_owner_of_a_family_member_owns_all_below(tree: Tree) -> None:
    for path in ("/7", "/7/item", "/7/below", "/7/below/item"):
        at = tree.attributes(path)
        assert (at.uid, at.gid) == (1007, 2007)
    at = tree.attributes("/sys/knob")
    assert (at.mode, at.uid, at.gid) == (0o100644, os.geteuid(), os.getegid())


def test_two_entries_of_one_name_are_a_mistake_of_the_table() -> None:
    with pytest.raises(ValueError, match="two entries"):
        Dir("d", (Dir("a", ()), File("a", 0o444, "")))


# -- reading ------------------------------------------------------------------------------------


def test_text_is_made_at_offset_0_and_later_offsets_read_on_in_it(tree: Tree) -> None:
    opened = tree.open("/count", os.O_RDONLY)
    assert [opened.read(4, offset) for offset in (0, 4, 8, 12)] == [b"0000", b"0000", b"1\n", b""]
    assert opened.read(4096, 0) == b"000000002\n"  # lseek(0)
    assert opened.read(4096, 8) == b"2\n"
    assert tree.ctx["reads"] == 2


def test_each_open_has_a_snapshot_of_its_own(tree: Tree) -> None:
    one, two = tree.open("/count", os.O_RDONLY), tree.open("/count", os.O_RDONLY)
    one.read(4, 0)
    two.read(4, 0)
    assert (one.read(9, 4), two.read(9, 4)) == (b"00001\n", b"00002\n")


def test_an_int_is_read_at_offset_0_or_not_at_all(tree: Tree) -> None:
    opened = tree.open("/sys/knob", os.O_RDONLY)
    assert [opened.read(size, 0) for size in (1, 2, 3, 4096)] == [b"6", b"60", b"60\n", b"60\n"]
    assert opened.read(1, 1) == b""


def test_a_string_is_read_on_at_later_offsets(tree: Tree) -> None:
    opened = tree.open("/sys/fixed", os.O_RDONLY)
    assert [opened.read(4, 0), opened.read(4, 4), opened.read(4, 6)] == [b"fixe", b"d\n", b""]


# -- writing ------------------------------------------------------------------------------------


def test_only_a_write_at_offset_0_has_an_effect(tree: Tree) -> None:
    opened = tree.open("/sys/knob", os.O_WRONLY)
    assert opened.write(b"61\n", 0) == 3
    assert opened.write(b"62\n", 3) == 3  # kernel.sysctl_writes_strict = 1
    assert opened.write(b"junk", 6) == 4
    assert tree.ctx["value"] == 61
    assert opened.write(b"63", 0) == 2
    assert tree.ctx["value"] == 63


def test_a_second_number_is_left_to_the_caller(tree: Tree) -> None:
    assert tree.open("/sys/knob", os.O_WRONLY).write(b"65 66", 0) == 3
    assert tree.ctx["value"] == 65


def test_appending_begins_at_0_whatever_offset_the_kernel_names(tree: Tree) -> None:
    opened = tree.open("/sys/knob", os.O_WRONLY | os.O_APPEND)
    assert opened.write(b"64\n", 3) == 3
    assert tree.ctx["value"] == 64
    assert opened.write(b"65\n", 3) == 3
    assert tree.ctx["value"] == 64


def test_a_refused_write_leaves_the_value(tree: Tree) -> None:
    opened = tree.open("/sys/knob", os.O_WRONLY)
    for data in (b"201", b"-1", b"x", b"\n"):
        assert refusal(opened.write, data, 0) == "EINVAL"
    assert opened.write(b"", 0) == 0
    assert tree.ctx["value"] == 60


@pytest.mark.parametrize("data", [b"word", b"word\n", b" word \n", b"word\0rest", b"word\nrest"])
def test_a_string_is_one_line_without_white_space_around_it(tree: Tree, data: bytes) -> None:
    assert tree.open("/sys/name", os.O_WRONLY).write(data, 0) == len(data)
    assert tree.ctx["value"] == "word"


def test_modes_under_sys_hold_for_root_too(tree: Tree) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        assert refusal(tree.open, "/sys/write_only", flags) == "EACCES"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        assert refusal(tree.open, "/sys/fixed", flags) == "EACCES"
    assert refusal(tree.truncate, "/sys/fixed") == "EACCES"
    tree.truncate("/sys/write_only")


def test_a_proc_file_opens_for_writing_and_refuses_the_write(tree: Tree) -> None:
    tree.truncate("/count")
    assert refusal(tree.open("/count", os.O_WRONLY).write, b"x", 0) == "EINVAL"
