"""Clients that leave a real vLLM early: they pay the prompt, and what went out to them; the engine stops soon after."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from real_books import Books, nonsense
from upstack import Up

pytestmark = pytest.mark.vllm

SAYS: Any = [{"role": "user", "content": "How far is it to the river?"}]
LONG = 4_000  # tokens: 15 s, nearly the whole context
PATHS = {
    "/v1/chat/completions": ('"content":"', {"messages": SAYS, "max_tokens": LONG}),
    "/v1/messages": ('"text_delta"', {"messages": SAYS, "max_tokens": LONG}),
    "/v1/responses": ("response.output_text.delta", {"input": "How far?", "max_output_tokens": LONG}),
    "/v1/completions": ('"text":"', {"prompt": "How far?", "max_tokens": LONG}),
}


def leave(up: Up, path: str, body: dict[str, Any], mark: str, after: int) -> tuple[str, int]:
    """The id of the request, and the events with output that were read before the connection was closed."""
    with (
        httpx.Client(base_url=up.url, verify=up.trust, timeout=30, headers=up.http.headers) as client,
        client.stream("POST", path, json=body) as answer,
    ):
        assert answer.status_code == 200
        read = 0
        for line in answer.iter_lines():
            read += line.startswith("data: ") and mark in line
            if read >= after:
                break
        return answer.headers["x-request-id"], read


@pytest.mark.parametrize("model", ["tiny", "tiny-continuous"])
@pytest.mark.parametrize(("path", "after"), [(path, after) for path in PATHS for after in (1, 40)])
def test_leaving_early(books: Books, words: list[int], path: str, after: int, model: str):
    up, (mark, body) = books.up, PATHS[path]
    asked = body | {"model": model, "stream": True, "temperature": 1}
    is_told = "completions" in path  # usage on every chunk: asked for by the model's `continuous`, or because of `allowed_token_ids`
    if is_told:
        asked["allowed_token_ids"] = words
    with books.left(f"{model} {path}, left after {after}", counted=not is_told) as block:
        request_id, read = leave(up, path, asked, mark, after)
        block.add(request_id)
    row = up.row(request_id)
    if row["output_tokens"] == LONG:
        pytest.skip("this machine is too busy: everything had been made before the client could leave; it paid for all of it")
    assert (row["ending"], row["usage_source"]) == ("settle", "continuous" if is_told else "counted")
    # The first event may have no token; a token may have no text yet.
    assert row["output_tokens"] >= read - (2 if is_told else nonsense(read))


def test_leaving_at_the_end_pays_it_all(up: Up, books: Books):
    """At the finish reason, as SDKs do: the usage that comes behind it is still counted."""
    body = {"model": "tiny", "messages": SAYS, "max_tokens": 10, "stream": True}
    with books.agree("left at the finish reason") as block:
        for _ in range(10):
            request_id, _ = leave(up, "/v1/chat/completions", body, '"finish_reason":"length"', 1)
            block.add(request_id)
    rows = [up.row(request_id) for request_id in block.requests]
    assert {row["output_tokens"] for row in rows} == {10}


def test_leaving_before_a_json_answer(up: Up, books: Books):
    """Nothing of it was delivered: the prompt is paid, and the engine stops."""
    with books.left("a JSON answer that was not waited for", stops_before=LONG) as block:
        with httpx.Client(base_url=up.url, verify=up.trust, timeout=1, headers=up.http.headers) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={"model": "tiny", "messages": SAYS, "max_tokens": LONG})
        block.add(_newest(up))
    row = up.row(block.requests[0])
    assert (row["output_tokens"], row["end_reason"]) == (0, "client_gone")


def _newest(up: Up) -> str:
    import psycopg  # noqa: PLC0415
    from house import until  # noqa: PLC0415

    with psycopg.connect(up.facts["postgres_dsn"], autocommit=True) as database:
        sql = "SELECT request_id FROM requests WHERE end_reason IN ('client_gone', 'cut') AND NOT stream ORDER BY id DESC LIMIT 1"
        found = until(lambda: database.execute(sql).fetchone(), "the row of a client that left")
    return str(found[0])
