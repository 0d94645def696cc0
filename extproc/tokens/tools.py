r"""How chat templates print functions, the calls of them and their results: for conversations that have any.

A template is played here, and what it writes is a :class:`Page`. What a template is handed is vLLM's doing (0.32): of a function its
name, description and parameters, in this order and ``null`` where there are none, ``strict`` where it is set, and nothing else
(``FunctionDefinition``); arguments as an object, an empty one where they are none (``_postprocess_messages``). JSON is printed by
transformers' ``tojson``: Python's ``json.dumps`` with ``ensure_ascii=False``, a blank behind ``,`` and ``:``, nothing sorted.

Sources of the texts: the ``chat_template`` of Qwen 2.5 (the brackets of calls are special tokens), of Qwen 3, its editions of 2507 and VL
(those of results, too) and of Qwen 3.5 and 3.6; Llama 3.1's in vLLM's ``examples/tool_chat_template_llama3.1_json.jinja``; and for GPT,
whose own is not published, the rule of OpenAI's cookbook ("How to count tokens with tiktoken", for gpt-4o).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from extproc.tokens.counter import Call, Tools

LINES_MAX = 8_192
"""Functions that are remembered, for each vocabulary: a megabyte. An application offers the same ones with every request."""

SPECIAL: Final = None
"""A special token: it has no text, and a tokenizer never joins what it divides."""


class Line(NamedTuple):
    """Text that no word joins with what is around it: behind a newline, with a sign in front, or behind a special token. It is counted by
    itself, for it is said again and again.
    """

    text: str


Part = str | Line | None
Messages = Sequence[tuple[str, str]]

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


class Page:
    """What a template has written: texts, and special tokens and lines between them."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Part) -> None:
        self._parts = list(parts)

    def write(self, *parts: Part) -> None:
        self._parts += parts

    def count(self, count: Callable[[str], int], count_line: Callable[[str], int]) -> int:
        """Its tokens, by the tokenizer that both stand for."""
        tokens, text = -1, list[str]()
        for part in (*self._parts, SPECIAL):
            if isinstance(part, str):
                text.append(part)
                continue
            tokens += count("".join(text)) + (1 if part is None else count_line(part.text))
            text.clear()
        return tokens


class KnownLines:
    """Tokens of lines that were counted before; nothing of their text is kept."""

    __slots__ = ("_count", "_known")

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        self._known: dict[bytes, int] = {}

    def __call__(self, line: str) -> int:
        digest = blake2b(line.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        tokens = self._known.get(digest)
        if tokens is None:
            if len(self._known) >= LINES_MAX:
                self._known.clear()
            tokens = self._known[digest] = self._count(line)
        return tokens


def to_json(value: Any, *, indent: int | None = None) -> str:
    """As ``tojson`` prints it. Nothing of what is nested too deeply: no template prints that."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except RecursionError:
        return ""


def definition(function: Mapping[str, Any], *, indent: int | None = None) -> str:
    """One function as a template prints it."""
    described = {name: function.get(name) for name in ("name", "description", "parameters")}
    described |= {name: function[name] for name in ("strict", "defer_loading") if function.get(name) is not None}
    return to_json({"type": "function", "function": described}, indent=indent)


def arguments(call: Call) -> dict[str, Any]:
    """An object, whatever came."""
    given = call.arguments
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return {}
    return given if isinstance(given, dict) else {}


def calls_by_message(tools: Tools) -> dict[int, list[Call]]:
    """By the position of their message."""
    found: dict[int, list[Call]] = {}
    for call in tools.calls:
        found.setdefault(call.message, []).append(call)
    return found


class Hermes:
    """Qwen 2.5 and 3, after the Hermes models: calls are JSON.

    ``system_default``: what the system says where no message does. ``brackets``: around a result. ``opening``: of the answer.
    """

    _INTRODUCTION = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    )
    _MANNER: tuple[Part, ...] = (
        Line("</tools>\n\nFor each function call, return a json object with function name and arguments within "),
        *(SPECIAL, SPECIAL, " XML tags:\n", SPECIAL, Line('\n{"name": <function-name>, "arguments": <args-json-object>}\n'), SPECIAL),
    )

    def __init__(
        self, *, system_default: str | None = None, brackets: tuple[Part, Part] = (SPECIAL, SPECIAL), opening: tuple[Part, ...] = ()
    ) -> None:
        self._system_default = system_default
        self._brackets = brackets
        self._opening = opening

    def __call__(self, messages: Messages, tools: Tools) -> Page:
        """The whole conversation, and the head of the answer. Results in a row are one message of the user's."""
        page, calls = Page(), calls_by_message(tools)
        roles = [role for role, _ in messages]
        first = int(roles[:1] == [SYSTEM])
        system = messages[0][1] if first else self._system_default
        if tools.functions:
            page.write(SPECIAL, "system\n", *self._introduced(system, map(definition, tools.functions)), SPECIAL, "\n")
        elif system is not None:
            page.write(SPECIAL, "system\n", self._content(system), SPECIAL, "\n")
        asked = max((at for at, role in enumerate(roles) if role == USER), default=-1)
        for at, (role, content) in enumerate(messages[first:], first):
            if role != TOOL:
                said = self._said(content, calls.get(at, []), is_after_question=role == ASSISTANT and at > asked)
                page.write(SPECIAL, f"{role}\n", *said, SPECIAL, "\n")
                continue
            if roles[at - 1 : at] != [TOOL]:
                page.write(SPECIAL, "user")
            page.write("\n", self._brackets[0], f"\n{self._content(content)}\n", self._brackets[1])
            if roles[at + 1 : at + 2] != [TOOL]:
                page.write(SPECIAL, "\n")
        page.write(SPECIAL, "assistant\n", *self._opening)
        return page

    def _content(self, content: str) -> str:
        return content

    def _introduced(self, system: str | None, definitions: Iterator[str]) -> Iterator[Part]:
        if system is not None:
            yield f"{system}\n\n"
        yield Line(self._INTRODUCTION)
        yield from (Line(f"{one}\n") for one in definitions)
        yield from self._MANNER

    def _said(self, content: str, calls: Sequence[Call], *, is_after_question: bool) -> Iterator[Part]:
        del is_after_question
        yield content
        for number, call in enumerate(calls):
            if number or content:
                yield "\n"
            yield SPECIAL
            yield f'\n{{"name": "{call.name}", "arguments": {to_json(arguments(call))}}}\n'
            yield SPECIAL


class Xml(Hermes):
    """Qwen 3.5 and 3.6: calls are tags; contents are trimmed; what follows the last question has thoughts, if only empty ones."""

    _INTRODUCTION = "# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
    _MANNER = (
        Line("</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"),
        SPECIAL,
        Line(
            "\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n<parameter=example_parameter_2>\n"
            "This is the value for the second parameter\nthat can span\nmultiple lines\n</parameter>\n</function>\n"
        ),
        SPECIAL,
        Line(
            "\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified format: "
            "an inner <function=...></function> block must be nested within "
        ),
        *(SPECIAL, SPECIAL),
        Line(
            " XML tags\n- Required parameters MUST be specified\n"
            "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after\n"
            "- If there is no function call available, answer the question like normal with your current knowledge "
            "and do not tell the user about function calls\n"
        ),
        "</IMPORTANT>",
    )

    def _content(self, content: str) -> str:
        return content.strip()

    def _introduced(self, system: str | None, definitions: Iterator[str]) -> Iterator[Part]:
        yield from super()._introduced(None, definitions)
        if system is not None and system.strip():
            yield f"\n\n{system.strip()}"

    def _said(self, content: str, calls: Sequence[Call], *, is_after_question: bool) -> Iterator[Part]:
        content = content.strip()
        if is_after_question:
            yield from (SPECIAL, "\n\n", SPECIAL, "\n\n")
        yield content
        for number, call in enumerate(calls):
            yield "\n" if number else "\n\n" if content else ""
            yield SPECIAL
            yield f"\n<function={call.name}>\n"
            for name, value in arguments(call).items():
                yield f"<parameter={name}>\n{value if isinstance(value, str) else to_json(value)}\n</parameter>\n"
            yield "</function>\n"
            yield SPECIAL


def llama3(messages: Messages, tools: Tools) -> Page:
    """Llama 3.1. An estimate: its vocabulary does not ship, other editions have other words, and servers have templates of their own."""
    page, calls = Page(SPECIAL), calls_by_message(tools)

    def say(role: str, *parts: str) -> None:
        page.write(SPECIAL, role, SPECIAL, "\n\n", *parts, SPECIAL)

    first = int(bool(messages) and messages[0][0] == SYSTEM)
    environment = "Environment: ipython\n" if tools.functions else ""
    system = messages[0][1].strip() if first else ""
    say(SYSTEM, f"{environment}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{system}")
    introduction = [
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the ",
        'given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}. ',
        "Do not use variables.\n\n",
        *(f"{definition(function, indent=4)}\n\n" for function in tools.functions),
    ]
    for at, (role, content) in enumerate(messages[first:], first):
        if role == TOOL:
            say("ipython", to_json(content))
        elif at in calls:
            say(role, *(f'{{"name": "{call.name}", "parameters": {to_json(arguments(call))}}}' for call in calls[at]))
        else:
            say(role, *(introduction if at == first and tools.functions else ()), content.strip())
    page.write(SPECIAL, ASSISTANT, SPECIAL, "\n\n")
    return page


def gpt(messages: Messages, tools: Tools) -> Page:
    """An estimate: the rule counts lines of functions and of their parameters; of calls nothing is said, they are counted as messages."""
    page, calls = Page(*_tokens(3)), calls_by_message(tools)
    if tools.functions:
        page.write(*_tokens(12))
    for function in tools.functions:
        page.write(*_tokens(6), _line(function.get("name"), function.get("description")), SPECIAL)
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(properties, dict) and properties:
            page.write(*_tokens(3))
            for name, value in properties.items():
                page.write(*_property(name, value if isinstance(value, dict) else {}))
    for at, (role, content) in enumerate(messages):
        page.write(*_tokens(2), role, SPECIAL, content)
        for call in calls.get(at, ()):
            page.write(*_tokens(2), call.name, SPECIAL, to_json(arguments(call)))
    return page


def _property(name: str, described: Mapping[str, Any]) -> Iterator[Part]:
    """Three tokens and its line; three more for each choice but the first."""
    yield SPECIAL
    choices = described.get("enum")
    for number, choice in enumerate(choices if isinstance(choices, list) else ()):
        yield from _tokens(3 if number else 0)
        yield str(choice)
    yield from _tokens(2)
    yield _line(name, described.get("type"), described.get("description"))


def _line(*words: Any) -> str:
    return ":".join(str(word) for word in words if word).removesuffix(".")


def _tokens(number: int) -> tuple[Part, ...]:
    return (SPECIAL,) * number


def listed(tools: Tools) -> Page:
    """Where nothing is known of a template: its functions and calls as JSON."""
    page = Page()
    for function in tools.functions:
        page.write(definition(function), SPECIAL)
    for call in tools.calls:
        page.write(call.name, SPECIAL, to_json(arguments(call)), SPECIAL)
    return page
