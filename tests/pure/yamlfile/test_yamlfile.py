"""YAML 1.2 scalars, doubled keys, lines, bounds; both of PyYAML's parsers."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from extproc import yamlfile
from extproc.errors import ConfigError
from extproc.yamlfile import Cursor, parse

LOADERS = [pytest.param(yaml.SafeLoader, id="python"), pytest.param(yaml.CSafeLoader, id="libyaml")]


@pytest.fixture(params=LOADERS, autouse=True)
def _loader(request, monkeypatch):
    monkeypatch.setattr(yamlfile, "_LOADER", request.param)


def faults_of(text: str | bytes) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="f.yaml")
    return [(fault.line, fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize(
    "word", ["0660", "22:00", "03:30", "yes", "no", "on", "off", "Yes", "y", "1_", "1__0", "_1", "0b1", "2024-01-02", "<<", "="]
)
def test_what_yaml_1_1_would_convert_is_text(word):
    assert parse(f"a: {word}", file="f").plain() == {"a": word}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("0", 0),
        ("-5", -5),
        ("20_000", 20_000),
        ("1_048_576", 1_048_576),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ('"1.50"', "1.50"),
        ("'true'", "true"),
        ("!!str 12", "12"),
    ],
)
def test_what_has_a_type(word, value):
    plain = parse(f"a: {word}", file="f").plain()
    assert plain == {"a": value}
    assert type(plain["a"]) is type(value)


def test_every_value_knows_the_line_of_its_key():
    root = parse("a: 1\nb:\n  c: {d: 2}\n  e:\n    - x\n    - y: 3\n", file="f")
    assert [root.get(*path).line for path in (["a"], ["b"], ["b", "c", "d"], ["b", "e"], ["b", "e", 1], ["b", "e", 1, "y"])] == [
        1,
        2,
        3,
        4,
        6,
        6,
    ]
    assert root.get("b", "nothing", "at all") is None
    assert root.get("b", "e", 9) is None


def test_doubled_keys_are_all_reported():
    assert faults_of("a: 1\na: 2\nb: {c: 1, c: 2}\n") == [
        (2, "'a' stands here a second time (first: line 1)"),
        (3, "'c' stands here a second time (first: line 3)"),
    ]


def test_aliases_are_expanded_and_keep_their_line():
    root = parse("a: &x {b: 1}\nc: *x\n", file="f")
    assert root.plain() == {"a": {"b": 1}, "c": {"b": 1}}
    assert root.get("c").line == 2


def test_a_bomb_of_aliases_is_refused():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    [(_, message)] = faults_of("\n".join(levels))
    assert "values" in message


@pytest.mark.parametrize("bomb", ["[" * 20_000, "a: " + "{b: " * 1_000, "- " * 2_000])
def test_depth_is_refused_before_it_hurts(bomb):
    [(_, message)] = faults_of(bomb)
    assert "nested deeper" in message


def test_depth_through_aliases_is_refused():
    text = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n" + "".join(f"a{n}: &a{n} [[[[[[[[[[*a{n - 1}]]]]]]]]]]\n" for n in range(1, 8))
    [(line, message)] = faults_of(text)
    assert "nested deeper" in message
    assert line == 7


def test_an_alias_to_itself_is_refused():
    [(line, message)] = faults_of("a: &x\n  b: *x\n")
    assert (line, "points to nothing" in message) == (2, True)


def test_size_is_bounded():
    [(_, message)] = faults_of(b"#" * (yamlfile.BYTES_MAX + 1))
    assert "larger" in message


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: [1, 2\nb: 3", 2, "is not YAML"),
        ("a: 1\n b: 2", 2, "is not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "more than one document"),
        ("a: 1\nb: !!python/object:os.system x", 2, "tag"),
        ("? [a]\n: 1", 1, "key must be text"),
        (b"a: 1\nb: \xff", 2, "UTF-8"),
        ("a: 1\nb: \x07", 2, "does not allow"),
    ],
)
def test_faults_have_their_line(text, line, part):
    [(found, message)] = faults_of(text)
    assert found == line
    assert part in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null", "---\n"])
def test_nothing_is_an_empty_mapping(text):
    assert parse(text, file="f").plain() == {}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        yamlfile.read(tmp_path / "gone.yaml")


# PyYAML's own dumper mangles the line breaks of YAML 1.1 (U+0085, U+2028, U+2029), and quotes no text that is a number in 1.2 only (0E0, 0o7).
NUMBER_SINCE_1_2 = re.compile(r"0o[0-7]+|[-+]?[0-9.]+[eE][-+]?[0-9]+")
TEXTS = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: not NUMBER_SINCE_1_2.fullmatch(text)
)
LEAVES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8))
def test_what_a_yaml_dumper_writes_is_read_back(value):
    text = yaml.safe_dump({"top": value}, allow_unicode=True)
    assert parse(text, file="f").plain() == {"top": value}


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@#,? \n\t0_~", max_size=60))
def test_any_text_is_read_or_refused_with_a_line(text):
    caught = None
    try:
        parse(text, file="f")
    except ConfigError as error:
        caught = error
    assert caught is None or all(fault.line > 0 for fault in caught.faults)


def cursor(text: str) -> Cursor:
    return Cursor(parse(text, file="f"))


def test_a_cursor_collects_every_fault():
    top = cursor("num: x\nword: blue\nflag: 1\nlist: [a, a]\ncolour: 3\nprice: 1.5\n")
    members = top.members(["num", "word", "flag", "list", "color", "price"], required=["num", "color"])
    assert members["num"].integer(7, low=0, high=9) == 7
    assert members["word"].text("red", choices=["red", "green"]) == "red"
    assert members["flag"].boolean(default=False) is False
    assert members["list"].texts() == ("a",)
    assert members["price"].text(None) is None
    assert [(fault.line, fault.message) for fault in top.faults] == [
        (5, "colour: is not known here; did you mean color?"),
        (1, "color is missing"),
        (1, "num: must be a whole number, not 'x'"),
        (2, "word: 'blue' is none of red, green"),
        (3, "flag: must be true or false, not the number 1"),
        (4, "list[1]: 'a' stands here a second time"),
        (6, 'price: must be text, not the number 1.5 (quote it: "1.5")'),
    ]


def test_a_cursor_bounds_numbers():
    top = cursor("a: 11\nb: true\n")
    members = top.members(["a", "b"])
    assert members["a"].integer(1, low=0, high=10) == 1
    assert members["b"].integer(1, low=0, high=10) == 1
    assert [fault.message for fault in top.faults] == ["a: 11 is not within 0 … 10", "b: must be a whole number, not true"]
