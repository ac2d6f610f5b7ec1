"""What is shipped and how it is set up: wheel, lock files, system packages, make targets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from pterefd import __version__, paths
from tests.systemd.installed import kernels

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")
NOBODY = 65534


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout without the network."""
    target = tmp_path_factory.mktemp("wheel")
    build = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(target), str(ROOT)]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    (file,) = target.glob("*.whl")
    return file


def test_the_wheel_carries_plugins_configuration_and_recordings(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for directory in ("plugins", "etc"):
        files = [path for path in (ROOT / directory).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = {f"pterefd/_share/{path.relative_to(ROOT).as_posix()}" for path in files} - names
        assert missing == set()


def test_the_wheel_carries_the_sources_of_the_agent(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"pterefd/reenact/{name}" for name in ("agent.c", "calls.h", "init.c")} <= names


def test_an_installed_wheel_finds_what_it_carries(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "plugins").mkdir()  # of somebody else's, beside the installed package
    program = "from pterefd import paths; print(paths.share('etc/pterefd.toml')); print(paths.share('plugins'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env=environment, capture_output=True, text=True, check=True
    )
    carried = tmp_path / "pterefd" / "_share"
    assert result.stdout.split() == [str(carried / "etc" / "pterefd.toml"), str(carried / "plugins")]


def test_a_checkout_finds_its_own() -> None:
    assert paths.share("plugins") == ROOT / "plugins"
    with pytest.raises(FileNotFoundError):
        paths.share("nothing")


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__} " in (ROOT / "CHANGELOG.md").read_text()


# -- lock files -----------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_with_hashes(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if line and not line.lstrip().startswith("#")]
    text = "\n".join(lines)
    entries = re.split(r"\n(?=\S)", text)
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+ \\\n", entry), entry
        assert "--hash=sha256:" in entry
    assert "://" not in text


def test_the_lock_has_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for lock, wanted in (
        ("requirements.lock", project["dependencies"]),
        ("requirements-dev.lock", project["dependencies"] + project["optional-dependencies"]["dev"]),
    ):
        pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
        names = {re.split(r"[<>=]", requirement)[0] for requirement in wanted}
        assert names - pinned == set(), "run `make lock`"


def test_the_locks_agree() -> None:
    pins: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE):
            pins.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}


# -- set-up -----------------------------------------------------------------------------------


def packages(argument: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """setup/packages.sh as nobody, who can install nothing."""
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-s", argument],
        input=(ROOT / "setup" / "packages.sh").read_text(),
        env={**os.environ, **environment},
        cwd="/",
        capture_output=True,
        text=True,
    )


def test_where_all_is_there_nothing_is_said() -> None:
    result = packages("run", PYTHON="/bin/true")  # whose virtual environments are not the point here
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_root_the_missing_package_is_named() -> None:
    result = packages("run", PYTHON="/bin/false")
    assert result.returncode == 3
    assert "python3-venv" in result.stderr
    assert "apt-get install python3-venv" in result.stderr


def test_make_lists_its_targets() -> None:
    result = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    targets = ("run", "test", "setup", "setup-test", "lint", "types", "bench", "recordings", "oracle", "clean")
    for target in (*targets, "install", "uninstall"):
        assert f"make {target} " in result.stdout


# -- the wheel where there is no checkout -----------------------------------------------------


@pytest.mark.timeout(900)  # 40 packages are fetched and unpacked
@pytest.mark.mount
def test_the_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """As `pipx run --spec dist/*.whl pterefd run` does it, but for versions: those are the lock's."""
    venv, work = tmp_path / "venv", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input", "install"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    build, run = (["--require-hashes", "-r", str(ROOT / f"requirements{kind}.lock")] for kind in ("-build", ""))
    isolated = ["--no-build-isolation", "--use-pep517", "--no-compile"]
    for arguments in ([*build], [*isolated, *run], ["--no-index", "--no-compile", str(wheel)]):
        subprocess.run([*pip, *arguments], env=clean, check=True)
    (package,) = venv.glob("lib/python*/site-packages/pterefd")
    cache = kernels(tmp_path / "cache", package)
    (work / "mnt").mkdir(parents=True)
    script, log = venv / "bin" / "pterefd", tmp_path / "log"
    with log.open("w") as err:
        daemon = subprocess.Popen(
            [script, "run", "--mount", "mnt", "--metrics-address", "off", "--speed", "max"],
            cwd=work,
            env={**clean, "PTEREFD_CACHE": str(cache)},
            stderr=err,
            stdout=err,
        )
    try:
        while not (work / "mnt" / "1" / "comm").exists():
            assert daemon.poll() is None, log.read_text()
            time.sleep(0.05)
        assert (work / "mnt" / "1" / "comm").read_text() == "redis-server\n"
        policies = (work / "mnt" / "sys/vm/pt_reclaim/available_policies").read_text().split()
        assert {"largest_first", "idle_first", "none"} <= set(policies)
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0, log.read_text()
    helper = subprocess.run([venv / "bin" / "pterefd-mount"], env=clean, capture_output=True, text=True)
    assert "pterefd-mount.socket" in helper.stderr
