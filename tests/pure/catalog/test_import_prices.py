"""Ratio tables of one-api and new-api: the same sum by their formula and by ours, and nothing left out in silence."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.app.import_prices import Wanted, import_prices
from extproc.catalog.load import load_catalog, parse_catalog
from extproc.errors import UsageError
from extproc.money.receipt import cost_nanos
from extproc.money.usage import Usage

TABLES = {
    "ModelRatio": {"gpt-4o": 1.25, "qwen-plus": 0.2857, "free-one": 0},
    "CompletionRatio": {"gpt-4o": 4, "qwen-plus": 2.5, "free-one": 1},
    "GroupRatio": {"svip": 0.85, "default": 1},
}
USD = Wanted(context_tokens=32_768, output_tokens_max=8_192)
CNY = Wanted(currency="CNY", usd_rate="7.2", context_tokens=32_768, output_tokens_max=8_192)


@pytest.fixture
def imported(tmp_path):
    def run(document, wanted=USD, into=None):
        source = tmp_path / "one-api.json"
        source.write_text(document if isinstance(document, str) else json.dumps(document))
        return import_prices(source, wanted, into=into)

    return run


def charge_nanos(yaml: str, model: str, tier: str, usage: Usage) -> int:
    catalog = parse_catalog(yaml.encode(), file="imported")
    return cost_nanos(usage, catalog.price(catalog.models[model], priority="standard", tier=catalog.tier(tier, at_ms=0), at_ms=0))


RATIO = st.decimals("0.0001", "200", places=4)
TOKENS = st.integers(0, 200_000)


@given(
    model=RATIO,
    completion=RATIO,
    group=st.decimals("0", "5", places=3),
    cache=st.decimals("0", "1", places=2),
    tokens=st.tuples(TOKENS, TOKENS, TOKENS),
)
def test_both_formulas_give_the_same_sum(tmp_path_factory, *, model, completion, group, cache, tokens):
    """To the one rounding, up to a nano; theirs is up to a whole quota, 2,000 nanos of a dollar."""
    source = tmp_path_factory.mktemp("tables") / "one-api.json"
    tables = {"ModelRatio": model, "CompletionRatio": completion, "CacheRatio": cache}
    document = ",".join(f'"{name}":{{"m":{ratio}}}' for name, ratio in tables.items())
    source.write_text(f'{{{document},"GroupRatio":{{"default":1,"g":{group}}}}}')
    fresh, cached, output = tokens
    usage = Usage(input_tokens=fresh + cached, cached_tokens=cached, output_tokens=output)
    charged = charge_nanos(import_prices(source, CNY, into=None)["yaml"], "m", "g", usage)
    quota = (fresh + cached * Fraction(cache) + output * Fraction(completion)) * Fraction(model) * Fraction(group)
    exact_nanos = quota / 500_000 * Fraction("7.2") * 10**9
    assert 0 <= charged - exact_nanos < 1 + Fraction(fresh + cached + output, 10**6)  # a rate has 9 decimals, and may be rounded up, too


def test_a_sum_by_hand(imported):
    """1,000 × 1.25 + 500 × 4 × 1.25 = 3,750 of quota = 0.0075 USD; × 0.85 for the group."""
    done = imported(TABLES)
    usage = Usage(input_tokens=1_000, output_tokens=500)
    assert charge_nanos(done["yaml"], "gpt-4o", "default", usage) == 7_500_000
    assert charge_nanos(done["yaml"], "gpt-4o", "svip", usage) == 6_375_000
    assert charge_nanos(imported(TABLES, CNY)["yaml"], "gpt-4o", "default", usage) == 54_000_000
    assert charge_nanos(done["yaml"], "free-one", "default", usage) == 0
    assert (done["tiers"], done["models"], len(done["notes"])) == (2, 3, 1), done["notes"]
    assert parse_catalog(done["yaml"].encode(), file="").default_tier == "default"


def test_what_is_written_to_a_cache_costs_what_new_api_takes(imported):
    """1.25 where nothing is named; one-api knows no such tokens, and they are input like others."""
    written = Usage(input_tokens=100_000, cache_creation_tokens=100_000)
    for more, nanos in (({}, 250_000_000), ({"CacheRatio": {}}, 312_500_000), ({"CreateCacheRatio": {"gpt-4o": 2}}, 500_000_000)):
        assert charge_nanos(imported(TABLES | more)["yaml"], "gpt-4o", "default", written) == nanos


def test_a_price_of_a_call_goes_before_a_ratio(imported):
    done = imported({"ModelRatio": {"m": 1}, "ModelPrice": {"m": 0.1, "n": 0}, "GroupRatio": {"g": 0.5}})
    assert charge_nanos(done["yaml"], "m", "g", Usage(input_tokens=9)) == 50_000_000
    assert parse_catalog(done["yaml"].encode(), file="").models["n"].free
    assert any("the price of a call is taken" in note for note in done["notes"])


@pytest.mark.parametrize(
    "document",
    [
        {name: json.dumps(table) for name, table in TABLES.items()},
        {"success": True, "data": [{"key": name, "value": json.dumps(table)} for name, table in TABLES.items()]},
        [{"key": name, "value": json.dumps(table)} for name, table in TABLES.items()],
        {"success": True, "data": {"model_ratio": TABLES["ModelRatio"], "completion_ratio": TABLES["CompletionRatio"], "group_ratio": TABLES["GroupRatio"]}},
    ],
)  # fmt: skip
def test_the_shapes_that_tables_come_in(imported, document):
    assert imported(document)["yaml"] == imported(TABLES)["yaml"]


@pytest.mark.parametrize(
    ("tables", "note"),
    [
        ({"GroupGroupRatio": {"a": {"b": 1}}, "SMTPToken": "secret"}, "not read, since it is no table that a price here could say: GroupGroupRatio, SMTPToken"),
        ({"GroupRatio": {"VIP": 1}}, "group 'VIP' left out"),
        ({"GroupRatio": {"g": 0.3333333}}, "group 'g': 0.3333333 has more than 6 decimals; rounded up to 0.333334"),
        ({"GroupRatio": {"g": 1_001}}, "group 'g': 1001 is above 1000; left out"),
        ({"ModelRatio": {"gpt-4-gizmo-*": 15}}, "model 'gpt-4-gizmo-*' left out"),
        ({"ModelRatio": {"qwen(15)": 15}}, "model 'qwen(15)' left out"),
        ({"ModelRatio": {"m": -1}}, "ModelRatio of 'm': -1 is no ratio; left out"),
        ({"ModelRatio": {"m": "1"}}, "ModelRatio of 'm': \"1\" is no ratio; left out"),
        ({"ModelRatio": {"m": 9e9}}, "model 'm', input: 18000000000 is above 1000000; left out"),
        ({"ModelRatio": {"m": 0.00000000033}}, "model 'm', input: 6.6e-10 has more than 9 decimals; rounded up to 0.000000001"),
        ({"ModelPrice": {"m": 20_000}}, "model 'm', call: 20000 is above 10000; left out"),
        ({"ModelRatio": {"m": 1}}, "output costs what input costs (one-api knows some itself): m"),
        ({"CacheRatio": {"gpt-4o": 0.5}, "CreateCacheRatio": {"gpt-4o": 2}}, "no CreateCacheRatio, so tokens written to a cache cost 1.25 times input, as in new-api (leave `cache_creation` out where no backend tells of any: holds are for the dearest): qwen-plus"),
        ({"CompletionRatio": {"lonely": 3}}, "CompletionRatio without a ModelRatio beside it (one-api knows some itself), left out: lonely"),
        ({"CacheRatio": {"gpt-4o": 1.5}}, "model 'gpt-4o': its CacheRatio is above 1; left out"),
        ({"ImageRatio": {"gpt-4o": 2}}, "model 'gpt-4o': put `image: \"5\"` into its price"),
        ({"AudioCompletionRatio": {"gpt-4o": 2}}, "no table that a price here could say: AudioCompletionRatio"),
        ({"ModelPrice": {"gpt-4o": 1}}, "CompletionRatio beside a ModelPrice has no effect, left out: gpt-4o"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_told(imported, tables, note):
    document = {
        name: {**TABLES.get(name, {}), **tables.get(name, {})} if isinstance(tables.get(name, {}), dict) else tables[name]
        for name in {**TABLES, **tables}
    }
    done = imported(document)
    assert any(note in told for told in done["notes"]), done["notes"]
    assert "secret" not in json.dumps(done)


@pytest.mark.parametrize(
    ("document", "wanted", "part"),
    [
        ("{", USD, "is not JSON"),
        ("[" * 100_000, USD, "is not JSON"),
        ("[1]", USD, "neither a JSON object of tables nor a list"),
        ("{}", USD, "neither a ModelRatio nor a ModelPrice"),
        ('{"ModelRatio": {"*": 1}}', USD, "none of its models can be taken: model '\\*' left out"),
        ('{"ModelRatio": [1]}', USD, "ModelRatio is not a JSON object"),
        (TABLES, Wanted(currency="CNY", context_tokens=1, output_tokens_max=1), "how many CNY is a dollar"),
        (TABLES, Wanted(currency="CNY", usd_rate="0", context_tokens=1, output_tokens_max=1), "cannot be for CNY"),
        (TABLES, Wanted(currency="USD", usd_rate="2", context_tokens=1, output_tokens_max=1), "cannot be for USD"),
        (TABLES, Wanted(currency="CNY", usd_rate="x", context_tokens=1, output_tokens_max=1), "--usd-rate: 'x' is not a decimal"),
    ],
)
def test_what_is_refused(imported, document, wanted, part):
    with pytest.raises(UsageError, match=part):
        imported(document, wanted)


OLD = """# mine
version: 1
currency: USD
tiers:
    default: {}  # the first

# what is sold
models:
    gpt-4o:
        tokenizer: upstream
        context_tokens: 8_000
        output_tokens_max: 4_000
        price: {input: "9", output: "9"}
# the end
"""


def test_a_catalog_gets_what_it_lacks_and_keeps_what_it_says(imported, tmp_path):
    into = tmp_path / "models.yaml"
    into.write_text(OLD)
    into.chmod(0o640)
    before = load_catalog(into)
    done = imported(TABLES, into=into)
    after = load_catalog(into)
    assert done["notes"][1:] == [f"{into}:9: model 'gpt-4o' has another price than the table; left as it is"]
    assert after.models["gpt-4o"] == before.models["gpt-4o"]
    assert list(after.models) == ["gpt-4o", "qwen-plus", "free-one"]
    assert after.tiers["svip"].price_factor == 850_000
    assert next(line for line in into.read_text().splitlines() if line not in OLD.splitlines()) == '    "svip": {price_factor: "0.85"}'
    assert into.read_text().endswith("# the end\n")
    assert into.stat().st_mode & 0o777 == 0o640
    again = into.read_text()
    assert imported(TABLES, into=into)["notes"][1:] == [note.replace(":9:", ":10:") for note in done["notes"][1:]]
    assert into.read_text() == again


def test_a_catalog_that_is_not_there_is_made(imported, tmp_path):
    done = imported(TABLES, into=tmp_path / "new.yaml")
    assert (tmp_path / "new.yaml").read_text() == done["yaml"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("USD", "EUR"), "is in EUR, the import in USD"),
        (("tiers:\n    default: {}  # the first\n", "tiers: {default: {}}\n"), "`tiers` is written in braces"),
        (("tiers:", "defaults: {endpoints: [embeddings]}\ntiers:"), "would be refused, so it is left as it is"),
    ],
)
def test_a_catalog_that_cannot_take_it_is_left_as_it_is(imported, tmp_path, change, part):
    into = tmp_path / "models.yaml"
    text = OLD.replace(*change).replace(
        "output_tokens_max: 4_000\n        price", "output_tokens_max: 4_000\n        endpoints: [completions]\n        price"
    )
    into.write_text(text)
    with pytest.raises(UsageError, match=part):
        imported(TABLES, into=into)
    assert into.read_text() == text
