"""Our connection against python-hyper's h2 as the client: any order, any cut, any window; what one side says the other hears, whole and in order."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.events
import h2.exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.append(str(Path(__file__).parents[2] / "pure" / "lean"))
from lean_wire import Caller, message

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.stream import Stream
from extproc.edge.transport.port import METHOD

SIZES = st.sampled_from([0, 1, 26, 300, 5_000, 16_379, 16_380, 40_000, 65_530, 65_531, 300_000])
WINDOWS = st.sampled_from([16_777_216, 0, 1, 100, 16_384, 65_535, 70_000])
REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", METHOD), (":authority", "extproc"), ("content-type", "application/grpc")]


@dataclass
class Side:
    """What a stream's model expects."""

    queue: bytearray = field(default_factory=bytearray)
    asked: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    replies: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    unacknowledged: int = 0
    status: str = ""
    ended: bool = False
    reset: bool = False
    closed: bool = False


class Wire(RuleBasedStateMachine):
    @initialize(window=WINDOWS, frame=st.sampled_from([16_384, 20_000]))
    def greet(self, window: int, frame: int) -> None:
        self.sides: dict[int, Side] = {}
        self.upward = bytearray()
        self.serial = 0
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.caller = Caller(self.hear)
        self.outstanding = 1
        self.client.initiate_connection()
        self.settle()
        self.update({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: frame})

    def update(self, values: dict[SettingCodes, int]) -> None:
        """One at a time: h2 takes the acknowledgement of one SETTINGS for that of the next."""
        self.settle()
        assert self.outstanding == 0
        self.outstanding += 1
        self.client.update_settings(values)

    def settle(self) -> None:
        while self.outstanding:
            self.carry_up(1 << 24)
            held, self.caller.connection.sending.held = self.caller.connection.sending.held, False
            self.carry_down(1 << 24)
            self.caller.connection.sending.held = held

    def hear(self, caller: Caller, stream: Stream, data: bytes) -> None:
        self.sides[stream.id].heard.append(data)

    def data(self, size: int) -> bytes:
        """Bytes that are the message's own."""
        self.serial += 1
        return (b"%d " % self.serial * (size // 2 + 1))[:size]

    # ---- the client's deeds

    @precondition(lambda self: len(self.sides) < 6)
    @rule(unique=st.booleans(), asked=SIZES, replied=SIZES)
    def open(self, unique: bool, asked: int, replied: int) -> None:
        """With a message that is under way, and a reply to it: whatever comes next comes into the middle of both."""
        stream_id = self.client.get_next_available_stream_id()
        self.sides[stream_id] = Side()
        self.client.send_headers(stream_id, REQUEST + ([("x-unique", str(stream_id))] if unique else []))
        self.say(stream_id, asked)
        self.push_one(stream_id, asked, None)
        self.carry_up(1 << 24)
        self.answer(stream_id, replied)

    def say(self, stream_id: int, size: int) -> None:
        side = self.sides[stream_id]
        side.asked.append(self.data(size))
        side.queue += message(side.asked[-1])

    def answer(self, stream_id: int, size: int) -> None:
        stream = self.caller.live.get(stream_id)
        if stream is not None and stream.sending:
            data = self.data(size)
            self.sides[stream_id].replies += message(data)
            self.caller.send(stream, data)

    def speaking(self) -> list[int]:
        return [number for number, side in self.sides.items() if not side.ended and not side.reset]

    @precondition(lambda self: self.speaking())
    @rule(choice=st.data(), sizes=st.lists(SIZES, min_size=1, max_size=3))
    def ask(self, choice: Any, sizes: list[int]) -> None:
        stream_id = choice.draw(st.sampled_from(self.speaking()))
        for size in sizes:
            self.say(stream_id, size)

    @precondition(lambda self: self.speaking())
    @rule(choice=st.data(), most=st.sampled_from([1 << 24, 1, 4, 5, 300, 20_000]), padding=st.sampled_from([None, None, 0, 9]))
    def push(self, choice: Any, most: int, padding: int | None) -> None:
        self.push_one(choice.draw(st.sampled_from(self.speaking())), most, padding)

    def push_one(self, stream_id: int, most: int, padding: int | None) -> bool:
        side = self.sides[stream_id]
        extra = 0 if padding is None else padding + 1
        room = min(self.client.local_flow_control_window(stream_id), self.client.max_outbound_frame_size) - extra
        size = min(most, len(side.queue), room)
        if size <= 0:
            return False
        self.client.send_data(stream_id, bytes(side.queue[:size]), pad_length=padding)
        del side.queue[:size]
        return True

    @precondition(lambda self: self.speaking())
    @rule(choice=st.data(), trailers=st.booleans())
    def end(self, choice: Any, trailers: bool) -> None:
        stream_id = choice.draw(st.sampled_from(self.speaking()))
        if self.sides[stream_id].queue:
            return
        self.sides[stream_id].ended = True
        if trailers:
            self.client.send_headers(stream_id, [("x-trailer", "1")], end_stream=True)
        else:
            self.client.end_stream(stream_id)

    @precondition(lambda self: any(not side.reset and not side.status for side in self.sides.values()))
    @rule(choice=st.data())
    def reset(self, choice: Any) -> None:
        open_ones = [number for number, side in self.sides.items() if not side.reset and not side.status]
        stream_id = choice.draw(st.sampled_from(open_ones))
        self.sides[stream_id].reset = True
        self.client.reset_stream(stream_id)

    @rule(window=WINDOWS)
    def change_window(self, window: int) -> None:
        self.update({SettingCodes.INITIAL_WINDOW_SIZE: window})

    @rule()
    def ping(self) -> None:
        self.client.ping(b"12345678")

    @precondition(lambda self: self.sides)
    @rule(choice=st.data(), most=st.sampled_from([1 << 24, 1, 100, 40_000]))
    def acknowledge(self, choice: Any, most: int) -> None:
        self.acknowledge_one(choice.draw(st.sampled_from(list(self.sides))), most)

    def acknowledge_one(self, stream_id: int, most: int) -> bool:
        side = self.sides[stream_id]
        size = min(most, side.unacknowledged)
        if size:
            self.client.acknowledge_received_data(size, stream_id)
            side.unacknowledged -= size
        return bool(size)

    # ---- the server's deeds

    @precondition(lambda self: self.caller.live)
    @rule(choice=st.data(), size=SIZES)
    def reply(self, choice: Any, size: int) -> None:
        self.answer(choice.draw(st.sampled_from(sorted(self.caller.live))), size)

    @precondition(lambda self: self.caller.live)
    @rule(choice=st.data())
    def close(self, choice: Any) -> None:
        stream_id = choice.draw(st.sampled_from(sorted(self.caller.live)))
        self.caller.connection.close(self.caller.live.pop(stream_id), 14, "over")
        self.sides[stream_id].closed = True

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.caller.connection.sending.held = held

    # ---- the wire

    @rule(most=st.sampled_from([1 << 24, 1, 8, 9, 10, 100, 20_000]))
    def carry_up(self, most: int) -> None:
        self.upward += self.client.data_to_send()
        piece = bytes(self.upward[:most])
        del self.upward[:most]
        self.caller.feed(piece)

    @rule(most=st.sampled_from([1 << 24, 1, 8, 9, 10, 100, 20_000]))
    def carry_down(self, most: int) -> None:
        self.caller.flush()
        piece = bytes(self.caller.sent[:most])
        del self.caller.sent[:most]
        for event in self.client.receive_data(piece):
            stream_id = getattr(event, "stream_id", None)
            assert not isinstance(event, h2.events.ConnectionTerminated), event
            self.outstanding -= isinstance(event, h2.events.SettingsAcknowledged)
            if isinstance(event, h2.events.DataReceived):
                self.sides[stream_id].got += event.data
                self.sides[stream_id].unacknowledged += event.flow_controlled_length
            elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                self.sides[stream_id].status = dict(event.headers).get("grpc-status", "")
            elif isinstance(event, h2.events.StreamReset):
                assert self.sides[stream_id].status, "only after an error status, to say that nothing more is wanted"
                self.sides[stream_id].reset = True

    @invariant()
    def is_sane(self) -> None:
        if not hasattr(self, "caller"):
            return
        connection = self.caller.connection
        assert not connection.failed, self.caller.seen[-1]
        assert 0 <= connection.reserved_bytes <= limits.RESERVED_BYTES_MAX
        for side in self.sides.values():
            assert side.heard == side.asked[: len(side.heard)]
            assert side.replies.startswith(side.got)

    def teardown(self) -> None:
        """Everything that can still move, moves; then nothing may be missing."""
        if not hasattr(self, "caller"):
            return
        self.change_window(65_535)
        for number in self.sides:
            # What a smaller window took, h2 does not give back by itself: the stream would stand still. (KeyError: it is over.)
            with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
                self.client.increment_flow_control_window(65_535, number)
        self.hold(False)
        moved = True
        while moved:
            moved = sum(self.push_one(number, 1 << 20, None) for number in self.speaking()) > 0
            self.upward += self.client.data_to_send()
            moved |= bool(self.upward)
            self.carry_up(1 << 24)
            moved |= bool(self.caller.sent)
            self.carry_down(1 << 24)
            moved |= sum(self.acknowledge_one(number, 1 << 24) for number in self.sides) > 0
        self.is_sane()
        for number, side in self.sides.items():
            if side.closed and side.status:
                assert side.got == side.replies, number
                assert side.status in ("14", "0") if side.ended else side.status == "14"
            elif not side.reset:
                assert side.heard == side.asked, number
                assert side.got == side.replies, number
                assert side.status == ("0" if side.ended else ""), number
        assert self.caller.connection.reserved_bytes == 0 or self.speaking()
        assert self.caller.connection.sending.unsent_bytes == 0


Wire.TestCase.settings = settings(
    max_examples=max(300, settings.default.max_examples),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
test_any_order_any_cut_any_window = Wire.TestCase
