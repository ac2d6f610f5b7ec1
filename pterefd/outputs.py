"""Files that are written: none takes the place of another one unasked, and none that of what is read for it.

Imports nothing of pterefd but its errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pterefd.errors import BadInput

# What the end of a file's name says of its content, as far as pterefd writes or reads it.
FORMATS = {
    ".parquet": "Parquet",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".toml": "TOML",
    ".py": "Python",
    ".c": "C",
}


def check(path: Path, *, force: bool, ending: str | None = None, inputs: Iterable[Path] = ()) -> None:
    """Whether a file may be written, asked before the work is done whose outcome it is to hold. BadInput.

    force: an existing file is replaced.  ending: of the format that is written; a name that says another one is
    refused, one that says none is not. Parquet is stricter: its name ends so, or has no ending.  inputs: what is read;
    none of them is replaced, force or not.
    """
    for source in inputs:
        refuse_same(source, path)
    if ending is not None:
        refuse_other_format(path, ending)
    refuse_existing(path, force)


def refuse_other_format(path: Path, ending: str) -> None:
    """BadInput: the name says that another format is in the file than the one of `ending`."""
    suffix = path.suffix.lower()
    said = FORMATS.get(suffix)
    # What is neither text nor known by another ending (x.txt, x.trace) would be opened by the wrong program.
    binary = ending == ".parquet"
    if said == FORMATS[ending] or (said is None and not (binary and suffix)):
        return
    written = FORMATS[ending] if said is None else f"{FORMATS[ending]}, not {said}"
    hint = " (`pterefd export` makes JSON Lines of it)" if binary else ""
    raise BadInput(f"{path}: what is written is {written}: its name should end in {ending}{hint}")


def refuse_same(source: Path, target: Path) -> None:
    """BadInput: both are one file, which would be gone before it was read, or be lost."""
    try:
        same = os.path.samefile(source, target)
    except OSError:
        return  # one of them is not there; who reads it says so
    if same:
        raise BadInput(f"{target}: is a file that is read: it would be lost")


def refuse_existing(path: Path, force: bool) -> None:
    """BadInput: the path is a directory or a device, or there already and not to be replaced."""
    if path.is_dir():
        raise BadInput(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is not a regular file")
    if not force and (path.exists() or path.is_symlink()):
        raise BadInput(f"{path}: exists already (--force replaces it)")
