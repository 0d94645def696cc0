"""The lean transport's own duties: who may connect, TLS, peers that misbehave, how connections end. (What all transports promise: beside.)"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_certificate import client_certificate
from scripted_handler import Factory, silent, until

from extproc.edge.health import Health
from extproc.edge.transport import address as addresses
from extproc.edge.transport.lean import limits, protocol
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import METHOD, Listen, StatusCode, TlsFiles
from extproc.errors import UsageError
from extproc.local import tls

sys.path.append(str(Path(__file__).parents[2] / "pure" / "lean"))
from lean_wire import DATA, GOAWAY, HEADERS, HELLO, PING, RST, frame, frames_of, message, opened


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="xl-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def serving(directory: Path, factory: Factory | None = None, **listen: Any) -> AsyncIterator[LeanTransport]:
    health = Health()
    health.serve()
    options = {"address": f"unix:{directory}/run/gate-0.sock"} | listen
    transport = LeanTransport(Listen(**options), factory or Factory(), health)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.stop()
        assert transport.open_streams == 0


class Raw:
    """A client that writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.got = b""

    @classmethod
    async def to(cls, transport: LeanTransport, hello: bytes = HELLO) -> Raw:
        raw = cls(*await asyncio.open_unix_connection(transport.address.removeprefix("unix:")))
        raw.writer.write(hello)
        return raw

    async def until(self, kind: int, flags: int = -1) -> tuple[int, int, int, bytes]:
        """The first frame of that kind (and those flags); what came before it is dropped."""
        async with asyncio.timeout(10):
            while True:
                found = await self.next_frame()
                if found[0] == kind and flags in (-1, found[1]):
                    return found

    async def next_frame(self) -> tuple[int, int, int, bytes]:
        head = await self.reader.readexactly(9)
        return frames_of(head + await self.reader.readexactly(int.from_bytes(head[:3], "big")))[0]

    async def rest(self) -> list[tuple[int, int, int, bytes]]:
        """Until the server closes."""
        async with asyncio.timeout(10):
            return frames_of(await self.reader.read(-1))

    def close(self) -> None:
        self.writer.close()


async def test_a_lost_connection_is_told_as_such_and_a_reset_is_not(directory: Path) -> None:
    factory = Factory(silent)
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport)
        raw.writer.write(opened(1, b"a") + opened(3, b"b") + frame(RST, 0, 1, b"\0\0\0\2"))
        await until(lambda: len(factory.made) == 2 and factory.made[0].gones)
        raw.close()
        await factory.settled(2)
    assert [handler.gones for handler in factory.made] == [["closed"], ["edge_lost"]]


@pytest.mark.parametrize("end", [frame(DATA, 1, 1) + frame(RST, 0, 1, b"\0\0\0\2"), frame(RST, 0, 1, b"\0\0\0\2"), frame(DATA, 1, 1)])
async def test_what_came_before_an_end_is_heard_even_if_it_came_together(directory: Path, end: bytes) -> None:
    """Envoy writes the last chunk of a broken answer, END_STREAM and the reset at once: that chunk has to be charged."""
    factory = Factory()
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport)
        raw.writer.write(opened(1, b"a", b"b") + end)
        await factory.settled()
        raw.close()
    assert factory.made[0].messages == [b"a", b"b"]
    assert factory.made[0].gones == ["closed"]


async def test_who_has_closed_hears_nothing_more(directory: Path) -> None:
    factory = Factory(lambda handler, data: handler.call.close(StatusCode.INTERNAL, "enough"))
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport)
        raw.writer.write(opened(1, b"a", b"b") + frame(RST, 0, 1, b"\0\0\0\2"))
        await factory.settled()
        raw.close()
    assert factory.made[0].messages == [b"a"]


async def test_a_call_whose_stream_is_gone_sends_nothing(directory: Path) -> None:
    """The next stream of the connection must not hear what was meant for the one before."""
    factory = Factory(silent)
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport)
        raw.writer.write(opened(1, b"a") + frame(RST, 0, 1, b"\0\0\0\2") + opened(3, b"b"))
        await until(lambda: len(factory.made) == 2 and factory.made[1].messages)
        factory.made[0].call.send(b"late")
        factory.made[0].call.close(StatusCode.INTERNAL, "late")
        factory.made[1].call.send(b"in time")
        _, _, stream_id, payload = await raw.until(DATA)
        assert (stream_id, payload) == (3, message(b"in time"))
        raw.close()


async def test_replies_of_one_turn_are_one_write(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    taken = protocol.Connection.take

    def take(connection: Any) -> bytes:
        data = taken(connection)
        writes.extend([len(data)] if data else [])
        return data

    monkeypatch.setattr(protocol.Connection, "take", take)
    async with serving(directory) as transport:
        raw = await Raw.to(transport)
        await raw.until(4, 1)
        writes.clear()
        raw.writer.write(b"".join(opened(number, b"x") for number in range(1, 41, 2)))
        for _ in range(20):
            await raw.until(DATA)
        assert len(writes) == 1
        raw.close()


async def test_the_wrong_user_is_refused(directory: Path, caplog: Any) -> None:
    factory = Factory()
    async with serving(directory, factory, allowed_uids=frozenset({os.getuid() + 1})) as transport:
        raw = await Raw.to(transport, HELLO + opened(1, b"x"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await raw.next_frame()
        raw.close()
    assert factory.made == []
    assert "allowed_uids" in caplog.text


async def test_the_right_user_is_served(directory: Path) -> None:
    async with serving(directory, allowed_uids=frozenset({os.getuid()})) as transport:
        raw = await Raw.to(transport, HELLO + opened(1, b"x"))
        assert (await raw.until(DATA))[3] == message(b"x")
        raw.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [(b"GET / HTTP/1.1\r\n\r\n", 1), (HELLO + frame(DATA, 0, 5, b"x"), 1), (HELLO + frame(PING, 0, 0, bytes(8)) * 1_500, 11)],
)
async def test_who_breaks_the_protocol_gets_goaway_and_nobody_else_notices(directory: Path, sent: bytes, code: int, caplog: Any) -> None:
    factory = Factory()
    async with serving(directory, factory) as transport:
        good = await Raw.to(transport, HELLO + opened(1, b"x"))
        bad = await Raw.to(transport, b"")
        bad.writer.write(sent)
        (goaway,) = [sent for sent in await bad.rest() if sent[0] == GOAWAY]
        assert goaway[3][4:8] == code.to_bytes(4, "big")
        bad.close()
        good.writer.write(frame(DATA, 0, 1, message(b"y")))
        await until(lambda: factory.made[0].messages == [b"x", b"y"])
        good.close()


async def test_who_says_nothing_is_not_waited_for(directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(protocol, "GREETING_S", 0.05)
    async with serving(directory) as transport:
        raw = await Raw.to(transport, HELLO[:10])
        assert [sent[0] for sent in await raw.rest()] == [4, 8]
        raw.close()


async def test_more_connections_than_bearable_are_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 1)
    async with serving(directory) as transport:
        first = await Raw.to(transport, HELLO)
        await first.until(4)
        second = await Raw.to(transport, HELLO)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await second.next_frame()
        first.close()
        await until(lambda: not transport._connections)
        third = await Raw.to(transport, HELLO + opened(1, b"x"))
        await third.until(DATA)
        for raw in (second, third):
            raw.close()


async def test_a_peer_that_does_not_read_is_not_written_to_without_end(directory: Path) -> None:
    """Its socket is full: replies wait on their streams, and a reset drops them."""
    piece = bytes(4 * 1024 * 1024)
    factory = Factory(lambda handler, data: handler.call.send(piece))
    window = frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, b"\x7f\0\0\0")
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport, HELLO + window)
        raw.writer.write(b"".join(opened(number, b"x") for number in range(1, 17, 2)))
        await until(lambda: len(factory.made) == 8 and all(handler.messages for handler in factory.made))
        (connection,) = (made.connection for made in transport._connections)
        await until(lambda: connection.sending.held)
        assert connection.sending.unsent_bytes > 6 * len(piece)
        raw.writer.write(b"".join(frame(RST, 0, number, b"\0\0\0\2") for number in range(1, 15, 2)))
        await until(lambda: connection.sending.unsent_bytes <= len(piece) + 5)
        received = 0
        while received < len(piece):
            kind, _, stream_id, payload = await asyncio.wait_for(raw.next_frame(), 10)
            received += len(payload) if (kind, stream_id) == (DATA, 15) else 0
        assert not connection.sending.held
        raw.close()


async def test_stop_does_not_wait_for_a_peer_that_does_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extproc.edge.transport.lean.server.CLOSE_S", 0.1)
    factory = Factory(lambda handler, data: handler.call.send(bytes(8 * 1024 * 1024)))
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport, HELLO + frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, b"\x7f\0\0\0") + opened(1, b"x"))
        await until(lambda: factory.made and factory.made[0].messages)
        await asyncio.wait_for(transport.stop(), 5)
        await factory.settled()
        raw.close()


async def test_drain_sends_two_goaways_and_serves_what_comes_between(directory: Path) -> None:
    factory = Factory()
    async with serving(directory, factory) as transport:
        raw = await Raw.to(transport, HELLO + opened(1, b"x"))
        await raw.until(DATA)
        draining = asyncio.create_task(transport.drain(10))
        assert (await raw.until(GOAWAY))[3][:8] == b"\x7f\xff\xff\xff\0\0\0\0"
        raw.writer.write(opened(3, b"under way"))
        assert (await raw.until(DATA))[3] == message(b"under way")
        assert (await raw.until(GOAWAY))[3][:8] == b"\0\0\0\3\0\0\0\0"
        raw.writer.write(opened(5, b"too late"))
        assert (await raw.until(RST)) == (RST, 0, 5, b"\0\0\0\7")
        assert not draining.done()
        raw.writer.write(frame(DATA, 1, 1) + frame(RST, 0, 3, b"\0\0\0\2"))
        assert await draining
        assert [sent[0] for sent in await raw.rest()] == [HEADERS], "the trailers; then the connection is closed"
        raw.close()
    assert [handler.gones for handler in factory.made] == [["closed"], ["closed"]]


async def test_a_connection_whose_ids_run_out_is_replaced_alone(directory: Path) -> None:
    factory = Factory()
    async with serving(directory, factory) as transport:
        old, other = await Raw.to(transport), await Raw.to(transport, HELLO + opened(1, b"x"))
        old.writer.write(opened(limits.STREAM_ID_LAST + 1, b"last"))
        assert (await old.until(GOAWAY))[3][:8] == b"\x7f\xff\xff\xff\0\0\0\0"
        assert (await old.until(GOAWAY))[3][:4] == (limits.STREAM_ID_LAST + 1).to_bytes(4, "big")
        old.writer.write(frame(DATA, 1, limits.STREAM_ID_LAST + 1))
        assert [sent[0] for sent in await old.rest()] == [HEADERS], "the trailers; then the connection is closed"
        other.writer.write(frame(DATA, 0, 1, message(b"y")))
        await until(lambda: b"y" in [message for handler in factory.made for message in handler.messages])
        for raw in (old, other):
            raw.close()
    assert sorted(handler.messages for handler in factory.made) == [[b"last"], [b"x", b"y"]]


async def test_a_file_or_a_living_server_is_not_replaced(directory: Path) -> None:
    async with serving(directory) as transport:
        second = LeanTransport(Listen(address=transport.address), Factory(), Health())
        with pytest.raises(UsageError, match="another process"):
            await second.start()
        await second.stop()
        assert Path(transport.address.removeprefix("unix:")).exists()
    (directory / "file").write_text("mine")
    with pytest.raises(UsageError, match="no socket"):
        await LeanTransport(Listen(address=f"unix:{directory}/file"), Factory(), Health()).start()
    assert (directory / "file").read_text() == "mine"


async def test_a_port_in_use_is_a_clear_error(directory: Path) -> None:
    async with serving(directory, address="127.0.0.1:0", insecure_loopback=True) as transport:
        with pytest.raises(UsageError, match="in use"):
            await LeanTransport(Listen(address=transport.address, insecure_loopback=True), Factory(), Health()).start()


async def test_a_successors_socket_is_left_alone(directory: Path) -> None:
    async with serving(directory) as transport:
        transport.stop_accepting()
        async with serving(directory) as successor:
            await transport.stop()
            raw = await Raw.to(successor, HELLO + opened(1, b"x"))
            await raw.until(DATA)
            raw.close()


async def test_an_inherited_socket_outlives_its_transport(directory: Path) -> None:
    """Who connects while nobody accepts is served by the next one; the file stays where it is."""
    where = Listen(address=f"unix:{directory}/run/gate-0.sock")
    with addresses.listening(where) as held:
        async with serving(directory, inherited_fd=os.dup(held.fileno())) as transport:
            raw = await Raw.to(transport, HELLO + opened(1, b"x"))
            await raw.until(DATA)
            raw.close()
        assert Path(where.address.removeprefix("unix:")).is_socket()
        waiting = await Raw.to(transport, HELLO + opened(1, b"y"))
        async with serving(directory, inherited_fd=os.dup(held.fileno())):
            assert (await waiting.until(DATA))[3] == message(b"y")
            waiting.close()


async def test_two_transports_share_a_socket_and_one_leaves(directory: Path) -> None:
    factory = Factory()
    with addresses.listening(Listen(address=f"unix:{directory}/run/gate-0.sock")) as held:
        fds = [os.dup(held.fileno()) for _ in range(2)]
        async with serving(directory, inherited_fd=fds[0]) as old, serving(directory, factory, inherited_fd=fds[1]):
            old.stop_accepting()
            for number in range(20):
                raw = await Raw.to(old, HELLO + opened(1, b"%d" % number))
                await raw.until(DATA)
                raw.close()
    assert len(factory.made) == 20


async def test_a_connection_that_was_accepted_before_the_final_goaway_is_served(directory: Path) -> None:
    async with serving(directory) as transport:
        first = await Raw.to(transport, HELLO + opened(1, b"x"))
        await first.until(DATA)
        transport.stop_accepting()
        near, far = socket.socketpair(socket.AF_UNIX)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: protocol.LeanProtocol(transport, loop), sock=near)
        late = Raw(*await asyncio.open_unix_connection(sock=far))
        late.writer.write(HELLO + opened(1, b"late"))
        assert (await late.until(GOAWAY))[3][:4] == b"\x7f\xff\xff\xff"
        assert (await late.until(DATA))[3] == message(b"late")
        assert (await late.until(GOAWAY))[3][:4] == b"\0\0\0\1"
        first.close()
        late.close()


# ---- TLS


@pytest.fixture
def certificates(directory: Path) -> tls.Certificates:
    return tls.ensure(directory / "tls")


@pytest.fixture
def client_pair(directory: Path, certificates: tls.Certificates) -> tuple[Path, Path]:
    return client_certificate(directory, certificates)


def listen_tls(files: tls.Certificates, **changed: str) -> dict[str, Any]:
    names = {"cert_file": str(files.cert_file), "key_file": str(files.key_file), "client_ca_file": str(files.ca_file)} | changed
    return {"address": "127.0.0.1:0", "tls": TlsFiles(**names)}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_over_tls_with_a_client_certificate(
    directory: Path, certificates: tls.Certificates, client_pair: tuple[Path, Path], loop: str
) -> None:
    import uvloop  # noqa: PLC0415

    async def scenario() -> None:
        async with serving(directory, **listen_tls(certificates)) as transport:
            pems = [path.read_bytes() for path in (certificates.ca_file, client_pair[1], client_pair[0])]
            async with grpc.aio.secure_channel(transport.address, grpc.ssl_channel_credentials(*pems)) as channel:
                stream = channel.stream_stream(METHOD)()
                for size in (1, 3_000_000):
                    await stream.write(bytes(size))
                    assert await stream.read() == bytes(size)
                await stream.done_writing()
                assert await stream.code() is grpc.StatusCode.OK

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(scenario())


@pytest.mark.parametrize(("certificate", "protocols"), [(False, ["h2"]), (True, ["http/1.1"]), (True, [])])
async def test_tls_without_certificate_or_h2_is_refused(
    directory: Path, certificates: tls.Certificates, client_pair: tuple[Path, Path], certificate: bool, protocols: list[str]
) -> None:
    factory = Factory()
    async with serving(directory, factory, **listen_tls(certificates)) as transport:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        if protocols:
            context.set_alpn_protocols(protocols)
        if certificate:
            context.load_cert_chain(*client_pair)

        async def ask() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(transport.address.rpartition(":")[2]), ssl=context)
            try:
                writer.write(HELLO + opened(1, b"x"))
                await asyncio.wait_for(reader.readexactly(1), 10)
            finally:
                writer.close()

        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await ask()
    assert factory.made == []


async def test_certificates_that_cannot_be_used_are_a_clear_error(directory: Path, certificates: tls.Certificates) -> None:
    for changed in ({"cert_file": str(directory / "nowhere.pem")}, {"key_file": str(certificates.ca_key_file)}):
        with pytest.raises(UsageError, match=r"pem|key"):
            await LeanTransport(Listen(**listen_tls(certificates, **changed)), Factory(), Health()).start()


def test_addresses_of_ip_version_6(directory: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def scenario() -> None:
        async with (
            serving(directory, address="[::1]:0", insecure_loopback=True) as transport,
            grpc.aio.insecure_channel(transport.address) as channel,
        ):
            stream = channel.stream_stream(METHOD)()
            await stream.write(b"x")
            assert await stream.read() == b"x"

    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this loopback")
    asyncio.run(scenario())


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="install nghttp (Debian: nghttp2-client)")
async def test_nghttp_reads_a_health_check_frame_by_frame(directory: Path) -> None:
    """nghttp2's other client, h2load, is in integration/lean."""
    recorded = directory / "check.bin"
    recorded.write_bytes(message(b""))
    async with serving(directory, address="127.0.0.1:0", insecure_loopback=True) as transport:
        process = await asyncio.create_subprocess_exec(
            "nghttp", "-v", "--no-dep", "-d", str(recorded), "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://{transport.address}/grpc.health.v1.Health/Check", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    for words in (b":status: 200", b"content-type: application/grpc", b"grpc-status: 0", b"recv DATA frame <length=7"):
        assert words in output, output
