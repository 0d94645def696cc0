"""Findings for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from extproc.checks.finding import Finding, Severity


def render_text(findings: Sequence[Finding]) -> str:
    """``file:line: severity: what [check]`` as editors understand it, what to do below, and a sum at the end."""
    lines = []
    for finding in findings:
        place = f"{finding.file}:{finding.line}" if finding.line else finding.file
        lines += [f"{place}: {finding.severity}: {finding.what} [{finding.check}]", f"    {finding.todo}"]
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    lines.append(f"{errors} errors, {warnings} warnings" if errors or warnings else "no faults")
    return "\n".join(lines)


def render_json(findings: Sequence[Finding]) -> str:
    """A list of objects with the fields of :class:`~extproc.checks.finding.Finding`."""
    return json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2)
