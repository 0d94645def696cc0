from __future__ import annotations

import os
from pathlib import Path

import pytest

from extproc.checks.disk import kind_of, outbox_disk, outbox_reader, witness_file
from extproc.checks.finding import Severity
from extproc.settings import Settings, load_settings


def settings_in(directory: Path, text: str) -> Settings:
    (directory / "extproc.yaml").write_text(f"catalog: {{file: models.yaml}}\n{text}\n")
    return load_settings(directory / "extproc.yaml", {})


def mounts_of(directory: Path, kind: str) -> Path:
    file = directory / "mountinfo"
    mounted = str(directory.resolve()).replace(" ", r"\040")
    file.write_text(f"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n30 22 0:44 / {mounted}/a\\040disk rw shared:7 - {kind} somewhere rw\n")
    return file


@pytest.mark.parametrize(
    ("kind", "severity", "part"),
    [
        ("ext4", None, ""),
        ("tmpfs", Severity.WARNING, "does not survive"),
        ("overlay", Severity.WARNING, "does not survive"),
        ("nfs4", Severity.ERROR, "hosts may share"),
    ],
)
def test_what_the_outbox_lies_on(tmp_path: Path, kind: str, severity: Severity | None, part: str):
    settings = settings_in(tmp_path, "outbox: {dir: a disk/outbox}")
    (tmp_path / "a disk").mkdir()
    findings = list(outbox_disk(settings, mounts=mounts_of(tmp_path, kind)))
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert all(part in finding.what and finding.line == 2 for finding in findings)


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = settings_in(tmp_path, "outbox: {dir: a/b}")
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    [finding] = outbox_disk(settings, mounts=mounts_of(tmp_path, "ext4"))
    assert asked == [tmp_path], "neither of them is there yet"
    assert finding.severity is Severity.ERROR
    assert f"{tmp_path} cannot be written" in finding.what


def test_nobody_reads_it(tmp_path: Path):
    [finding] = outbox_reader(settings_in(tmp_path, "settler: {enabled: false}"))
    assert (finding.severity, finding.line) == (Severity.WARNING, 2)
    assert list(outbox_reader(settings_in(tmp_path, ""))) == []


def test_a_pipe_in_the_place_of_the_access_log(tmp_path: Path):
    settings = settings_in(tmp_path, "access_log: {file: access.jsonl}")
    assert list(witness_file(settings)) == [], "Envoy has not written yet"
    os.mkfifo(tmp_path / "access.jsonl")
    [finding] = witness_file(settings)
    assert (finding.severity, finding.line) == (Severity.ERROR, 2)
    assert "no regular file" in finding.what
    assert list(witness_file(settings_in(tmp_path, "access_log: {file: access.jsonl}\nsettler: {enabled: false}"))) == [], "read elsewhere"


@pytest.mark.parametrize(("refused", "part"), [("access.jsonl", "cannot be read"), ("", "cannot be listed")])
def test_an_access_log_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, part: str):
    settings = settings_in(tmp_path, "access_log: {file: access.jsonl}")
    (tmp_path / "access.jsonl").touch()
    assert list(witness_file(settings)) == []
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / refused)
    [finding] = witness_file(settings)
    assert part in finding.what


def test_this_machine_has_mounts():
    assert kind_of(Path("/proc")) == "proc"
    assert kind_of(Path("/"), Path("/no/such/file")) == ""
