"""What is shipped works by itself: the wheel, in an empty environment outside of the tree, runs a whole stack."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300  # of pip on a machine that has downloaded nothing yet

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Nothing of this tree may be found by accident."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("EXTPROC_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=cwd, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def outside() -> Iterator[Path]:
    """A short path, open to enter: as root, PostgreSQL is another user."""
    folder = Path(tempfile.mkdtemp(prefix="xw-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def wheel(outside: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", outside, ROOT, cwd=outside)
    (built,) = outside.glob("*.whl")
    return built


def test_the_wheel_has_what_is_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"extproc/local/envoy/{name}.yaml" for name in ("envoy", "routes", "clusters", "certificate")}
    wanted |= {"extproc/local/models.yaml", "extproc/local/extproc.yaml", "extproc/py.typed", "extproc/tokens/vocab/qwen.tiktoken.xz"}
    wanted |= {"extproc/holds/lua/admit.lua", "extproc/ledger/migrations/0001_ledger.sql", "extproc/accounts/sql/keys.sql"}
    assert wanted - names == set()
    assert not [name for name in names if name.startswith("tests/")]


def test_the_wheel_runs_a_whole_stack_outside_of_the_tree(wheel, outside):
    venv.create(outside / "env", with_pip=False)
    python, command, data = outside / "env/bin/python", outside / "env/bin/extproc", outside / "data"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", f"{wheel}[local,check]", cwd=outside)
    where = run(python, "-c", "import extproc; print(extproc.__file__)", cwd=outside).stdout
    assert where.startswith(str(outside / "env"))
    run(command, "up", "--data", data, "--detach", cwd=outside)
    try:
        facts = json.loads((data / "up.json").read_text())
        body = json.dumps({"model": "qwen3-72b", "messages": [{"role": "user", "content": "Hello"}]}).encode()
        headers = {"authorization": f"Bearer {facts['api_key']}", "content-type": "application/json"}
        request = urllib.request.Request(f"{facts['base_url']}/chat/completions", body, headers)
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=facts["ca_file"]), timeout=30) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 16
            assert answer.headers["x-request-cost"]
        run(command, "check", "--data", data, cwd=outside)
    finally:
        run(command, "down", "--data", data, cwd=outside)
