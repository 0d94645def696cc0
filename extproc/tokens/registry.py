"""The counters of the catalog: each tokenizer with each chat template, over one encoding per vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from extproc.errors import ConfigError, Fault
from extproc.tokens.bpe import load_encoding
from extproc.tokens.chat import TEMPLATES, Template, template_of
from extproc.tokens.counter import NFC_GROWTH, ROLE_BYTES_MAX, Tools
from extproc.tokens.incremental import Codec, RunningCount
from extproc.tokens.tools import KnownLines
from extproc.tokens.vocabulary import TOKENIZERS, UPSTREAM


class BpeCounter:
    """A :class:`~extproc.tokens.counter.Counter` over a vocabulary of this package."""

    __slots__ = ("_codec", "_count_line", "_template", "name")

    def __init__(self, name: str, codec: Codec, template: Template, count_line: Callable[[str], int]) -> None:
        self.name = name
        self._codec = codec
        self._template = template
        self._count_line = count_line

    def count(self, text: str) -> int:
        return self._codec.count(text)

    @property
    def prints_tools(self) -> bool:
        return self._template.prints_tools

    def count_chat(self, messages: Sequence[tuple[str, str]], tools: Tools | None = None) -> int:
        if tools is None:
            return self._template.count(self._codec.count, messages)
        return self._template.count_with(tools, self._codec.count, self._count_line, messages)

    def bound_chat(self, content_bytes: int, messages: int) -> int:
        assert messages >= 0
        return self.bound(content_bytes) + self._template.bound(messages, self.bound(ROLE_BYTES_MAX))

    def bound(self, content_bytes: int) -> int:
        assert content_bytes >= 0
        return content_bytes * NFC_GROWTH if self._codec.nfc else content_bytes

    def running(self) -> RunningCount:
        return RunningCount(self._codec)


class LoadedCounters:
    """A snapshot of :class:`~extproc.tokens.counter.Counters`. Immutable; a reload of the catalog asks for a larger one."""

    __slots__ = ("_codecs", "_counters")

    def __init__(self, codecs: Mapping[str, Codec]) -> None:
        self._codecs = dict(codecs)
        lines = {name: KnownLines(codec.count) for name, codec in codecs.items()}
        self._counters = {
            (name, template.name): BpeCounter(name, codecs[vocabulary.name], template, lines[vocabulary.name])
            for name, vocabulary in TOKENIZERS.items()
            if vocabulary.name in codecs
            for template in TEMPLATES.values()
        }

    def get(self, tokenizer: str, chat_template: str) -> BpeCounter | None:
        """``None``: ``upstream``, or a tokenizer that was not loaded. An unknown template is a :class:`ConfigError`."""
        counter = self._counters.get((tokenizer, chat_template))
        if counter is None and tokenizer != UPSTREAM:
            template_of(chat_template)
        return counter

    def including(self, names: Iterable[str]) -> LoadedCounters:
        """These and what ``names`` need besides; what is loaded is shared. Blocks for 0.15 s a new vocabulary: call it in a thread."""
        wanted = sorted(set(names) - {UPSTREAM})
        unknown = tuple(
            Fault(file="tokenizer", line=0, message=f"no vocabulary for {name!r} ships; use {', '.join(TOKENIZERS)} or {UPSTREAM}")
            for name in wanted
            if name not in TOKENIZERS
        )
        if unknown:
            raise ConfigError(unknown)
        codecs = dict(self._codecs)
        for vocabulary in (TOKENIZERS[name] for name in wanted):
            if vocabulary.name not in codecs:
                codecs[vocabulary.name] = Codec(load_encoding(vocabulary), nfc=vocabulary.nfc)
        return LoadedCounters(codecs)


def load_counters(names: Iterable[str]) -> LoadedCounters:
    """Load what the catalog's tokenizers need, at start. :class:`ConfigError`: an unknown name, or a damaged vocabulary."""
    return LoadedCounters({}).including(names)
