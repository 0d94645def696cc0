"""Files of Lua: headers, sizes, and what is never in them."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from extproc.stores.scripts import load_scripts

LUA = files("extproc.holds.lua")
SCRIPTS = load_scripts("extproc.holds.lua")
REBUILD = {"begin", "reassert", "count", "restore", "open"}
READS = {"facts", "purse", "sight"}
ALLOW_OOM = {"settle", "expire", "release", "beat", "witness", "credit", "freeze"} | REBUILD


def test_every_verb_is_there() -> None:
    verbs = {"admit", "amend", "beat", "settle", "expire", "release", "witness", "credit", "install", "put_key", "freeze", "note"}
    assert set(SCRIPTS) == verbs | REBUILD | READS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_full_server_takes_no_new_holds_and_ends_old_ones(name: str) -> None:
    script = SCRIPTS[name]
    flags = " flags=allow-oom" if name in ALLOW_OOM else " flags=no-writes" if name in READS else ""
    assert script.text.split("\n")[0] == f"#!lua{flags}"
    assert script.sentence.endswith(".")
    assert len(script.sha) == 40


@pytest.mark.parametrize(
    "path", sorted(str(entry) for folder in (LUA, LUA / "shared") for entry in folder.iterdir() if entry.name.endswith(".lua"))
)
def test_files_stay_short_and_touch_one_shard(path: str) -> None:
    text = Path(path).read_text()
    assert len(text.splitlines()) <= 90
    assert max(map(len, text.splitlines())) <= 150
    assert not re.search(r"tonumber\((entry|reserved|charge|cap|total|credit|spendable|h\.(reserved|cap|entry|checkpoint))\b", text)
    assert "KEYS[2]" not in text


def test_a_file_without_its_header_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lua_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "verb.lua").write_text("#!lua\n-- name: other\n-- uses:\n-- A sentence.\nreturn 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"verb\.lua must begin with"):
        load_scripts("lua_of_a_test")
    (package / "verb.lua").write_text("#!lua\n-- name: verb\n-- uses:\n-- A sentence.\nreturn 1\n")
    assert load_scripts("lua_of_a_test")["verb"].text == "#!lua\n-- A sentence.\nreturn 1\n"
