"""Answers: streamed, buffered, replaced; ends of every kind; what reaches the access log."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from envoy_stage import BIG, COMPLETIONS, Exchange, Stage, forward, json_answer, stream_piece, stream_start, until

from extproc.edge.wire_format import body_of
from extproc.exchange import actions, events


@pytest.mark.parametrize("http2", [False, True])
async def test_pieces_reach_the_sidecar_and_the_client_one_by_one(stage: Stage, http2: bool) -> None:
    gate = asyncio.Semaphore(0)

    async def streams(request, writer):
        await stream_start(writer)
        for number in range(5):
            await gate.acquire()
            await stream_piece(writer, b"data: %d\n\n" % number)
        await gate.acquire()
        writer.write(b"0\r\n\r\n")

    stage.backends[BIG].respond = streams
    got = []
    async with stage.client(http2=http2) as client, client.stream("POST", COMPLETIONS, json={}) as answer:
        gate.release()
        async for piece in answer.aiter_bytes():
            got.append(piece)
            gate.release()
    assert got == [b"data: %d\n\n" % number for number in range(5)]
    chunks = [event for event in stage.sidecar.last.events if isinstance(event, events.Chunk)]
    assert [chunk.data for chunk in chunks] == [*got, b""]
    assert [chunk.end_of_stream for chunk in chunks] == [False] * 5 + [True]
    _, question, _, *pieces = stage.sidecar.last.messages
    assert body_of(question, 0x22) == (b"{}", True), (
        "a newer Envoy writes its bodies in another way: read them by tag too, or it costs twice as much"
    )
    assert [body_of(piece, 0x2A) for piece in pieces] == [(chunk.data, chunk.end_of_stream) for chunk in chunks]
    await until(lambda: stage.sidecar.last.gones == ["closed"])
    response = stage.sidecar.last.response
    assert (response.status, response.attempts, response.code_details) == (200, 1, "via_upstream")
    assert response.upstream.startswith("127.0.0.1:")
    assert response.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("http2", [False, True])
async def test_a_client_that_leaves_ends_the_exchange_at_once(stage: Stage, http2: bool) -> None:
    left = asyncio.Event()

    async def endless(request, writer):
        await stream_start(writer)
        try:
            while True:
                await stream_piece(writer, b"data: x\n\n")
                await asyncio.sleep(0.005)
        finally:
            left.set()

    stage.backends[BIG].respond = endless
    async with stage.client(http2=http2) as client, client.stream("POST", COMPLETIONS, json={}) as answer:
        await anext(answer.aiter_bytes())
    # Now the connection is closed as well: httpx resets no HTTP/2 stream that it drops.
    await until(lambda: stage.sidecar.last.gones == ["closed"])
    await asyncio.wait_for(left.wait(), 5)
    assert not any(getattr(event, "end_of_stream", False) for event in stage.sidecar.last.events[2:])


async def test_a_backend_that_dies_mid_stream_is_a_gone_without_an_end(stage: Stage) -> None:
    async def dies(request, writer):
        await stream_start(writer)
        await stream_piece(writer, b"data: x\n\n")
        await until(lambda: any(isinstance(event, events.Chunk) for event in stage.sidecar.last.events))
        writer.transport.abort()

    stage.backends[BIG].respond = dies
    with pytest.raises(httpx.RemoteProtocolError):
        await stage.sends(COMPLETIONS, json={})
    await until(lambda: stage.sidecar.last.gones == ["closed"])
    assert not stage.sidecar.last.events[-1].end_of_stream


@pytest.mark.parametrize("http2", [False, True])
async def test_a_json_answer_is_buffered_and_gets_its_cost_into_a_header(stage: Stage, http2: bool) -> None:
    body = json.dumps({"text": "x" * 200_000}).encode()
    changed = body.replace(b'"text"', b'"cost": 1, "text"')

    def prices(exchange: Exchange, event: events.Event) -> actions.Action | None:
        match event:
            case events.ResponseHeaders():
                return actions.PassResponseHeaders(buffer=True, set_headers=(("x-early", "1"),))
            case events.Chunk():
                return actions.PassChunk(data=changed, set_headers=(("x-request-cost", "0.01"),))
        return forward(exchange, event)

    async def answers(request, writer):
        await json_answer(request, writer, body)

    stage.backends[BIG].respond = answers
    stage.sidecar.answer = prices
    async with stage.client(http2=http2) as client:
        answer = await client.post(COMPLETIONS, json={})
    (chunk,) = [event for event in stage.sidecar.last.events if isinstance(event, events.Chunk)]
    assert (chunk.data, chunk.end_of_stream) == (body, True)
    assert answer.content == changed
    assert int(answer.headers["content-length"]) == len(changed)
    assert (answer.headers["x-request-cost"], answer.headers["x-early"]) == ("0.01", "1")


async def test_a_buffered_answer_may_be_a_mebibyte(stage: Stage) -> None:
    """Half of the listener's buffer limit: the most that the sidecar may ask for (above the limit Envoy hangs)."""
    body = json.dumps("x" * 1_048_000).encode()

    async def answers(request, writer):
        await json_answer(request, writer, body)

    def buffers(exchange: Exchange, event: events.Event) -> actions.Action | None:
        return actions.PassResponseHeaders(buffer=True) if isinstance(event, events.ResponseHeaders) else forward(exchange, event)

    stage.backends[BIG].respond = answers
    stage.sidecar.answer = buffers
    assert (await stage.sends(COMPLETIONS, json={})).content == body
    assert len([event for event in stage.sidecar.last.events if isinstance(event, events.Chunk)]) == 1


async def test_chunks_of_a_stream_are_replaced_and_emptied(stage: Stage) -> None:
    async def streams(request, writer):
        await stream_start(writer)
        for piece in (b"keep", b"change", b"drop", b"end"):
            await stream_piece(writer, piece)
            await until(lambda p=piece: any(getattr(event, "data", b"").endswith(p) for event in stage.sidecar.last.events[3:]))
        writer.write(b"0\r\n\r\n")

    def edits(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Chunk) and event.data in (b"change", b"drop"):
            return actions.PassChunk(data=b"" if event.data == b"drop" else b"something longer")
        return forward(exchange, event)

    stage.backends[BIG].respond = streams
    stage.sidecar.answer = edits
    assert (await stage.sends(COMPLETIONS, json={})).content == b"keepsomething longerend"


@pytest.mark.parametrize("data", [b'{"model":"m"}', b'{"canonical":' + b"x" * 900_000 + b"}", b""])
async def test_the_canonical_body_reaches_the_backend_with_its_length(stage: Stage, data: bytes) -> None:
    def rewrites(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body):
            return actions.PassBody(data=data, set_headers=(("x-model", BIG),), remove_headers=("x-secret",))
        return forward(exchange, event)

    stage.sidecar.answer = rewrites
    answer = await stage.sends(COMPLETIONS, content=b'{"model": "m", "priority": 1}', headers={"x-secret": "1"})
    assert answer.status_code == 200
    (request,) = stage.seen
    assert request.body == data
    assert "x-secret" not in request.headers


async def test_a_chunked_upload_is_one_body(stage: Stage) -> None:
    async def pieces():
        for _ in range(10):
            yield b"x" * 1000

    answer = await stage.sends(COMPLETIONS, content=pieces())
    assert answer.status_code == 200
    assert stage.sidecar.last.kinds[:2] == ["Headers", "Body"]
    assert stage.seen[0].body == b"x" * 10_000


async def test_header_values_may_be_any_bytes(stage: Stage) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-odd: caf\xe9\r\nx-utf: \xc3\xa9\r\nx-two: a\r\nx-two: b\r\n"
    answer = await stage.raw(head + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 200 ")
    headers = stage.sidecar.last.headers.headers
    assert (headers["x-odd"], headers["x-utf"], headers["x-two"]) == ("caf\xe9", "é", "a,b")


async def test_metadata_of_several_replies_is_merged_into_the_access_log(stage: Stage) -> None:
    def tells(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body):
            return actions.PassBody(data=event.data, set_headers=(("x-model", BIG),), metadata=(("hold", "h-1"), ("cap", "1000")))
        if isinstance(event, events.Chunk) and event.end_of_stream:
            return actions.PassChunk(metadata=(("output", "7"),))
        return forward(exchange, event)

    stage.sidecar.answer = tells
    await stage.sends(COMPLETIONS + "?api_key=sk-secret", json={}, headers={"authorization": "Bearer sk-secret"})
    log = stage.envoy.access_log_file
    await asyncio.to_thread(stage.envoy._wait, lambda: log.read_bytes().endswith(b"\n"), "logged", 15)
    (line,) = log.read_text().splitlines()
    entry = json.loads(line)
    assert entry["billing"] == {"hold": "h-1", "cap": "1000", "output": "7"}
    assert (entry["status"], entry["path"], entry["route"]) == (200, COMPLETIONS, BIG)
    assert entry["request_id"] == stage.sidecar.last.headers.request_id
    assert "sk-" not in line
