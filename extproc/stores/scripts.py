"""Lua from the package: one verb a file, joined with the snippets that it names.

A file begins with ``#!lua [flags=…]``, ``-- name: verb`` (its file's name), ``-- uses: snippet, …`` (files of ``shared/``, in the order
in which they are to stand), and a sentence that says what the verb does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from importlib.resources.abc import Traversable


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """``sha`` names it in EVALSHA; ``text`` is what SCRIPT LOAD gets; ``sentence`` says what it does."""

    name: str
    sha: str
    text: str
    sentence: str


def load_scripts(package: str) -> Mapping[str, Script]:
    """Every ``*.lua`` of a package, by name. ``ValueError`` names the file whose header is not one."""
    root = files(package)
    return {script.name: script for entry in root.iterdir() if entry.name.endswith(".lua") for script in (_script(entry, root),)}


def _script(entry: Traversable, root: Traversable) -> Script:
    shebang, name, uses, *rest = entry.read_text(encoding="utf-8").split("\n")
    stem = entry.name.removesuffix(".lua")
    sentence = rest[0].removeprefix("-- ")
    if not (shebang.startswith("#!lua") and name == f"-- name: {stem}" and uses.startswith("-- uses:") and rest[0].startswith("-- ")):
        raise ValueError(f"{entry.name} must begin with #!lua, -- name: {stem}, -- uses: …, -- a sentence")
    names = [snippet.strip() for snippet in uses.removeprefix("-- uses:").split(",") if snippet.strip()]
    snippets = [(root / "shared" / f"{snippet}.lua").read_text(encoding="utf-8") for snippet in names]
    text = "\n".join([shebang, *snippets, *rest])
    return Script(name=stem, sha=sha1(text.encode(), usedforsecurity=False).hexdigest(), text=text, sentence=sentence)
