"""``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``: everything about them. A form with a file in, its text out.

What is paid is the sound: the seconds that the backend tells, else what the pieces of the file have. So nothing is asked for whose
answer has no seconds in it, unless the file itself tells how long it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.ask import NOTHING, Ask, Piece, Prompt
from extproc.exchange.audio import length_of
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.form import CONTENT_TYPE, File, Value, read_form, write_form
from extproc.exchange.meter import Expected, UsageReader
from extproc.money.usage import TOKENS_MAX, Usage, UsageSource

BARE = ("text", "srt", "vtt")
FORMATS = ("json", "verbose_json", *BARE)

_OWN = frozenset({"file", "model", "stream", "stream_include_usage", "stream_continuous_usage_stats"})
_KNOWN = frozenset(
    {
        *("language", "to_language", "prompt", "response_format", "timestamp_granularities[]", "hotwords"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "repetition_penalty", "presence_penalty"),
        "max_completion_tokens",
    }
)
# Backends cut long recordings into pieces (of 30 s, mostly) with a window each, and tell their tokens together.
PIECE_MS_MIN = 1_000
LENGTH_MS_MAX = 86_400_000  # some formats say years in a few bytes

_NAMES = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"))


class Transcriptions(openai.Usual):
    """Speech in, text out: in its own language, or in English."""

    name = "transcriptions"
    paths: tuple[str, ...] = ("/v1/audio/transcriptions",)
    is_form = True
    output_default: int | None = 0
    telling: tuple[str, ...] = ("json", "verbose_json")  # the formats of answers that tell the seconds

    def members(self, data: bytes, content_type: str) -> Mapping[str, Any]:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return read_form(data, content_type)

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields: dict[str, Value] = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        for name, value in fields.items():
            if isinstance(value, File):
                raise ClientError(f"`{name}` must not be a file.", param=name, code="invalid_type")
        file = body.get("file")
        if not isinstance(file, File) or not file.data:
            raise ClientError("`file` must be a sound file.", param="file", code="missing_required_parameter")
        length = length_of(file.data)
        if length.most_ms > LENGTH_MS_MAX:
            raise ClientError("`file` is longer than a day.", param="file", status=413, code="audio_too_long")
        stream, form = read.truth(body, "stream"), body.get("response_format", FORMATS[0])
        self._check_tells(form, stream=stream, is_told=length.is_told)
        usage = stream and read.truth(body, "stream_include_usage")
        return Ask(
            endpoint=_BARE if form in BARE else self,
            model=read.model_name(body),
            stream=stream,
            prompt=Prompt(param="file", audio_ms=length.most_ms, audio_ms_likely=length.likely_ms),
            wants_usage=usage,
            wants_continuous_usage=usage and read.truth(body, "stream_continuous_usage_stats"),
            fields={**fields, "file": file},
            content_type=CONTENT_TYPE,
        )

    def canonical(self, ask: Ask, *, served_name: str, output_max: int, usage: bool, continuous: bool) -> bytes:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        del output_max
        own = {"model": served_name}
        if ask.stream:
            flags = {"stream": True, "stream_include_usage": usage or continuous, "stream_continuous_usage_stats": continuous}
            own |= {name: "true" for name, is_set in flags.items() if is_set}
        fields = {**ask.fields, **own}
        file = fields.pop("file")
        return write_form({**fields, "file": file})

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """See :class:`~extproc.exchange.ask.Endpoint`. Seconds, or tokens; of what is not told (no sound has 0 seconds) our own figure."""
        del output_tokens
        if not isinstance(raw, dict):
            return None
        seconds, audio_ms = raw.get("seconds"), expected.prompt.audio_ms
        if isinstance(seconds, float | int) and not isinstance(seconds, bool):
            audio_ms = math.ceil(min(max(seconds, 0), TOKENS_MAX // 1_000) * 1_000)
            return msgspec.structs.replace(expected.prompt, audio_ms=audio_ms, source=source, flags=())
        figure, most = UsageReader(), min(expected.input_tokens_max * (1 + audio_ms // PIECE_MS_MIN), TOKENS_MAX)
        for inputs, outputs in _NAMES:
            tokens = figure(raw, inputs, most), figure(raw, outputs, most)
            if tokens[0] is not None:
                flags = (*expected.prompt.flags, *figure.flags)
                return Usage(input_tokens=tokens[0], output_tokens=tokens[1] or 0, audio_ms=audio_ms, source=source, flags=flags)
        return msgspec.structs.replace(expected.prompt, source=UsageSource.COUNTED)

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`. Bare text is an answer, too."""
        answer = openai.decoded(_ANSWER, body)
        if answer is None:
            text = body.decode("utf-8", "replace")
            is_text = text.strip() and not text.lstrip().startswith(("{", "<"))
            return Piece(texts=((0, text),), usage={}, final=True, finish="stop") if is_text else NOTHING
        usage = answer.usage
        if usage is None and isinstance(answer.duration, float | int | str):
            usage = {"seconds": _number(answer.duration)}
        if usage is None and isinstance(answer.text, str):
            usage = {}
        texts = ((0, answer.text),) if isinstance(answer.text, str) else ()
        return Piece(texts=texts, usage=usage, final=usage is not None, finish="stop", error=answer.error is not None)

    def _check_tells(self, form: Any, *, stream: bool, is_told: bool) -> None:
        if form not in FORMATS:
            words = f"`response_format` must be one of {', '.join(FORMATS)}."
            raise ClientError(words, param="response_format", code="invalid_value")
        if not is_told and (stream or form not in self.telling):
            words = (
                "How long this file is cannot be seen without decoding it, and answers of this kind do not tell. "
                f"Send WAV, FLAC, MP3 or Opus in Ogg, or ask for `response_format` {' or '.join(self.telling)} without `stream`."
            )
            raise ClientError(words, param="stream" if stream else "response_format", code="unknown_duration")


class _Bare(Transcriptions):
    """Whose answer was asked for as bare text: whatever looks like a usage in it was spoken."""

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        text = body.decode("utf-8", "replace")
        return Piece(texts=((0, text),), usage={}, final=True, finish="stop") if text.strip() else NOTHING


_BARE = _Bare()


class Translations(Transcriptions):
    """The same into English. vLLM's short answers to it have no usage."""

    paths = ("/v1/audio/translations",)
    telling = ("verbose_json",)


def _number(value: float | str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class _Answer(msgspec.Struct, gc=False):
    text: Any = None
    duration: Any = None
    usage: Any = None
    error: Any = None


_ANSWER = msgspec.json.Decoder(_Answer)
