"""What every transport promises to the driver (extproc/edge/transport/port.py), seen by grpcio's own client."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from grpc_health.v1 import health_pb2
from scripted_handler import Factory, Scripted, echo, silent, until

from extproc.edge import health as health_wire
from extproc.edge.health import Health
from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.lean.server import LeanTransport
from extproc.edge.transport.port import MESSAGE_BYTES_MAX, METHOD, UNSENT_BYTES_MAX, Listen, StatusCode, Transport
from extproc.errors import UsageError

TRANSPORTS = {"grpcio": GrpcioTransport, "lean": LeanTransport}
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(params=sorted(TRANSPORTS))
def transport_class(request: pytest.FixtureRequest) -> type[GrpcioTransport]:
    return TRANSPORTS[request.param]


@pytest.fixture
def directory() -> Any:
    path = Path(tempfile.mkdtemp(prefix="xt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


class Server:
    """A started transport, its factory and health, and a client."""

    def __init__(self, transport: Transport, factory: Factory, health: Health) -> None:
        self.transport, self.factory, self.health = transport, factory, health
        self.channel = grpc.aio.insecure_channel(transport.address, options=BIG)

    def stream(self) -> Any:
        return self.channel.stream_stream(METHOD)()


@asynccontextmanager
async def serving(cls: type[GrpcioTransport], directory: Path, factory: Factory | None = None, **listen: Any) -> AsyncIterator[Server]:
    health = Health()
    health.serve()
    factory = factory or Factory()
    transport = cls(Listen(address=f"unix:{directory}/run/gate-0.sock", **listen), factory, health)
    await transport.start()
    server = Server(transport, factory, health)
    try:
        yield server
    finally:
        await server.channel.close()
        await transport.stop()
        assert transport.open_streams == 0


async def failed(stream: Any) -> grpc.StatusCode:
    """The code of an error close, once every reply was read."""

    async def drained() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(drained(), 10)
    return caught.value.code()


async def test_each_message_is_answered_in_order_and_the_end_is_ok(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        stream = server.stream()
        for number in range(50):
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        await server.factory.settled()
        assert server.factory.made[0].messages == [b"%d" % number for number in range(50)]


async def test_replies_sent_later_keep_their_order(transport_class: Any, directory: Path) -> None:
    def later(handler: Scripted, data: bytes) -> None:
        handler.call.send(data + b" now")
        asyncio.get_running_loop().call_later(0.002, handler.call.send, data + b" later")

    async with serving(transport_class, directory, Factory(later)) as server:
        stream = server.stream()
        for number in range(20):
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d now" % number
            assert await stream.read() == b"%d later" % number
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_burst_of_messages_and_replies_keeps_its_order(transport_class: Any, directory: Path) -> None:
    def mixed(handler: Scripted, data: bytes) -> None:
        if int(data) % 3 == 0:
            handler.call.send(data)
        else:  # everything that was pending goes out at once, from outside of message()
            asyncio.get_running_loop().call_soon(handler.call.send, data)

    async with serving(transport_class, directory, Factory(mixed)) as server:
        stream = server.stream()
        for number in range(300):
            await stream.write(b"%d" % number)
        got = [int(await stream.read()) for _ in range(300)]
        assert sorted(got) == list(range(300))
        assert [n for n in got if n % 3 == 0] == list(range(0, 300, 3))
        assert [n for n in got if n % 3 == 1] == list(range(1, 300, 3))
        stream.cancel()
        await server.factory.settled()


async def test_no_headers_before_the_first_reply(transport_class: Any, directory: Path) -> None:
    """Envoy repeats a request on another worker only as long as this one has sent nothing."""
    async with serving(transport_class, directory, Factory(silent)) as server:
        stream = server.stream()
        await stream.write(b"headers")
        await until(lambda: server.factory.made and server.factory.made[0].messages)
        metadata = asyncio.ensure_future(stream.initial_metadata())
        done, _ = await asyncio.wait({metadata}, timeout=0.2)
        assert not done
        server.factory.made[0].call.send(b"reply")
        await asyncio.wait_for(metadata, 5)
        assert await stream.read() == b"reply"
        stream.cancel()


@pytest.mark.parametrize("code", list(StatusCode))
async def test_an_error_close_in_a_message_comes_after_what_was_sent(transport_class: Any, directory: Path, code: StatusCode) -> None:
    def refuse(handler: Scripted, data: bytes) -> None:
        handler.call.send(b"first")
        handler.call.close(code, "because")
        handler.call.send(b"never")
        handler.call.close(StatusCode.INTERNAL, "only the first close counts")

    async with serving(transport_class, directory, Factory(refuse)) as server:
        stream = server.stream()
        await stream.write(b"x")
        assert await stream.read() == b"first"
        assert (await failed(stream)).value[0] == code
        assert await stream.details() == "because"
        await server.factory.settled()


async def test_an_error_close_from_outside_of_a_message(transport_class: Any, directory: Path) -> None:
    def later(handler: Scripted, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, handler.call.send, b"answer")
        loop.call_later(0.01, handler.call.close, StatusCode.UNAVAILABLE, "store away")

    async with serving(transport_class, directory, Factory(later)) as server:
        stream = server.stream()
        await stream.write(b"x")
        assert await stream.read() == b"answer"
        assert await failed(stream) is grpc.StatusCode.UNAVAILABLE
        await server.factory.settled()


async def test_an_error_close_before_any_message(transport_class: Any, directory: Path) -> None:
    class Refusing(Factory):
        def __call__(self, call: Any) -> Scripted:
            call.close(StatusCode.UNAVAILABLE, "draining")
            return super().__call__(call)

    async with serving(transport_class, directory, Refusing()) as server:
        assert await failed(server.stream()) is grpc.StatusCode.UNAVAILABLE
        await server.factory.settled()
        assert server.factory.made[0].messages == []


@pytest.mark.parametrize("where", ["message", "factory"])
async def test_a_handler_that_raises_is_an_internal_error_and_never_ok(
    transport_class: Any, directory: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(handler: Scripted, data: bytes) -> None:
        raise ValueError("a bug")

    class BrokenFactory(Factory):
        def __call__(self, call: Any) -> Scripted:
            raise ValueError("a bug")

    factory = Factory(broken) if where == "message" else BrokenFactory()
    async with serving(transport_class, directory, factory) as server:
        stream = server.stream()
        with contextlib.suppress(grpc.aio.AioRpcError):  # a factory that raises may be faster
            await stream.write(b"x")
        assert await failed(stream) is grpc.StatusCode.INTERNAL
        await server.factory.settled(count=len(factory.made))
        assert server.transport.open_streams == 0
    assert "INTERNAL" in caplog.text


async def test_a_handler_that_raises_at_its_end_harms_nobody(transport_class: Any, directory: Path, caplog: Any) -> None:
    class Rude(Scripted):
        def gone(self, reason: Any) -> None:
            super().gone(reason)
            raise ValueError("a bug")

    class RudeFactory(Factory):
        def __call__(self, call: Any) -> Scripted:
            self.made.append(Rude(call=call, script=echo))
            return self.made[-1]

    async with serving(transport_class, directory, RudeFactory()) as server:
        for _ in range(2):
            stream = server.stream()
            await stream.write(b"x")
            assert await stream.read() == b"x"
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        await server.factory.settled(2)
        await until(lambda: server.transport.open_streams == 0)


async def test_half_close_before_any_reply_is_one_gone(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, Factory(silent)) as server:
        stream = server.stream()
        await stream.write(b"x")
        await stream.done_writing()
        await server.factory.settled()
        assert await asyncio.wait_for(stream.read(), 5) is grpc.aio.EOF
        server.factory.made[0].call.send(b"ignored")
        server.factory.made[0].call.close(StatusCode.INTERNAL, "ignored")
        await until(lambda: server.transport.open_streams == 0)


async def test_cancel_is_one_gone(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, Factory(silent)) as server:
        streams = [server.stream() for _ in range(20)]
        for stream in streams:
            await stream.write(b"x")
        await until(lambda: sum(len(handler.messages) for handler in server.factory.made) == 20)
        for stream in streams:
            stream.cancel()
        await server.factory.settled(20)
        await until(lambda: server.transport.open_streams == 0)


async def test_a_lost_connection_ends_every_stream(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, Factory(silent)) as server:
        streams = [server.stream() for _ in range(10)]
        for stream in streams:
            await stream.write(b"x")
        await until(lambda: sum(len(handler.messages) for handler in server.factory.made) == 10)
        await server.channel.close(grace=None)
        await server.factory.settled(10)


async def test_24_megabytes_each_way(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        stream = server.stream()
        data = bytes(24 * 1024 * 1024)
        await stream.write(data)
        assert await stream.read() == data
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_message_above_the_limit_is_an_error_close(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        stream = server.stream()
        await stream.write(bytes(MESSAGE_BYTES_MAX + 1))
        assert await failed(stream) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await server.factory.settled()
        assert server.factory.made[0].messages == []


async def test_replies_that_nobody_takes_are_bounded(transport_class: Any, directory: Path) -> None:
    piece = bytes(8 * 1024 * 1024)

    def flood(handler: Scripted, data: bytes) -> None:
        for _ in range(UNSENT_BYTES_MAX // len(piece) + 1):
            handler.call.send(piece)

    async with serving(transport_class, directory, Factory(flood)) as server:
        stream = server.stream()
        await stream.write(b"x")
        await server.factory.settled()
        assert await failed(stream) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_many_streams_at_once(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        streams = [server.stream() for _ in range(500)]

        async def use(stream: Any) -> bool:
            for _ in range(3):
                await stream.write(b"x")
                assert await stream.read() == b"x"
            await stream.done_writing()
            return await stream.code() is grpc.StatusCode.OK

        assert all(await asyncio.gather(*map(use, streams)))
        await server.factory.settled(500)


async def test_above_the_limit_of_streams_the_answer_is_unavailable(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, streams_max=2) as server:
        streams = [server.stream() for _ in range(2)]
        for stream in streams:
            await stream.write(b"x")
            assert await stream.read() == b"x"
        assert await failed(server.stream()) is grpc.StatusCode.UNAVAILABLE
        await streams[0].done_writing()
        await until(lambda: server.transport.open_streams == 1)
        another = server.stream()
        await another.write(b"x")
        assert await another.read() == b"x"


async def test_drain_lets_open_streams_end(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        stream = server.stream()
        await stream.write(b"1")
        assert await stream.read() == b"1"
        assert not await server.transport.drain(0.05)
        await stream.write(b"2")
        assert await stream.read() == b"2"
        async with grpc.aio.insecure_channel(server.transport.address) as other:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await other.unary_unary(METHOD)(b"x", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        draining = asyncio.create_task(server.transport.drain(10))
        await stream.done_writing()
        assert await draining
        assert await stream.code() is grpc.StatusCode.OK
        await server.factory.settled()


async def test_stop_closes_what_is_left_with_unavailable(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, Factory(silent)) as server:
        streams = [server.stream() for _ in range(5)]
        for stream in streams:
            await stream.write(b"x")
        await until(lambda: len(server.factory.made) == 5 and all(handler.messages for handler in server.factory.made))
        await server.transport.stop()
        assert {await failed(stream) for stream in streams} == {grpc.StatusCode.UNAVAILABLE}
        await server.factory.settled(5)
        await server.transport.stop()  # idempotent
        assert not Path(server.transport.address.removeprefix("unix:")).exists()


async def test_health_is_answered_on_the_same_endpoint(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        check = server.channel.unary_unary(
            health_wire.METHOD, health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
        )
        for service in ("", "envoy.service.ext_proc.v3.ExternalProcessor"):
            assert (await check(health_pb2.HealthCheckRequest(service=service))).status == health_pb2.HealthCheckResponse.SERVING
        server.health.withdraw()
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.health.serve()
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_unknown_methods_are_unimplemented(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.channel.unary_unary("/a.b/C")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert server.factory.made == []


async def test_the_socket_is_closed_to_others(transport_class: Any, directory: Path) -> None:
    async with serving(transport_class, directory, socket_mode=0o600) as server:
        socket = Path(server.transport.address.removeprefix("unix:"))
        assert socket.stat().st_mode & 0o777 == 0o600
        assert socket.parent.stat().st_mode & 0o777 == 0o750


async def test_a_socket_that_a_killed_worker_left_is_taken_over(transport_class: Any, directory: Path) -> None:
    import socket  # noqa: PLC0415

    (directory / "run").mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(f"{directory}/run/gate-0.sock")
    stale.close()
    async with serving(transport_class, directory) as server:
        stream = server.stream()
        await stream.write(b"x")
        assert await stream.read() == b"x"


@pytest.mark.parametrize(
    ("listen", "word"),
    [
        (Listen(address="unix-abstract:gate"), "abstract"),
        (Listen(address="unix:"), "107"),
        (Listen(address="unix:" + "x" * 108), "107"),
        (Listen(address="0.0.0.0:50051", insecure_loopback=True), "loopback"),
        (Listen(address="gate.example.com:50051", insecure_loopback=True), "loopback"),
        (Listen(address="127.0.0.1:50051"), "insecure_loopback"),
        (Listen(address="127.0.0.1", insecure_loopback=True), "host:port"),
    ],
)
async def test_addresses_that_are_refused(transport_class: Any, listen: Listen, word: str) -> None:
    transport = transport_class(listen, Factory(), Health())
    with pytest.raises(UsageError, match=word):
        await transport.start()
    await transport.stop()


async def test_loopback_tcp_when_asked_for(transport_class: Any) -> None:
    transport = transport_class(Listen(address="127.0.0.1:0", insecure_loopback=True), Factory(), Health())
    await transport.start()
    async with grpc.aio.insecure_channel(transport.address) as channel:
        stream = channel.stream_stream(METHOD)()
        await stream.write(b"x")
        assert await stream.read() == b"x"
    await transport.stop()


def test_works_on_uvloop(transport_class: Any, directory: Path) -> None:
    async def scenario() -> None:
        async with serving(transport_class, directory) as server:
            first, second, third = (server.stream() for _ in range(3))
            for name, stream in (b"1", first), (b"2", second), (b"3", third):
                await stream.write(name)
                assert await stream.read() == name
            await first.done_writing()
            assert await first.code() is grpc.StatusCode.OK
            second.cancel()
            (handler,) = [made for made in server.factory.made if made.messages == [b"3"]]  # made in any order
            handler.call.close(StatusCode.UNAVAILABLE, "over")
            assert await failed(third) is grpc.StatusCode.UNAVAILABLE
            await server.factory.settled(3)

    uvloop.run(scenario())
