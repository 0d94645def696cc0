"""What a check found: where, what, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from extproc.errors import ConfigError


class Severity(StrEnum):
    """``error``: money or answers are lost with this; ``warning``: it works, but not as it should; ``info``: good to know, no fault."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``check`` is the name of the function that found it; ``line`` is 1-based, 0 = the file as a whole."""

    severity: Severity
    check: str
    file: str
    line: int
    what: str
    todo: str


def findings_of(error: ConfigError, *, check: str) -> list[Finding]:
    """Faults of a file that does not even load."""
    return [
        Finding(
            severity=Severity.ERROR,
            check=check,
            file=fault.file,
            line=fault.line,
            what=fault.message,
            todo="correct it; nothing starts with it",
        )
        for fault in error.faults
    ]


def worst(findings: list[Finding]) -> Severity | None:
    """``None`` = nothing was found. Errors make the exit code 1."""
    return min((finding.severity for finding in findings), default=None, key=list(Severity).index)
