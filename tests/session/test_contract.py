"""`pterefd plugins`: what does not keep the contract is told, what does passes; and what `new` writes works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, Run
from tests.reclaim.built import HEAD, POLICIES, plugin

POLICY = """
class P{n}(Policy):
    name = "p{n}"
    def choose(self, view, request):
        {body}
"""
REGISTER = """
@hookimpl
def pterefd_register_policies(register):
    for cls in list(globals().values()):
        if isinstance(cls, type) and cls.__module__ == __name__:
            register(cls)
"""
ALL = "yield from map(Choice, view.ranking(request.kinds))"


def policies(*bodies: str, more: str = "") -> str:
    return more + "".join(POLICY.format(n=n, body=body) for n, body in enumerate(bodies)) + REGISTER


def findings(pterefd: Run, path: Path) -> list[str]:
    """What `plugins check` says of a file, without its name."""
    result = pterefd("plugins", "check", path)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert result.returncode == (0 if "keeps the contract" in result.stdout else 1)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_file_that_keeps_the_contract(pterefd: Run, tmp_path: Path) -> None:
    body = "order = list(view.ranking(request.kinds)); view.rng.shuffle(order); yield from map(Choice, order)"
    path = plugin(tmp_path, "good", policies(ALL, body))
    (line,) = findings(pterefd, path)
    assert re.fullmatch(r"policy p0, policy p1: keeps the contract \(answers: \d+, the same in two runs\)", line)
    assert int(re.findall(r"\d+", line)[2]) > 40
    shown = json.loads(pterefd("plugins", "check", path, "--json").stdout)
    assert (shown["plugins"], shown["findings"]) == ([["policy", "p0"], ["policy", "p1"]], [])


def test_a_workload_that_emits_what_no_seed_gives(pterefd: Run, tmp_path: Path) -> None:
    """Global randomness is named, and so is the batch where two runs part; as it is shipped, one passes."""
    text = (ROOT / "plugins" / "hungry.py").read_text()
    path = tmp_path / "hungry_too.py"
    path.write_text(text.replace('name = "hungry"', 'name = "hungry_too"'))
    assert findings(pterefd, path) == ["workload hungry_too: keeps the contract (answers: 1, the same in two runs)"]
    changed = text.replace('name = "hungry"', 'name = "hungry_too"').replace(
        "        emit.exec(", "        emit.sleep(int(np.random.randint(1 << 30)))\n        emit.exec(", 1
    )
    path.write_text(changed)
    told = findings(pterefd, path)
    assert any("takes randomness that no seed gives: numpy.random" in line for line in told)
    assert any("gives different answers in two runs with the same seed, first at moment 1 (batch 0)" in x for x in told)


IMPURE = {
    "time.time()": "reads the wall clock: time.time",
    "clock()": "reads the wall clock: time.monotonic_ns",
    "time.strftime('%H')": "reads the wall clock: time.strftime",
    "datetime.datetime.now()": "reads the wall clock: datetime.now",
    "date.today()": "reads the wall clock: date.today",
    "random.random()": "takes randomness that no seed gives: random.random",
    "shuffle([1, 2])": "takes randomness that no seed gives: random.shuffle",
    "random.Random()": "takes randomness that no seed gives: random.Random",
    "np.random.rand()": "takes randomness that no seed gives: numpy.random.rand",
    "np.random.default_rng()": "takes randomness that no seed gives: numpy.random.default_rng",
    "os.urandom(1)": "takes randomness that no seed gives: os.urandom",
    "secrets.token_hex()": "takes randomness that no seed gives: secrets.token_hex",
    "uuid.uuid4()": "takes randomness that no seed gives: uuid.uuid4",
}
PURE = ("random.Random(5).random()", "np.random.default_rng(5).random()", "time.strftime('%H', time.gmtime(0))")
IMPORTS = """
import datetime, os, random, secrets, time, uuid
from datetime import date
from random import shuffle
from time import monotonic_ns as clock
import numpy as np
"""


def test_the_wall_clock_and_global_randomness_are_found_with_their_lines(pterefd: Run, tmp_path: Path) -> None:
    bodies = [f"{call}; {ALL}" for call in (*IMPURE, *PURE)]
    path = plugin(tmp_path, "impure", policies(*bodies, more=IMPORTS))
    lines = path.read_text().splitlines()
    expected = {
        f"{finding}, line {next(n for n, line in enumerate(lines, 1) if call in line)}"
        for call, finding in IMPURE.items()
    }
    assert set(findings(pterefd, path)) == expected


def test_what_differs_from_run_to_run(pterefd: Run, tmp_path: Path) -> None:
    bodies = [
        ALL,
        "yield from map(Choice, sorted(view.ranking(request.kinds), key=lambda pid: hash(str(pid))))",
        "yield from (Choice(pid) for pid in view.ranking(request.kinds) if os.getpid() % 7 != pid % 7)",
        # what it remembers is not in its state(): a count of its own, and one of the module
        f"self.n = getattr(self, 'n', 0) + 1\n        if self.n % 3: {ALL}",
        f"COUNT.append(1)\n        if len(COUNT) % 3: {ALL}",
    ]
    path = plugin(tmp_path, "differing", policies(*bodies, more="import os\nCOUNT = []\n"))
    found = findings(pterefd, path)
    assert [re.sub(r", first at .*", "", line) for line in found] == [
        "policy p1: gives different answers in two runs with the same seed",
        "policy p2: gives different answers in two runs with the same seed",
        "policy p3: goes on differently after state() and restore()",
        "policy p4: goes on differently after state() and restore()",
    ]


def test_what_fails_while_it_decides(pterefd: Run, tmp_path: Path) -> None:
    bodies = ["1/0", "yield Choice(4000000)", "while True: pass", "yield 7", "view.pid[0] = 1; yield Choice(1)"]
    path = plugin(tmp_path, "failing", policies(*bodies))
    found = [line for line in findings(pterefd, path) if "different" not in line]
    assert found == [
        "policy p0: ZeroDivisionError: division by zero",
        "policy p1: NoSuchMm: no mm with pid 4000000",
        "policy p2: TookTooLong: took longer than 1 s",
        "policy p3: TypeError: choose() yielded int, not a Choice",
        "policy p4: ValueError: assignment destination is read-only",
    ]


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ("import os\nos._exit(9)\n", "ends the process, code 9"),
        ("1/0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("PTEREFD_API = 2\n", "PTEREFD_API is 2, this pterefd has 1"),
        (
            "class T(Trigger):\n    name = 't'\n    def request(self, view, moment): return ReclaimRequest(pid=-5)\n"
            "@hookimpl\ndef pterefd_register_triggers(register):\n    register(T)\n",
            "trigger t: NoSuchMm: no mm with pid -5",
        ),
    ],
)
def test_what_cannot_be_tried_or_asks_for_nonsense(pterefd: Run, tmp_path: Path, body: str, finding: str) -> None:
    assert findings(pterefd, plugin(tmp_path, "bad", body)) == [finding]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("none.py", "no such file"),
        ("plugins", "is a directory: name a plugin file in it"),
        ("README.md", "is no plugin: not a .py file"),
    ],
)
def test_what_is_no_plugin_file(pterefd: Run, tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "README.md").write_text("raise SystemExit('imported')")
    result = pterefd("plugins", "check", file)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"pterefd: {file}: {reason}\n")


def test_list_shows_what_there_is_and_where_it_comes_from(pterefd: Run, tmp_path: Path, root: Path) -> None:
    path = plugin(tmp_path / "more", "mine", policies(ALL))
    settings = tmp_path / "c.toml"
    settings.write_text("plugins.directories = ['more']")
    result = pterefd("plugins", "list", "-c", settings, "--json")
    assert result.returncode == 0
    rows = {(row["kind"], row["name"]): row for row in json.loads(result.stdout)["plugins"]}
    assert {name for kind, name in rows if kind == "policy"} == {*POLICIES, "p0"}
    assert rows["policy", "p0"]["origin"] == str(path)
    assert rows["policy", "round_robin"]["origin"] == str(root / "plugins" / "round_robin.py")
    (tunable,) = rows["policy", "round_robin"]["tunables"]
    assert (tunable["name"], tunable["default"]) == ("turn_bytes", "0")
    text = pterefd("plugins", "list", "-c", settings).stdout
    assert str(path) in text
    assert "turn_bytes = 0" in text
    (tmp_path / "more" / "bad.py").write_text("1/0")
    result = pterefd("plugins", "list", "-c", settings, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


# -- new -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees all that is installed beside pterefd, for packages of its own."""
    path = tmp_path_factory.mktemp("venv")
    venv.create(path, with_pip=False)
    (site,) = path.glob("lib/python*/site-packages")
    beside = sysconfig.get_path("purelib")
    (site / "beside.pth").write_text(f"import site; site.addsitedir({beside!r})\n")
    return path / "bin" / "python"


@pytest.mark.parametrize("kind", ["policy", "trigger", "workload"])
def test_what_new_writes_is_installed_listed_and_passes_its_test(
    pterefd: Run, tmp_path: Path, environment: Path, kind: str
) -> None:
    name = f"my_{kind}"
    written = pterefd("plugins", "new", name, "--kind", kind)
    assert written.returncode == 0
    files = [Path(line) for line in written.stdout.splitlines()]
    assert [(tmp_path / path).is_file() for path in files] == [True] * 4

    def ran(*command: str | Path, where: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), cwd=where, capture_output=True, text=True, timeout=240)

    steps = (tmp_path / name / "README.md").read_text()
    assert f". {sys.prefix}/bin/activate" in steps
    assert Path(sys.prefix, "bin", "activate").is_file()
    assert "pip install -e '.[test]'" in steps
    pip = [sys.executable, "-m", "pip", "--python", environment, "install", "-q", "--no-index"]
    installed = ran(*pip, "--no-build-isolation", "-e", f"{tmp_path / name}[test]")
    assert installed.returncode == 0, installed.stderr
    listed = ran(environment, "-m", "pterefd", "plugins", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = [row for row in json.loads(listed.stdout)["plugins"] if row["name"] == name]
    assert [(row["kind"], row["origin"]) for row in rows] == [
        (kind, f"pterefd_{name} of pterefd-my-{kind} 0.1.0"),
    ]
    tested = ran(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", where=tmp_path / name)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    passed = 1 if kind == "workload" else 2
    assert f"{passed} passed" in tested.stdout
    # its test can fail
    module = tmp_path / name / f"pterefd_{name}.py"
    spoilt = module.read_text().replace("-sizes[rows]", "sizes[rows]").replace(") <= self", ") < self")
    module.write_text(spoilt.replace("rng.integers(", "np.random.randint("))
    last = ran(environment, "-m", "pytest", "-q", where=tmp_path / name).stdout.splitlines()[-1]
    assert last.startswith("1 failed, 1 passed" if passed == 2 else "1 failed in")


@pytest.mark.parametrize("name", ["My", "1st", "a-b", "../x", ""])
def test_new_refuses_what_is_no_name(pterefd: Run, tmp_path: Path, name: str) -> None:
    result = pterefd("plugins", "new", name, "--kind", "policy")
    assert result.returncode == 2
    assert f"{name!r} is no name for a plugin" in result.stderr
    assert os.listdir(tmp_path) == []


def test_new_overwrites_nothing(pterefd: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    result = pterefd("plugins", "new", "mine", "--kind", "policy")
    assert (result.returncode, os.listdir(tmp_path / "mine")) == (2, ["x"])
    assert "is there already" in result.stderr


def test_an_entry_point_names_the_version_of_the_contract_too(pterefd: Run, tmp_path: Path, environment: Path) -> None:
    assert HEAD.endswith("PTEREFD_API = 1\n")
    (site,) = environment.parent.parent.glob("lib/python*/site-packages")
    info = site / "pterefd_old-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pterefd-old\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pterefd]\nold = pterefd_old_module\n")
    (site / "pterefd_old_module.py").write_text("PTEREFD_API = 7\n")
    command = [str(environment), "-m", "pterefd", "plugins", "list"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    for path in (*info.iterdir(), site / "pterefd_old_module.py"):
        path.unlink()
    info.rmdir()
    assert result.returncode == 2
    assert result.stderr == ("pterefd: pterefd_old_module of pterefd-old 1: PTEREFD_API is 7, this pterefd has 1\n")
