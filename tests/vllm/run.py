"""``make vllm``: the end-to-end tests against a real vLLM, or one line that says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from real_wheel import Absent, installed


def main(args: list[str]) -> int:
    """pytest's exit code; 0 where there is no vLLM."""
    try:
        python = installed(say)
    except Absent as absent:
        say(f"SKIPPED, there is no real vLLM here: {absent}")
        return 0
    pytest = [sys.executable, "-m", "pytest", "-m", "vllm", "-s", "--timeout", "1500", str(Path(__file__).parent), *args]
    return subprocess.call(pytest, env={**os.environ, "EXTPROC_VLLM": str(python)})


def say(line: str) -> None:
    print(f"make vllm: {line}", flush=True)  # noqa: T201 - for people


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
