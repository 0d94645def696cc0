"""What templates print of a body beside the contents of its messages: functions, calls of them, and fields of messages."""

from __future__ import annotations

from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Prompt
from extproc.exchange.endpoints import fields as read
from extproc.tokens.counter import Call, Tools

PRINTED_MAX = 8_192  # tools, calls and fields of messages together: as many messages as there may be, with four each


class Tooling:
    """Of one body, while it is read. What is not as a backend wants it stays odd: it is bounded and estimated by its size."""

    __slots__ = ("_calls", "_functions", "_has_results", "_odd", "_printed", "_reprinted")

    def __init__(self) -> None:
        self._functions: list[dict[str, Any]] = []
        self._calls: list[Call] = []
        self._has_results = False
        self._printed: list[Any] = []
        self._odd: list[Any] = []
        self._reprinted = 0

    def function(self, described: Any, printed: Any) -> None:
        """One that may be called. ``described``: its name, description, parameters. ``printed``: with what is around."""
        self._print(printed)
        if isinstance(described, dict) and _is_function(described):
            self._functions.append(described)
        else:
            self._odd.append(printed)

    def call(self, message: int, name: str, arguments: Any, printed: Any) -> None:
        """One in the message at this position. Arguments that came as a text are printed with blanks, or with tags around each."""
        self._print(printed)
        self._calls.append(Call(message, name, arguments))
        if isinstance(arguments, str):
            self._reprinted += read.reprinted(arguments)

    def result(self) -> None:
        """A message is the result of a call: some templates join those in a row."""
        self._has_results = True

    def silent(self, printed: Any) -> None:
        """What no template prints that backends serve; and yet it is bounded."""
        self._print(printed)

    def odd(self, printed: Any) -> None:
        """What some templates print."""
        self._print(printed)
        self._odd.append(printed)

    def _print(self, printed: Any) -> None:
        if len(self._printed) == PRINTED_MAX:
            raise ClientError(f"The request has more than {PRINTED_MAX} tools, calls and fields of messages.", code="invalid_value")
        self._printed.append(printed)

    def prompt(self, messages: list[tuple[str, str]], images: list[str], *, param: str = "messages") -> Prompt:
        """With these messages."""
        if not self._printed and not self._has_results:
            return Prompt(param=param, messages=tuple(messages), images=tuple(images))
        tools = Tools(tuple(self._functions), tuple(self._calls))
        compact, wide = read.printed(self._printed)
        return Prompt(
            param=param,
            messages=tuple(messages),
            images=tuple(images),
            tools=tools if self._has_results or tools != Tools() else None,
            extra_bytes=compact,
            extra_bytes_max=wide + self._reprinted,
            odd_bytes=read.printed(self._odd)[0],
        )


def _is_function(described: dict[str, Any]) -> bool:
    """As vLLM is strict about it."""
    description, parameters = described.get("description"), described.get("parameters")
    return isinstance(described.get("name"), str) and isinstance(description, str | None) and isinstance(parameters, dict | None)
