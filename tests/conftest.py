"""Fixtures that every test may use: the installed command, started as a user would, and the bundled recordings.

`pterefd(*args)` runs .venv/bin/pterefd to its end and gives the CompletedProcess, texts decoded; `traces` are the
recordings of etc/traces; `root` is the checkout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.grower_process import Grower

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.executable).parent / "pterefd"

# A shell starts what it puts into the background with SIGINT ignored, and all below it inherits that: Ctrl-C could
# not be tested. A handler of our own is the default again in whatever the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup(1) does the same with SIGHUP, which a daemon that is told to ignore it rightly ignores.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def script() -> Path:
    """The installed `pterefd`, beside the Python that runs the tests."""
    return SCRIPT


@pytest.fixture
def pterefd(tmp_path: Path) -> Run:
    """Run `pterefd ARGS...` in tmp_path; keyword arguments go to subprocess.run."""

    def run(*args: str | Path, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
        settings: dict[str, object] = {"cwd": tmp_path, "capture_output": True, "text": True, **options}
        settings.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([str(SCRIPT), *map(str, args)], timeout=timeout, **settings)  # type: ignore[call-overload]

    return run


@pytest.fixture
def grower() -> Iterator[Grower]:
    """A process of this machine whose page-table memory is known."""
    one = Grower()
    yield one
    one.end()


@pytest.fixture(scope="session")
def traces() -> list[Path]:
    """The bundled recordings of real programs."""
    return sorted((ROOT / "etc" / "traces").glob("*.parquet"))


@pytest.fixture(autouse=True)
def _no_mount_left_behind(tmp_path: Path) -> Iterator[None]:
    """A test that leaves a mount below its tmp_path fails, and the mount is taken away."""
    yield
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    left = [mount for mount in mounts if mount.startswith(f"{tmp_path}{os.sep}")]
    for mount in left:
        subprocess.run(["fusermount3", "-u", "-z", mount], check=False)
    assert left == []
