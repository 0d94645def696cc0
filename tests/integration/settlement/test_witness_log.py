"""A log that is written to, rotated, truncated and torn while it is read: every line comes, in order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extproc.settlement import witness_log
from extproc.settlement.witness_log import Log, Place


@pytest.mark.parametrize(
    ("size", "lines"),
    [(0, []), (1, []), (2, []), (3, ["d"]), (4, ["d"]), (5, ["cc", "d"]), (8, ["b", "cc", "d"]), (99, ["a", "b", "cc", "d"])],
)
def test_the_tail_begins_on_a_line(tmp_path: Path, size: int, lines: list[str]):
    (tmp_path / "access.jsonl.1").write_text("a\nb\n")
    os.utime(tmp_path / "access.jsonl.1", (1, 1))
    (tmp_path / "access.jsonl").write_text("cc\nd\n")
    reading = Reading(tmp_path / "access.jsonl")
    reading.at = Log(reading.path).tail(size)
    assert reading.lines() == lines


def test_of_no_log_there_is_no_tail(tmp_path: Path):
    assert Log(tmp_path / "access.jsonl").tail(9) == Place()


class Reading:
    """A reader that may forget everything but its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = Place()
        self.torn = 0

    def lines(self) -> list[str]:
        """All that is there."""
        found: list[str] = []
        for _ in range(1_000):
            read = Log(self.path).read(self.at)
            found += [line.decode() for line in read.lines]
            self.torn += read.torn
            if read.end == self.at:
                self.left_bytes, self.is_there = read.left_bytes, read.is_there
                return found
            self.at = read.end
        raise AssertionError("it never comes to an end")


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    return Reading(tmp_path / "access.jsonl")


def write(path: Path, *lines: str, end: str = "\n") -> None:
    with path.open("a") as file:
        file.write("".join(f"{line}{end}" for line in lines))


def test_line_by_line_and_each_once(reading: Reading):
    assert reading.lines() == []
    assert not reading.is_there
    write(reading.path, "a", "b")
    assert reading.lines() == ["a", "b"]
    assert reading.lines() == []
    write(reading.path, "c")
    assert reading.lines() == ["c"]
    assert (reading.left_bytes, reading.torn, reading.is_there) == (0, 0, True)


def test_a_line_that_is_not_finished_waits(reading: Reading):
    write(reading.path, "a\nb", end="")
    assert reading.lines() == ["a"]
    assert reading.left_bytes == 1
    write(reading.path, "c")
    assert reading.lines() == ["bc"]


def test_renamed_and_opened_again(reading: Reading):
    """The writer goes on with the old file until it is told: a new one that is empty says nothing."""
    write(reading.path, "a")
    assert reading.lines() == ["a"]
    old = reading.path.with_name("access.jsonl.1")
    reading.path.rename(old)
    write(old, "b")
    assert reading.lines() == ["b"]
    reading.path.touch()
    write(old, "c")
    assert reading.lines() == ["c"]
    write(old, "d")
    write(reading.path, "e")
    assert reading.lines() == ["d", "e"]


def test_rotated_several_times_while_nobody_read(reading: Reading):
    write(reading.path, "a")
    assert reading.lines() == ["a"]
    write(reading.path, "b")
    for number, line in enumerate("cde"):
        turned = reading.path.rename(reading.path.with_name(f"access.jsonl.{9 - number}"))
        os.utime(turned, ns=(number, number))
        write(reading.path, line)
    assert reading.lines() == ["b", "c", "d", "e"]


def test_copied_and_truncated(reading: Reading):
    """What was not read yet is in the copy."""
    write(reading.path, *("long line " + str(number) for number in range(50)))
    assert len(reading.lines()) == 50
    write(reading.path, "before the copy")
    shutil.copyfile(reading.path, reading.path.with_name("access.jsonl.1"))
    os.truncate(reading.path, 0)
    write(reading.path, "after")
    assert reading.lines() == ["before the copy", "after"]


def test_truncated_without_a_copy_and_grown_beyond_the_place(reading: Reading):
    write(reading.path, "a", "b")
    reading.lines()
    os.truncate(reading.path, 0)
    write(reading.path, "c", "d", "e", "f")
    assert reading.lines() == ["c", "d", "e", "f"]


def test_another_file_of_the_same_inode(reading: Reading):
    write(reading.path, "a", "b")
    reading.lines()
    with reading.path.open("r+") as file:
        file.write("x\ny\nz\n")
    assert reading.lines() == ["x", "y", "z"]


def test_where_it_was_is_gone(reading: Reading):
    """Compressed, or thrown away: from the oldest one that is left."""
    write(reading.path, "a")
    reading.lines()
    reading.path.rename(reading.path.with_name("access.jsonl.2.gz"))
    write(reading.path.with_name("access.jsonl.1"), "b")
    write(reading.path, "c")
    assert reading.lines() == ["b", "c"]


def test_a_log_that_was_never_read_begins_with_the_file_that_is_written(reading: Reading):
    write(reading.path.with_name("access.jsonl.1"), "old")
    write(reading.path, "new")
    assert reading.lines() == ["new"]


def test_a_last_line_that_is_never_finished(reading: Reading):
    """The writer was killed; its successor begins another file."""
    write(reading.path, "a\nhal", end="")
    assert reading.lines() == ["a"]
    reading.path.rename(reading.path.with_name("access.jsonl.1"))
    write(reading.path, "b")
    assert reading.lines() == ["b"]
    assert reading.torn == 1


def test_much_is_read_in_pieces_and_a_line_without_end_is_given_up(reading: Reading, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(witness_log, "READ_BYTES", 100)
    lines = [f"line {number}" for number in range(100)]
    write(reading.path, *lines)
    assert max(len(Log(reading.path).read(Place()).lines), 1) < 15
    assert reading.lines() == lines
    write(reading.path, "x" * 1_000, "after")
    assert reading.lines()[-1] == "after"
    assert reading.torn > 0


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["directory", "pipe", "device"])
def test_what_is_no_file_in_its_place_is_refused_at_once(reading: Reading, make: Callable[[Path], None]):
    make(reading.path)
    with pytest.raises(OSError, match="not a regular file"):
        reading.lines()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_what_is_no_file_beside_it_is_passed_over(reading: Reading, make: Callable[[Path], None]):
    write(reading.path, "a")
    make(reading.path.with_name("access.jsonl.d"))
    os.utime(reading.path, (0, 0))
    write(reading.path.with_name("access.jsonl.1"), "never read before")
    assert reading.lines() == ["a"]
    write(reading.path, "b")
    assert reading.lines() == ["b"]
