"""`python -m pterefd`: the command line."""

from pterefd.cli import main

main()
