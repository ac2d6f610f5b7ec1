"""A daemon and a real Prometheus that scrapes it, for tests and for docs/dashboards.py.

Both run until they are closed; everything listens on free ports of the loopback interface.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
ETC = ROOT / "etc" / "prometheus"
DASHBOARDS = ROOT / "etc" / "grafana" / "dashboards"
SCRIPT = Path(sys.executable).parent / "pterefd"
READY_SECONDS = 60.0

Series = dict[str, Any]  # {"metric": {label: value}, "value": [t, text]} or "values"


def free_address() -> str:
    """A HOST:PORT of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Ends the process, whatever happens."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def daemon(settings: str, directory: Path, address: str) -> Iterator[None]:
    """`pterefd run` with a configuration, mounted below the directory; address: HOST:PORT of its metrics."""
    mount = directory / "mnt"
    mount.mkdir(parents=True)
    path = directory / "pterefd.toml"
    path.write_text(f"daemon.mount = '{mount}'\nmetrics.address = '{address}'\n{settings}")
    log = directory / "log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [str(SCRIPT), "run", "-c", str(path)], cwd=directory, stdout=subprocess.PIPE, stderr=err, text=True
        )
    with stopped(process):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("metrics: "):  # the last of what it says when all runs
                yield
                return
        raise AssertionError(f"the daemon ended with {process.wait()}: {log.read_text()}")


def wait_until_ready(url: str, seconds: float) -> None:
    """Until it answers 200. AssertionError where it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.05)


class Prometheus:
    """The API of one that runs. AssertionError where a query is refused."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=20) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Series]:
        """What an expression is now."""
        result: list[Series] = self.get("query", query=expression)["result"]
        return result

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """What an expression was over time."""
        result: list[Series] = self.get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return result

    def label_values(self, series: str, label: str) -> list[str]:
        """As Grafana asks for a template variable's values."""
        values: list[str] = self.get(f"label/{label}/values", **{"match[]": series})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health, and the alerts with what they found."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


@contextmanager
def prometheus(
    directory: Path, targets: Mapping[str, Mapping[str, str]], *, interval: str = "1s"
) -> Iterator[Prometheus]:
    """Debian's Prometheus with the configuration of etc/prometheus, but for its targets and intervals.

    targets: HOST:PORT by instance, by job; jobs that have none are left out.
    """
    program = shutil.which("prometheus")
    assert program is not None, "there is no prometheus: `make setup-test` installs it"
    settings = yaml.safe_load((ETC / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval}
    settings["rule_files"] = [str(ETC / name) for name in settings["rule_files"]]
    jobs = [job for job in settings["scrape_configs"] if targets.get(job["job_name"])]
    for job in jobs:
        job["static_configs"] = [
            {"targets": [address], "labels": {"instance": instance}}
            for instance, address in targets[job["job_name"]].items()
        ]
    settings["scrape_configs"] = jobs
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings))
    address = free_address()
    log = directory / "prometheus.log"
    with log.open("w") as err:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            cwd=directory,
            stdout=err,
            stderr=err,
        )
    with stopped(process):
        try:
            wait_until_ready(f"http://{address}/-/ready", READY_SECONDS)
        except AssertionError:
            raise AssertionError(f"prometheus ended with {process.poll()}: {log.read_text()}") from None
        yield Prometheus(f"http://{address}")


# -- what Grafana does ----------------------------------------------------------------------------------


def filled(text: str, values: Mapping[str, str]) -> str:
    """A query with its template variables in."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], text)


def boards() -> dict[str, dict[str, Any]]:
    """The dashboards of etc/grafana, by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}
