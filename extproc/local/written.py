"""The files of a stack that an operator may edit: ``extproc.yaml`` and ``models.yaml`` of its directory."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from extproc.errors import UsageError

MARK: Final = "  # set by up"


def keep_catalog(target: Path, given: Path | None) -> None:
    """The given one, else the one that is there, else the shipped one."""
    if given is not None:
        try:
            shutil.copyfile(given, target)
        except shutil.SameFileError:
            return
        except OSError as error:
            raise UsageError(f"{given} cannot be copied: {error.strerror}") from error
    elif not target.exists():
        target.write_text(_shipped("models.yaml"))


def keep_settings(target: Path, values: Mapping[str, str | int]) -> None:
    """The file that is there, else the shipped one, with the values of the lines that are ours."""
    text = target.read_text() if target.exists() else _shipped("extproc.yaml")
    for key, value in values.items():
        line = f"  {key}: {json.dumps(value)}{MARK}"
        text, times = re.subn(rf"^  {key}: .*{MARK}$", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
        if times != 1:
            raise UsageError(f"{target} has lost its line `{key}: …{MARK}`: put it back, or remove the file to get a new one")
    target.write_text(text)


def _shipped(name: str) -> str:
    return (files("extproc.local") / name).read_text()
