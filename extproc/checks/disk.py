"""Faults of the disk below the outbox, as this machine has it. Run it where the sidecar runs, as the user that it runs as."""

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
