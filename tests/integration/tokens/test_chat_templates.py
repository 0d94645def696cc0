"""Template overheads, and the bounds that hold money."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.catalog import load
from extproc.errors import ConfigError
from extproc.tokens.chat import TEMPLATES, Template, template_of
from extproc.tokens.counter import ROLE_BYTES_MAX
from extproc.tokens.images import FORMULAS
from extproc.tokens.registry import BpeCounter, LoadedCounters

SYSTEM = ("system", "You are a helpful assistant.")  # 6 tokens
USER = ("user", "Hello!")  # 2 tokens


def counter_of(counters: LoadedCounters, tokenizer: str, template: str) -> BpeCounter:
    counter = counters.get(tokenizer, template)
    assert counter is not None
    return counter


@pytest.mark.parametrize(
    ("template", "messages", "tokens"),
    [
        ("chatml", [SYSTEM, USER], (5 + 6) + (5 + 2) + 3),
        ("chatml", [USER], (5 + 2) + 3),
        ("chatml", [], 3),
        ("chatml-default-system", [SYSTEM, USER], (5 + 6) + (5 + 2) + 3),
        ("chatml-default-system", [USER], 21 + (5 + 2) + 3),
        ("chatml-default-system", [USER, SYSTEM], 21 + (5 + 2) + (5 + 6) + 3),
        ("chatml-think", [SYSTEM, USER], (5 + 6) + (5 + 2) + 3 + 2),
        ("deepseek-v3", [SYSTEM, USER], 1 + 6 + (1 + 2) + 1),
        ("deepseek-v3", [USER, ("assistant", "Hello!"), USER], 1 + (1 + 2) + (2 + 2) + (1 + 2) + 1),
        ("deepseek-v3.1", [USER, ("assistant", "Hello!"), USER], 1 + (1 + 2) + (3 + 2) + (1 + 2) + 2),
        ("deepseek-v3", [USER, ("tool", "Hello!")], 1 + (1 + 2) + (4 + 2) + 1),
        ("llama3", [SYSTEM, USER], 1 + (5 + 6) + (5 + 2) + 4),
        ("gpt", [SYSTEM, USER], (3 + 1 + 6) + (3 + 1 + 2) + 3),
        ("none", [SYSTEM, USER], 6 + 2),
    ],
)
def test_formulas(counters: LoadedCounters, template: str, messages: list[tuple[str, str]], tokens: int) -> None:
    assert counter_of(counters, "qwen2", template).count_chat(messages) == tokens
    assert counter_of(counters, "cl100k", template).count_chat(messages) == tokens


def test_the_default_system_message_is_what_the_template_says(counters: LoadedCounters) -> None:
    counter = counter_of(counters, "qwen2", "chatml-default-system")
    default = ("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
    assert counter.count_chat([USER]) == counter.count_chat([default, USER])


def test_a_newline_melts_with_the_one_of_the_template(counters: LoadedCounters) -> None:
    counter = counter_of(counters, "qwen3", "chatml")
    assert counter.count_chat([("user", "\nHello!")]) == counter.count_chat([USER])


def test_tool_results_are_framed(counters: LoadedCounters) -> None:
    counter = counter_of(counters, "qwen3", "chatml")
    framed = counter.count("user\n<tool_response>\n42\n</tool_response>")
    assert counter.count_chat([("tool", "42")]) == 3 + framed + 3


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", ["qwen3", "cl100k"])
@settings(max_examples=8, deadline=None)
@given(
    messages=st.lists(
        st.tuples(
            st.sampled_from(["system", "user", "assistant", "tool", "developer", "роль", ""]) | st.text(max_size=4),
            st.text(max_size=30) | st.sampled_from(["\U0001d160" * 9, "\u0958" * 9, "\ufb2c" * 9, "\r\n\t", "<|im_end|>"]),
        ),
        max_size=6,
    )
)
def test_bounds_hold(counters: LoadedCounters, tokenizer: str, template: str, messages: list[tuple[str, str]]) -> None:
    counter = counter_of(counters, tokenizer, template)
    assert all(len(role.encode()) <= ROLE_BYTES_MAX for role, _ in messages)
    content_bytes = sum(len(content.encode()) for _, content in messages)
    assert counter.bound_chat(content_bytes, len(messages)) >= counter.count_chat(messages)


@settings(max_examples=20, deadline=None)
@given(role=st.text(min_size=5, max_size=60), content=st.text(max_size=10))
def test_long_roles_are_counted_and_bound_as_contents(counters: LoadedCounters, role: str, content: str) -> None:
    counter = counter_of(counters, "qwen3", "llama3")
    tokens = counter.count_chat([(role, content)])
    assert tokens >= counter.count(role)
    assert counter.bound_chat(len(role.encode()) + len(content.encode()), 1) >= tokens


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_frames_fit_their_bound(template: Template, role: str) -> None:
    """Under a tokenizer with a token a byte. A system message comes first, or the template's own is added: never both."""

    def count(text: str) -> int:
        return len(text.encode())

    content = "x" * 10
    is_framed = role == "tool" and template.name.startswith("chatml")  # rendered without its own name
    role_tokens = 0 if is_framed else count(role)
    assert template.bound(1, role_tokens) + count(content) >= template.count(count, [(role, content)])


def test_bounds_are_reached(counters: LoadedCounters) -> None:
    """Some text has a token a byte, so no smaller bound would do."""
    counter = counter_of(counters, "cl100k", "none")
    worst = "\U000e0100\U000e0101"
    assert counter.count(worst) == counter.bound(len(worst.encode())) == 8


def test_an_unknown_template_names_the_known() -> None:
    with pytest.raises(ConfigError, match="chatml-default-system"):
        template_of("jinja")


def test_a_catalog_may_name_what_there_is() -> None:
    """The catalog may not import this package, so it has the names again."""
    assert set(load.CHAT_TEMPLATES) == set(TEMPLATES)
    assert set(load.IMAGE_FORMULAS) == set(FORMULAS)
