"""Where the files beside the package lie: in a checkout next to it, in an installed wheel inside it.

Imports nothing of pterefd.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share(name: str) -> Path:
    """The directory or file `name` ("plugins", "etc", "etc/pterefd.toml") of this installation.

    The checkout's own one where pterefd runs from a checkout, else the one that the wheel carries.
    Raises FileNotFoundError where neither is there: the installation is damaged.
    """
    for root in (_PACKAGE.parent, _PACKAGE / "_share"):
        # A directory beside an installed package may be anybody's: only a checkout has pyproject.toml there.
        if root == _PACKAGE.parent and not (root / "pyproject.toml").is_file():
            continue
        path = root / name
        if path.exists():
            return path
    raise FileNotFoundError(f"{name}: not in this installation of pterefd (looked beside and inside {_PACKAGE})")
