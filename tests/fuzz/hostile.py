"""Bodies that nobody should send, by seed: each is refused, or held for and forwarded as plain as any other.

    PYTHONPATH=tests python -m fuzz.hostile 200000 7    tries so many on the exchange with the catalog of `up`, and prints what became of them

A body is an ordinary one (``asks.py``) that was spoilt: in a member, in its bytes, or in its form. :func:`check` holds the exchange to what
must be true of any: no exception; an error in the shape of its endpoint, with nothing charged and everything given back; or a hold, and a
forwarded body that has one reading, what we say of money in it, and nothing that only we may say.
"""

# ruff: noqa: T201 - it is there to print
from __future__ import annotations

import email
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import extproc
from extproc.exchange.endpoints import BY_PATH
from extproc.exchange.form import CONTENT_TYPE
from extproc.exchange.policy import Bounds, Policy
from extproc.exchange.tab import Pinned
from extproc.money.hold import EndKind
from fuzz.asks import BOUNDARY, Ask, form_ask, random_ask, sound, text
from fuzz.walk import Walk, pinned

CATALOG = Path(extproc.__file__).parent / "local/models.yaml"
MODELS = {"embeddings": "bge-m3", "rerank": "bge-m3", "score": "bge-m3", "transcriptions": "whisper-large-v3"}
POLICIES = (
    Policy(),
    Policy(unknown_fields="reject"),
    Policy(over_balance="clamp", no_usage="hold", clamp_output_tokens_min=1),
    Policy(trust_factor=2, out_of_money_status=429),
)
BODY_BYTES_MAX = 65_536  # small, so that bodies above it are quickly made
ONLY_OURS = frozenset(
    {
        *("priority", "request_id", "cache_salt", "kv_transfer_params", "vllm_xargs", "chat_template", "chat_template_kwargs"),
        *("mm_processor_kwargs", "stream_interval", "include_reasoning", "best_of", "prompt_logprobs", "unknown"),
    }
)
SAMPLED = frozenset({"priority", "cache_salt"})  # of these our own may stand there

Dice = random.Random


def models(endpoint: str) -> str:
    return MODELS.get(endpoint, "qwen2.5-7b")


# values that are no values


def deep(dice: Dice, most: int = 3_000) -> str:
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    depth = dice.choice((5, 50, 500, most))
    return opening * depth + "1" + closing * dice.choice((depth, depth, depth - 1))


RAW: tuple[Callable[[Dice], str], ...] = (
    lambda dice: dice.choice(("NaN", "Infinity", "-Infinity", "nan", "undefined", "None", "True", "'a'", "", "0x10", "01", "+1", ".5", "1.")),
    lambda dice: dice.choice(("null", "true", "false", "[]", "{}", "[[]]", "[{}]", '""', "[null]", '{"":null}', "[[],[]]", '[""]')),
    lambda dice: dice.choice(("-1", "0", "1", "1.5", "-0.0", "2147483648", "9223372036854775807", "18446744073709551616", "1e5", "1e308", "1e999")),
    lambda dice: dice.choice(("-", "")) + "9" * dice.choice((19, 40, 400, 5_000)) + dice.choice(("", "", ".5", "e9")),
    lambda dice: dice.choice(('"3"', '"-3"', '" 3 "', '"3e5"', '"٣"', '"true"', '"TRUE"', '"9999999999999999999"', '"0x3"', '"1_000"')),
    lambda dice: dice.choice((r'"\ud800"', r'"\udc00x"', r'"a\ud83d"', r'"\ud83d\ude00"', r'"\u0000"', r'"\x41"', r'"\u12"', '"\x01"', r'"\uD800\uD800"')),
    lambda dice: json.dumps("x" * dice.choice((300, 5_000, 70_000))),
    lambda dice: json.dumps([dice.choice((1, "a", None, {}, [1]))] * dice.choice((3, 129, 2_049, 5_000))),
    lambda dice: json.dumps({f"k{number}": number for number in range(dice.choice((1, 100, 1_000)))}),
    lambda dice: json.dumps("data:image/png;base64," + text(dice)),
    lambda dice: json.dumps([{"type": dice.choice(("text", "image_url", "input_text", "image", "tool_result", "")), "text": text(dice)}]),
    deep,
)  # fmt: skip
NAMES = (
    *("model", "messages", "prompt", "input", "max_tokens", "n", "stream", "stream_options", "stop", "tools", "role", "content", "query"),
    *("documents", "text_1", "text_2", "tokens", "system", "echo", "best_of", "suffix", "priority", "cache_salt", "request_id", "logprobs"),
    *(
        "kv_transfer_params",
        "vllm_xargs",
        "chat_template",
        "mm_processor_kwargs",
        "include_reasoning",
        "stream_interval",
        "prompt_logprobs",
    ),
    *("__proto__", "", "usage", "previous_response_id", "background", "truncate_prompt_tokens", "\ud800", "é", "max_completion_tokens"),
)


def raw(dice: Dice) -> str:
    return dice.choice(RAW)(dice)


# what is done to an ordinary body


def spoil_members(dice: Dice, ask: Ask) -> bytes:
    """One to three places of its tree hold something else, or are gone, or are there twice."""
    assert ask.members is not None
    tree = json.loads(json.dumps(ask.members))
    replaced: dict[str, str] = {}
    for number in range(dice.choice((1, 1, 2, 3))):
        mark = f"<<{number}>>"
        replaced[mark] = raw(dice)
        _spoil(dice, tree, mark)
    data = json.dumps(tree, ensure_ascii=dice.random() < 0.5)
    for mark, value in replaced.items():
        data = data.replace(f'"{mark}"', value)
    return data.encode("utf-8", "surrogatepass")


def _spoil(dice: Dice, tree: Any, mark: str) -> None:
    node = tree
    while True:
        children = list(node.items() if isinstance(node, dict) else enumerate(node))
        if not children:
            return
        inner = [child for _, child in children if isinstance(child, dict | list) and child]
        if inner and dice.random() < 0.6:
            node = dice.choice(inner)
            continue
        if isinstance(node, list) or dice.random() < 0.3:
            place = dice.choice(NAMES) if isinstance(node, dict) else dice.randrange(len(node))
        else:
            place = dice.choice([name for name, _ in children])
        if isinstance(node, dict) and place in node and dice.random() < 0.1:
            del node[place]
        else:
            node[place] = mark
        return


def double_a_key(dice: Dice, ask: Ask) -> bytes:
    assert ask.members is not None
    name = dice.choice(list(ask.members) + list(NAMES[:12]))
    again = f"{json.dumps(name)}:{raw(dice) if dice.random() < 0.5 else json.dumps(ask.members.get(name))}"
    inside = ask.body.decode("utf-8", "replace").strip()[1:-1]
    return ("{" + ",".join(dice.choice(((again, inside), (inside, again)))) + "}").encode("utf-8", "replace")


def spoil_bytes(dice: Dice, ask: Ask) -> bytes:
    """A few bytes are others, gone, or too many; or the whole is in another alphabet."""
    body = bytearray(ask.body)
    torn = (b"\xff", b"\xc3", b"\xe4\xbd", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\x00", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80")
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(body) + 1)
        match dice.randrange(4):
            case 0:
                body[at:at] = dice.choice(torn)
            case 1:
                body[at : at + dice.choice((1, 2, 20))] = b""
            case 2:
                body[at : at + 1] = dice.choice(
                    (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"0", b"-", b"e", b"/*", b"\r\n--")
                )
            case _:
                body[at:at] = body[: dice.randint(0, 40)]
    return bytes(body)


def recode(dice: Dice, ask: Ask) -> bytes:
    try:
        return ask.body.decode().encode(dice.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7", "latin-1")), "replace")
    except UnicodeDecodeError:
        return b"\xff\xfe" + ask.body


def cut_off(dice: Dice, ask: Ask) -> bytes:
    return ask.body[: dice.randrange(len(ask.body))]


def anything(dice: Dice, ask: Ask) -> bytes:
    return dice.choice(
        (
            dice.randbytes(dice.choice((0, 1, 30, 500))),
            deep(dice, 60_000).encode(),
            raw(dice).encode("utf-8", "surrogatepass"),
            ask.body * dice.choice((2, 3)),
            b" " * dice.choice((1, BODY_BYTES_MAX, BODY_BYTES_MAX + 1)) + ask.body,
            b'{"model":' + json.dumps(models("")).encode() + b',"messages":' + deep(dice, 20_000).encode() + b"}",
        )
    )


def spoil_form(dice: Dice, ask: Ask) -> tuple[bytes, str]:
    """Headers, names, boundaries and files that are none, or too many."""
    name = dice.choice(("model", "stream", "file", "language", "prompt", "response_format", "temperature", "hotwords", "user", "é", "a[]"))
    value = dice.choice(
        ("true", "1", "text", "vtt", "x" * 70_000, "\ud83d\ude00", "NaN", "-1", f"\r\n--{BOUNDARY}--", "whisper-large-v3", "")
    )
    fields = {"model": "whisper-large-v3", name: value}
    file = dice.choice(
        (sound(500), b"", b"RIFF", b"ID3" + dice.randbytes(50), b"OggS" * 20, b"fLaC" + bytes(50), dice.randbytes(300), sound(500)[:30])
    )
    body = form_ask(ask.path, fields, file).body
    before, after = dice.choice(
        (
            (b"form-data;", b"form-data; name=other;"), (b'name="file"', b'name="file\x00"'), (b'filename="a.wav"', b'filename="' + b"a" * 5_000 + b'"'),
            (b"\r\n\r\n", b"\n\n"), (b"Content-Disposition", b"Content-Disposition: form-data\r\nContent-Disposition"), (b'filename="a.wav"', b"filename*=utf-8''x"),
            (b"audio/wav", b"audio/wav\r\nContent-Transfer-Encoding: base64"), (BOUNDARY.encode(), b"another"), (b"--\r\n", b""), (b"", b"preamble\r\n"),
            (b'name="model"', b'name="model"; name="x"'), (b'filename="a.wav"', b'filename="../../x\r\ny"'), (b"a.wav", b'a\\".wav'),
            (b"Content-Type: audio/wav", b"X: " + b"y" * 5_000), (b"--" + BOUNDARY.encode() + b"\r\n", b"--extproc.form.1f8c27a6d35b4e90\r\n"), (b"a", b"a"),
        )
    )  # fmt: skip
    spoilt = body.replace(before, after, dice.choice((1, 1, -1))) if before else after + body
    if dice.random() < 0.2:
        spoilt = spoil_bytes(dice, ask._replace(body=spoilt))
    kind = dice.choice(
        (
            *[f"multipart/form-data; boundary={BOUNDARY}"] * 6, "multipart/form-data", "multipart/form-data; boundary=", f'Multipart/Form-Data;boundary="{BOUNDARY}"',
            f"multipart/form-data; boundary={BOUNDARY}; boundary=b", "multipart/form-data; boundary=" + "x" * 200, "application/json", "", "multipart/mixed; boundary=a-boundary",
        )
    )  # fmt: skip
    return spoilt, kind


def random_hostile(dice: Dice) -> Ask:
    """Any path, a body that was spoilt, and a content type that may not be its own."""
    ask = random_ask(dice, models)
    if ask.members is None and dice.random() < 0.7:
        body, kind = spoil_form(dice, ask)
        return ask._replace(body=body, content_type=kind)
    spoils = [spoil_bytes, cut_off, anything, recode]
    if ask.members is not None:
        spoils += [spoil_members] * 10 + [double_a_key] * 2
    kind = (
        ask.content_type
        if dice.random() < 0.95
        else dice.choice(("", "text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=x"))
    )
    return ask._replace(body=dice.choice(spoils)(dice, ask), content_type=kind)


# what must be true


def check(ask: Ask, terms: Pinned, *, spendable_nanos: int) -> str:
    """What became of it: ``forwarded``, or the code of the error."""
    walk = Walk(terms, spendable_nanos=spendable_nanos)
    walk.ask(ask.path, ask.body, ask.content_type)
    if walk.passed is None:
        return check_refusal(ask.path, walk)
    assert walk.reply is None
    assert not walk.ends
    check_forwarded(ask.path, walk)
    return "forwarded"


def check_refusal(path: str, walk: Walk) -> str:
    reply = walk.reply
    assert reply is not None, "neither forwarded nor answered"
    assert 400 <= reply.status < 500, reply
    code = check_error(path, reply.status, reply.body)
    assert [ending.kind for ending in walk.ends] == [EndKind.VOID] * walk.is_held
    assert all(ending.charge_nanos == 0 for ending in walk.ends)
    assert walk.record.cost_nanos == 0
    return code


def check_error(path: str, status: int, body: bytes) -> str:
    """As the endpoint's own SDK understands it."""
    said = msgspec.json.decode(body)
    error = said["error"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    if path.startswith("/v1/messages"):
        assert said["type"] == "error"
    else:
        assert said.keys() == {"error"}
        assert {"message", "type", "param", "code"} <= error.keys()
    return f"{status} {error.get('code')}"


def check_forwarded(path: str, walk: Walk) -> None:
    assert walk.passed is not None
    tab, held = walk.exchange.tab, walk.amendment
    assert walk.is_held
    assert held is not None, "forwarded, and nobody was asked to hold for it"
    assert tab.price is not None
    endpoint, sized = BY_PATH[path], tab.sized
    is_free = not endpoint.is_listed
    assert is_free or 0 < held.reserved_nanos == held.cap_nanos <= walk.spendable_nanos
    members: dict[str, Any]
    if endpoint.name == "transcriptions":
        members = parts_of(walk.passed.data)
        assert members["file"]
    else:
        members = msgspec.json.decode(walk.passed.data)
        assert members == json.loads(walk.passed.data), "one reading"
    assert tab.model is not None
    assert sized is not None
    assert members["model"] == tab.model.served_name
    assert not members.keys() & (ONLY_OURS - SAMPLED)
    maximum = next((members[name] for name in ("max_tokens", "max_output_tokens") if name in members), None)
    if endpoint.output_default != 0:
        choices = members.get("n", 1) * (sized.demand.output_tokens // (sized.output_each * members.get("n", 1)))
        assert isinstance(maximum, int)
        assert 0 < maximum * choices == sized.demand.output_tokens


def parts_of(form: bytes) -> dict[str, Any]:
    """As somebody else reads it."""
    message = email.message_from_bytes(b"Content-Type: " + CONTENT_TYPE.encode() + b"\r\n\r\n" + form)
    assert not message.defects
    parts = message.get_payload()
    assert isinstance(parts, list)
    names = [str(part.get_param("name", header="content-disposition")) for part in parts]
    assert len({name for name in names if not name.endswith("[]")}) == len([name for name in names if not name.endswith("[]")])
    return {name: part.get_payload() for name, part in zip(names, parts, strict=True)}


def run(bodies: int, seed: int) -> Counter[str]:
    """Each with a policy, and now and then little money. A failure names its seed."""
    found: Counter[str] = Counter()
    terms = [pinned(CATALOG, policy=policy, bounds=Bounds(body_bytes_max=BODY_BYTES_MAX, offload_bytes=4_096)) for policy in POLICIES]
    for number in range(bodies):
        dice = random.Random(f"{seed}/{number}")
        ask = random_hostile(dice)
        try:
            spendable = 10**12 if dice.random() < 0.95 else 10 ** dice.randint(5, 8)
            found[check(ask, dice.choice(terms), spendable_nanos=spendable)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, body {number}: {ask.path} {ask.content_type} {ask.body[:600]!r}")
            raise
    return found


def main(bodies: int, seed: int) -> None:
    begun = time.monotonic()
    found = run(bodies, seed)
    print(
        f"{bodies} hostile bodies over all endpoints, seed {seed}, {time.monotonic() - begun:.0f} s: none broke anything; each was refused"
    )
    print("and given back, or held for and forwarded as a plain body.")
    for what, count in found.most_common():
        print(f"  {what:<40} {count:>8}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
