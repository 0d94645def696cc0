"""``python -m extproc.cli``."""

from extproc.cli import main

main()
