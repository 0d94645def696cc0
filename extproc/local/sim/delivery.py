"""An answer on its way: when each write happens, and what of it left us.

The connection's write buffer limit is 0: a write reaches the kernel at once, or the transport is paused and nothing more is generated
until it has. So ``delivered`` is what the kernel took, and memory is bounded by one burst.
"""

from __future__ import annotations

from typing import Protocol

from extproc.local.sim.http import STREAM_HEAD, response
from extproc.local.sim.pace import Pace
from extproc.local.sim.run import ENGINE_DEATH, Order, Run
from extproc.local.sim.witness import Record, Witness

BURST_BYTES = 65_536
"""Written at once where no pace is set; more than a socket takes anyway."""


class Channel(Protocol):
    """The connection, as an answer sees it."""

    def write(self, data: bytes) -> bool:
        """Whether the kernel has everything; if not, ``resumed`` will be called."""

    def reset(self) -> None:
        """Break the connection with a TCP reset."""

    def answered(self) -> None:
        """The answer is complete: on to the next request."""

    def soon(self) -> None:
        """Call ``resumed`` in the loop's next turn."""


class Delivery(Protocol):
    """What a connection tells the answer that it carries."""

    record: Record

    def start(self) -> None:
        """Begin."""

    def resumed(self) -> None:
        """There is room again."""

    def abort(self) -> None:
        """The server is shutting down."""

    def lost(self) -> None:
        """The client is gone: generation stops."""


class StreamDelivery:
    """Server-sent events."""

    __slots__ = (
        "_blocked",
        "_channel",
        "_due_s",
        "_ended",
        "_gap_s",
        "_pace",
        "_pending",
        "_speaking",
        "_steps",
        "_witness",
        "record",
        "run",
    )

    def __init__(self, run: Run, record: Record, witness: Witness, channel: Channel, pace: Pace) -> None:
        self.run = run
        self.record = record
        self._witness = witness
        self._channel = channel
        self._pace = pace
        self._steps = run.steps()
        self._gap_s = run.steering.delay_ms / 1000 / run.ask.choices
        self._due_s = 0.0
        self._pending: tuple[bytes, int] | None = None
        self._speaking = False  # the first token is out: from now on tokens wait for their time
        self._blocked = False
        self._ended = False

    def start(self) -> None:
        self.record.status = 200
        self._due_s = self._pace.now() + self.run.steering.first_ms / 1000
        self._blocked = not self._channel.write(STREAM_HEAD)
        if self.run.steering.first_ms:
            self._pace.at(self._due_s, self._go_on)
        elif not self._blocked:
            self._go_on()

    def resumed(self) -> None:
        self._blocked = False
        self.record.delivered_tokens = self.record.generated_tokens
        self._go_on()

    def abort(self) -> None:
        self.run.aborting = True

    def lost(self) -> None:
        self._end("client_gone")

    def _go_on(self) -> None:
        if self._ended or self._blocked:
            return
        if self._gap_s:
            self._speak()
        else:
            self._burst()

    def _speak(self) -> None:
        """Write what is due, and whatever needs no token of its own after it."""
        if self._pending is not None:
            self._put(*self._pending)
            self._pending = None
        while not self._blocked and not self._ended:
            step = next(self._steps, None)
            if isinstance(step, Order) or step is None:
                self._obey(step)
                return
            if step[1] and self._speaking:
                self._pending = step
                self._due_s += self._gap_s * step[1]
                self._pace.at(self._due_s, self._go_on)
                return
            self._speaking = self._speaking or bool(step[1])
            self._put(*step)

    def _burst(self) -> None:
        """As much as a burst holds; the rest in the loop's next turns."""
        most = 1 if self.run.faults.reshapes else BURST_BYTES
        parts: list[bytes] = []
        size = tokens = events = 0
        order: Order | None = None
        ended = False
        for step in self._steps:
            if isinstance(step, Order):
                order = step
                break
            parts.append(step[0])
            size += len(step[0])
            tokens += step[1]
            events += step[1] > 0
            if size >= most:
                break
        else:
            ended = True
        if size or tokens:
            self.record.events += events - 1 if events else 0
            self._put(b"".join(parts), tokens)
        if order is not None or ended:
            self._obey(order)
        elif not self._blocked:
            self._channel.soon()

    def _put(self, data: bytes, tokens: int) -> None:
        self.record.generated_tokens += tokens
        self.record.events += tokens > 0
        self._blocked = bool(data) and not self._channel.write(data)
        if not self._blocked:
            self.record.delivered_tokens = self.record.generated_tokens

    def _obey(self, order: Order | None) -> None:
        """``None``: the answer is complete."""
        match order:
            case Order.RESET:
                self._end("reset")
                self._channel.reset()
            case Order.STALL:
                pass  # until the client goes
            case Order.LATE_END:
                self._pace.at(self._pace.now() + (self.run.faults.late_eos_ms or 0) / 1000, self._go_on)
            case None:
                self._complete()

    def _complete(self) -> None:
        run = self.run
        died = run.faults.engine_death_after is not None and run.finish_reason is None
        self._end(ENGINE_DEATH if died else "aborted" if run.finish_reason == "abort" else "finished")
        self._channel.answered()

    def _end(self, how: str) -> None:
        self._ended = True
        self._witness.ended_as(self.record, how)


class JsonDelivery:
    """One JSON document, after the time that its tokens take."""

    __slots__ = ("_channel", "_pace", "_started_s", "_witness", "record", "run")

    def __init__(self, run: Run, record: Record, witness: Witness, channel: Channel, pace: Pace) -> None:
        self.run = run
        self.record = record
        self._witness = witness
        self._channel = channel
        self._pace = pace
        self._started_s = pace.now()

    def start(self) -> None:
        steering = self.run.steering
        wait_ms = steering.first_ms + steering.delay_ms * max(0, self.run.document_tokens - 1)
        if wait_ms:
            self._pace.at(self._started_s + wait_ms / 1000, self._answer)
        else:
            self._answer()

    def resumed(self) -> None:
        self.record.delivered_tokens = self.record.generated_tokens
        self._finish()

    def abort(self) -> None:
        """A JSON answer that is not finished has nothing to say: the connection closes with the server."""

    def lost(self) -> None:
        if self.record.end == "open":
            self.record.generated_tokens = max(self.record.generated_tokens, self._generated_by_now())
            self._witness.ended_as(self.record, "client_gone")

    def _generated_by_now(self) -> int:
        steering, tokens = self.run.steering, self.run.document_tokens
        passed_ms = (self._pace.now() - self._started_s) * 1000 - steering.first_ms
        if passed_ms < 0:
            return 0
        steps = tokens if not steering.delay_ms else min(tokens, 1 + int(passed_ms / steering.delay_ms))
        return steps * self.run.ask.choices

    def _answer(self) -> None:
        if self.record.end != "open":
            return
        run, faults = self.run, self.run.faults
        document = response(200, run.document())
        self.record.status = 200
        self.record.generated_tokens = run.document_tokens * run.ask.choices
        broken = faults.reset_after is not None or faults.stall_after is not None
        whole = self._channel.write(document[: len(document) // 2] if broken else document)
        if faults.reset_after is not None:
            self._witness.ended_as(self.record, "reset")
            self._channel.reset()
        elif whole and not broken:
            self.resumed()

    def _finish(self) -> None:
        if self.run.faults.stall_after is None:
            self._witness.ended_as(self.record, "finished")
            self._channel.answered()
