"""YAML as this project reads it: YAML 1.2 scalars only, doubled keys are faults, a line for every value, all faults at once.

YAML 1.1 reads ``0660`` as 432, ``22:00`` as 1320 and ``on`` as true; here they are the text that was written. Only ``true``, ``false``,
``null``, numbers without leading zeroes (``20_000`` is 20000) and nothing else have a type; everything quoted is text.

:func:`parse` gives a tree of :class:`Node`; :class:`Cursor` reads it with types, and collects what is wrong instead of raising, so that
an operator sees every fault of a file in one go. What a faulty place yields is its default: the caller must look at ``faults`` before it
uses the values.

The files are the operator's, but a slip of the hand must not eat the machine: size, depth and number of nodes are bounded, the latter
after aliases are expanded ("billion laughs").
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml

from extproc.errors import ConfigError, Fault

BYTES_MAX = 8 * 1024 * 1024  # a catalog of 10,000 models has 3 MB
DEPTH_MAX = 64  # Envoy's deepest sensible file has about 30
NODES_MAX = 500_000  # after expansion of aliases; ten nodes a line is a lot
FAULTS_MAX = 200  # nobody reads more; the file is the wrong one

_INT = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9]){0,23})|0o[0-7]{1,22}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]{1,4})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,4}|[-+]?\.inf|\.nan")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_COLLECTION_TAGS = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

# libyaml's parser where PyYAML was built with it (all wheels are): ten times as fast, the same events
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Scalar: TypeAlias = "str | int | float | bool | None"
Default = TypeVar("Default")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value with the place that it comes from. ``line`` is that of its key, if it has one; 1-based, 0 = no line."""

    value: Scalar | dict[str, Node] | list[Node]
    file: str
    line: int

    def plain(self) -> Any:
        """The same without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def get(self, *path: str | int) -> Node | None:
        """The node at ``path`` below this one; ``None`` if there is none. An index counts from 0."""
        node: Node | None = self
        for step in path:
            if node is None:
                return None
            if isinstance(node.value, dict) and isinstance(step, str):
                node = node.value.get(step)
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return None
        return node

    def items(self) -> list[tuple[str, Node]]:
        """Members of a mapping; none of anything else."""
        return list(self.value.items()) if isinstance(self.value, dict) else []

    def elements(self) -> list[Node]:
        """Elements of a list; none of anything else."""
        return list(self.value) if isinstance(self.value, list) else []

    def walk(self) -> Iterator[Node]:
        """The node itself and all below it, in the order of the file."""
        yield self
        children = self.value.values() if isinstance(self.value, dict) else self.value if isinstance(self.value, list) else ()
        for child in children:
            yield from child.walk()


def read(path: Path) -> Node:
    """Parse a file. :class:`ConfigError` with every fault if it cannot be read or is no YAML as described above."""
    try:
        with path.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError((Fault(file=str(path), line=0, message=f"cannot be read: {error.strerror}"),)) from error
    return parse(raw, file=str(path))


def parse(raw: bytes | str, *, file: str) -> Node:
    """Parse one document. An empty one is an empty mapping. :class:`ConfigError` with every fault."""
    if len(raw) > BYTES_MAX:
        raise ConfigError((Fault(file=file, line=0, message=f"is larger than {BYTES_MAX} bytes"),))
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError((Fault(file=file, line=line, message="is not UTF-8"),)) from error
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = getattr(error.problem_mark or error.context_mark, "line", -1) + 1
        builder.fault(line, f"is not YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        builder.fault(text.count("\n", 0, error.position) + 1, "has a character that YAML does not allow")
    except _TooMuch as error:
        builder.fault(error.line, str(error))
    if builder.faults:
        raise ConfigError(tuple(builder.faults))
    return builder.root or Node(value={}, file=file, line=0)


class _TooMuch(Exception):
    """A bound was passed; reading stops at once."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come. ``size`` counts nodes, aliases expanded; ``key`` waits for its value."""

    value: dict[str, Node] | list[Node]
    line: int
    anchor: str | None
    size: int = 1
    depth: int = 0  # of what is inside
    key: str | None = None
    key_line: int = 0


class _Builder:
    """Events of the parser → nodes. Iterative, so that depth costs nothing before it is refused."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int, int]] = {}
        self._nodes = 0
        self._documents = 0

    def fault(self, line: int, message: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(Fault(file=self.file, line=line, message=message))

    def take(self, event: yaml.Event) -> None:
        line = getattr(event.start_mark, "line", -1) + 1
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._start(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self._open.pop()
            self._place(Node(value=done.value, file=self.file, line=done.line), done.size, done.depth + 1, done.anchor)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _TooMuch(line, "has more than one document")

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        if len(self._open) >= DEPTH_MAX:
            raise _TooMuch(line, f"is nested deeper than {DEPTH_MAX}")
        if event.tag not in _COLLECTION_TAGS:
            self.fault(line, f"tag {event.tag} is not known here")
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            raise _TooMuch(line, "a key must be text, not a collection")
        value: dict[str, Node] | list[Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._open.append(_Open(value=value, line=line, anchor=event.anchor))

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            parent.key, parent.key_line = event.value, line
            return
        if event.tag not in (None, *_TEXT_TAGS):
            self.fault(line, f"tag {event.tag} is not known here")
        plain = event.tag is None and not event.style  # None from the parser in Python, "" from the one in C
        value = _resolve(event.value) if plain else event.value
        self._place(Node(value=value, file=self.file, line=line), 1, 0, event.anchor)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        known = self._anchors.get(event.anchor or "")
        if known is None:
            raise _TooMuch(line, f"alias *{event.anchor} points to nothing that is complete")
        node, size, depth = known
        if len(self._open) + depth > DEPTH_MAX:
            raise _TooMuch(line, f"is nested deeper than {DEPTH_MAX}")
        self._nodes += size - 1
        self._place(Node(value=node.value, file=self.file, line=line), size, depth, None)

    def _place(self, node: Node, size: int, depth: int, anchor: str | None) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _TooMuch(node.line, f"has more than {NODES_MAX} values")
        if anchor is not None:
            self._anchors[anchor] = (node, size, depth)
        if not self._open:
            self.root = node if node.value is not None else None
            return
        parent = self._open[-1]
        parent.size += size
        parent.depth = max(parent.depth, depth)
        if isinstance(parent.value, list):
            parent.value.append(node)
            return
        key, parent.key = parent.key, None
        if key is None:
            raise _TooMuch(node.line, "a key must be text, not an alias")
        if key in parent.value:
            self.fault(parent.key_line, f"{key!r} stands here a second time (first: line {parent.value[key].line})")
            return
        parent.value[key] = Node(value=node.value, file=node.file, line=parent.key_line)


def _resolve(text: str) -> Scalar:
    """An unquoted scalar: YAML 1.2's core schema, with underscores and without leading zeroes."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


@dataclass(frozen=True, slots=True)
class Cursor:
    """A node, its name for messages, and the list that faults go to. Reading never raises; a faulty place gives the default."""

    node: Node
    name: str = ""
    faults: list[Fault] = field(default_factory=list)

    def fault(self, message: str, *, line: int | None = None) -> None:
        """Something is wrong here. The path is put before the message."""
        if len(self.faults) < FAULTS_MAX:
            where = f"{self.name}: " if self.name else ""
            self.faults.append(Fault(file=self.node.file, line=self.node.line if line is None else line, message=where + message))

    def child(self, key: str, node: Node) -> Cursor:
        return Cursor(node, f"{self.name}.{key}" if self.name else key, self.faults)

    def entries(self) -> dict[str, Cursor]:
        """Members of a mapping whose keys are free names."""
        if not isinstance(self.node.value, dict):
            self.fault(f"must be a mapping, not {kind(self.node)}")
            return {}
        return {key: self.child(key, node) for key, node in self.node.value.items()}

    def members(self, known: Collection[str], *, required: Collection[str] = ()) -> dict[str, Cursor]:
        """Members of a mapping whose keys are known; each unknown and each missing one is a fault."""
        found = self.entries()
        for key in [key for key in found if key not in known]:
            found.pop(key).fault("is not known here" + _guess(key, known))
        if isinstance(self.node.value, dict):
            for key in required:
                if key not in self.node.value:
                    self.fault(f"{key} is missing")
        return found

    def elements(self) -> list[Cursor]:
        if not isinstance(self.node.value, list):
            self.fault(f"must be a list, not {kind(self.node)}")
            return []
        return [Cursor(node, f"{self.name}[{index}]", self.faults) for index, node in enumerate(self.node.value)]

    def text(self, default: Default, *, choices: Collection[str] = (), pattern: str = "", what: str = "") -> str | Default:
        """Text, one of ``choices`` or as ``pattern`` (full match), which ``what`` puts into words."""
        value = self.node.value
        if not isinstance(value, str):
            hint = f' (quote it: "{value}")' if isinstance(value, int | float) and not isinstance(value, bool) else ""
            self.fault(f"must be text, not {kind(self.node)}{hint}")
        elif choices and value not in choices:
            self.fault(f"{value!r} is none of {', '.join(choices)}" + _guess(value, choices))
        elif pattern and not re.fullmatch(pattern, value):
            self.fault(f"{value!r} is not {what}")
        else:
            return value
        return default

    def integer(self, default: Default, *, low: int, high: int) -> int | Default:
        value = self.node.value
        if not isinstance(value, int) or isinstance(value, bool):
            self.fault(f"must be a whole number, not {kind(self.node)}")
        elif not low <= value <= high:
            self.fault(f"{value} is not within {low} … {high}")
        else:
            return value
        return default

    def boolean(self, default: Default) -> bool | Default:
        if isinstance(self.node.value, bool):
            return self.node.value
        self.fault(f"must be true or false, not {kind(self.node)}")
        return default

    def texts(self, *, choices: Collection[str] = (), pattern: str = "", what: str = "") -> tuple[str, ...]:
        """A list of texts, none twice."""
        found: list[str] = []
        for element in self.elements():
            text = element.text(None, choices=choices, pattern=pattern, what=what)
            if text is not None and text in found:
                element.fault(f"{text!r} stands here a second time")
            elif text is not None:
                found.append(text)
        return tuple(found)

    @property
    def is_null(self) -> bool:
        return self.node.value is None


def refusal(faults: Iterable[Fault]) -> ConfigError:
    """The error of all faults, in the order of the files' lines."""
    return ConfigError(tuple(sorted(faults, key=lambda fault: (fault.file, fault.line))))


def kind(node: Node) -> str:
    """What a node is, in the words of a message."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value!r}" if isinstance(value, str) else f"the number {value}"


def _guess(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
