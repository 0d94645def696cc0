"""The command ``extproc``: one file per verb, no logic. What a verb needs is imported when it runs, so that ``--help`` is quick."""

from extproc.cli.root import main

__all__ = ["main"]
