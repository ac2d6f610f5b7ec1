"""The configuration: what is read, what stands before what, and one line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from pterefd import config, paths
from pterefd.errors import EXIT_BAD_INPUT, BadInput

SHIPPED = paths.share("etc/pterefd.toml")


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Loads a text as a file, with what the command line gives."""

    def load(text: str, **overrides: Any) -> config.Config:
        path = tmp_path / "pterefd.toml"
        path.write_text(text)
        return config.load(path, **overrides)

    return load


def test_the_shipped_file_says_the_defaults() -> None:
    """But for its traces: every key of it is a key, and its comments do not lie."""
    shipped = config.load(SHIPPED)
    plain = config.load()
    assert shipped.model_dump(exclude={"replay"}) == plain.model_dump(exclude={"replay"})
    assert shipped.replay.speed == plain.replay.speed


def test_the_shipped_file_names_every_key() -> None:
    text = SHIPPED.read_text()
    for section, model in config.Config.model_fields.items():
        assert f"[{section}]" in text
        table = config.MmSection.model_fields if section == "mm" else getattr(model.annotation, "model_fields", None)
        if table is None:  # a list of tables: [[group]]
            table = get_args(model.annotation)[0].model_fields
        for key in table:
            assert re.search(rf"^(# )?\[?(plugins\.|host\.)?{key}( =|\.|\])", text, re.MULTILINE), key


def test_paths_are_relative_to_the_file_and_the_mount_to_the_working_directory(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    read = load("daemon.mount = 'm'\nreplay.traces = ['a.parquet', '/b']\nplugins.directories = ['../p']")
    assert read.daemon.mount == tmp_path / "cwd" / "m"
    assert read.replay.traces == (tmp_path / "a.parquet", Path("/b"))
    assert read.plugins.directories == (tmp_path.parent / "p",)


def test_what_comes_with_pterefd_is_named_from_anywhere(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration outlives the prefix of the program that it was installed with."""
    monkeypatch.chdir("/")
    recording = paths.share("etc/traces/redis.parquet")
    read = load(SHIPPED.read_text())
    assert read.replay.traces == (recording,)
    assert load("[[mm]]\ntrace = 'share:etc/traces/redis.parquet'").mm[0].trace == recording
    assert load("plugins.directories = ['share:plugins']").plugins.directories == (paths.share("plugins"),)
    with pytest.raises(BadInput, match=r"pterefd.toml: replay.traces.0: 'share:etc/none' does not come with this"):
        load("replay.traces = ['share:etc/none']")


def test_the_command_line_stands_before_the_file(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    text = "daemon.mount = '/m'\nreplay = { traces = ['a'], speed = 3 }\nmetrics = { address = 'off', max_mms = 7 }"
    read = load(
        text,
        mount=Path("n"),
        traces=[Path("x"), Path("/y")],
        metrics_address=("127.0.0.1", 80),
        speed="max",
        profile="v6.18",
    )
    assert read.daemon.mount == Path("/n")
    assert (read.replay.traces, read.replay.speed) == ((Path("/x"), Path("/y")), None)
    assert (read.metrics.address, read.metrics.max_mms) == (("127.0.0.1", 80), 7)
    assert read.host.profile == "v6.18"
    unchanged = load(text)
    assert (unchanged.replay.traces, unchanged.replay.speed) == ((tmp_path / "a",), 3.0)
    assert unchanged.metrics.address is None


def test_memory_of_the_command_line_stands_before_memory_and_zones(load: Any) -> None:
    text = "[host]\nzones = [{ name = 'Normal', managed_pages = 1024 }]\nswap = 4096"
    assert load(text).host.zones
    given = load(text, memory="4GiB").host
    assert (given.memory, given.swap, given.zones) == (4 << 30, 4096, ())
    assert load("", memory="1GiB", swap="2MiB").host.swap == 2 << 20
    with pytest.raises(BadInput, match=r"command line: host.memory: '4' is less than 1MiB"):
        load("", memory="4")


def test_the_mms_of_a_host_are_its_traces_and_then_its_tables(load: Any, tmp_path: Path) -> None:
    text = "replay.traces = ['a']\n[[mm]]\nworkload = 'w'\nparameters = { x = 1 }\n[[mm]]\ntrace = 'b'\ncopies = 2"
    first, second, third = load(text).mms
    assert (first.trace, first.copies, second.workload, second.parameters) == (tmp_path / "a", 1, "w", {"x": 1})
    assert (third.trace, third.copies) == (tmp_path / "b", 2)
    (given,) = load(text, traces=[Path("/t")]).mms
    assert given.trace == Path("/t"), "what the command line gives stands in place of all of them"
    (given,) = load(text, workloads=[{"workload": "v", "parameters": {"y": "2"}}]).mms
    assert (given.workload, given.parameters) == ("v", {"y": "2"})


@pytest.mark.parametrize(("text", "speed"), [("1", 1.0), ("0.5", 0.5), ("'max'", None), ("'2'", 2.0)])
def test_speeds(load: Any, text: str, speed: float | None) -> None:
    assert load(f"replay.speed = {text}").replay.speed == speed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("daemon.munt = 1", "daemon.munt: no such key"),
        ("[deamon]", "deamon: no such key"),
        ("daemon = 3", "daemon: should be a table, not 3"),
        ("daemon.mount = 3", "daemon.mount: should be a path, not 3"),
        ("daemon.log_format = 'xml'", "daemon.log_format: should be 'console' or 'json', not 'xml'"),
        ("daemon.allow_other = 'yes'", "daemon.allow_other: should be true or false, not 'yes'"),
        ("metrics.address = 9738", "metrics.address: 9738 is not HOST:PORT or off"),
        ("metrics.address = 'here'", "metrics.address: 'here' is not HOST:PORT"),
        ("host.memory = '1kB'", "host.memory: '1kB' is less than 1MiB, the least that a host can have (such as 1GiB)"),
        ("host.memory = 'much'", "host.memory: 'much' is not a size (such as 1GiB or 16kB)"),
        ("metrics.max_mms = -1", "metrics.max_mms: should be at least 0, not -1"),
        ("host.profile = ''", "host.profile: should match"),
        ("replay.traces = 'a'", "replay.traces: should be a list, not 'a'"),
        ("replay.traces = ['a', 3]", "replay.traces.1: should be a path, not 3"),
        ("replay.speed = 0", "replay.speed: '0' is not a speed"),
        ("replay.speed = true", "replay.speed: a speed is a factor"),
        ("replay.speed = nan", "replay.speed: 'nan' is not a speed"),
        ("[[mm]]\nseed = 1", "mm.0: give either a trace or a workload"),
        ("[[mm]]\ntrace = 'a'\nworkload = 'b'", "mm.0: give either a trace or a workload"),
        ("[[mm]]\ntrace = 'a'\nparameters = { x = 1 }", "mm.0: parameters are a workload's, and a trace has none"),
        ("[[mm]]\nworkload = 'b'\nparameters = { x = [1] }", "mm.0.parameters.x: should be a number, a string, true"),
        ("[[mm]]\nworkload = 'b'\nstart = -1", "mm.0.start: should be at least 0, not -1"),
        ("[[mm]]\nworkload = 'b'\npace = 0", "mm.0.pace: should be more than 0, not 0"),
        ("[[mm]]\nworkload = 'b'\ncopies = 0", "mm.0.copies: should be at least 1, not 0"),
        ("[[mm]]\nworkload = 'b'\noom_score_adj = 1001", "mm.0.oom_score_adj: should be at most 1000"),
        ("[[mm]]\nworkload = 'b'\npids = 3", "mm.0.pids: no such key"),
        ("mm = 3", "mm: should be a list, not 3"),
        ("plugins.policy = 'Largest-First'", "plugins.policy: should match"),
        ("plugins.policies.p.x = [1]", "plugins.policies.p.x: should be a number, a string, true or false"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_key_and_reason(
    load: Any, tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(BadInput) as refused:
        load(text)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/pterefd.toml: {reason}")
    assert "\n" not in message
    assert refused.value.exit_code == EXIT_BAD_INPUT


def test_several_mistakes_are_all_named(load: Any) -> None:
    with pytest.raises(BadInput, match=r"daemon.log_level: .*; metrics.adress: no such key; replay.speed: "):
        load("daemon.log_level = 'loud'\nmetrics.adress = 'off'\nreplay.speed = -1")


def test_what_is_no_toml_is_named_by_line_and_column(load: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"pterefd.toml:2:9: not TOML: Invalid value"):
        load("[daemon]\nmount = x\n")
    (tmp_path / "latin").write_bytes(b"daemon.mount = '\xe9'")
    with pytest.raises(BadInput, match="latin: not TOML: not UTF-8"):
        config.load(tmp_path / "latin")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml: No such file or directory"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="Is a directory"):
        config.load(tmp_path)


def test_a_mistake_on_the_command_line_is_told_as_such(load: Any) -> None:
    with pytest.raises(BadInput, match=r"^command line: replay.speed: 'fast' is not a speed"):
        load("", speed="fast")
