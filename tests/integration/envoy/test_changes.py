"""Edits of the files and deaths of workers, with requests under way."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from envoy_stage import BIG, COMPLETIONS, SMALL, Backend, Exchange, Stage, forward, set_up, stream_piece, stream_start

from extproc.edge.envoy_codec import decode
from extproc.edge.transport.port import StatusCode
from extproc.exchange import actions, events
from extproc.local import envoy_files
from extproc.local.engine import Engine


class Slow:
    """A backend that streams until it is told to end."""

    def __init__(self) -> None:
        self.more = asyncio.Event()

    async def __call__(self, request: Any, writer: asyncio.StreamWriter) -> None:
        await stream_start(writer)
        await stream_piece(writer, b"first ")
        await self.more.wait()
        await stream_piece(writer, b"last")
        writer.write(b"0\r\n\r\n")


async def test_routes_and_clusters_reload_while_streams_live(stage: Stage) -> None:
    slow = Slow()
    stage.backends[BIG].respond = slow
    other = Backend()
    address = await other.start()
    addresses = {BIG: [address], "new-model": [address]}
    async with stage.client() as client, client.stream("POST", COMPLETIONS, json={}) as live:
        pieces = live.aiter_bytes()
        assert await anext(pieces) == b"first "

        stage.sidecar.model = "new-model"
        assert (await stage.sends(COMPLETIONS, json={})).status_code == 404
        shipped = {name: (envoy_files.shipped() / name).read_text() for name in envoy_files.FILES}
        stage.envoy.replace("clusters.yaml", envoy_files.clusters(shipped["clusters.yaml"], addresses, health_interval_s=1))
        await asyncio.to_thread(stage.envoy.wait_healthy, {"new-model": 1})
        updates = stage.envoy.stat("http.edge.rds.models.update_success")
        stage.envoy.replace("routes.yaml", envoy_files.routes(shipped["routes.yaml"], tuple(addresses)))
        await asyncio.to_thread(
            stage.envoy._wait, lambda: stage.envoy.stat("http.edge.rds.models.update_success") > updates, "reloaded", 15
        )
        assert (await stage.sends(COMPLETIONS, json={})).status_code == 200
        assert [request.headers["x-model"] for request in other.seen] == ["new-model"]
        # Its cluster has another address now, SMALL's is gone, and yet the stream goes on.
        slow.more.set()
        assert [piece async for piece in pieces] == [b"last"]
    stage.sidecar.model = SMALL
    assert (await stage.sends(COMPLETIONS, json={})).status_code == 404
    await other.stop()


async def test_a_broken_edit_changes_nothing(stage: Stage) -> None:
    rejected = stage.envoy.stat("http.edge.rds.models.update_rejected") + stage.envoy.stat("http.edge.rds.models.update_failure")

    def failures() -> int:
        return stage.envoy.stat("http.edge.rds.models.update_rejected") + stage.envoy.stat("http.edge.rds.models.update_failure")

    stage.envoy.replace("routes.yaml", "resources: [{oops: 1}]\n")
    await asyncio.to_thread(stage.envoy._wait, lambda: failures() > rejected, "rejected", 15)
    assert (await stage.sends(COMPLETIONS, json={})).status_code == 200


async def test_an_error_close_before_the_first_reply_is_tried_on_another_worker(two_gates: Stage) -> None:
    def refuses(exchange: Exchange, event: events.Event) -> actions.Action | None:
        exchange.call.close(StatusCode.UNAVAILABLE, "worker is full")
        return None

    full, willing = two_gates.sidecars
    full.answer = refuses
    for _ in range(10):
        assert (await two_gates.sends(COMPLETIONS, json={})).status_code == 200
    assert len(willing.exchanges) == 10
    assert full.exchanges, "never asked: this proves nothing"
    refused = {exchange.headers.request_id for exchange in full.exchanges}
    assert refused <= {exchange.headers.request_id for exchange in willing.exchanges}, "each retry has the same request id"


async def test_an_error_close_after_the_first_reply_is_not_tried_again(two_gates: Stage) -> None:
    def breaks(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body):
            exchange.call.close(StatusCode.UNAVAILABLE, "store away")
            return None
        return forward(exchange, event)

    for sidecar in two_gates.sidecars:
        sidecar.answer = breaks
    assert (await two_gates.sends(COMPLETIONS, json={})).status_code == 503
    assert sum(len(sidecar.exchanges) for sidecar in two_gates.sidecars) == 1
    assert two_gates.seen == []


async def test_a_worker_killed_before_its_first_reply_costs_no_request(two_gates: Stage) -> None:
    """The second gate is a process of its own here, killed while it holds requests."""
    taken, survivor = two_gates.transports[1], two_gates.sidecars[0]
    socket, marker = Path(taken.address.removeprefix("unix:")), two_gates.directory / "marker"
    await taken.stop()
    await asyncio.to_thread(two_gates.envoy._wait, lambda: two_gates.envoy.healthy("extproc") == 1, "down", 15)
    script = Path(__file__).parent / "silent_gate.py"
    root = {"PYTHONPATH": str(Path(__file__).parents[3])}
    argv = [sys.executable, str(script), str(socket), str(marker)]
    gate = await asyncio.to_thread(Engine.start, "gate", argv, log_file=two_gates.directory / "gate.log", environ=root)
    try:
        await asyncio.to_thread(two_gates.envoy.wait_healthy, {"extproc": 2})
        # Envoy's threads learn of a healthy gate a moment after its statistics do: send until it has got one.
        requests: list[asyncio.Task[Any]] = []
        async with asyncio.timeout(15):
            while not marker.exists():
                requests += [asyncio.create_task(two_gates.sends(COMPLETIONS, json={})) for _ in range(4)]
                await asyncio.sleep(0.02)
    finally:
        await asyncio.to_thread(gate.kill)
    answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}
    lost = decode(marker.read_bytes())
    assert isinstance(lost, events.Headers)
    assert lost.request_id in {exchange.headers.request_id for exchange in survivor.exchanges}


async def test_a_draining_worker_gets_no_new_requests_and_keeps_its_streams(two_gates: Stage) -> None:
    slow = Slow()
    two_gates.backends[BIG].respond = slow
    async with two_gates.client() as client, client.stream("POST", COMPLETIONS, json={}) as live:
        pieces = live.aiter_bytes()
        assert await anext(pieces) == b"first "
        (holder,) = [number for number, sidecar in enumerate(two_gates.sidecars) if sidecar.exchanges]
        two_gates.transports[holder].stop_accepting()
        for sidecar in two_gates.sidecars:
            sidecar.model = SMALL
        for _ in range(10):
            assert (await two_gates.sends(COMPLETIONS, json={})).status_code == 200
        assert len(two_gates.sidecars[holder].exchanges) == 1
        slow.more.set()
        assert [piece async for piece in pieces] == [b"last"]
    assert await two_gates.transports[holder].drain(5)


async def test_a_worker_that_says_not_serving_gets_nothing(two_gates: Stage) -> None:
    two_gates.sidecars[0].health.withdraw()
    await asyncio.to_thread(two_gates.envoy._wait, lambda: two_gates.envoy.healthy("extproc") == 1, "withdrawn", 15)
    for _ in range(6):
        assert (await two_gates.sends(COMPLETIONS, json={})).status_code == 200
    assert (len(two_gates.sidecars[0].exchanges), len(two_gates.sidecars[1].exchanges)) == (0, 6)
    two_gates.sidecars[1].health.withdraw()
    await asyncio.to_thread(two_gates.envoy._wait, lambda: two_gates.envoy.healthy("extproc") == 0, "withdrawn", 15)
    # Envoy's threads learn it a moment after its statistics do.
    async with asyncio.timeout(15):
        while (await two_gates.sends(COMPLETIONS, json={})).status_code != 503:
            pass
    seen = len(two_gates.seen)
    for _ in range(4):
        assert (await two_gates.sends(COMPLETIONS, json={})).status_code == 503, "no panic: nobody healthy means nobody"
    assert len(two_gates.seen) == seen


async def test_priority_of_the_sidecar_chooses_the_pool(transport_class: Any, short_directory: Path) -> None:
    pools = {"qwen2.5-14b": Backend(), "qwen2.5-14b-spot": Backend()}

    def as_asked(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body):
            priority = exchange.headers.headers.get("x-priority", "standard")
            routing = (("x-model", "qwen2.5-14b"), ("x-priority", priority), ("x-sticky", "conversation-1"))
            return actions.PassBody(data=event.data, set_headers=routing)
        return forward(exchange, event)

    async with set_up(transport_class, short_directory, models=pools) as stage:
        stage.sidecar.answer = as_asked
        await stage.sends(COMPLETIONS, json={})
        await stage.sends(COMPLETIONS, json={}, headers={"X-Priority": "spot"})
        assert [len(pool.seen) for pool in pools.values()] == [1, 1]
        assert pools["qwen2.5-14b-spot"].seen[0].headers["x-priority"] == "spot"


async def test_stop_with_grace_lets_streams_end(stage: Stage) -> None:
    slow = Slow()
    stage.backends[BIG].respond = slow
    async with stage.client() as client, client.stream("POST", COMPLETIONS, json={}) as live:
        pieces = live.aiter_bytes()
        assert await anext(pieces) == b"first "
        stopping = asyncio.create_task(asyncio.to_thread(stage.envoy.stop, 10))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        slow.more.set()
        assert [piece async for piece in pieces] == [b"last"]
    await stopping
