"""The witness shares no code with what it watches, and runs without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import extproc.local.sim as package

FOLDER = Path(package.__file__).parent
ALLOWED = "extproc.local.sim"

LOADED = """
import runpy, sys
sys.argv = ["sim", "--help"]
try:
    runpy.run_module("extproc.local.sim", run_name="__main__")
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if name.startswith("extproc")))
"""


def test_no_module_imports_ours():
    for file in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not getattr(node, "level", 0), f"{file.name} imports relatively"
            assert all(name.startswith(ALLOWED) for name in names if name.startswith("extproc")), f"{file.name} imports {names}"


def test_nothing_of_ours_is_loaded_by_running_it():
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=FOLDER.parents[2], capture_output=True, check=True)
    loaded = done.stdout.decode().splitlines()[-1].split()
    assert "extproc.local.sim.server" in loaded
    assert {name for name in loaded if not name.startswith(ALLOWED)} == {"extproc", "extproc.local"}
