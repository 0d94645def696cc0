"""A log that somebody else writes, read line by line, wherever it goes: rotated by renaming or by truncating, torn, away, or huge.

A place is known again by what stands before it, not by the file's name: after a rotation it is in another file, after a truncation the
copy has it. What is no longer found was read, or is gone; reading goes on with the oldest file that is there. Lines may therefore come
twice, and must be harmless then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

READ_BYTES: Final = 1_048_576
"""Of one read, and the longest line: Envoy's lines have 700 bytes, and a path 60 KB at most."""

BEFORE_BYTES: Final = 1_024
"""At least a line, and in a line there are ids."""

FILES_MAX: Final = 100
"""Of one log, rotated ones included."""

COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst")


class Place(NamedTuple):
    """``before`` is the digest of what stands before the offset."""

    inode: int = 0
    offset: int = 0
    before: str = ""


class Read(NamedTuple):
    """Whole lines without their ends, and where they end. ``torn``: lines that were given up, too long or never finished.

    ``left_bytes``: what was there to be read beyond ``end``. ``is_there``: the log is.
    """

    lines: Sequence[bytes]
    end: Place
    torn: int = 0
    left_bytes: int = 0
    is_there: bool = True


class _File(NamedTuple):
    path: Path
    inode: int
    size: int


class Log:
    """Blocks: call it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, at: Place) -> Read:
        """The next lines. ``OSError``: the log may not be read."""
        # Listed before one of them is read: if the next one has been written to by now, this one is not written to any more.
        files = self._files()
        number = _found(files, at)
        if number is None:
            return Read((), at, is_there=False)
        file, later = files[number], files[number + 1 :]
        begin = at.offset if _continues(file, at) else 0
        with file.path.open("rb") as opened:
            piece = _piece(opened, begin, READ_BYTES)
            whole = piece.rfind(b"\n") + 1
            is_all = len(piece) < READ_BYTES
            is_torn = whole < len(piece) if is_all and _is_over(later) else not (whole or is_all)
            offset = begin + (len(piece) if is_torn else whole)
            end = Place(file.inode, offset, _before(opened, offset))
        if is_all and _is_over(later):
            end = Place(later[0].inode)
        left_bytes = file.size - offset + sum(one.size for one in later)
        return Read(piece[:whole].split(b"\n")[:-1], end, int(is_torn), max(0, left_bytes))

    def tail(self, size: int) -> Place:
        """Where the last ``size`` bytes begin, on a line."""
        files = self._files()
        while files:
            file = files.pop()
            if file.size > size or not files:
                return self._line_in(file, file.size - size)
            size -= file.size
        return Place()

    def _line_in(self, file: _File, begin: int) -> Place:
        """The first line that begins there, or later: ``OSError``, the log may not be read."""
        if begin <= 0:
            return Place(file.inode)
        with file.path.open("rb") as opened:
            offset = begin + _piece(opened, begin, READ_BYTES).find(b"\n") + 1
            return Place(file.inode, offset, _before(opened, offset))

    def _files(self) -> list[_File]:
        """The oldest first, the one that is written to last."""
        found = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # rotated away this moment
                status, is_last = entry.stat(), entry.name == self._path.name
                if stat.S_ISREG(status.st_mode):
                    found.append((is_last, status.st_mtime_ns, _File(Path(entry.path), status.st_ino, status.st_size)))
                elif is_last:  # a pipe would keep us for ever, a device never ends
                    raise OSError(errno.EINVAL, "not a regular file", entry.path)
        return [file for *_, file in sorted(found)][-FILES_MAX:]

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._path.parent) as entries:
                return [entry for entry in entries if entry.name.startswith(self._path.name) and not entry.name.endswith(COMPRESSED)]
        except FileNotFoundError:
            return []


def _found(files: Sequence[_File], at: Place) -> int | None:
    """Which file goes on at this place; if none does, the oldest one, or, of a log that was never read, the one that is written to."""
    if not files:
        return None
    # The one of that inode is asked first: nearly always it is that one.
    for number in sorted(range(len(files)), key=lambda number: files[number].inode != at.inode):
        if _continues(files[number], at):
            return number
    return 0 if at.inode else len(files) - 1


def _continues(file: _File, at: Place) -> bool:
    if at.offset == 0:
        return file.inode == at.inode
    if file.size < at.offset:
        return False
    try:
        with file.path.open("rb") as opened:
            return _before(opened, at.offset) == at.before
    except FileNotFoundError:
        return False


def _is_over(later: Sequence[_File]) -> bool:
    return any(file.size for file in later)


def _before(opened: BinaryIO, offset: int) -> str:
    begin = max(0, offset - BEFORE_BYTES)
    return blake2b(_piece(opened, begin, offset - begin), digest_size=16).hexdigest()


def _piece(opened: BinaryIO, begin: int, size: int) -> bytes:
    opened.seek(begin)
    return opened.read(size)
