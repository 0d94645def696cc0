"""Faults of the outbox's disk and of the access log, as this machine has them. Run it where the sidecar runs, as its user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from extproc.checks.finding import Finding, Severity
from extproc.checks.static.modes import place_of
from extproc.settings import Settings

MOUNTS: Final = Path("/proc/self/mountinfo")
FORGETFUL: Final = frozenset({"tmpfs", "ramfs", "overlay", "aufs"})  # memory, or the layer of a container
SHARED: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs"})


def outbox_disk(settings: Settings, *, mounts: Path = MOUNTS) -> Iterator[Finding]:
    """Whether an outbox can live in ``outbox.dir``."""
    directory = _existing(settings.outbox.dir)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield _finding(
            settings,
            Severity.ERROR,
            f"outbox.dir: {directory} cannot be written here: every request gets 503",
            "give it to the user of the sidecar, mode 0700",
        )
    kind = kind_of(directory, mounts)
    if kind in SHARED:
        yield _finding(
            settings,
            Severity.ERROR,
            f"outbox.dir is on {kind}, which hosts may share: neither locks nor SQLite's log hold there",
            "a local disk; each host has its own outboxes, and a settler that reads them",
        )
    if kind in FORGETFUL:
        yield _finding(
            settings,
            Severity.WARNING,
            f"outbox.dir is on {kind}, which does not survive a restart of machine or container: charges are lost with it and Redis",
            "a disk or a volume that survives",
        )


def witness_file(settings: Settings) -> Iterator[Finding]:
    """What stands in the access log's place can be read here, line by line, wherever it is rotated to. It may not be there yet."""
    file = settings.access_log.file
    if file is None or not settings.settler.enabled:
        return
    if file.exists() and not file.is_file():
        what, todo = (
            f"{file} is no regular file, and has no lines to go back to",
            "have Envoy write a file; a pipe or /dev/stdout has no second reader",
        )
    elif file.exists() and not os.access(file, os.R_OK):
        what, todo = (
            f"{file} cannot be read here",
            "give it to the group of the sidecar, mode 0640, also where it is created anew (logrotate: create)",
        )
    elif file.parent.exists() and not os.access(file.parent, os.R_OK | os.X_OK):
        what, todo = f"{file.parent} cannot be listed here: a log that is rotated is lost", "mode 0750, and the group of the sidecar"
    else:
        return
    place = place_of(settings, "access_log", "file")
    yield Finding(
        severity=Severity.ERROR, check="witness_file", file=place.file, line=place.line, what=f"access_log.file: {what}", todo=todo
    )


def outbox_reader(settings: Settings) -> Iterator[Finding]:
    """Each host's outboxes are read by a settler of that host."""
    if not settings.settler.enabled:
        place = place_of(settings, "settler", "enabled")
        yield Finding(
            severity=Severity.WARNING,
            check="outbox_reader",
            file=place.file,
            line=place.line,
            what="settler.enabled is false: nobody reads the outboxes of this host, and they grow up to outbox.bytes_max",
            todo="settler.enabled: true on every host with gate workers; they share the work, none is too many",
        )


def kind_of(directory: Path, mounts: Path = MOUNTS) -> str:
    """The file system below a directory, "" = not to be known here (no Linux)."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    real, found = directory.resolve(), ("", "")
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        if real.is_relative_to(point) and len(point) >= len(found[0]):
            found = point, rest.split()[0]
    return found[1]


def _existing(directory: Path) -> Path:
    """It, or that above it in which it will be made."""
    return next(path for path in (directory, *directory.absolute().parents) if path.exists())


def _finding(settings: Settings, severity: Severity, what: str, todo: str) -> Finding:
    place = place_of(settings, "outbox", "dir")
    return Finding(severity=severity, check="outbox_disk", file=place.file, line=place.line, what=what, todo=todo)
