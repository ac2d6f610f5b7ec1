"""What other kernels said of the oracle's programs (`make oracle-kernels`), kept and replayed without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .kernels import JOINS, KEPT, RULES, check_file, rules_met, unpack

ARCHIVES = sorted(KEPT.glob("*.tar.xz"))


def test_two_kernels_are_kept() -> None:
    assert sorted(path.name.split(".")[1] for path in ARCHIVES) == ["1", "12"]


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.partition("-")[0])
def test_its_programs_agree(archive: Path, tmp_path: Path) -> None:
    paths = unpack(archive, tmp_path)
    assert len(paths) >= 240
    assert {path.name: check_file(path).differ for path in paths} == dict.fromkeys((path.name for path in paths), 0)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.partition("-")[0])
def test_they_tell_kernels_apart(archive: Path, tmp_path: Path) -> None:
    """Programs that meet the rules by which mappings join: with a rule turned round, they differ."""
    joins = [path for path in unpack(archive, tmp_path) if path.name.startswith(f"{JOINS}-")]
    met: set[str] = set()
    for path in joins:
        met.update(rules_met(path))
        if met == set(RULES):
            break
    assert met == set(RULES)
