"""POST /v1/chat/completions, as vLLM writes it."""

from __future__ import annotations

from collections.abc import Sequence


class ChatShape:
    """Of one request."""

    piece_tail = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]'

    def __init__(self, request_id: str, created: int, model_json: bytes) -> None:
        self._members = b'"id":"chatcmpl-%b","object":"chat.completion%%b","created":%d,"model":%b' % (
            request_id.encode(),
            created,
            model_json,
        )
        self._event = b"data: {%b" % (self._members % b".chunk")

    def opening(self, choice: int) -> bytes | None:
        delta = b'{"role":"assistant","content":""}'
        return b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}]' % (self._event, choice, delta)

    def piece_head(self, choice: int, *, reasoning: bool) -> bytes:
        return b'%b,"choices":[{"index":%d,"delta":{"%b":"' % (self._event, choice, b"reasoning" if reasoning else b"content")

    def finish(self, choice: int, reason: str) -> bytes:
        return (
            b'%b,"choices":[{"index":%d,"delta":{"content":""},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null}]'
            % (
                self._event,
                choice,
                reason.encode(),
            )
        )

    def final(self) -> bytes:
        return b'%b,"choices":[]' % self._event

    def document(self, texts: Sequence[bytes], reasonings: Sequence[bytes], reason: str, usage: bytes | None) -> bytes:
        choices = b",".join(
            b'{"index":%d,"message":{"role":"assistant","content":"%b","refusal":null,"annotations":null,"audio":null,"function_call":null,'
            b'"tool_calls":[],"reasoning":%b},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null}'
            % (index, text, b'"%b"' % reasoning if reasoning else b"null", reason.encode())
            for index, (text, reasoning) in enumerate(zip(texts, reasonings, strict=True))
        )
        return b'{%b,"choices":[%b],"service_tier":null,"system_fingerprint":null%b,"prompt_logprobs":null,"kv_transfer_params":null}' % (
            self._members % b"",
            choices,
            b"" if usage is None else b',"usage":%b' % usage,
        )
