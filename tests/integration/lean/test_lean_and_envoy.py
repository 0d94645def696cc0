"""The lean transport and the real Envoy where it hurts: bodies beyond every window, long streams, resets at any point, thousands at once.

All of it on one server that lasts: first nghttp2's h2load asks it 100,000 times, then Envoys come and go, for what every transport does with streams
(``integration/envoy``, taken over here) and for what only this one has to prove.
"""

from __future__ import annotations

import asyncio
import random
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.append(str(Path(__file__).parents[1] / "envoy"))
sys.path.append(str(Path(__file__).parents[2] / "contract" / "transport"))
from client_certificate import client_certificate
from envoy_stage import BIG, COMPLETIONS, Exchange, Sidecar, Stage, forward, json_answer, set_up, stream_piece, stream_start, until
from test_streams import *  # noqa: F403 - its tests are collected here once more, for the stage below

from extproc.edge.health import METHOD as HEALTH
from extproc.edge.health import Health
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import Call, Handler, Listen, StatusCode, TlsFiles
from extproc.exchange import actions, events
from extproc.local import envoy_files, tls

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY_BYTES = 24_000_000
STREAMS = 3_000
CHECKS = 100_000


class Lasting:
    """A server that outlives its Envoys. In place of a transport's class it gives each of them a sidecar of its own."""

    def __init__(self, directory: Path) -> None:
        self.health = Health()
        self.health.serve()
        self.server = LeanTransport(Listen(address=f"unix:{directory}/run/gate-0.sock"), self.handler, self.health)
        self.sidecar = Sidecar()

    def handler(self, call: Call) -> Handler:
        return self.sidecar(call)

    def __call__(self, listen: Listen, sidecar: Sidecar, health: Health) -> Lasting:
        assert listen.address == self.server.address
        self.sidecar = sidecar
        return self

    async def start(self) -> None:
        """It is."""

    async def stop(self) -> None:
        """Envoy is gone: so is everything that it had here."""
        await until(lambda: not self.server._connections)
        assert self.server.open_streams == 0

    @property
    def open_streams(self) -> int:
        return self.server.open_streams

    @property
    def _connections(self) -> set[Any]:
        return self.server._connections


async def asked_by_h2load(address: str, directory: Path) -> str:
    """What h2load tells of 100,000 health checks over four connections, 100 streams at a time on each."""
    (directory / "check.bin").write_bytes(bytes(5))
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    process = await asyncio.create_subprocess_exec(
        "h2load", "-n", str(CHECKS), "-c", "4", "-m", "100", "-B", address, "-d", str(directory / "check.bin"), *headers,
        f"http://extproc{HEALTH}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return output.decode()


@pytest.fixture(scope="module")
def house() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="xn-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(house: Path) -> AsyncIterator[Lasting]:
    lasting = Lasting(house)
    await lasting.server.start()
    if shutil.which("h2load"):
        told = await asked_by_h2load(lasting.server.address, house)
        assert f"{CHECKS} succeeded, 0 failed, 0 errored, 0 timeout" in told, told
    yield lasting
    await lasting.server.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def stage(lasting: Lasting, house: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Envoy as shipped, but with room for large bodies."""
    render = envoy_files.render

    def roomy(site: Any, where: Path) -> dict[str, str]:
        files = render(site, where)
        assert files["envoy.yaml"].count(" 2097152") == 2
        return files | {"envoy.yaml": files["envoy.yaml"].replace(" 2097152", " 67108864")}

    monkeypatch.setattr(envoy_files, "render", roomy)
    async with set_up(lasting, house) as stage:
        yield stage
    shutil.rmtree(house / "envoy")


@pytest.mark.skipif(shutil.which("h2load") is None, reason="install h2load (Debian: nghttp2-client)")
async def test_h2load_came_first(lasting: Lasting) -> None:
    """Whatever is tested below, this server has answered 100,000 health checks before, or its fixture would have failed."""
    assert lasting.server.open_streams == 0
    assert not lasting.server._connections


@pytest.fixture
def many_files() -> Iterator[None]:
    """A downstream, a backend's and an upstream connection for each stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * STREAMS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8 * STREAMS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("http2", [False, True])
async def test_bodies_of_24_megabytes_replaced_and_passed_both_ways(stage: Stage, http2: bool) -> None:
    """A replaced body is larger than Envoy's window of 16 MiB."""
    asked, replaced, answered = (random.Random(seed).randbytes(BODY_BYTES) for seed in range(3))

    def rewrites(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.Body):
            assert event.data == asked
            return actions.PassBody(data=replaced, set_headers=(("x-model", BIG),))
        return forward(exchange, event)

    async def answers(request: Any, writer: asyncio.StreamWriter) -> None:
        await json_answer(request, writer, answered)

    stage.sidecar.answer = rewrites
    stage.backends[BIG].respond = answers
    async with stage.client(http2=http2) as client:
        answer = await client.post(COMPLETIONS, content=asked)
    assert answer.content == answered
    assert stage.seen[0].body == replaced
    assert sum(len(event.data) for event in stage.sidecar.last.events if isinstance(event, events.Chunk)) == BODY_BYTES
    await until(lambda: stage.sidecar.last.gones == ["closed"])


async def test_an_answer_of_24_megabytes_buffered_and_replaced(stage: Stage) -> None:
    answered, replaced = (random.Random(seed).randbytes(BODY_BYTES) for seed in range(2))

    def rewrites(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if isinstance(event, events.ResponseHeaders):
            return actions.PassResponseHeaders(buffer=True)
        if isinstance(event, events.Chunk):
            assert event.data == answered
            return actions.PassChunk(data=replaced)
        return forward(exchange, event)

    async def answers(request: Any, writer: asyncio.StreamWriter) -> None:
        await json_answer(request, writer, answered)

    stage.sidecar.answer = rewrites
    stage.backends[BIG].respond = answers
    assert (await stage.sends(COMPLETIONS, json={})).content == replaced


async def test_long_bodies_of_many_at_once(stage: Stage) -> None:
    """More than the connection lets arrive at the same time: each gets its turn."""
    body = random.Random(7).randbytes(8_000_000)
    async with stage.client() as client:
        got = await asyncio.gather(*(client.post(COMPLETIONS, content=body) for _ in range(12)))
    assert {answer.status_code for answer in got} == {200}
    assert all(request.body == body for request in stage.seen)
    assert len(stage.seen) == 12


async def test_streams_of_1000_events(stage: Stage) -> None:
    async def streams(request: Any, writer: asyncio.StreamWriter) -> None:
        await stream_start(writer)
        for number in range(1_000):
            await stream_piece(writer, b"data: %d\n\n" % number)
            await asyncio.sleep(0.001)  # else Envoy joins them
        writer.write(b"0\r\n\r\n")

    stage.backends[BIG].respond = streams
    whole = b"".join(b"data: %d\n\n" % number for number in range(1_000))
    async with stage.client() as client:
        got = await asyncio.gather(*(client.post(COMPLETIONS, json={}) for _ in range(8)))
    assert [answer.content for answer in got] == [whole] * 8
    await until(lambda: [exchange.gones for exchange in stage.sidecar.exchanges] == [["closed"]] * 8)
    for exchange in stage.sidecar.exchanges:
        chunks = [event.data for event in exchange.events if isinstance(event, events.Chunk)]
        assert b"".join(chunks) == whole
        assert len(chunks) > 500


async def test_resets_at_any_point_harm_nobody(stage: Stage) -> None:
    """The client's, the backend's, ours."""
    chance = random.Random(20261121)
    dies = 0.005

    async def streams(request: Any, writer: asyncio.StreamWriter) -> None:
        await stream_start(writer)
        for _ in range(20):
            await stream_piece(writer, b"data: x\n\n")
            await asyncio.sleep(0.001)
            if chance.random() < dies:
                writer.transport.abort()
        writer.write(b"0\r\n\r\n")

    def moody(exchange: Exchange, event: events.Event) -> actions.Action | None:
        if chance.random() < 0.01:
            exchange.call.close(StatusCode.INTERNAL, "a whim")
            return None
        return forward(exchange, event)

    async def leaves(after_s: float, size: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", stage.envoy.port, ssl=stage.tls())
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await asyncio.sleep(after_s)
        writer.transport.abort()

    stage.sidecar.answer = moody
    stage.backends[BIG].respond = streams
    (connection,) = stage.transports[0]._connections
    for _ in range(10):
        await asyncio.gather(*(leaves(chance.random() * 0.05, chance.choice([2, 2, 2, 300_000])) for _ in range(40)))
    await until(lambda: stage.transports[0].open_streams == 0)
    assert len(stage.sidecar.exchanges) > 300
    assert {tuple(exchange.gones) for exchange in stage.sidecar.exchanges} == {("closed",), ("sidecar_error",)}  # each once; a whim is ours
    stage.sidecar.answer, dies = forward, 0
    assert (await stage.sends(COMPLETIONS, json={})).content == b"data: x\n\n" * 20
    assert connection in stage.transports[0]._connections, "one connection survived all of it"


async def test_3000_streams_at_once(stage: Stage, many_files: None) -> None:
    """1,024 to a connection: Envoy opens more of them."""
    go = asyncio.Event()
    held = 0

    async def holds(request: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal held
        held += 1
        await go.wait()
        await json_answer(request, writer)

    stage.backends[BIG].respond = holds
    transport = stage.transports[0]
    context = stage.tls()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    clients: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def asks() -> None:
        clients.append(await asyncio.open_connection("127.0.0.1", stage.envoy.port, ssl=context))
        clients[-1][1].write(head)

    for _ in range(0, STREAMS, 100):  # in batches: all of this is one process, and Envoy waits 3 s for a reply
        await asyncio.gather(*(asks() for _ in range(100)))
        await until(lambda: held == len(clients), within_s=30)
    assert transport.open_streams == STREAMS
    assert 3 <= len(transport._connections) <= 8
    go.set()
    answers = await asyncio.gather(*(reader.readuntil(b"\r\n") for reader, _ in clients))
    assert set(answers) == {b"HTTP/1.1 200 OK\r\n"}
    await until(lambda: transport.open_streams == 0)
    for _, writer in clients:
        writer.transport.abort()


async def test_a_listener_that_drains_cuts_no_stream(stage: Stage) -> None:
    """Envoy's way to end: it refuses new requests, and leaves when the last one has ended. Neither of us cuts one."""
    events_count, begun = 60, 0

    async def streams(request: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        await stream_start(writer)
        begun += 1
        for number in range(events_count):
            await stream_piece(writer, b"data: %d\n\n" % number)
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    stage.backends[BIG].respond = streams
    whole = b"".join(b"data: %d\n\n" % number for number in range(events_count))
    async with stage.client() as one, stage.client(http2=True) as two:
        asked = [asyncio.create_task(client.post(COMPLETIONS, json={})) for client in (one, two) for _ in range(40)]
        await until(lambda: begun == len(asked))
        stopping = asyncio.create_task(asyncio.to_thread(stage.envoy.stop, 30))
        await until(lambda: len(stage.sidecar.exchanges) == len(asked))
        assert not any(exchange.gones for exchange in stage.sidecar.exchanges), "drained while they were under way"
        answers = await asyncio.gather(*asked)
        await stopping
    assert [answer.content for answer in answers] == [whole] * len(asked)
    assert [exchange.gones for exchange in stage.sidecar.exchanges] == [["closed"]] * len(asked)
    assert all(exchange.events[-1].end_of_stream for exchange in stage.sidecar.exchanges)


UPSTREAM_TLS = """\
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: localhost
          common_tls_context:
            alpn_protocols: [h2]   # Envoy offers nothing by itself when the protocol is explicit
            tls_certificates: [{{certificate_chain: {{filename: "{cert}"}}, private_key: {{filename: "{key}"}}}}]
            validation_context: {{trusted_ca: {{filename: "{ca}"}}}}
"""


async def test_envoy_in_another_pod_speaks_tls_with_a_client_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tls.ensure(tmp_path / "tls")
    cert, key = client_certificate(tmp_path, files)
    listen = Listen(
        address="127.0.0.1:0",
        tls=TlsFiles(cert_file=str(files.cert_file), key_file=str(files.key_file), client_ca_file=str(files.ca_file)),
    )
    ports: list[str] = []

    class OverTls(LeanTransport):
        def __init__(self, _listen: Listen, *rest: Any) -> None:
            super().__init__(listen, *rest)

        async def start(self) -> None:
            await super().start()
            ports.append(self.address.rpartition(":")[2])

    render = envoy_files.render

    def remote(site: Any, where: Path) -> dict[str, str]:
        made = render(site, where)
        text, count = re.subn(
            r"\{pipe: \{path: [^}]*\}\}", f"{{socket_address: {{address: 127.0.0.1, port_value: {ports[0]}}}}}", made["envoy.yaml"]
        )
        assert count == 1
        cluster = "    - name: extproc\n"
        assert text.count(cluster) == 1
        return made | {"envoy.yaml": text.replace(cluster, cluster + UPSTREAM_TLS.format(cert=cert, key=key, ca=files.ca_file))}

    monkeypatch.setattr(envoy_files, "render", remote)
    async with set_up(OverTls, tmp_path) as stage:
        body = random.Random(3).randbytes(900_000)
        answer = await stage.sends(COMPLETIONS, content=body)
        assert answer.status_code == 200
        assert stage.seen[0].body == body
        await until(lambda: stage.sidecar.last.gones == ["closed"])
