"""Why requests get 503 is said once when it begins, and once when it is over."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from extproc.errors import StoreRefused
from extproc.holds.epochs import ALL_OPEN, NO_STORE, SOME_CLOSED, Epochs


class Store:
    """``epoch``: of all shards; ``None`` = it is away."""

    def __init__(self) -> None:
        self.epoch: bytes | None = b"run.1"

    def run_id(self, key: str) -> str:
        return "run"

    def execute(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        if self.epoch is None:
            future.set_exception(StoreRefused("Redis is not connected: no such file"))
        else:
            future.set_result([self.epoch, b""])
        return future


async def test_what_is_wrong_is_said_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    store = Store()
    epochs = Epochs(store)
    looks: asyncio.Queue[None] = asyncio.Queue()
    watching = asyncio.create_task(epochs.watch(lambda _: looks.put_nowait(None)))
    for epoch in (b"run.1", None, None, b"", b"", b"run.2", b"run.2"):
        store.epoch = epoch
        epochs.connected()
        await looks.get()
    watching.cancel()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"{NO_STORE}: Redis is not connected: no such file"),
        ("WARNING", SOME_CLOSED),
        ("INFO", ALL_OPEN),
    ]
