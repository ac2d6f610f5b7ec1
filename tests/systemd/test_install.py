"""`make install`, into a root of its own: all lies where distributions expect it, runs there, and goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pterefd import __version__
from pterefd.cli.group import COMMANDS
from tests.mounthelper.helper import MountHelper
from tests.systemd.installed import ROOT, UNITS, install, kernels
from tests.systemd.manager import Manager

EXPECTED = (
    *("usr/bin/pterefd", "usr/libexec/pterefd-mount", "usr/libexec/pterefd-free"),
    "usr/lib/pterefd/pterefd/__init__.py",
    *(f"usr/lib/systemd/system/{unit}" for unit in UNITS),
    *("usr/lib/sysusers.d/pterefd.conf", "usr/lib/tmpfiles.d/pterefd.conf"),
    *("etc/pterefd/pterefd.toml", "etc/pterefd/mounts.toml", "etc/pterefd/free.toml"),
    *("usr/share/pterefd/plugins/largest_first.py", "usr/share/pterefd/etc/traces/redis.parquet"),
    *("usr/share/man/man1/pterefd.1", "usr/share/bash-completion/completions/pterefd"),
    *("usr/share/zsh/site-functions/_pterefd", "usr/share/fish/vendor_completions.d/pterefd.fish"),
    *("usr/share/doc/pterefd/README.md", "usr/share/doc/pterefd/LICENSE", "usr/share/doc/pterefd/docs/systemd.md"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    install(path)
    return path


def files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file()]


def run(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed program, from anywhere, with nothing of the checkout."""
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [root / "usr/bin/pterefd", *arguments], cwd="/", env={**plain, **environment}, capture_output=True, text=True
    )


def test_everything_is_where_distributions_expect_it(root: Path) -> None:
    assert [name for name in EXPECTED if not (root / name).is_file()] == []
    known = ("usr/lib/pterefd/", "usr/share/pterefd/", "usr/share/doc/pterefd/", *EXPECTED)
    names = [path.relative_to(root).as_posix() for path in files(root)]
    assert [name for name in names if not name.startswith(known)] == []
    for directory in ("plugins", "etc"):
        ours = {path.relative_to(ROOT) for path in (ROOT / directory).rglob("*") if path.is_file()}
        there = {path for path in ours if (root / "usr/share/pterefd" / path).is_file()}
        assert {path for path in ours - there if "__pycache__" not in path.parts} == set()


def test_nothing_names_the_root_or_the_checkout(root: Path) -> None:
    """But for the interpreter of the tests, which `DEPENDENCIES=no` leaves in the launchers."""
    for path in files(root):
        text = path.read_bytes().replace(os.fsencode(sys.executable), b"")
        assert os.fsencode(root) not in text, path
        if path.suffix not in (".json", ".pyc"):  # where pip notes what it has installed from
            assert os.fsencode(f"{ROOT}/") not in text, path


def test_only_root_can_change_it(root: Path) -> None:
    """The helper runs as root."""
    for path in (root / "usr", *(root / "usr").rglob("*")):
        status = path.lstat()
        assert status.st_uid == 0
        assert path.is_symlink() or status.st_mode & 0o022 == 0, path
        assert path.is_symlink() or status.st_mode & 0o044 == 0o044, path


def test_it_runs_from_there(root: Path) -> None:
    assert run(root, "--version").stdout == f"pterefd {__version__}\n"
    listed = run(root, "plugins", "list").stdout
    assert f"from {root}/usr/lib/pterefd/pterefd/_share/plugins/largest_first.py" in listed
    assert run(root, "info", f"{root}/usr/share/pterefd/etc/traces/redis.parquet").returncode == 0


@pytest.mark.mount
def test_the_installed_daemon_is_mounted_by_the_installed_helper(root: Path, tmp_path: Path) -> None:
    """Program, configuration, plugins, recording and helper are those of the root."""
    point = tmp_path / "area" / "proc"
    point.parent.mkdir()
    program = (root / "usr/libexec/pterefd-mount",)
    helper = MountHelper(tmp_path, f"[[mount]]\npoint = '{point}'\nuser = 'root'\nallow_other = true", program)
    text = (root / "etc/pterefd/pterefd.toml").read_text()
    for there, here in (
        ("/run/pterefd/proc", point),
        ("/run/pterefd-mount.socket", helper.socket),
        ("127.0.0.1:9738", "127.0.0.1:0"),
    ):
        assert text.count(f'"{there}') == 1
        text = text.replace(f'"{there}', f'"{here}')
    cache = kernels(tmp_path / "cache", root / "usr/lib/pterefd/pterefd")
    environment = {"PTEREFD_CACHE": str(cache), "PYTHONPATH": ""}
    one = Manager(tmp_path, program=(root / "usr/bin/pterefd",), environment=environment, mount=point, whole=text)
    try:
        one.until_heard("READY=1")
        one.until((point / "1").exists)
        assert one.read("1/comm") == "redis-server\n"
        assert str(point) in one.said()
    finally:
        code = one.stop()
        helper.said("unmounted")
        helper.stop()
    assert code == 0


# -- man page and completion -------------------------------------------------------------------------


def test_the_man_page_has_every_command_and_no_fault(root: Path) -> None:
    page = root / "usr/share/man/man1/pterefd.1"
    shown = subprocess.run(
        ["man", "--warnings=all", "--local-file", page],
        env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in COMMANDS:
        assert f"pterefd {command} " in shown.stdout
    assert "--metrics-address HOST:PORT" in shown.stdout
    assert "EXIT STATUS" in shown.stdout


COMPLETIONS = {
    "bash": (
        "usr/share/bash-completion/completions/pterefd",
        ["bash", "--norc", "-c"],
        'source "$0"; COMP_WORDS=(pterefd re); COMP_CWORD=1; _pterefd_completion pterefd; '
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ),
    "zsh": (
        "usr/share/zsh/site-functions/_pterefd",
        ["zsh", "-f", "-c"],
        'compdef() { }; compadd() { print -l "${(@P)5}" }; _describe() { print -l "${(@P)3}" }; '
        'words=(pterefd re); CURRENT=2; source "$0"; _pterefd_completion',
    ),
    "fish": (
        "usr/share/fish/vendor_completions.d/pterefd.fish",
        ["fish", "--no-config", "-c"],
        'source $argv[1]; complete -C "pterefd re"',
    ),
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_a_shell_completes(root: Path, shell: str) -> None:
    """The installed file, in the real shell, with the installed program on the path."""
    name, command, script = COMPLETIONS[shell]
    result = subprocess.run(
        [*command, script, root / name],
        env={**os.environ, "PATH": f"{root}/usr/bin:{os.environ['PATH']}", "HOME": "/"},
        capture_output=True,
        text=True,
    )
    found = {line.replace("\t", ":").partition(":")[0] for line in result.stdout.splitlines()}
    assert {"record", "replay", "reenact"} <= found, result
    assert "run" not in found


# -- again, and away ---------------------------------------------------------------------------------


def test_a_configuration_that_is_there_stays(tmp_path: Path) -> None:
    install(tmp_path, prefix="/usr/local")
    unit = (tmp_path / "usr/local/lib/systemd/system/pterefd.service").read_text()
    assert "ExecStart=/usr/local/bin/pterefd run" in unit
    helper = (tmp_path / "usr/local/lib/systemd/system/pterefd-mount@.service").read_text()
    assert "ExecStart=-/usr/local/libexec/pterefd-mount" in helper
    assert "/usr" not in (tmp_path / "etc/pterefd/pterefd.toml").read_text()  # another prefix may be next
    (tmp_path / "etc/pterefd/pterefd.toml").write_text("# mine\n")
    (tmp_path / "usr/local/lib/pterefd/old").touch()
    install(tmp_path, prefix="/usr/local")
    assert (tmp_path / "etc/pterefd/pterefd.toml").read_text() == "# mine\n"
    assert not (tmp_path / "usr/local/lib/pterefd/old").exists()


def test_uninstalled_nothing_but_the_configuration_is_left(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "root"
    shutil.copytree(root, copy, symlinks=True)
    (copy / "usr/bin/other").touch()
    environment = {**os.environ, "DESTDIR": str(copy), "PREFIX": "/usr"}
    subprocess.run([ROOT / "setup/install.sh", "uninstall"], env=environment, check=True, capture_output=True)
    left = [path.relative_to(copy).as_posix() for path in files(copy)]
    assert left == ["etc/pterefd/free.toml", "etc/pterefd/mounts.toml", "etc/pterefd/pterefd.toml", "usr/bin/other"]


# -- which interpreter -------------------------------------------------------------------------------


def environment_in(directory: Path) -> Path:
    """The Python of an empty virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    return directory / "bin" / "python"


def test_the_interpreter_that_is_named_is_taken(tmp_path: Path) -> None:
    """And what it lacks is said, where the packages are left to it."""
    named = environment_in(tmp_path / "named")
    root = tmp_path / "root"
    said = install(root, prefix="/usr", interpreter=named)
    assert (root / "usr/bin/pterefd").read_text().startswith(f"#!{named} \n")
    assert f"install: {named}: has no click " in said
    assert f"install: {named}: services cannot run it (PrivateTmp=); make install PYTHON=/usr/bin/python3" in said


def test_a_prefix_that_services_do_not_see_is_told(tmp_path: Path) -> None:
    assert "install: /home/me: services do not see it (ProtectHome=)" in install(tmp_path, prefix="/home/me")


def test_packages_that_do_not_fit_the_interpreter_are_refused(tmp_path: Path) -> None:
    """They are those of .venv, made for another Python."""
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\ncase $3 in *cache_tag*) echo cpython-399 ;; *) echo "$0" ;; esac\n')
    other.chmod(0o755)
    result = subprocess.run(
        [ROOT / "setup/install.sh", "install", sys.executable, other],
        env={**os.environ, "DESTDIR": str(tmp_path / "root"), "PREFIX": "/usr", "DEPENDENCIES": "yes"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"install: {other}: .venv was made with another Python: `make clean` first\n"
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(("given", "named"), [((), ""), (("PYTHON=/opt/python3",), " /opt/python3")])
def test_make_names_the_interpreter_where_somebody_did(given: tuple[str, ...], named: str) -> None:
    plain = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    command = ["make", "-n", "-C", str(ROOT), "install", *given]
    text = subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in text.splitlines() if "setup/install.sh" in line]
    assert line.rstrip().endswith(f"setup/install.sh install .venv/bin/python{named}")


@pytest.mark.parametrize("target", ["install", "uninstall"])
def test_make_hands_its_variables_on(target: str) -> None:
    command = ["make", "-n", "-C", str(ROOT), target, "DESTDIR=/d", "PREFIX=/p"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line for line in lines if "setup/install.sh" in line]
    assert "PREFIX='/p'" in line
    assert "DESTDIR='/d'" in line
    assert f"setup/install.sh {target}" in line


def test_a_prefix_that_is_no_path_is_refused() -> None:
    result = subprocess.run(
        [ROOT / "setup/install.sh", "uninstall"], env={**os.environ, "PREFIX": "usr"}, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (2, "install: PREFIX=usr: not an absolute path\n")
