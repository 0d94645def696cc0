from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PURE = Path(__file__).parent


def test_pure_tests_stay_quick(request: pytest.FixtureRequest, spent_s: float):
    """In a process of their own: after other suites each of them costs more, for what those have left in the process."""
    if all(PURE in item.path.parents for item in request.session.items):
        assert spent_s < 5.0, f"the pure tests took {spent_s:.1f} s of CPU"
        return
    alone = subprocess.run([sys.executable, "-m", "pytest", str(PURE), "-q"], capture_output=True, text=True, timeout=100, check=False)
    assert alone.returncode == 0, alone.stdout[-2_000:]
