"""The units: systemd's own tools find no fault with them, they give no rights away, and they fit together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pterefd import config, paths
from pterefd.freeing.table import table as free_table
from pterefd.mounthelper.table import table
from tests.systemd.installed import ROOT, UNITS, install

MOST_EXPOSED = 2.0
DAEMONS = ("pterefd.service", "pterefd@.service")
# systemd.exec(5): each gives a unit a mount namespace of its own, which lets none of its mounts out.
NAMESPACING = (
    *("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables"),
    *("ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset", "PrivateIPC"),
    *("RootDirectory", "RootImage", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "BindPaths"),
    *("NoExecPaths", "TemporaryFileSystem", "BindReadOnlyPaths", "MountAPIVFS", "DynamicUser", "MountFlags"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with pterefd in it, and what its units name of systemd and of the system."""
    path = tmp_path_factory.mktemp("root")
    shutil.copytree("/usr/lib/systemd/system", path / "usr/lib/systemd/system", symlinks=True)
    install(path)
    shutil.copy("/bin/kill", path / "usr/bin/kill")
    (path / "bin").symlink_to("usr/bin")
    return path


def lines_of(unit: str) -> list[str]:
    return (ROOT / "systemd" / unit).read_text().splitlines()


def settings_of(unit: str) -> dict[str, str]:
    """The settings of a unit; of one that is repeated the last."""
    return dict(line.split("=", 1) for line in lines_of(unit) if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_no_fault(root: Path, unit: str) -> None:
    name = f"/usr/lib/systemd/system/{unit.replace('@.', '@one.')}"
    result = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--man=no", "--recursive-errors=yes", name],
        capture_output=True,
        text=True,
    )
    ours = [line for line in result.stderr.splitlines() if "pterefd" in line]
    assert (result.returncode, ours) == (0, []), result.stderr


def exposure(unit: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", *options]
    return subprocess.run([*command, str(ROOT / "systemd" / unit)], capture_output=True, text=True)


@pytest.mark.parametrize("unit", DAEMONS)
def test_the_daemon_is_hardly_exposed(unit: str) -> None:
    result = exposure(unit, f"--threshold={MOST_EXPOSED * 10:.0f}")
    assert result.returncode == 0, result.stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", DAEMONS)
def test_every_exception_has_its_reason(unit: str) -> None:
    """What systemd still finds open is named, with a reason, in a comment of the unit."""
    rows = json.loads(exposure(unit, "--json=short").stdout)
    open_ = {row["name"].partition("=")[0] for row in rows if row["set"] is False and row["exposure"]}
    explained = {found[1] for line in lines_of(unit) if (found := re.match(r"# (\w+)=[^:]*: ..", line))}
    assert "MemoryDenyWriteExecute" in open_
    assert open_ <= explained


def test_the_template_is_the_unit_but_for_its_names() -> None:
    plain, template = lines_of("pterefd.service"), lines_of("pterefd@.service")
    assert len(plain) == len(template)
    differ = [line.partition("=")[0] for line, other in zip(plain, template, strict=True) if line != other]
    assert differ[1:] == ["Description", "ExecStart", "StateDirectory", "WorkingDirectory"]
    assert differ[0].startswith("#")


def test_the_helper_mounts_where_all_can_see_it() -> None:
    helper = settings_of("pterefd-mount@.service")
    assert set(NAMESPACING) & helper.keys() == set()
    assert helper["CapabilityBoundingSet"] == "CAP_SYS_ADMIN"
    assert helper["NoNewPrivileges"] == "yes"


def test_the_helper_that_frees_has_few_rights() -> None:
    helper, socket = settings_of("pterefd-free.service"), settings_of("pterefd-free.socket")
    assert helper["CapabilityBoundingSet"] == "CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_SYS_NICE"
    assert helper["NoNewPrivileges"] == helper["PrivateNetwork"] == "yes"
    assert (socket["SocketMode"], socket["SocketGroup"]) == ("0660", settings_of("pterefd.service")["User"])
    assert exposure("pterefd-free.service", "--threshold=30").returncode == 0


def test_nothing_may_be_freed_from_as_installed(root: Path) -> None:
    assert free_table(str(root / "etc/pterefd/free.toml")) == []


def test_the_parts_meet(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket, group, table, configuration and the place of the mount are the same for all who name them."""
    monkeypatch.chdir(tmp_path)
    installed = config.load(root / "etc/pterefd/pterefd.toml")
    socket = settings_of("pterefd-mount.socket")
    users = (root / "usr/lib/sysusers.d/pterefd.conf").read_text()
    places = (root / "usr/lib/tmpfiles.d/pterefd.conf").read_text()
    daemon = settings_of("pterefd.service")
    assert socket["ListenSequentialPacket"] == installed.daemon.mount_helper
    assert socket["SocketMode"] == "0660"
    assert socket["SocketGroup"] == daemon["Group"] == daemon["User"]
    assert f"\nu {daemon['User']} " in users
    assert f"\nd {installed.daemon.mount.parent} 0755 root root" in places
    allowed = tmp_path / "mounts.toml"
    text = (root / "etc/pterefd/mounts.toml").read_text()
    assert f'user = "{daemon["User"]}"' in text
    allowed.write_text(text.replace(f'"{daemon["User"]}"', '"root"'))  # who is not on this machine
    (entry,) = table(str(allowed))
    assert entry.fits(str(installed.daemon.mount))
    assert entry.fits("/run/pterefd/one")
    assert not entry.fits("/run/pterefd")
    assert entry.allow_other is installed.daemon.allow_other is True
    assert "--mount /run/pterefd/%i" in settings_of("pterefd@.service")["ExecStart"]


def test_the_installed_configuration_is_the_shipped_one_but_for_the_mount(root: Path) -> None:
    installed = config.load(root / "etc/pterefd/pterefd.toml").model_dump()
    shipped = config.load(paths.share("etc/pterefd.toml")).model_dump()
    for key in ("mount", "allow_other", "mount_helper"):
        assert installed["daemon"].pop(key) != shipped["daemon"].pop(key)
    assert installed == shipped


def test_user_and_directory_are_made(root: Path) -> None:
    """By systemd's own tools, in the root."""
    subprocess.run(["systemd-sysusers", f"--root={root}"], check=True, capture_output=True)
    assert re.search(r"^pterefd:x:\d+:\d+:pterefd daemon:/var/lib/pterefd:", (root / "etc/passwd").read_text(), re.M)
    assert re.search(r"^pterefd:x:\d+:", (root / "etc/group").read_text(), re.MULTILINE)
    made = ["systemd-tmpfiles", f"--root={root}", "--create", "pterefd.conf"]
    subprocess.run(made, check=True, capture_output=True)
    status = (root / "run/pterefd").stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o755)
