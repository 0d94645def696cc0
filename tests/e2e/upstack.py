"""What `extproc up` runs, for tests: a model for every endpoint, one account, the official SDKs, and what the simulators' own books say."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import shutil
import ssl
import struct
import tempfile
import wave
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psycopg
import pytest
from house import until
from psycopg.rows import dict_row

from extproc.app.desk import desk
from extproc.local.stack import Plan, Stack
from extproc.local.up import running

BODY_BYTES_MAX = 26_500_000  # a file of 25 MB and its form, as docs/reference/endpoints.md says
TEXT, LOOKS, READS, HEARS = "qwen2.5-7b", "qwen2.5-vl-7b", "bge-m3", "whisper-large-v3"
NANOS = {TEXT: (500, 125, 1_000), LOOKS: (1_500, 1_500, 4_500), READS: (100, 100, 0)}  # fresh, cached, output: extproc/local/models.yaml


class Up:
    """A stack, and its one account."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.facts = facts = stack.facts()
        self.trust = trust = ssl.create_default_context(cafile=facts["ca_file"])
        self.url = facts["base_url"].removesuffix("/v1")
        self.http = httpx.Client(base_url=self.url, verify=trust, timeout=30, headers={"authorization": f"Bearer {facts['api_key']}"})
        self._sdk_http = openai.DefaultHttpxClient(verify=trust), anthropic.DefaultHttpxClient(verify=trust)
        self.openai, self.claude = self.sdks(facts["api_key"])

    def sdks(self, secret: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
        """Both SDKs with this key."""
        one, other = self._sdk_http
        return (
            openai.OpenAI(base_url=self.facts["base_url"], api_key=secret, max_retries=0, http_client=one),
            anthropic.Anthropic(base_url=self.url, api_key=secret, max_retries=0, http_client=other),
        )

    def close(self) -> None:
        for client in (self.http, *self._sdk_http):
            client.close()

    def new_key(self, deposit: str, **scopes: Any) -> str:
        """Of an account of its own."""
        return asyncio.run(self._new_key(deposit, scopes))

    async def _new_key(self, deposit: str, scopes: dict[str, Any]) -> str:
        async with desk(self.stack.settings, actor="test") as office:
            account = (await office.create_account(name="guest", tier="unlimited"))["id"]
            if deposit:
                await office.deposit(account, deposit, method="test", reference=None)
            return str((await office.create_key(account, name="test", **scopes))["key"])

    def row(self, request_id: str) -> dict[str, Any]:
        with psycopg.connect(self.facts["postgres_dsn"], row_factory=dict_row, autocommit=True) as database:
            return until(lambda: database.execute("SELECT * FROM requests WHERE request_id = %s", (request_id,)).fetchone(), "the row")

    def post(self, path: str, **more: Any) -> tuple[Any, dict[str, Any]]:
        answer = self.http.post(path, **more)
        assert answer.status_code == 200, answer.text
        row = self.row(answer.headers["x-request-id"])
        assert Decimal(answer.headers["x-request-cost"]) * 10**9 == row["cost"]
        return answer.json(), row

    def seen(self, model: str, request_id: str) -> dict[str, Any]:
        """What the simulator has of it."""
        answer = httpx.get(f"{self.facts['simulator_urls'][model][0]}/sim/requests/{request_id}")
        return answer.json()["requests"][0]

    def billed(self, request_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row, and what the simulator has: the same, and charged as the price says."""
        row = self.row(request_id)
        seen, (fresh, cached, output) = self.seen(row["model"], request_id), NANOS[row["model"]]
        assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (
            seen["prompt_tokens"],
            seen["generated_tokens"],
            "upstream",
        )
        assert row["cached_tokens"] == (seen["cached_tokens"] or 0)
        read = row["input_tokens"] - row["cached_tokens"]
        assert 0 < row["cost"] == read * fresh + row["cached_tokens"] * cached + row["output_tokens"] * output <= row["hold_nanos"]
        return row, seen


def up_and_running() -> Iterator[Up]:
    folder = Path(tempfile.mkdtemp(prefix="xe-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with contextlib.ExitStack() as house:
            with pytest.MonkeyPatch.context() as environ:  # of its processes alone: other houses of the session start later
                environ.setenv("EXTPROC_BODY__BYTES_MAX", str(BODY_BYTES_MAX))
                stack = house.enter_context(running(folder, Plan(durable=False), say=lambda _: None))
            assert stack.envoy is not None
            stack.envoy.stop()
            stack.envoy.start_again({"2097152": str(2 * BODY_BYTES_MAX)})
            stack.envoy.wait_healthy({"extproc": 2, **dict.fromkeys((TEXT, LOOKS, READS, HEARS), 1)})
            made = Up(stack)
            yield made
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8_000)
        written.writeframes(bytes(int(seconds * 8_000) * 2))
    return file.getvalue()


def png(width: int, height: int) -> str:
    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * (width + 1) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", rows) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(file).decode()
