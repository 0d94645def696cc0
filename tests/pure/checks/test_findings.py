"""Findings as people and programs read them."""

import json

import pytest

from extproc.checks.finding import Finding, Severity, findings_of, worst
from extproc.checks.render import render_json, render_text
from extproc.errors import ConfigError
from extproc.settings import load_settings

FINDING = Finding(
    severity=Severity.ERROR, check="path_flags", file="envoy.yaml", line=7, what="merge_slashes is not true", todo="merge_slashes: true"
)


def test_text_for_people():
    assert render_text([FINDING]) == (
        "envoy.yaml:7: error: merge_slashes is not true [path_flags]\n    merge_slashes: true\n1 errors, 0 warnings"
    )
    assert render_text([]) == "no faults"


def test_json_for_programs():
    assert json.loads(render_json([FINDING])) == [
        {
            "severity": "error", "check": "path_flags", "file": "envoy.yaml", "line": 7,
            "what": "merge_slashes is not true", "todo": "merge_slashes: true",
        }
    ]  # fmt: skip


def test_the_worst_decides():
    warning = Finding(severity=Severity.WARNING, check="c", file="f", line=0, what="w", todo="t")
    assert (worst([]), worst([warning]), worst([warning, FINDING])) == (None, Severity.WARNING, Severity.ERROR)


def test_faults_of_settings_become_findings(tmp_path):
    (tmp_path / "extproc.yaml").write_text("lisen: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "extproc.yaml", {})
    [finding] = findings_of(caught.value, check="settings")
    assert (finding.check, finding.line, finding.severity) == ("settings", 1, Severity.ERROR)
