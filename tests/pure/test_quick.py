from __future__ import annotations


def test_pure_tests_stay_quick(spent_s: float):
    assert spent_s < 5.0, f"the pure tests took {spent_s:.1f} s of CPU"
