"""`pterefd shell`: what a command finds there, how it ends, and that nothing changes outside."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pterefd.config import DaemonSection
from pterefd.shell import DEFAULT_MOUNT
from tests.clients.simulated import PIDS, SCRIPT, Simulated
from tests.clients.terminal import Terminal

pytestmark = pytest.mark.mount

# As root, become nobody; imported before the rights go, as the environment may lie where nobody else can read.
# Who changed his user may not be dumped, and then does not own his /proc/self: prctl(PR_SET_DUMPABLE) undoes that.
AS_NOBODY = """
import ctypes, os, sys
import pterefd.cli.group, pterefd.cli.shell_command, pterefd.shell
os.setgroups([]), os.setgid(65534), os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
pterefd.cli.group.main(["shell", "--mount", *sys.argv[1:]])
"""


def mounts() -> list[str]:
    """What is mounted on /proc and below."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith("/proc")]


# -- what is there ---------------------------------------------------------------------------------


def test_the_tree_is_on_proc(simulated: Simulated) -> None:
    """Simulated pids are those that are listed, the lowest ones too; real ones have high numbers."""
    before = mounts()
    said = simulated.in_shell("sh", "-c", 'cat /proc/1/comm /proc/20/comm; ls /proc; readlink /proc/self; echo "$$"')
    comms, listed, (self, shell) = said.split()[:2], said.split()[2:-2], said.split()[-2:]
    assert comms == ["init", "simdb"]
    assert {name for name in listed if name.isdecimal()} == {str(pid) for pid in PIDS}
    assert int(self) > int(shell) > max(PIDS)
    assert mounts() == before


def test_a_process_finds_itself(simulated: Simulated) -> None:
    said = simulated.in_shell("sh", "-c", 'cat /proc/self/comm; read own < "/proc/$$/comm"; echo "$own"')
    assert said.split() == ["cat", "sh"]


def test_descriptors_lead_where_they_should(simulated: Simulated) -> None:
    """A pipe has no path: /dev/fd leads to the kernel's own link."""
    script = "cat <(echo substituted); echo piped | cat /dev/stdin; cat /proc/self/mounts | grep -c ' /proc fuse'"
    assert simulated.in_shell("bash", "-c", script).split() == ["substituted", "piped", "1"]


def test_it_stays_where_it_was_started_with_what_it_was_given(simulated: Simulated, tmp_path: Path) -> None:
    environment = {**simulated.environment, "GIVEN": "yes"}
    said = simulated.in_shell(
        "sh", "-c", 'pwd; echo "$GIVEN" "$@"', "sh", "a b", "--mount", cwd=tmp_path, env=environment
    )
    assert said.splitlines() == [str(tmp_path), "yes a b --mount"]


def test_without_root(simulated: Simulated) -> None:
    """In a user namespace the user stays who he is."""
    script = "id -u; cat /proc/20/comm; grep -h ^Uid /proc/self/status; cat <(echo substituted)"
    said = simulated.run(sys.executable, "-c", AS_NOBODY, simulated.mount, "--", "bash", "-c", script)
    assert said.split() == ["65534", "simdb", "Uid:", *["65534"] * 4, "substituted"]


def test_nothing_is_mounted_outside_where_mounts_are_shared(simulated: Simulated) -> None:
    """As systemd has them: what is mounted in one namespace appears in all."""
    script = 'mount --make-rshared / && "$@" && grep -c fuse.pterefd /proc/self/mountinfo'
    before = simulated.run("unshare", "--mount", "sh", "-c", script, "sh", "true")
    after = simulated.run(
        *("unshare", "--mount", "sh", "-c", script, "sh"),
        *(SCRIPT, "shell", "--mount", simulated.mount, "--", "true"),
    )
    assert after == before


# -- which mount -----------------------------------------------------------------------------------


def test_it_looks_where_the_daemon_mounts_by_default() -> None:
    assert DaemonSection().mount == DEFAULT_MOUNT


def test_mnt_of_the_working_directory_is_taken_without_being_named(simulated: Simulated) -> None:
    said = simulated.run(SCRIPT, "shell", "--", "cat", "/proc/1/comm", cwd=simulated.mount.parent)
    assert said == "init\n"


def test_of_several_mounts_those_that_are_of_no_use_do_not_count(
    simulated: Simulated, another: Simulated, tmp_path: Path
) -> None:
    """In a mount namespace, where no other daemon's is: one of two must be chosen, the only living one need not be."""
    others = [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if "fuse.pterefd" in line
    ]
    hidden = [point for point in others if point not in (str(simulated.mount), str(another.mount))]
    script = 'for point in "$@"; do umount -l "$point"; done; exec "$SCRIPT" shell -- cat /proc/1/comm'
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *hidden)
    environment = {**simulated.environment, "SCRIPT": str(SCRIPT)}
    simulated.run(*within, cwd=tmp_path, env=environment, code=125)
    assert simulated.stderr.startswith("pterefd: several are mounted, choose one with --mount: ")
    another.process.kill()
    another.process.wait()
    assert simulated.run(*within, cwd=tmp_path, env=environment) == "init\n"
    simulated.run(*within, str(simulated.mount), cwd=tmp_path, env=environment, code=125)
    assert simulated.stderr == f"pterefd: {another.mount}: the pterefd that was mounted there is gone\n"


def test_what_is_no_mount_is_refused_in_one_line(simulated: Simulated, tmp_path: Path) -> None:
    simulated.run(SCRIPT, "shell", "--mount", tmp_path, "--", "true", code=125)
    assert simulated.stderr == f"pterefd: {tmp_path}: no pterefd is mounted there\n"


def test_a_shell_within_a_shell_is_refused(simulated: Simulated) -> None:
    simulated.in_shell(SCRIPT, "shell", "--mount", simulated.mount, "--", "true", code=125)
    assert simulated.stderr == "pterefd: /proc: a pterefd is mounted there already: leave this shell first\n"


def test_a_mount_that_cannot_be_read_is_refused(another: Simulated) -> None:
    """Without allow_other nobody but its user may look in; where the daemon was killed, nobody at all."""
    another.run(sys.executable, "-c", AS_NOBODY, another.mount, "--", "true", code=125)
    assert another.stderr.startswith(f"pterefd: {another.mount}: not for this user")
    assert another.stderr.count("\n") == 1
    another.process.kill()
    another.process.wait()
    another.in_shell("true", code=125)
    assert another.stderr == f"pterefd: {another.mount}: the pterefd that was mounted there is gone\n"


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -PIPE $$"], 141),
    ],
)
def test_the_commands_exit_code_is_its_own(simulated: Simulated, command: list[str], code: int) -> None:
    simulated.in_shell(*command, code=code)
    assert simulated.stderr == ""


@pytest.mark.parametrize(
    ("name", "code", "why"), [("no-such", 127, "No such file or directory"), ("/etc/passwd", 126, "Permission denied")]
)
def test_a_command_that_cannot_be_run(simulated: Simulated, name: str, code: int, why: str) -> None:
    simulated.in_shell(name, code=code)
    assert simulated.stderr == f"pterefd: {name}: {why}\n"


def test_a_signal_is_handed_on_and_nothing_stays_behind(simulated: Simulated, tmp_path: Path) -> None:
    """The command's own answer to SIGTERM counts; what it left in the background ends with it."""
    script = f'trap "exit 9" TERM; sleep 987654 & echo "$!" > "{tmp_path}/out"; wait'
    process = subprocess.Popen([SCRIPT, "shell", "--mount", simulated.mount, "--", "sh", "-c", script])
    deadline = time.monotonic() + 30
    while not (tmp_path / "out").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 9
    sleepers = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"987654" in _cmdline(path)]
    assert sleepers == []


def test_a_signal_to_pid_1_from_inside_reaches_nobody(simulated: Simulated) -> None:
    """That is the simulated pid 1 to those who send it, and not what started their shell."""
    script = "for name in TERM HUP USR1 USR2 INT QUIT KILL STOP; do kill -$name 1; done; sleep 0.3; echo alive"
    assert simulated.in_shell("sh", "-c", script) == "alive\n"
    assert simulated.run(sys.executable, "-c", AS_NOBODY, simulated.mount, "--", "sh", "-c", script) == "alive\n"


def test_what_the_command_left_behind_is_reaped(simulated: Simulated) -> None:
    """Orphans become children of pid 1; one that is not waited for keeps its number."""
    script = "pid=$(sh -c 'sleep 0.1 >&- & echo $!'); sleep 0.6; kill -0 $pid"
    simulated.in_shell("sh", "-c", script, code=1)
    assert "No such process" in simulated.stderr


def _cmdline(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_it_ends_where_it_was_started_with_sigchld_ignored(simulated: Simulated) -> None:
    """Nobody is told of a child's end then: pid 1 would wait for ever."""
    script = f"trap '' CHLD; exec {SCRIPT} shell --mount {simulated.mount} -- sh -c 'exit 7'"
    assert subprocess.run(["bash", "-c", script], timeout=60).returncode == 7


def test_an_interactive_shell_has_job_control(simulated: Simulated) -> None:
    """Ctrl-Z, jobs, fg, Ctrl-C, on a terminal."""
    shell = Terminal(SCRIPT, "shell", "--mount", simulated.mount, SHELL="/bin/bash", TERM="dumb")
    shell.wait_for("is on /proc in this shell")
    shell.type("PS1='rea''dy> '; cat /proc/1/comm\n")
    shell.wait_for("init")
    shell.wait_for("ready> ")
    shell.type("sleep 1000\n")
    shell.wait_for("sleep 1000")
    time.sleep(0.3)  # until it is in the foreground; nothing says so
    shell.type("\x1a")
    shell.wait_for("Stopped")
    shell.type("fg\n")
    shell.wait_for("sleep 1000")
    time.sleep(0.3)
    shell.type("\x03")
    shell.wait_for("ready> ")
    shell.type("echo code $?\n")
    shell.wait_for("code 130")
    shell.type("exit 5\n")
    assert shell.end() == 5


def test_the_outer_shell_stops_continues_and_gets_its_terminal_back(simulated: Simulated) -> None:
    """Ctrl-Z stops `pterefd shell -- sleep` as any job, and the terminal is usable when it has ended."""
    inner = f"{SCRIPT} shell --mount {simulated.mount} -- sh -c 'echo begun; exec sleep 1000'"
    script = f"set -m; {inner}; echo stopped $?; fg; echo ended $?; read line; echo got $line"
    shell = Terminal("bash", "--norc", "-c", script)
    shell.wait_for("begun")
    shell.type("\x1a")
    shell.wait_for("stopped 148")
    time.sleep(0.3)
    shell.type("\x03")
    shell.wait_for("ended 130")
    shell.type("typed\n")
    shell.wait_for("got typed")
    assert shell.end() == 0


def test_a_script_gets_its_terminal_back_from_an_interactive_shell(simulated: Simulated) -> None:
    """The shell leaves a process group of its own in the foreground; sh without job control takes nothing back."""
    script = f"{SCRIPT} shell --mount {simulated.mount}; echo ended $?; read line; echo got $line"
    outer = Terminal("sh", "-c", script, SHELL="/bin/bash", TERM="dumb")
    outer.wait_for("is on /proc in this shell")
    outer.type("exit 3\n")
    outer.wait_for("ended 3")
    outer.type("typed\n")
    outer.wait_for("got typed")
    assert outer.end() == 0


def test_the_daemon_ends_with_a_shell_inside(another: Simulated) -> None:
    """The shell goes on without its /proc."""
    script = "echo begun; read line; cat /proc/1/comm; echo still here"
    process = subprocess.Popen(
        [SCRIPT, "shell", "--mount", another.mount, "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    another.process.terminate()
    assert another.process.wait(60) == 0
    out, err = process.communicate("\n", timeout=30)
    assert out == "still here\n"
    assert "Transport endpoint is not connected" in err
