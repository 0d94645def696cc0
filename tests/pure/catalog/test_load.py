"""``models.yaml``: the shipped example loads, and each slip is refused with its line."""

from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest

from extproc.catalog.load import load_catalog, parse_catalog
from extproc.errors import ConfigError
from extproc.money.hold import Limits

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "models.yaml"
HEAD = "version: 1\ncurrency: CNY\ntiers: {default: {priorities: [standard, spot]}}\nmodels:\n"  # a model's own lines begin with 6
MODEL = {
    "tokenizer": "qwen2",
    "chat_template": "chatml",
    "context_tokens": "32_768",
    "output_tokens_max": "8_192",
    "price": '{input: "1.00", cached_input: "0.25", output: "3.00"}',
}


def text_of(head: str = HEAD, **changes: str | None) -> str:
    lines = {key: value for key, value in (MODEL | changes).items() if value is not None}
    return head + "  m:\n" + "".join(f"    {key}: {value}\n" for key, value in lines.items())


def load(text: str, **more):
    return parse_catalog(text.encode(), file="models.yaml", **more)


def faults_of(text: str, **more) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        load(text, **more)
    return [(fault.line, fault.message) for fault in caught.value.faults]


def test_the_example():
    catalog = load_catalog(EXAMPLE, vocabularies=["qwen2", "qwen3"])
    assert catalog.version == sha256(EXAMPLE.read_bytes()).hexdigest()
    assert catalog.currency == "CNY"
    assert list(catalog.tiers) == ["default", "business", "internal"]
    assert catalog.default_tier == "default"
    assert catalog.tier("default", at_ms=0).limits == Limits(
        requests_per_minute=10, requests_per_hour=500, tokens_per_minute=200_000, concurrent_requests=8
    )
    assert catalog.tier("internal", at_ms=0).limits == Limits(concurrent_requests=64)
    assert (catalog.tier("business", at_ms=0).price_factor, catalog.tier("internal", at_ms=0).price_factor) == (850_000, 0)
    assert catalog.tier("gone", at_ms=0).name == "default"
    qwen = catalog.models["qwen2.5-14b"]
    assert (qwen.tariffs[0].rates.input, qwen.tariffs[0].rates.cached_input, qwen.tariffs[0].rates.output) == (
        1_000_000_000,
        250_000_000,
        3_000_000_000,
    )
    assert qwen.priority_factors == {"standard": 1_000_000, "spot": 500_000}
    assert (qwen.sticky, qwen.usage, qwen.tariffs[0].method, qwen.free) == ("prefix", "inject", "per_token", False)
    assert qwen.endpoints == {"chat.completions", "completions", "responses", "messages"}
    assert catalog.models["gpt-3.5-turbo"] is catalog.models["qwen2.5-7b"]
    assert catalog.models["qwen-coder-7b"].served_name == "Qwen/Qwen2.5-Coder-7B-Instruct"
    assert catalog.models["deepseek-coder-lite"].tariffs[0].rates.resolved[1] == 700_000_000
    assert (catalog.models["qwen2-vl-7b"].image_formula, catalog.models["qwen2-vl-7b"].image_tokens_max) == ("qwen2-vl", 16_384)
    assert (catalog.models["bge-m3"].endpoints, catalog.models["bge-m3"].tariffs[0].rates.output) == ({"embeddings"}, 0)


def test_a_price_of_the_example_is_resolved_and_remembered():
    catalog = load_catalog(EXAMPLE)
    model, tier = catalog.models["qwen2.5-14b"], catalog.tier("business", at_ms=0)
    price = catalog.price(model, priority="spot", tier=tier, at_ms=0)
    assert price.of(1_000_000 * model.tariffs[0].rates.input) == 425_000_000  # 1.00 × 0.5 × 0.85
    assert catalog.price(model, priority="spot", tier=tier, at_ms=0) is price
    assert catalog.price(model, priority="standard", tier=catalog.tier("default", at_ms=0), at_ms=0).factors == ()
    assert catalog.price(model, priority="standard", tier=catalog.tier("internal", at_ms=0), at_ms=0).of(10**18) == 0


TIERS = """version: 1
currency: CNY
tiers:
  default:
    - {limits: {requests_per_minute: 10}}
    - {limits: {requests_per_minute: 20}, price_factor: "0.9", priorities: [standard, spot], effective_at: "2026-12-01T00:00:00+08:00"}
    - {price_factor: "0", effective_at: "2027-01-01T00:00Z"}
models:
"""


def test_a_tier_changes_at_its_moments():
    catalog = load(text_of(TIERS, priority_factor='{standard: "1", spot: "0.5"}'))
    model = catalog.models["m"]
    told = []
    for moment in ("2026-11-30T15:59:59.999Z", "2026-11-30T16:00:00Z", "2027-01-01T00:00:00Z"):
        at_ms = int(datetime.fromisoformat(moment).timestamp() * 1_000)
        tier = catalog.tier("gone", at_ms=at_ms)
        price = catalog.price(model, priority="standard", tier=tier, at_ms=at_ms)
        told.append((tier.name, tier.limits.requests_per_minute, "spot" in tier.priorities, price.of(1_000_000 * 10**9)))
    assert told == [("default", 10, False, 10**9), ("default", 20, True, 9 * 10**8), ("default", None, False, 0)]


def test_the_tier_that_the_reference_shows():
    page = (EXAMPLE.parents[1] / "docs/reference/configuration.md").read_text().partition("### From a moment on")[2]
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    assert [
        tier.limits.requests_per_minute for tier in load(text_of(f"version: 1\ncurrency: CNY\n{shown}models:\n")).tiers["default"].later
    ] == [20]


@pytest.mark.parametrize(
    ("tiers", "line", "part"),
    [
        ('[{}, {price_factor: "1"}]', 3, "tiers.default[1]: effective_at is missing"),
        ('[{effective_at: "2026-12-01T00:00:00Z"}]', 3, "tiers.default[0].effective_at: is not known here"),
        ('{effective_at: "2026-12-01T00:00:00Z"}', 3, "tiers.default.effective_at: is not known here"),
        ("[]", 3, "1 to 64 tiers are needed, here are 0"),
        (
            '[{}, {effective_at: "2026-12-02T00:00:00Z"}, {effective_at: "2026-12-01T00:00:00Z"}]',
            3,
            "tiers.default[2]: effective_at is not after",
        ),
    ],
)
def test_each_fault_of_a_tier_over_time(tiers, line, part):
    ((found, message),) = faults_of(text_of(f"version: 1\ncurrency: CNY\ntiers: {{default: {tiers}}}\nmodels:\n"))
    assert (found, part in message) == (line, True), message


def test_defaults_are_merged_and_a_model_overrides_each():
    head = (
        "version: 1\ncurrency: EUR\ntiers: {t: {priorities: [standard, spot]}}\n"
        "defaults: {endpoints: [completions], output_tokens_default: 100, priority_factor: {spot: '0.5'}, usage: forced, sticky: account}\n"
        "models:\n"
    )
    inherited = load(text_of(head)).models["m"]
    assert inherited.endpoints == {"completions"}
    assert (inherited.output_tokens_default, inherited.usage, inherited.sticky) == (100, "forced", "account")
    assert inherited.priority_factors == {"spot": 500_000}
    own = load(
        text_of(
            head,
            endpoints="[chat.completions]",
            output_tokens_default="7",
            priority_factor="{standard: '2'}",
            usage="counted",
            sticky="none",
        )
    ).models["m"]
    assert own.endpoints == {"chat.completions"}
    assert (own.output_tokens_default, own.usage, own.sticky) == (7, "counted", "none")
    assert own.priority_factors == {"standard": 2_000_000}


def test_an_inherited_default_is_capped_by_the_model():
    assert load(text_of(output_tokens_max="100")).models["m"].output_tokens_default == 100


def test_a_free_model_has_no_price():
    model = load(text_of(free="true", price=None)).models["m"]
    assert (model.free, model.tariffs[0].rates.input, model.tariffs[0].rates.output) == (True, 0, 0)


def test_a_missing_price_of_cached_input_is_that_of_input():
    model = load(text_of(price='{input: "0.70", output: "1.40"}')).models["m"]
    assert model.tariffs[0].rates.resolved[1] == model.tariffs[0].rates.input == 700_000_000


def test_the_largest_and_the_smallest_price():
    model = load(text_of(price='{input: "0.000000001", output: "1000000"}')).models["m"]
    assert (model.tariffs[0].rates.input, model.tariffs[0].rates.output) == (1, 10**15)


@pytest.mark.parametrize(
    ("changes", "line", "part"),
    [
        ({"tokenizer": None}, 5, "m: tokenizer is missing"),
        ({"context_tokens": None}, 5, "context_tokens is missing"),
        ({"output_tokens_max": None}, 5, "output_tokens_max is missing"),
        ({"price": None}, 5, "price is missing; a model that costs nothing says `free: true`"),
        ({"free": "true"}, 10, "has no price"),
        ({"free": "yes"}, 11, "must be true or false, not 'yes'"),
        ({"chat_template": None}, 5, "chat_template is missing"),
        ({"chat_template": "chatlm"}, 7, "did you mean chatml?"),
        ({"output_tokens_max": "40_000"}, 9, "is above context_tokens (32768)"),
        ({"output_tokens_max": "0"}, 9, "is not within 1"),
        ({"output_tokens_default": "9_000"}, 11, "is above output_tokens_max (8192)"),
        ({"context_tokens": '"8192"'}, 8, "must be a whole number, not '8192'"),
        ({"price": '{input: 1.50, output: "3"}'}, 10, 'price.input: must be text, not the number 1.5 (quote it: "1.5")'),
        ({"price": '{input: "1", output: 3}'}, 10, "price.output: must be text, not the number 3"),
        ({"price": '{input: "1"}'}, 10, "price: output is missing"),
        ({"price": '{input: "1e3", output: "1"}'}, 10, "is not a decimal amount"),
        ({"price": '{input: "-1", output: "1"}'}, 10, "is not a decimal amount"),
        ({"price": '{input: "0.0000000001", output: "1"}'}, 10, "has more than 9 decimals"),
        ({"price": '{input: "1000000.01", output: "1"}'}, 10, "is above 1000000 for a million: is"),
        ({"price": '{input: "1", cached_input: "1.01", output: "1"}'}, 10, "price.cached_input: is above the price of input"),
        ({"price": '{input: "1", output: "1", imaeg: "2"}'}, 10, "price.imaeg: is not known here; did you mean image?"),
        ({"price": '"1.00"'}, 10, "price: must be a mapping"),
        ({"method": "per_tokn"}, 11, "did you mean per_token?"),
        ({"endpoints": "[chat.completion]"}, 11, "did you mean chat.completions?"),
        ({"endpoints": "[]"}, 11, "at least one endpoint"),
        ({"usage": "maybe"}, 11, "is none of inject"),
        ({"usage": "counted", "tokenizer": "upstream"}, 11, "usage: counted needs a tokenizer"),
        ({"sticky": "session"}, 11, "is none of none, account, prefix"),
        ({"priority_factor": '{turbo: "1"}'}, 11, "no tier may ask for priority 'turbo'"),
        ({"priority_factor": '{standard: "0.0000001"}'}, 11, "has more than 6 decimals"),
        ({"priority_factor": '{standard: "1000.1"}'}, 11, "is above 1000"),
        ({"priority_factor": "{}"}, 11, "at least one priority must be sold"),
        ({"priority_factor": "{standard: 1}"}, 11, 'quote it: "1"'),
        ({"image": "{formula: qwen2-vl}"}, 11, "tokens_max is missing"),
        ({"image": "{formula: other, tokens_max: 5}"}, 11, "is none of qwen2-vl"),
        ({"aliases": "[m]"}, 11, "alias 'm' is a name of model m already"),
        ({"aliases": "[a b]"}, 11, "is not a model name"),
        ({"aliases": "[a, a]"}, 11, "second time"),
        ({"served_name": '""'}, 11, "is not a model name"),
        ({"prise": "1"}, 11, "prise: is not known here; did you mean price?"),
    ],
)
def test_each_fault_of_a_model(changes, line, part):
    [(found, message)] = faults_of(text_of(**changes))
    assert (found, part in message) == (line, True), message
    assert message.startswith("models.m")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"output_tokens_max": "5"}, "no endpoint of this model (embeddings) has output"),
        ({"price": '{input: "1", output: "1"}'}, "(embeddings; no `image`) never use output"),
    ],
)
def test_an_embedding_has_no_output(changes, part):
    embeddings = {"endpoints": "[embeddings]", "output_tokens_max": None, "price": '{input: "1"}', "chat_template": None}
    assert load(text_of(**embeddings)).models["m"].output_tokens_max == 0
    [(_, message)] = faults_of(text_of(**(embeddings | changes)))
    assert part in message


@pytest.mark.parametrize(
    ("head", "line", "part"),
    [
        ("version: 2\n", 1, "version: this program reads version 1"),
        ("currency: yuan\n", 2, "is not a currency such as CNY"),
        ("tiers: {}\n", 3, "at least one tier is needed"),
        ("tiers: {default: {limits: {requests_per_minute: 0}}}\n", 3, "is not within 1"),
        ("tiers: {default: {limits: {requests_per_min: 5}}}\n", 3, "did you mean requests_per_minute?"),
        ("tiers: {default: {limits: {requests_per_minute: '5'}}}\n", 3, "must be a whole number"),
        ("tiers: {default: {price_factor: 0.85}}\n", 3, 'quote it: "0.85"'),
        ("tiers: {Default Tier: {}}\n", 3, "is not a name"),
        ("tiers: {default: {priorities: []}, other: {priorities: [standard]}}\n", 3, "at least one priority is needed"),
    ],
)
def test_each_fault_of_the_head(head, line, part):
    lines = HEAD.splitlines(keepends=True)
    key = head.split(":")[0]
    text = "".join(head if old.startswith(key) else old for old in lines)
    [(found, message)] = faults_of(text_of(text))
    assert (found, part in message) == (line, True), message


@pytest.mark.parametrize("key", ["version", "currency", "tiers", "models"])
def test_each_part_is_needed(key):
    text = "".join(line for line in text_of().splitlines(keepends=True) if not line.startswith((key, " ") if key == "models" else key))
    assert any(message == f"{key} is missing" for _, message in faults_of(text))


def test_no_models():
    assert faults_of(HEAD + "  {}\n")[0][1] == "models: 1 to 10000 models are needed, here are 0"


def test_a_tokenizer_that_the_program_has_not():
    [(line, message)] = faults_of(text_of(tokenizer="qwen9"), vocabularies=["qwen2"])
    assert (line, message) == (6, "models.m.tokenizer: 'qwen9' is none of qwen2, upstream; did you mean qwen2?")


def test_names_and_aliases_are_unique_over_all_models():
    text = text_of(aliases="[n, x]") + text_of("", aliases="[x, o]").replace("  m:", "  n:")
    assert faults_of(text) == [
        (11, "models.m: alias 'n' is a name of model n already"),
        (18, "models.n: alias 'x' is a name of model m already"),
    ]


def test_a_faulty_default_is_reported_once():
    head = HEAD.replace("models:", "defaults: {usage: maybe}\nmodels:")
    text = text_of(head) + text_of("").replace("  m:", "  n:")
    assert faults_of(text) == [(4, "defaults.usage: 'maybe' is none of inject, continuous, forced, counted")]


def test_all_faults_at_once_in_the_order_of_the_file():
    text = text_of(price='{input: 1.5, output: "x"}', free="maybe", tokenizer=None, contex_tokens="5")
    lines = [line for line, _ in faults_of(text)]
    assert lines == sorted(lines)
    assert len(lines) == 5


def test_doubled_keys_are_faults():
    assert faults_of(text_of() + "    tokenizer: qwen3\n") == [(11, "'tokenizer' stands here a second time (first: line 6)")]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog(tmp_path / "models.yaml")
