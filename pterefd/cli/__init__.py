"""The command line: one function per command, one file each; errors become one line and an exit code here, only.

Exit codes: 0 done; 1 a check did not hold; 2 bad usage or bad input; 3 something outside is missing; 4 partly done;
70 a fault of pterefd; 130 interrupted; 141 nobody reads what is printed. `record -- COMMAND` gives COMMAND's own.
"""

from __future__ import annotations

from pterefd.cli.group import cli, main

__all__ = ["cli", "main"]
