"""Reloading: validate, swap the whole, keep the last good one. Files are changed as editors, operators and Kubernetes change them."""

import os
import threading
from pathlib import Path

import pytest

from extproc.catalog.load import load_catalog
from extproc.catalog.watch import CatalogWatch
from extproc.errors import ConfigError

GOOD = """version: 1
currency: CNY
tiers: {default: {}}
models:
  m: {tokenizer: upstream, context_tokens: 100, output_tokens_max: 10, price: {input: "PRICE", output: "9"}}
"""


def text_of(price: str) -> str:
    return GOOD.replace("PRICE", price)


class Log:
    """What the watch told."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.refused: list[str] = []

    def catalog_loaded(self, catalog) -> None:
        self.loaded.append(catalog.version)

    def catalog_refused(self, error: ConfigError) -> None:
        self.refused.append(str(error))


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text_of("1"))
    return path


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def watch(path, log) -> CatalogWatch:
    return CatalogWatch(path, log)


def rate(watch: CatalogWatch) -> int:
    return watch.current.models["m"].tariffs[0].rates.input // 10**9


def test_a_bad_file_at_start_is_refused(path, log):
    path.write_text("version: 1")
    with pytest.raises(ConfigError):
        CatalogWatch(path, log)


def test_nothing_changes_while_the_file_does_not(watch, log):
    assert [watch.poll() for _ in range(3)] == [False] * 3
    assert log.loaded == log.refused == []


def test_a_change_is_loaded_once_it_stays(watch, path, log):
    before = watch.current
    path.write_text(text_of("2"))
    assert watch.poll() is False, "it may still be written to"
    assert watch.current is before
    assert watch.poll() is True
    assert rate(watch) == 2
    assert before.models["m"].tariffs[0].rates.input == 10**9, "a request keeps the snapshot that it pinned"
    assert watch.poll() is False
    assert log.loaded == [watch.current.version]


def test_a_file_that_is_written_in_pieces_is_read_when_it_is_whole(watch, path, log):
    text = text_of("3")
    for end in range(0, len(text), 40):
        path.write_text(text[:end])
        watch.poll()
    path.write_text(text)
    watch.poll()
    assert watch.poll() is True
    assert rate(watch) == 3
    assert log.refused == []


def test_an_editor_that_renames(watch, path):
    new = path.with_suffix(".new")
    new.write_text(text_of("4"))
    stat = path.stat()
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even with the time of the old one
    new.replace(path)
    watch.poll()
    assert watch.poll() is True
    assert rate(watch) == 4


def test_a_link_that_is_swapped(tmp_path, log):
    for name, price in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.yaml").write_text(text_of(price))
    (tmp_path / "data").symlink_to("a")
    watch = CatalogWatch(tmp_path / "data" / "models.yaml", log)
    (tmp_path / "data.new").symlink_to("b")
    (tmp_path / "data.new").replace(tmp_path / "data")
    watch.poll()
    assert watch.poll() is True
    assert rate(watch) == 2


def test_a_bad_file_keeps_the_last_good_one_and_is_told_once(watch, path, log):
    before = watch.current
    path.write_text(text_of("x"))
    assert [watch.poll() for _ in range(5)] == [False] * 5
    assert watch.current is before
    [message] = log.refused
    assert "models.yaml:5: models.m.price.input: 'x' is not a decimal amount" in message
    path.write_text(text_of("6"))
    watch.poll()
    assert watch.poll() is True
    assert rate(watch) == 6


def test_a_file_that_vanishes_for_a_moment_is_no_fault(watch, path, log):
    away = path.with_suffix(".away")
    path.rename(away)
    assert watch.poll() is False
    away.rename(path)
    watch.poll()
    watch.poll()
    assert log.refused == []


def test_a_file_that_stays_away_is_told_once(watch, path, log):
    path.unlink()
    for _ in range(4):
        watch.poll()
    assert len(log.refused) == 1
    assert rate(watch) == 1


def test_a_touch_is_no_new_catalog(watch, path, log):
    before = watch.current
    path.touch()
    watch.poll()
    assert watch.poll() is False
    assert watch.current is before
    assert log.refused == []


def test_sighup_reloads_at_once(watch, path, log):
    path.write_text(text_of("7"))
    assert watch.reload() is True
    assert rate(watch) == 7
    assert watch.poll() is False
    assert watch.reload() is False, "the same contents"
    assert log.loaded == [watch.current.version] * 2


def test_the_currency_cannot_change(watch, path, log):
    path.write_text(text_of("1").replace("CNY", "EUR"))
    assert watch.reload() is False
    assert watch.current.currency == "CNY"
    [message] = log.refused
    assert "models.yaml:2: currency: cannot change from CNY" in message


def test_a_change_during_the_load_is_seen_by_the_next_poll(path, log):
    def load_slowly(file: Path):
        catalog = load_catalog(file)
        if catalog.models["m"].tariffs[0].rates.input == 2 * 10**9:
            path.write_text(text_of("3"))
        return catalog

    watch = CatalogWatch(path, log, load=load_slowly)
    path.write_text(text_of("2"))
    watch.poll()
    assert watch.poll() is True
    watch.poll()
    watch.poll()
    assert rate(watch) == 3


def test_reload_during_a_poll_waits_for_it(path, log):
    entered, go_on = threading.Event(), threading.Event()
    calls = []

    def load_slowly(file: Path):
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            entered.set()
            assert go_on.wait(5)
        return load_catalog(file)

    watch = CatalogWatch(path, log, load=load_slowly)
    first = threading.Thread(target=watch.reload, name="first")
    second = threading.Thread(target=watch.reload, name="second")
    first.start()
    assert entered.wait(5)
    second.start()
    assert calls == ["MainThread", "first"]
    go_on.set()
    first.join(5)
    second.join(5)
    assert calls == ["MainThread", "first", "second"]
