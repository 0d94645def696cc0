"""POST /v1/completions, as vLLM writes it."""

from __future__ import annotations

from collections.abc import Sequence


class CompletionsShape:
    """Of one request. There is no event before the first token, and reasoning is text like any other."""

    piece_tail = b'","logprobs":null,"finish_reason":null,"stop_reason":null}]'

    def __init__(self, request_id: str, created: int, model_json: bytes) -> None:
        self._members = b'"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b' % (request_id.encode(), created, model_json)
        self._event = b"data: {%b" % self._members

    def opening(self, choice: int) -> bytes | None:  # noqa: ARG002 - the protocol's
        return None

    def piece_head(self, choice: int, *, reasoning: bool) -> bytes:  # noqa: ARG002 - the protocol's
        return b'%b,"choices":[{"index":%d,"text":"' % (self._event, choice)

    def finish(self, choice: int, reason: str) -> bytes:
        return b'%b,"choices":[{"index":%d,"text":"","logprobs":null,"finish_reason":"%b","stop_reason":null}]' % (
            self._event,
            choice,
            reason.encode(),
        )

    def final(self) -> bytes:
        return b'%b,"choices":[]' % self._event

    def document(self, texts: Sequence[bytes], reasonings: Sequence[bytes], reason: str, usage: bytes | None) -> bytes:
        choices = b",".join(
            b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":"%b","stop_reason":null,"prompt_logprobs":null}'
            % (index, reasoning + text, reason.encode())
            for index, (text, reasoning) in enumerate(zip(texts, reasonings, strict=True))
        )
        told = b"" if usage is None else b',"usage":%b' % usage
        return b'{%b,"choices":[%b],"service_tier":null,"system_fingerprint":null%b,"kv_transfer_params":null}' % (
            self._members,
            choices,
            told,
        )
