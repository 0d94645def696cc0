"""What a model may cost: every method, steps, dates, hours; and each slip of it with its line."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from extproc.catalog.load import parse_catalog
from extproc.catalog.model import Catalog, Model
from extproc.errors import ConfigError
from extproc.money.price import Price
from extproc.money.quote import Demand, worst_case_nanos
from extproc.money.receipt import cost_nanos
from extproc.money.usage import Usage

HEAD = "version: 1\ncurrency: CNY\ntiers: {default: {}, staff: {price_factor: '0'}}\n"
UNIT = 10**9


def text_of(price: str, *, head: str = HEAD, **more: str) -> str:
    """A model that takes everything but transcriptions; ``price`` stands on line 6."""
    lines = {
        "tokenizer": "upstream",
        "context_tokens": "200_000",
        "output_tokens_max": "8_192",
        "image": "{formula: qwen2-vl, tokens_max: 16_384}",
    }
    lines |= more
    said = f"    price: {price}\n" + "".join(f"    {key}: {value}\n" for key, value in lines.items() if value)
    return f"{head}models:\n  m:\n{said}"


def model_of(price: str, **more: str) -> Model:
    return catalog_of(price, **more).models["m"]


def catalog_of(price: str, **more: str) -> Catalog:
    return parse_catalog(text_of(price, **more).encode(), file="models.yaml")


def price_of(price: str, at_ms: int = 0, tier: str = "default", **more: str) -> Price:
    catalog = catalog_of(price, **more)
    return catalog.price(catalog.models["m"], priority="standard", tier=catalog.tier(tier, at_ms=at_ms), at_ms=at_ms)


def faults_of(price: str, **more: str) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        catalog_of(price, **more)
    return [(fault.line, fault.message) for fault in caught.value.faults]


PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "configuration.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text().partition("### Prices")[2].partition("### From a")[0], re.DOTALL)
AUDIO = {"endpoints": "[transcriptions]", "output_tokens_max": "", "image": ""}
USED = Usage(
    input_tokens=1_000_000, cached_tokens=100_000, cache_creation_tokens=200_000, image_tokens=50_000, audio_tokens=10_000,
    output_tokens=500_000, reasoning_tokens=400_000, images=3, input_characters=4_000_000, output_characters=2_000_000,
    input_words=800_000, output_words=400_000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "price", "units"),
    [
        ("per_token", '{input: "1", output: "3"}', 1 + 1.5),
        ("per_token", '{input: "1", cached_input: "0.1", output: "3"}', 0.9 + 0.01 + 1.5),
        (
            "per_token",
            '{input: "1", cached_input: "0.1", cache_creation: "1.25", image: "2", audio: "10", output: "3", reasoning: "4"}',
            0.64 + 0.01 + 0.25 + 0.1 + 0.1 + 0.3 + 1.6,
        ),
        ("per_call", '{call: "0.01"}', 0.01),
        ("per_character", '{input: "0.5", output: "2"}', 2 + 4),
        ("per_word", '{input: "0.5", output: "2"}', 0.4 + 0.8),
        ("hybrid", '{per_token: {input: "1", output: "3"}, per_call: {call: "0.01"}, per_image: {image: "0.02"}}', 2.5 + 0.01 + 0.06),
    ],
)
def test_each_method_charges_what_it_says(method, price, units):
    found = price_of(price, method=method)
    assert cost_nanos(USED, found) == round(units * UNIT)
    assert found.method == method
    assert Price.parse(found.text) == found


def test_images_alone():
    found = price_of('{image: "0.02"}', method="per_image", endpoints="[chat.completions]")
    assert cost_nanos(USED, found) == 60_000_000
    assert faults_of('{image: "0.02"}', method="per_image") == [
        (6, "models.m.price: has nothing that completions uses: its requests would be free")
    ]


def test_sound_by_the_second():
    found = price_of('{second: "0.0001"}', method="per_second", **AUDIO)
    assert cost_nanos(Usage(audio_ms=61_500), found) == 6_150_000
    assert worst_case_nanos(found, Demand(input_tokens=0, output_tokens=0, audio_ms=90_000)) == 9_000_000


STEPS = '{input: "1", output: "3", above: [{tokens: 1_000, input: "2", output: "6"}, {tokens: 128_000, input: "4", output: "12"}]}'


@pytest.mark.parametrize(("tokens", "rate"), [(1_000, 1), (1_001, 2), (128_000, 2), (128_001, 4)])
def test_a_long_prompt_costs_more_as_a_whole(tokens, rate):
    assert cost_nanos(Usage(input_tokens=tokens, output_tokens=10), price_of(STEPS)) == (tokens + 30) * rate * 1_000


def test_what_is_combined_with_tokens_costs_the_same_above_a_step():
    found = price_of(f'{{per_token: {STEPS}, per_call: {{call: "0.5"}}}}', method="hybrid")
    assert cost_nanos(Usage(input_tokens=2_000), found) == 4_000_000 + UNIT // 2
    assert cost_nanos(Usage(input_tokens=1_000), found) == 1_000_000 + UNIT // 2


def ms_of(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1_000)


DATED = """
      - {input: "1", output: "3"}
      - {input: "2", output: "6", effective_at: 2026-12-01T00:00:00+08:00}
      - {input: "3", output: "9", effective_at: "2027-01-01T00:00Z"}"""


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        ("2026-11-30T15:59:59.999Z", 1),
        ("2026-11-30T16:00:00Z", 2),
        ("2026-12-31T23:59:59.999+00:00", 2),
        ("2027-01-01T00:00:00Z", 3),
        ("2100-01-01T00:00:00Z", 3),
    ],
)
def test_a_price_begins_at_its_moment(moment, rate):
    assert price_of(DATED, ms_of(moment)).rates.input == rate * UNIT


def test_prices_of_two_moments_have_two_ids_and_those_of_one_have_one():
    catalog = catalog_of(DATED)
    model, tier = catalog.models["m"], catalog.tier("default", at_ms=0)
    early, late = (catalog.price(model, priority="standard", tier=tier, at_ms=ms_of(f"{year}-06-01T00:00:00Z")) for year in (2026, 2027))
    assert early.price_id != late.price_id
    assert price_of('{input: "3", output: "9"}').price_id == late.price_id, "a date is no part of a price"


def off_peak(hours: str, zone: str = "Asia/Shanghai", factor: str = "0.5") -> str:
    return f'{{time_zone: {zone}, hours: "{hours}", factor: "{factor}"}}'


@pytest.mark.parametrize(
    ("hours", "zone", "moment", "is_off_peak"),
    [
        ("00:30-08:30", "Asia/Shanghai", "2026-06-01T00:29:59+08:00", False),
        ("00:30-08:30", "Asia/Shanghai", "2026-06-01T00:30:00+08:00", True),
        ("00:30-08:30", "Asia/Shanghai", "2026-06-01T08:29:59+08:00", True),
        ("00:30-08:30", "Asia/Shanghai", "2026-06-01T08:30:00+08:00", False),
        ("22:00-06:00", "Europe/Berlin", "2026-01-10T05:59:00+01:00", True),  # winter
        ("22:00-06:00", "Europe/Berlin", "2026-01-10T06:00:00+01:00", False),
        ("22:00-06:00", "Europe/Berlin", "2026-07-10T05:59:00+02:00", True),  # summer: an hour earlier by UTC
        ("22:00-06:00", "Europe/Berlin", "2026-07-10T06:00:00+02:00", False),
        ("02:00-03:00", "Europe/Berlin", "2026-03-29T00:59:59Z", False),  # 01:59:59, and then it is 03:00:00: no such hour in this night
        ("02:00-03:00", "Europe/Berlin", "2026-03-29T01:00:00Z", False),
        ("02:00-03:00", "Europe/Berlin", "2026-10-25T00:30:00Z", True),  # 02:30 for the first time
        ("02:00-03:00", "Europe/Berlin", "2026-10-25T01:30:00Z", True),  # and for the second
        ("02:00-03:00", "Europe/Berlin", "2026-10-25T02:00:00Z", False),
        ("18:00-24:00", "Asia/Kolkata", "2026-06-01T23:59:59+05:30", True),
        ("18:00-24:00", "Asia/Kolkata", "2026-06-01T00:00:00+05:30", False),
    ],
)
def test_off_peak_hours_are_those_of_their_zone(hours, zone, moment, is_off_peak):
    found = price_of('{input: "1", output: "3"}', ms_of(moment), off_peak=off_peak(hours, zone))
    assert [factor.name for factor in found.factors] == ([f"off-peak {hours} {zone}"] if is_off_peak else [])
    assert cost_nanos(Usage(input_tokens=1_000), found) == (500_000 if is_off_peak else 1_000_000)


def test_the_price_of_a_request_is_that_of_its_beginning_and_remembered_by_it():
    catalog = catalog_of('{input: "1", output: "3"}', off_peak=off_peak("00:30-08:30"))
    model, tier = catalog.models["m"], catalog.tier("default", at_ms=0)
    night, day = (catalog.price(model, priority="standard", tier=tier, at_ms=ms_of(f"2026-06-01T0{hour}:00:00+08:00")) for hour in (8, 9))
    assert catalog.price(model, priority="standard", tier=tier, at_ms=ms_of("2026-06-02T01:00:00+08:00")) is night
    assert catalog.price(model, priority="standard", tier=tier, at_ms=int(datetime(2026, 6, 2, 1, tzinfo=UTC).timestamp() * 1_000)) is day


def test_an_account_has_a_factor_of_its_own():
    catalog = catalog_of('{input: "1", output: "3"}')
    model, tier = catalog.models["m"], catalog.tier("default", at_ms=0)
    own = catalog.price(model, priority="standard", tier=tier, at_ms=0, account_factor=800_000)
    assert [(factor.name, factor.millionths) for factor in own.factors] == [("account", 800_000)]
    assert cost_nanos(Usage(input_tokens=1_000), own) == 800_000


def test_the_minimum_charge_is_no_matter_of_factors_but_of_nothing():
    price = '{input: "1", output: "3"}'
    assert price_of(price, minimum_charge='"0.001"').minimum_nanos == 1_000_000
    assert cost_nanos(Usage(input_tokens=1), price_of(price, minimum_charge='"0.001"')) == 1_000_000
    assert cost_nanos(Usage(input_tokens=1), price_of(price, tier="staff", minimum_charge='"0.001"')) == 0


def test_what_is_set_for_all_models_and_unset_for_one():
    head = HEAD + f'defaults: {{minimum_charge: "0.5", off_peak: {off_peak("00:00-24:00")}, method: per_call}}\n'
    inherited = model_of('{call: "1"}', head=head)
    assert (inherited.off_peak.factor, inherited.tariffs[0].minimum_nanos, inherited.tariffs[0].rates.calls) == (
        500_000,
        UNIT // 2,
        UNIT * 10**6,
    )
    own = model_of('{input: "1", output: "1"}', head=head, method="per_token", off_peak="null", minimum_charge='"0"')
    assert (own.off_peak, own.tariffs[0].minimum_nanos) == (None, 0)
    free = parse_catalog(text_of("", head=head, free="true").replace("    price: \n", "").encode(), file="")
    assert (free.models["m"].off_peak, free.models["m"].tariffs[0].minimum_nanos) == (None, 0)


@pytest.mark.parametrize(
    ("price", "more", "line", "part"),
    [
        ('{call: "1"}', {}, 6, "price.call: is not known here"),
        ('{call: "1"}', {"method": "per_cal"}, 11, "did you mean per_call?"),
        ('{call: "10000.1"}', {"method": "per_call"}, 6, "is above 10000 for a call: is the decimal point"),
        ('{call: "0.0000000001"}', {"method": "per_call"}, 6, "has more than 9 decimals"),
        ("{call: 1}", {"method": "per_call"}, 6, 'quote it: "1"'),
        ("{}", {"method": "per_call"}, 6, "price: call is missing"),
        ('{second: "1"}', {"method": "per_second"}, 6, "per_second prices nothing that requests to this model use (chat.completions, completions)"),
        ('{input: "1"}', {"method": "per_character"}, 6, "price: output is missing"),
        ('{image: "1"}', {"method": "per_image", "image": ""}, 6, "per_image prices nothing"),
        ('{input: "1", output: "1", image: "2"}', {"image": ""}, 6, "price.image: requests to this model (chat.completions, completions; no `image`)"),
        ('{input: "1", audio: "1", output: "1"}', {"endpoints": "[messages]"}, 6, "price.audio: requests to this model (messages) never use audio tokens"),
        ('{input: "1", output: "1", reasoning: "x"}', {}, 6, "is not a decimal amount"),
        ('{second: "1"}', {"method": "per_second", "endpoints": "[chat.completions, transcriptions]"}, 6, "has nothing that chat.completions uses: its requests would be free"),
        ('{input: "6.00", audio: "10.00"}', AUDIO, 6, "per_token prices nothing that requests to this model use (transcriptions; no `image`): per_call, per_second may"),
        ('{input: "1", audio: "1", output: "1"}', {"endpoints": "[chat.completions, transcriptions]"}, 6, "has nothing that transcriptions uses: its requests would be free"),
        ('{per_token: {input: "1", output: "1"}}', {"method": "hybrid"}, 6, "two parts at least"),
        ('{per_token: {input: "1", output: "1"}, per_cal: {}}', {"method": "hybrid"}, 6, "did you mean per_call?"),
        ('{per_token: {input: "1"}, per_call: {call: "1"}}', {"method": "hybrid"}, 6, "price.per_token: output is missing"),
        ('{per_token: {input: "1", output: "1"}, per_second: {second: "1"}}', {"method": "hybrid"}, 6, "price.per_second: per_second prices nothing"),
        ('{input: "1", output: "1", above: []}', {}, 6, "1 to 16 steps are needed, here are 0"),
        ('{input: "1", output: "1", above: {}}', {}, 6, "price.above: must be a list"),
        ('{input: "1", output: "1", above: [{tokens: 5, input: "1"}]}', {}, 6, "above[0]: output is missing"),
        ('{input: "1", cached_input: "1", output: "1", above: [{tokens: 5, input: "1", output: "1"}]}', {}, 6, "above[0]: cached_input is missing"),
        ('{input: "1", output: "1", above: [{input: "1", output: "1"}]}', {}, 6, "above[0]: tokens is missing"),
        ('{input: "1", output: "1", above: [{tokens: 200_000, input: "1", output: "1"}]}', {}, 6, "is not within 1 … 199999"),
        ('{input: "1", output: "1", above: [{tokens: 5, input: "1", output: "1"}, {tokens: 5, input: "1", output: "1"}]}', {}, 6, "is not above 5"),
        ('{input: "1", output: "1", effective_at: "2026-12-01T00:00:00Z"}', {}, 6, "price.effective_at: is not known here"),
        ("[]", {}, 6, "1 to 64 prices are needed"),
        ('\n      - {input: "1", output: "1"}\n      - {input: "1", output: "1"}', {}, 8, "price[1]: effective_at is missing"),
        ('\n      - {input: "1", output: "1", effective_at: "2026-12-01T00:00:00Z"}', {}, 7, "price[0].effective_at: is not known here"),
        ('\n      - {input: "1", output: "1"}\n      - {input: "1", output: "1", effective_at: "2026-12-01T00:00:00"}', {}, 8, "is not a moment with its offset"),
        ('\n      - {input: "1", output: "1"}\n      - {input: "1", output: "1", effective_at: "2026-13-01T00:00:00Z"}', {}, 8, "there is no such day or hour"),
        (DATED.replace("2027-01-01T00:00Z", "2026-11-30T16:00Z"), {}, 9, "price[2]: effective_at is not after that of the price before it"),
        ('{input: "1", output: "1"}', {"minimum_charge": '"10001"'}, 11, "is above 10000 for a request"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("8:30-9:00")}, 11, "is not a part of the day such as 00:30-08:30"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("24:00-08:00")}, 11, "is not a part of the day"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("08:00-08:00")}, 11, "is no time at all"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("08:00-09:00", "Asia/Peking")}, 11, "is no time zone such as Asia/Shanghai"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("08:00-09:00", "America")}, 11, "is no time zone"),
        ('{input: "1", output: "1"}', {"off_peak": off_peak("08:00-09:00", '"../etc/passwd"')}, 11, "is no time zone"),
        ('{input: "1", output: "1"}', {"off_peak": "{}"}, 11, "off_peak: time_zone is missing"),
    ],
)  # fmt: skip
def test_each_fault_of_a_price(price, more, line, part):
    found, message = faults_of(price, **more)[0]
    assert (found, part in message) == (line, True), message
    assert message.startswith("models.m")


@pytest.mark.parametrize("key", ["minimum_charge", "off_peak"])
def test_what_is_free_has_nothing_of_a_price(key):
    value = '"1"' if key == "minimum_charge" else off_peak("00:30-08:30")
    text = text_of("", free="true", **{key: value}).replace("    price: \n", "")
    with pytest.raises(ConfigError, match=f"a model with `free: true` has no {key}"):
        parse_catalog(text.encode(), file="models.yaml")


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_reference_shows_is_read(block):
    rest = ["tokenizer: upstream", "context_tokens: 200_000"]
    rest += [] if "transcriptions" in block else ["output_tokens_max: 8_192", "image: {formula: qwen2-vl, tokens_max: 16_384}"]
    lines = "".join(f"    {line}\n" for line in [*rest, *block.splitlines()])
    assert parse_catalog(f"{HEAD}models:\n  m:\n{lines}".encode(), file="docs").models["m"].tariffs


def test_the_reference_shows_five_blocks():
    assert len(BLOCKS) == 5
