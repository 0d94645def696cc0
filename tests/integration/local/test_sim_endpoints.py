"""The simulator's other endpoints on a raw socket: events, usage, faults, and what its witness says of them."""

from __future__ import annotations

import base64
import io
import itertools
import json
import struct
import wave
from typing import ClassVar

import pytest

from extproc.local import simulator as simulator_engine

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SAID = [{"role": "user", "content": "hello there world"}]
PROMPT_TOKENS = 3 + 5 + 3  # words, and ChatML around one message
TOOL = {"name": "look", "description": "at the weather", "parameters": {"type": "object"}}
CHAT_TOOLS = [{"type": "function", "function": TOOL}]
RESPONSES_TOOLS = [{"type": "function", **TOOL}]
MESSAGES_TOOLS = [{"name": "look", "input_schema": {"type": "object"}}]

ids = (f"endpoint-test-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def detailed(tmp_path_factory):
    """A server that tells what of a prompt was cached."""
    folder = tmp_path_factory.mktemp("detailed")
    server = simulator_engine.start(folder, models=["m"], options=["--enable-prompt-tokens-details"])
    yield server
    server.stop()


@pytest.fixture
def asked(simulator, client):
    """An answer, and the witness' record of it."""

    def asked(path, body, **headers):
        request_id = next(ids)
        client.send(path, body, x_request_id=request_id, x_hold_id=f"hold of {request_id}", **headers)
        answer = client.answer()
        (record,) = simulator.requests(request_id)
        assert record["hold_id"] == f"hold of {request_id}"
        return answer, record

    return asked


def named(answer):
    """(name, data) of each event; the name is the data's own type."""
    blocks = [block.split("\n") for block in answer.body.decode().split("\n\n") if block]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in events)
    return events


def only(events, kind):
    return [data for name, data in events if name == kind]


class TestChat:
    def test_calls_of_functions_come_in_chunks(self, asked):
        body = {"messages": SAID, "tools": CHAT_TOOLS, "tool_choice": "required", "stream": True, "stream_options": {"include_usage": True}}
        answer, record = asked(CHAT, body)
        deltas = [choice["delta"] for chunk in answer.chunks for choice in chunk["choices"] if "tool_calls" in choice["delta"]]
        (name, *pieces) = [delta["tool_calls"][0] for delta in deltas]
        assert (name["type"], name["function"]["name"], name["index"]) == ("function", "look", 0)
        assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {
            "text": " the time people make great small world water"
        }
        assert len(pieces) == 10
        assert answer.chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
        assert answer.chunks[-1]["usage"]["completion_tokens"] == 16 == record["generated_tokens"]

    def test_as_many_calls_as_ordered(self, asked):
        answer, _ = asked(CHAT, {"messages": SAID, "tools": CHAT_TOOLS, "n": 2}, x_sim_tool_calls="3")
        for choice in answer.json["choices"]:
            assert choice["message"]["content"] is None
            assert choice["finish_reason"] == "tool_calls"
            calls = choice["message"]["tool_calls"]
            assert [json.loads(call["function"]["arguments"])["text"] for call in calls] == [""] * 3
            assert len({call["id"] for call in calls}) == 3
        assert answer.json["usage"]["completion_tokens"] == 2 * 24
        none, _ = asked(CHAT, {"messages": SAID, "tools": CHAT_TOOLS, "tool_choice": "none"}, x_sim_tool_calls="3")
        assert none.json["choices"][0]["message"]["tool_calls"] == []

    def test_images_count_by_their_size(self, asked):
        png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1920, 1080)
        data = "data:image/png;base64," + base64.b64encode(png).decode()
        images = [{"type": "image_url", "image_url": {"url": url}} for url in (data, "https://pictures.example/a.png")]
        body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello there world"}, *images]}]}
        answer, record = asked(CHAT, body, x_sim_image_size="56x56")
        assert answer.json["usage"]["prompt_tokens"] == PROMPT_TOKENS + (2_691 + 2) + (4 + 2)
        assert (record["images"], record["prompt_tokens"]) == (2, answer.json["usage"]["prompt_tokens"])
        broken, _ = asked(
            CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]}
        )
        assert (broken.status, "image" in broken.json["error"]["message"]) == (400, True)

    def test_reasoning_is_told_where_a_parser_counts_it(self, asked):
        answer, record = asked(CHAT, {"messages": SAID, "max_tokens": 8}, x_sim_reasoning="3", x_sim_reasoning_told="1")
        assert answer.json["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
        assert record["reasoning_tokens"] == 3

    def test_priority_is_recorded(self, asked):
        assert asked(CHAT, {"messages": SAID, "priority": -5})[1]["priority"] == -5


class TestPrefixCache:
    WORDS = " ".join(["word"] * 40)

    @staticmethod
    def usage(client, path, body):
        client.send(path, {"max_tokens": 1, **body})
        return client.answer().json["usage"]

    def test_the_second_one_finds_what_the_first_one_read(self, detailed, connect):
        client = connect(detailed.port)
        body = {"messages": [{"role": "user", "content": self.WORDS}], "cache_salt": "tenant a"}
        first, second = (self.usage(client, CHAT, body) for _ in range(2))
        assert (first["prompt_tokens"], first["prompt_tokens_details"]) == (48, {"cached_tokens": 0})
        assert second["prompt_tokens_details"] == {"cached_tokens": 32}  # 48 in blocks of 16, without the last token's
        assert self.usage(client, CHAT, {**body, "cache_salt": "tenant b"})["prompt_tokens_details"] == {"cached_tokens": 0}
        longer = {**body, "messages": [*body["messages"], {"role": "assistant", "content": "yes"}]}
        assert self.usage(client, CHAT, longer)["prompt_tokens_details"] == {"cached_tokens": 32}
        assert detailed.log()[0][-1]["cached_tokens"] == 32

    def test_anthropics_words_tell_cached_tokens_apart(self, detailed, connect):
        client = connect(detailed.port)
        body = {"model": "m", "messages": [{"role": "user", "content": self.WORDS}], "cache_salt": "anthropic"}
        assert self.usage(client, MESSAGES, body) == {
            "input_tokens": 48,
            "output_tokens": 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        }
        again = self.usage(client, MESSAGES, body)
        assert again == {"input_tokens": 16, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 32}
        client.send(MESSAGES, {**body, "max_tokens": 1, "stream": True})
        events = named(client.answer())
        assert only(events, "message_start")[0]["message"]["usage"] == {"input_tokens": 48, "output_tokens": 0}
        assert only(events, "message_delta")[0]["usage"] == again

    def test_only_the_last_event_tells_it(self, detailed, connect):
        client = connect(detailed.port)
        options = {"include_usage": True, "continuous_usage_stats": True}
        client.send(COMPLETIONS, {"prompt": self.WORDS, "max_tokens": 3, "stream": True, "stream_options": options})
        chunks = client.answer().chunks
        assert ["prompt_tokens_details" in chunk["usage"] for chunk in chunks] == [False] * 4 + [True]

    def test_without_the_flag_nothing_is_told_but_by_responses(self, asked):
        body = {"messages": [{"role": "user", "content": self.WORDS}]}
        for _ in range(2):
            answer, record = asked(CHAT, body)
            assert (record["cached_tokens"], "prompt_tokens_details" in answer.json["usage"]) == (None, False)
        for cached in (0, 32):
            answer, record = asked(RESPONSES, {"input": self.WORDS})
            assert (record["cached_tokens"], answer.json["usage"]["input_tokens_details"]["cached_tokens"]) == (cached, cached)


class TestCompletions:
    def test_an_echo_of_each_prompt(self, asked):
        body = {"prompt": ["one two", "three"], "n": 2, "max_tokens": 2, "echo": True}
        answer, record = asked(COMPLETIONS, body)
        assert [choice["text"] for choice in answer.json["choices"]] == [
            "one two the time",
            "one two the time",
            "three the time",
            "three the time",
        ]
        assert answer.json["usage"] == {"prompt_tokens": 3, "total_tokens": 11, "completion_tokens": 8}
        assert record["n"] == 2
        streamed, _ = asked(COMPLETIONS, {**body, "stream": True})
        assert [chunk["choices"][0]["text"] for chunk in streamed.chunks[:2]] == ["one two the", "one two the"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_echo_alone_costs_a_token(self, asked, stream):
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer, _ = asked(COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 0, "echo": True, "stream": stream, **options})
        document = answer.chunks if stream else [answer.json]
        assert "".join(choice["text"] for part in document for choice in part["choices"]) == " time people make"
        assert document[-1]["usage"] == {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}

    @pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"suffix": "x"}, {"prompt": [["x"]]}])
    def test_refusals(self, asked, fields):
        answer, record = asked(COMPLETIONS, {"prompt": "one", **fields})
        assert (answer.status, record["end"], record["generated_tokens"]) == (400, "refused", 0)


class TestResponses:
    def test_events(self, asked):
        answer, record = asked(
            RESPONSES, {"input": "hello there world", "instructions": "be brief", "stream": True}, x_sim_reasoning="2", x_sim_tokens="4"
        )
        events = named(answer)
        assert [name.removeprefix("response.") for name, _ in events] == [
            *("created", "in_progress"),
            *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
            *("reasoning_text.done", "content_part.done", "output_item.done"),
            *("output_item.added", "content_part.added", "output_text.delta", "output_text.delta"),
            *("output_text.done", "content_part.done", "output_item.done"),
            "completed",
        ]
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        last = events[-1][1]["response"]
        assert (last["status"], last["incomplete_details"]) == ("completed", None)
        assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
        assert last["output"][1]["content"][0]["text"] == "".join(data["delta"] for data in only(events, "response.output_text.delta"))
        assert last["usage"]["output_tokens_details"]["reasoning_tokens"] == 2
        assert last["usage"]["input_tokens"] == 3 + 5 + 2 + 5 + 3
        assert (last["usage"]["output_tokens"], last["usage"]["total_tokens"]) == (4, 22)
        assert all(data["response"]["usage"] is None for _, data in events[:2])
        assert (record["endpoint"], record["stream"], record["usage"]) == ("responses", True, last["usage"])
        assert b"[DONE]" not in answer.body

    def test_cut_by_its_length(self, asked):
        for fault, kind in (("none", "response.completed"), ("incomplete_event", "response.incomplete")):
            events = named(asked(RESPONSES, {"input": "hello", "max_output_tokens": 3, "stream": True}, x_sim_fault=fault)[0])
            assert events[-1][0] == kind
            assert (events[-1][1]["response"]["status"], events[-1][1]["response"]["usage"]["output_tokens"]) == ("incomplete", 3)
            assert events[-1][1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}

    @pytest.mark.parametrize("stream", [False, True])
    def test_calls_of_functions(self, asked, stream):
        body = {"input": SAID, "tools": RESPONSES_TOOLS, "tool_choice": {"type": "function", "name": "look"}, "stream": stream}
        answer, _ = asked(RESPONSES, body)
        (call,) = named(answer)[-1][1]["response"]["output"] if stream else answer.json["output"]
        assert (call["type"], call["name"], call["status"]) == ("function_call", "look", "completed")
        assert json.loads(call["arguments"])["text"].startswith(" the time")
        if stream:
            deltas = only(named(answer), "response.function_call_arguments.delta")
            assert "".join(data["delta"] for data in deltas) == call["arguments"]

    def test_every_kind_of_input_counts(self, asked):
        items = [
            {"role": "developer", "content": "one"},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "https://a/b"}],
            },
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "three"}], "summary": []},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
            {"type": "function_call_output", "call_id": "1", "output": "four five"},
        ]
        answer, record = asked(RESPONSES, {"input": items})
        # Words, special tokens and roles; the call belongs to the message that thinks: <tool_call> {"name": "f", "arguments": {}} </tool_call>
        developer, user, assistant, result, answers = 3 + 1, 3 + 1 + 326, 3 + 1 + 6, 3 + 2 + 2, 2
        assert answer.json["usage"]["input_tokens"] == developer + user + assistant + result + answers
        assert record["images"] == 1

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"input": None}, 400),
            ({"input": [{"type": "x"}]}, 400),
            ({"background": True}, 400),
            ({"prompt": {"id": "1"}}, 400),
            ({"previous_response_id": "r"}, 404),
        ],
    )
    def test_refusals(self, asked, fields, status):
        answer, _ = asked(RESPONSES, {"input": "hello", **fields})
        assert (answer.status, answer.json["error"]["code"]) == (status, status)


class TestMessages:
    BODY: ClassVar = {"model": "sim-model", "max_tokens": 100, "messages": SAID}

    def test_events(self, asked):
        answer, record = asked(MESSAGES, {**self.BODY, "system": "be brief", "stream": True}, x_sim_reasoning="1", x_sim_tokens="3")
        events = named(answer)
        assert [name for name, _ in events] == [
            "message_start",
            *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
            *("content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
            *("message_delta", "message_stop"),
        ]
        assert events[0][1]["message"]["usage"] == {"input_tokens": 18, "output_tokens": 0}
        assert [data["delta"]["type"] for data in only(events, "content_block_delta")] == [
            "thinking_delta",
            "signature_delta",
            "text_delta",
            "text_delta",
        ]
        assert [data["index"] for data in only(events, "content_block_start")] == [0, 1]
        assert events[-2][1] == {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"input_tokens": 18, "output_tokens": 3},
        }
        assert (record["endpoint"], record["prompt_tokens"], record["generated_tokens"]) == ("messages", 18, 3)
        assert b"[DONE]" not in answer.body

    @pytest.mark.parametrize("stream", [False, True])
    def test_calls_of_functions(self, asked, stream):
        answer, _ = asked(MESSAGES, {**self.BODY, "tools": MESSAGES_TOOLS, "tool_choice": {"type": "any"}, "stream": stream})
        if not stream:
            (call,) = answer.json["content"]
            assert (call["type"], call["name"], answer.json["stop_reason"]) == ("tool_use", "look", "tool_use")
            assert call["input"]["text"].startswith(" the time")
            return
        events = named(answer)
        assert only(events, "content_block_start")[0]["content_block"]["name"] == "look"
        deltas = [data["delta"] for data in only(events, "content_block_delta")]
        assert {delta["type"] for delta in deltas} == {"input_json_delta"}
        assert json.loads("".join(delta["partial_json"] for delta in deltas))["text"].startswith(" the time")
        assert only(events, "message_delta")[0]["delta"]["stop_reason"] == "tool_use"

    def test_every_kind_of_block_counts_and_count_tokens_agrees(self, asked):
        messages = [
            {
                "role": "user",
                "content": [{"type": "text", "text": "one"}, {"type": "image", "source": {"type": "url", "url": "https://a/b"}}],
            },
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "two"}, {"type": "tool_use", "id": "1", "name": "f", "input": {}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "three four"}]}]},
        ]
        answer, record = asked(MESSAGES, {**self.BODY, "messages": messages, "tools": MESSAGES_TOOLS})
        counted, count_record = asked("/v1/messages/count_tokens", {"model": "sim-model", "messages": messages, "tools": MESSAGES_TOOLS})
        assert record["images"] == 1
        assert counted.json["input_tokens"] == answer.json["usage"]["input_tokens"] > 326
        assert (count_record["endpoint"], count_record["generated_tokens"], count_record["usage"]) == ("messages.count_tokens", 0, None)

    def test_cache_creation_is_told_where_it_is_ordered(self, asked):
        answer, _ = asked(MESSAGES, self.BODY, x_sim_cached_tokens="4", x_sim_cache_creation_tokens="5")
        assert answer.json["usage"] == {
            "input_tokens": 2,
            "output_tokens": 16,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 4,
        }

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"max_tokens": None}, 400),
            ({"messages": []}, 400),
            ({"model": "x"}, 404),
            ({"messages": [{"role": "tool", "content": "x"}]}, 400),
        ],
    )
    def test_errors_have_anthropics_shape(self, asked, fields, status):
        answer, _ = asked(MESSAGES, {**self.BODY, **fields})
        assert answer.status == status
        assert (answer.json["type"], set(answer.json["error"])) == ("error", {"type", "message"})


class TestReading:
    """Endpoints for which nothing is generated."""

    @pytest.mark.parametrize(
        ("given", "tokens"), [("one two", (2,)), (["one", "two three"], (1, 2)), ([5, 6, 7], (3,)), ([[5], [6, 7]], (1, 2))]
    )
    def test_embeddings(self, asked, given, tokens):
        answer, record = asked("/v1/embeddings", {"input": given, "dimensions": 5})
        assert [len(row["embedding"]) for row in answer.json["data"]] == [5] * len(tokens)
        total = sum(tokens)
        assert answer.json["usage"] == {
            "prompt_tokens": total,
            "total_tokens": total,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }
        assert (record["endpoint"], record["prompt_tokens"], record["generated_tokens"], record["end"]) == (
            "embeddings",
            total,
            0,
            "finished",
        )

    def test_both_formats_of_embeddings_say_the_same(self, asked):
        floats, packed = (
            asked("/v1/embeddings", {"input": "one", "encoding_format": kind})[0].json["data"][0]["embedding"]
            for kind in ("float", "base64")
        )
        assert list(struct.unpack("<64f", base64.b64decode(packed))) == floats

    def test_what_is_truncated_is_not_counted(self, asked):
        assert asked("/v1/embeddings", {"input": "one two three", "truncate_prompt_tokens": 2})[0].json["usage"]["prompt_tokens"] == 2

    @pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
    def test_rerank(self, asked, path):
        answer, record = asked(path, {"query": "one two", "documents": ["three", {"text": "four five"}, "six"], "top_n": 2})
        assert answer.json["usage"] == {"prompt_tokens": 3 * 2 + 4, "total_tokens": 10}
        scores = [result["relevance_score"] for result in answer.json["results"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert all(result["document"]["text"] == ("three", "four five", "six")[result["index"]] for result in answer.json["results"])
        assert record["endpoint"] == "rerank"

    @pytest.mark.parametrize(
        ("path", "body", "pairs"),
        [
            ("/score", {"text_1": "one", "text_2": "two three"}, 1),
            ("/v1/score", {"text_1": "one", "text_2": ["two three", "four"]}, 2),
            ("/score", {"queries": ["one", "two"], "documents": ["three", "four"]}, 2),
        ],
    )
    def test_score(self, asked, path, body, pairs):
        answer, _ = asked(path, body)
        assert [row["index"] for row in answer.json["data"]] == list(range(pairs))
        assert answer.json["usage"]["prompt_tokens"] == {1: 3, 2: 5 if "text_1" in body else 4}[pairs]

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/embeddings", {"input": []}),
            ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}),
            ("/rerank", {"query": "x", "documents": []}),
            ("/rerank", {"documents": ["x"]}),
            ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}),
            ("/score", {"text_1": "a"}),
            ("/v1/embeddings", {"input": "a " * 140_000}),
        ],
    )
    def test_refusals(self, asked, path, body):
        answer, record = asked(path, body)
        assert (answer.status, record["end"]) == (400, "refused")

    def test_tokenize_and_back(self, asked, simulator):
        before = simulator.metrics()["vllm:prompt_tokens_total"]
        answer, record = asked("/tokenize", {"messages": SAID})
        assert (answer.json["count"], len(answer.json["tokens"]), record["endpoint"]) == (PROMPT_TOKENS, PROMPT_TOKENS, "tokenize")
        answer, record = asked("/detokenize", {"tokens": [1, 2]})
        assert (answer.json, record["endpoint"]) == ({"prompt": " time people"}, "detokenize")
        assert asked("/tokenize", {})[0].status == asked("/detokenize", {"tokens": ["x"]})[0].status == 400
        assert simulator.metrics()["vllm:prompt_tokens_total"] == before  # the engine had nothing to do


def sound(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(bytes(int(32_000 * seconds)))
    return file.getvalue()


def form(file: bytes | None, **fields: str) -> bytes:
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    if file is not None:
        parts.append(b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + file + b"\r\n")
    return b"".join(parts) + b"--xyz--\r\n"


class TestSound:
    PATH = "/v1/audio/transcriptions"
    TYPE = "multipart/form-data; boundary=xyz"

    def ask(self, asked, path, file, fields, **headers):
        return asked(path, form(file, model="sim-model", **fields), content_type=self.TYPE, **headers)

    @pytest.mark.parametrize(
        ("file", "headers", "seconds", "told"),
        [
            (sound(2.25), {}, 2.25, 3),
            (sound(2.0), {"x_sim_audio_seconds": "9"}, 2.0, 2),
            (b"ID3" + bytes(31_997), {}, 2.0, 2),
            (b"ID3", {"x_sim_audio_seconds": "61.5"}, 61.5, 62),
        ],
    )
    def test_seconds(self, asked, file, headers, seconds, told):
        answer, record = self.ask(asked, self.PATH, file, {"prompt": "two words"}, **headers)
        assert answer.json["usage"] == {"type": "duration", "seconds": told} == record["usage"]
        assert len(answer.json["text"].split()) == 16
        assert (record["seconds"], record["endpoint"], record["generated_tokens"]) == (seconds, "audio.transcriptions", 16)
        assert record["body"] == {"model": "sim-model", "prompt": "two words", "file": {"length": len(file)}}

    def test_a_stream_counts_tokens(self, asked):
        fields = {"stream": "true", "stream_include_usage": "true", "stream_continuous_usage_stats": "true", "max_completion_tokens": "5"}
        answer, record = self.ask(asked, self.PATH, sound(1.5), fields)
        assert {chunk["object"] for chunk in answer.chunks} == {"transcription.chunk"}
        assert [chunk["usage"]["completion_tokens"] for chunk in answer.chunks] == [1, 2, 3, 4, 5, 5, 5]
        assert answer.chunks[-1]["usage"]["prompt_tokens"] == 4 + 150 == record["prompt_tokens"]
        assert answer.chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert (answer.events[-1], record["seconds"]) == ("[DONE]", 1.5)
        assert all("usage" not in chunk for chunk in self.ask(asked, self.PATH, sound(1.5), {"stream": "1"})[0].chunks)

    def test_answers_without_usage(self, asked):
        verbose, record = self.ask(asked, self.PATH, sound(1.5), {"response_format": "verbose_json"})
        assert (verbose.json["duration"], "usage" in verbose.json, record["usage"]) == ("1.5", False, None)
        translated, record = self.ask(asked, "/v1/audio/translations", sound(1.5), {})
        assert (set(translated.json), record["usage"], record["endpoint"], record["seconds"]) == ({"text"}, None, "audio.translations", 1.5)

    @pytest.mark.parametrize(
        ("file", "fields", "status"),
        [(None, {}, 422), (b"", {}, 400), (sound(1), {"response_format": "srt"}, 400), (sound(1), {"stream_include_usage": "true"}, 400)],
    )
    def test_refusals(self, asked, file, fields, status):
        assert self.ask(asked, self.PATH, file, fields)[0].status == status

    def test_what_is_no_form_is_refused(self, asked):
        assert asked(self.PATH, {"model": "sim-model"})[0].status == 422


ENDPOINTS = {
    CHAT: {"messages": SAID},
    COMPLETIONS: {"prompt": "hello"},
    RESPONSES: {"input": "hello"},
    MESSAGES: {"model": "sim-model", "max_tokens": 100, "messages": SAID},
    "/v1/embeddings": {"input": "hello"},
    "/rerank": {"query": "hello", "documents": ["you"]},
    "/score": {"text_1": "hello", "text_2": "you"},
    "/tokenize": {"prompt": "hello"},
    "/v1/messages/count_tokens": {"model": "sim-model", "messages": SAID},
}
STREAMED = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
DEATHS = {CHAT: '"code":500', COMPLETIONS: '"code":500', RESPONSES: "event: error", MESSAGES: "event: error"}


class TestFaultsEverywhere:
    @pytest.mark.parametrize("path", ENDPOINTS)
    def test_before_the_answer(self, asked, path, connect):
        answer, record = asked(path, ENDPOINTS[path], x_sim_fault="status=503")
        assert (answer.status, record["end"], record["status"]) == (503, "refused", 503)
        assert asked(path, ENDPOINTS[path], x_sim_fault="engine_death_after=2")[0].status == 500
        other = connect()
        other.send(path, ENDPOINTS[path], x_sim_fault="reset")
        assert other.answer().broken == "ConnectionResetError"

    @pytest.mark.parametrize("path", [path for path in ENDPOINTS if "token" not in path])
    @pytest.mark.parametrize("fault", ["no_usage", "wrong_usage=huge", "wrong_usage=negative", "wrong_usage=cached"])
    def test_usage_of_a_document(self, asked, path, fault):
        answer, _ = asked(path, ENDPOINTS[path], x_sim_fault=fault)
        usage = answer.json.get("usage")
        if fault == "no_usage":
            assert usage is None
        elif fault == "wrong_usage=cached":
            assert usage is not None
        else:
            assert next(value for name, value in usage.items() if name in ("prompt_tokens", "input_tokens")) in (900_000_000_000, -5)

    @pytest.mark.parametrize("path", STREAMED)
    def test_an_engine_that_dies(self, asked, path):
        answer, record = asked(path, {**ENDPOINTS[path], "stream": True}, x_sim_fault="engine_death_after=2")
        assert (answer.status, answer.broken, record["end"]) == (200, None, "engine_death")
        assert DEATHS[path] in answer.body.decode()
        assert answer.body.endswith(b"[DONE]\n\n") == (path in (CHAT, COMPLETIONS))
        assert (record["finish_reason"], record["usage"], record["generated_tokens"]) == (None, None, 2)

    @pytest.mark.parametrize("path", STREAMED)
    def test_an_abort(self, asked, path):
        answer, record = asked(path, {**ENDPOINTS[path], "stream": True}, x_sim_fault="abort_after=2")
        assert (record["end"], record["finish_reason"], record["generated_tokens"]) == ("aborted", "abort", 2)
        if path == MESSAGES:
            assert only(named(answer), "message_delta")[0]["delta"]["stop_reason"] is None
        if path == RESPONSES:
            assert named(answer)[-1][1]["response"]["status"] == "completed"

    @pytest.mark.parametrize("path", STREAMED)
    @pytest.mark.parametrize("fault", ["reset_after=2", "stall_after=2"])
    def test_a_stream_that_breaks(self, connect, path, fault):
        other = connect()
        other.send(path, {**ENDPOINTS[path], "stream": True}, x_sim_fault=fault, x_sim_delay_ms="5")
        answer = other.answer(silence_s=5 if fault.startswith("reset") else 0.5)
        assert answer.broken == ("ConnectionResetError" if fault.startswith("reset") else "TimeoutError")
        assert answer.body

    @pytest.mark.parametrize("path", STREAMED)
    @pytest.mark.parametrize("fault", ["split_utf8", "byte_by_byte", "join=3", "crlf", "comments"])
    def test_other_ways_to_write(self, asked, path, fault):
        odd, _ = asked(path, {**ENDPOINTS[path], "stream": True, "max_tokens": 5}, x_sim_fault=fault)
        plain, _ = asked(path, {**ENDPOINTS[path], "stream": True, "max_tokens": 5})
        assert odd.broken is None
        assert [chunk.get("type") for chunk in odd.chunks] == [chunk.get("type") for chunk in plain.chunks]

    @pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
    @pytest.mark.parametrize("fault", ["no_usage", "no_final_usage"])
    def test_lost_usage(self, asked, path, fault):
        answer, record = asked(path, {**ENDPOINTS[path], "stream": True}, x_sim_fault=fault)
        events = named(answer)
        assert record["usage"] is None
        if path == RESPONSES:
            assert events[-1][1]["response"]["usage"] is None
        else:
            assert "usage" not in only(events, "message_delta")[0]
            assert ("usage" in events[0][1]["message"]) == (fault == "no_final_usage")

    @pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
    def test_an_interval_joins_tokens(self, asked, path):
        body = {**ENDPOINTS[path], "stream": True, "stream_interval": 4}
        answer, record = asked(path, body, x_sim_tokens="9")
        deltas = [data for name, data in named(answer) if name.endswith("_text.delta") or name == "content_block_delta"]
        assert (len(deltas), record["generated_tokens"]) == (3, 9)
