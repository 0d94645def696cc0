"""POST /v1/audio/transcriptions and …/translations, as vLLM reads and writes them: forms, usage in seconds – but in tokens in a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, error_json
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Filler, Part, prompt_of
from extproc.local.sim.shape import DONE, Output, texts_of
from extproc.local.sim.speech import TEXT, Item
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.usage import Spent, usage_of_chunks, usage_of_sound

FILE_BYTES_MAX = 25 * 1024 * 1024
"""vLLM's VLLM_MAX_AUDIO_CLIP_FILESIZE_MB."""

BYTES_PER_SECOND = 16_000
"""Of a file that does not say how long it is, where no header says it either: 128 kbit/s, as most MP3 files."""

DECODER_TOKENS = 4
"""<|startoftranscript|>, the language, the task, <|notimestamps|>."""

SOUND_TOKENS_PER_SECOND = 100
"""Whisper: a token for each step of 10 ms, which is what vLLM counts."""

_FORMATS = ("json", "text", "verbose_json")


def ask_of_sound(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Of both endpoints. Raises :class:`Refused`."""
    file = fields.get("file")
    if not isinstance(file, bytes):
        raise Refused(422, "Expected 'file' to be a file-like object, not 'str'.", param="file")
    if len(file) > FILE_BYTES_MAX:
        raise Refused(400, "Maximum file size exceeded", param="audio_filesize_mb")
    stream, verbose = read.flag(fields, "stream"), fields.get("response_format") == "verbose_json"
    if fields.get("response_format", "json") not in _FORMATS or (stream and verbose):
        raise Refused(
            400, "Currently only support response_format: `text`, `json` or `verbose_json` (not streamed)", param="response_format"
        )
    parts: list[Part] = [Filler(what="task", tokens=DECODER_TOKENS), str(fields.get("prompt", ""))]
    decoder = prompt_of(parts, text)
    ask = read.generating(
        fields,
        model,
        steering,
        [decoder],
        read.integer(fields, "max_completion_tokens", least=1),
        stream=stream,
        usage=_usage(fields, model, stream=stream),
        seconds=(seconds := seconds_of(file, steering)),
    )
    # What is heard does not stand in the decoder's context, but is counted with its prompt.
    heard = Filler(what=hash(file), tokens=math.ceil(seconds * SOUND_TOKENS_PER_SECOND))
    return replace(ask, prompts=(prompt_of([heard, *parts], text),))


def seconds_of(file: bytes, steering: Steering) -> float:
    """How long a sound is: as its WAV header says, else as ordered, else by its size. Raises :class:`Refused`."""
    if not file:
        raise Refused(400, "Invalid or unsupported audio file.", param="file")
    told = _seconds_of_wav(file)
    if told is not None:
        return told
    return len(file) / BYTES_PER_SECOND if steering.audio_seconds is None else steering.audio_seconds


def _seconds_of_wav(file: bytes) -> float | None:
    if not file.startswith(b"RIFF") or file[8:12] != b"WAVE":
        return None
    at, rate = 12, 0
    while at + 8 <= len(file):
        kind, size = file[at : at + 4], int.from_bytes(file[at + 4 : at + 8], "little")
        if kind == b"fmt ":
            rate = int.from_bytes(file[at + 16 : at + 20], "little")
        if kind == b"data":
            # A header that was written before the sound was known says too much: only what is there counts.
            return min(size, len(file) - at - 8) / rate if rate else None
        at += 8 + size + size % 2
    return None


def _usage(fields: Mapping[str, Any], model: Model, *, stream: bool) -> tuple[bool, bool]:
    wanted = {name: read.flag(fields, name) for name in ("stream_include_usage", "stream_continuous_usage_stats")}
    if not stream:
        if any(wanted.values()):
            raise Refused(400, "Stream options can only be defined when `stream=True`.", param="stream_include_usage")
        return True, False
    include = wanted["stream_include_usage"] or model.force_include_usage
    return include, include and wanted["stream_continuous_usage_stats"]


class TranscriptionShape:
    """Of one request."""

    end = DONE
    _object, _task = b"transcription", b"transcribe"

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        self._event = b'data: {"id":"%b-%b","object":"%b.chunk","created":%d,"model":%b' % (
            self._task,
            request_id.encode(),
            self._object,
            created,
            model_json,
        )
        self._ask = ask

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:
        del choice, item
        return b'%b,"choices":[{"delta":{"content":"%b"}}]%b}\n\n' % (self._event, text, usage)

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        del choice
        choice_json = b'{"delta":{"content":""},"finish_reason":"%b","stop_reason":null}' % reason.encode()
        yield b'%b,"choices":[%b]%b}\n\n' % (self._event, choice_json, usage)

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:
        del reason
        if usage is not None:
            yield b'%b,"choices":[],"usage":%b}\n\n' % (self._event, usage)

    def died(self, message: str) -> Iterable[bytes]:
        yield b"data: %b\n\n" % error_json(500, message, kind="InternalServerError")

    def usage(self, spent: Spent, wrong: str | None) -> bytes | None:
        """Tokens in a stream; else seconds, and those only in the plain form."""
        if self._ask.stream:
            return usage_of_chunks(spent, wrong)
        return None if self._is_verbose else usage_of_sound(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        del reason
        text = texts_of(outputs[0], TEXT)
        if self._is_verbose:
            told = json_bytes({"duration": str(self._ask.seconds), "language": self._ask.fields.get("language") or "en"})
            return b'%b,"text":"%b","segments":[],"words":null}' % (told[:-1], text)
        return b'{"text":"%b"%b}' % (text, b"" if usage is None else b',"usage":%b' % usage)

    @property
    def _is_verbose(self) -> bool:
        return self._ask.fields.get("response_format") == "verbose_json"


class TranslationShape(TranscriptionShape):
    """The same, but it never has seconds: vLLM tells them for transcriptions only."""

    _object, _task = b"translation", b"translate"

    def usage(self, spent: Spent, wrong: str | None) -> bytes | None:
        return usage_of_chunks(spent, wrong) if self._ask.stream else None
