"""The helper: it does what its table allows, for whom it allows, and nothing that it is told to do beyond that."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pterefd.errors import BadInput, Refused
from pterefd.freeing.client import Freer
from pterefd.freeing.serve import MOST_BYTES, MOST_CONNECTIONS, MOST_SPANS
from pterefd.freeing.table import table
from pterefd.hookspecs import Kinds
from pterefd.live.scan import start_time
from tests.freeing.helper import FOR_KNOWN, Helper, Log
from tests.freeing.programs import PAGE, SPAN, Known
from tests.systemd.installed import NOBODY, ROOT, filtered

pytestmark = pytest.mark.kernel


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    one = Helper(tmp_path, FOR_KNOWN)
    assert "freeing works here" in one.first
    yield one
    one.end()


@pytest.fixture
def known() -> Iterator[Known]:
    one = Known(60, 20, 3, 5)
    yield one
    one.close()


def test_frees_what_its_table_allows(helper: Helper, known: Known) -> None:
    before = known.kb()["VmPTE"]
    assert helper.freer.free(known.pid, start_time(known.pid), Kinds.BOTH, None) == (60 * PAGE, 20 * PAGE, 0)
    assert before - known.kb()["VmPTE"] == 320
    assert helper.log.lines[0]["bytes"] == 80 * PAGE
    assert helper.freer.free(known.pid, start_time(known.pid), Kinds.MIXED, None) == (0, 0, 3 * PAGE)
    known.check(read=True)


def test_refuses_whom_the_table_does_not_name(helper: Helper, known: Known) -> None:
    helper.table.write_text(FOR_KNOWN.replace("known", "other"))
    with pytest.raises(Refused, match="does not allow uid 0 to have known freed from") as refused:
        helper.freer.free(known.pid, start_time(known.pid), Kinds.BOTH, None)
    assert refused.value.label == "table"
    helper.table.write_text(FOR_KNOWN)
    helper.table.chmod(0o666)  # anybody's: nothing is allowed
    with pytest.raises(Refused, match="written by nobody else"):
        helper.freer.free(known.pid, start_time(known.pid), Kinds.BOTH, None)


def test_refuses_another_process_of_the_pid(helper: Helper, known: Known) -> None:
    with pytest.raises(Refused, match="no such process any more"):
        helper.freer.free(known.pid, start_time(known.pid) + 1, Kinds.BOTH, None)


def test_refuses_more_than_so_many_a_minute(helper: Helper, known: Known) -> None:
    for _ in range(3):
        helper.freer.free(known.pid, start_time(known.pid), Kinds.EMPTY, PAGE)
    with pytest.raises(Refused, match="more than 3 acts a minute"):
        helper.freer.free(known.pid, start_time(known.pid), Kinds.EMPTY, PAGE)


def test_refuses_other_users(helper: Helper, known: Known) -> None:
    """The kernel says who has connected; the socket is its owner's alone, too."""
    began = start_time(known.pid)
    os.chmod(helper.path, 0o666)
    Path(helper.path).parent.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.chdir(Path(helper.path).parent)
            os.setuid(NOBODY)
            Freer("free.socket", helper.log).free(known.pid, began, Kinds.BOTH, None)
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        assert f"does not allow uid {NOBODY}".encode() in said.read()


RIGHT = {"pid": 1, "start_time": 1, "spans": None, "kinds": ["empty"], "most": None}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (b"x\n", "not a request"),
        (b"[" * 100_000 + b"\n", "not a request"),
        (b"{}\n", "a request has"),
        (json.dumps(RIGHT | {"more": 1}).encode() + b"\n", "a request has"),
        (json.dumps(RIGHT | {"pid": -1}).encode() + b"\n", "pid is a number greater than 0"),
        (json.dumps(RIGHT | {"pid": True}).encode() + b"\n", "pid is a number greater than 0"),
        (json.dumps(RIGHT | {"pid": 1 << 80}).encode() + b"\n", "no such process"),
        (json.dumps(RIGHT | {"kinds": ["data"]}).encode() + b"\n", "kinds are of"),
        (json.dumps(RIGHT | {"kinds": []}).encode() + b"\n", "kinds are of"),
        (json.dumps(RIGHT | {"spans": [[2, 1]]}).encode() + b"\n", "ascending"),
        (json.dumps(RIGHT | {"spans": [[0, 1 << 60]]}).encode() + b"\n", "ascending"),
        (json.dumps(RIGHT | {"spans": [[0, "1"]]}).encode() + b"\n", "pairs of numbers"),
        (json.dumps(RIGHT | {"spans": [[i, i + 1] for i in range(MOST_SPANS + 1)]}).encode() + b"\n", "at most"),
        (json.dumps(RIGHT | {"most": "all"}).encode() + b"\n", "most is a number"),
    ],
)
def test_what_is_no_request_is_said_and_harms_nobody(helper: Helper, asked: bytes, why: str) -> None:
    assert why in helper.ask(asked)["refused"]
    assert "refused" in helper.ask(json.dumps(RIGHT).encode() + b"\n")


def test_spans_bound_what_is_done(helper: Helper, known: Known) -> None:
    asked = RIGHT | {"pid": known.pid, "start_time": start_time(known.pid)}
    asked |= {"spans": [[known.start, known.start + 10 * SPAN]], "kinds": ["empty", "zero", "mixed"]}
    answer = helper.ask(json.dumps(asked).encode() + b"\n")
    assert 0 < answer["freed"] < 10 * PAGE
    known.check(read=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("free = 1", r"consists of \[\[free\]\] tables"),
        ("[[free]]\ncomm = 'x'", "daemon, the user who may ask, is missing"),
        ("[[free]]\ndaemon = 'root'", "say which processes"),
        ("[[free]]\ndaemon = 'root'\nevery = true\ncomm = 'x'", "say which processes"),
        ("[[free]]\ndaemon = 'nobody-here'\nevery = true", "there is no user 'nobody-here'"),
        ("[[free]]\ndaemon = 'root'\nevery = true\nstop_ms = 0", "stop_ms should be from 1 to 1000, not 0"),
        ("[[free]]\ndaemon = 'root'\nevery = true\nwriters = ['x']", "writers are of io_uring"),
        ("[[free]]\ndaemon = 'root'\nevery = true\nstop = 1", "no such key: stop"),
        ("[[free", "Expected"),
    ],
)
def test_a_table_that_is_no_good_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "free.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=why):
        table(str(path))


def test_ends_with_one_line_where_it_cannot_serve(tmp_path: Path) -> None:
    (tmp_path / "free.toml").write_text("")
    command = [sys.executable, "-m", "pterefd.freeing", "--table", str(tmp_path / "free.toml")]
    alone = subprocess.run(command, capture_output=True, text=True)
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "--socket" in alone.stderr
    gone = subprocess.run([*command[:-1], "/nowhere", "--socket", "s"], cwd=tmp_path, capture_output=True, text=True)
    assert (gone.returncode, gone.stderr) == (2, "pterefd-free: /nowhere: No such file or directory\n")


def test_a_request_ends_with_the_helper_and_harms_nobody(helper: Helper) -> None:
    known = Known(3000, 500, 0, 5)
    pid = os.fork()
    if pid == 0:
        try:
            helper.freer.free(known.pid, start_time(known.pid), Kinds.BOTH, None)
        except Refused:
            pass
        finally:
            os._exit(0)
    time.sleep(0.15)
    helper.process.kill()
    os.waitpid(pid, 0)
    known.check(read=True)
    known.close()


def test_without_a_helper_freeing_is_refused(tmp_path: Path, known: Known) -> None:
    with pytest.raises(Refused, match="free helper .*: No such file") as refused:
        Freer(str(tmp_path / "none"), Log()).free(known.pid, start_time(known.pid), Kinds.BOTH, None)
    assert refused.value.label == "helper"


def test_a_helper_that_began_anew_is_asked_at_once(helper: Helper, known: Known, tmp_path: Path) -> None:
    assert helper.freer.free(known.pid, start_time(known.pid), Kinds.EMPTY, None) == (60 * PAGE, 0, 0)
    helper.process.terminate()
    helper.process.wait(10)
    assert "No such file" in helper.freer.missing() or "refused" in helper.freer.missing()
    again = Helper(tmp_path, FOR_KNOWN)
    assert helper.freer.missing() == ""
    again.process.terminate()
    again.process.wait(10)
    last = Helper(tmp_path, FOR_KNOWN)  # its connection is left while nothing is asked
    assert helper.freer.free(known.pid, start_time(known.pid), Kinds.ZERO, None) == (0, 20 * PAGE, 0)
    again.end()
    last.end()


def test_works_with_no_more_rights_than_its_unit_gives(tmp_path: Path) -> None:
    """The unit's system call filter and capabilities; the process is another user's."""
    unit = (ROOT / "systemd/pterefd-free.service").read_text()
    names = unit.partition("CapabilityBoundingSet=")[2].split("\n")[0].split()
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names)
    rights = ("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all")
    helper = Helper(tmp_path, FOR_KNOWN, (*rights, *filtered("pterefd-free.service")))
    assert "freeing works here" in helper.first
    known = Known(60, 20, 3, 5, user=NOBODY)
    assert helper.freer.free(known.pid, start_time(known.pid), Kinds.BOTH, None) == (60 * PAGE, 20 * PAGE, 0)
    known.check(read=True)
    known.close()
    assert helper.end()[0] == 0


def test_who_sends_too_much_is_left_and_others_are_served(helper: Helper) -> None:
    for text in (b"x" * (MOST_BYTES + 1) + b"\n", b"x\n" * 100_000):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(helper.path)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(text)
                while connection.recv(1 << 16):
                    pass
        assert "refused" in helper.ask(json.dumps(RIGHT).encode() + b"\n")


def test_many_connections_do_not_end_it(helper: Helper) -> None:
    """More than it may have descriptors, each of them idle."""
    resource.prlimit(helper.process.pid, resource.RLIMIT_NOFILE, (MOST_CONNECTIONS + 40, MOST_CONNECTIONS + 40))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(MOST_CONNECTIONS + 80)]
    for connection in idle:
        connection.connect(helper.path)
    for connection in idle:
        connection.close()
    assert "refused" in helper.ask(json.dumps(RIGHT).encode() + b"\n")
