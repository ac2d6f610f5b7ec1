"""One daemon for all clients, on a small host whose every number is known; and the table of what was compared.

The host (simulated.py) stands still once its traces are over, so that what two clients say can be compared. Clients
are started as docs/clients.md says: in `pterefd shell`, in a bind mount, or with an option of their own. One that is
not installed fails its test: `make setup-test` brings them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib import metadata

import pytest

from tests.clients.simulated import (
    Simulated,
    daemon,
    public_directory,
    smallest,
    take_away_dead_mounts,
    write_configuration,
    write_shipped_configuration,
)


@pytest.fixture(scope="session")
def simulated() -> Iterator[Simulated]:
    """The mounted host, at rest."""
    with public_directory() as directory, daemon(directory, write_configuration(directory)) as running:
        running.wait_until_ended()
        yield running


@pytest.fixture(scope="session")
def shipped() -> Iterator[Simulated]:
    """What `make run` shows, at its end: one process, with two threads."""
    with public_directory() as directory, daemon(directory, write_shipped_configuration(directory)) as running:
        running.wait_until_ended()
        yield running


@pytest.fixture(scope="session", autouse=True)
def _no_dead_mounts() -> None:
    take_away_dead_mounts()


@pytest.fixture
def another() -> Iterator[Simulated]:
    """One more daemon, on the smallest host, which its own user alone may see."""
    with smallest() as running:
        yield running


# -- the table -----------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Client, version, what was compared, passed: a row for each test that names its client."""
    rows = []
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            said = dict(getattr(report, "user_properties", ()))
            if "client" in said:
                passed = "yes" if outcome == "passed" else "NO"
                rows.append((said["client"], said["version"], said["compared"], passed))
    if not rows:
        return
    head = ("client", "version", "what was compared", "passed")
    table = [head, *sorted(set(rows))]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    terminalreporter.section("clients")
    for row in table:
        terminalreporter.line(
            "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]))
        )


@pytest.fixture(autouse=True)
def _row_of_the_table(request: pytest.FixtureRequest) -> None:
    """Notes what the `client` marker of a test says, for the table."""
    marker = request.node.get_closest_marker("client")
    if marker is not None:
        client, package, compared = marker.args
        for item in (("client", client), ("version", version(package)), ("compared", compared)):
            request.node.user_properties.append(item)


def version(package: str) -> str:
    """Of a Debian package, else of a Python one, else of pterefd's own part."""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return done.stdout
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
