r"""What a chat template adds to the contents of its messages, as formulas.

A template is rendered in text and special tokens; a special token ends the text before it. So a message costs its special
tokens plus the tokens of each text between them, and a text is counted *whole*: in ChatML the newline after the role belongs to the
same text as the content, and melts with a newline that the content starts with.

Sources: the ``chat_template`` of Qwen 2, 2.5 and 3 (``<|im_start|>role\ncontent<|im_end|>\n``), of Llama 3
(``<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>``, content trimmed), of DeepSeek V3 (``<｜begin▁of▁sentence｜>system
<｜User｜>content<｜Assistant｜>content<｜end▁of▁sentence｜>``, no blanks between) and the model card of V3.1, and OpenAI's published rule
for cl100k and o200k (3 a message and 3 for the answer). Images and reasoning that a template drops are not in these formulas; conversations
with tools are played as their template prints them (``tools.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from extproc.errors import ConfigError, Fault
from extproc.tokens import tools as printing
from extproc.tokens.counter import Tools

LISTED_TOKENS = 64
"""What a template says of tools in general, about, where its words are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One way to render a conversation.

    ``specials``: tokens a message that are no text, at most; ``fewer``: those of the roles that have fewer. ``fixed``: tokens once,
    the opening of the answer included.
    ``system_default``: tokens of the system message that the template adds when the first message is not one.
    ``texts``: the texts of a message. ``frame_bytes``: the most that they are longer than role and content.
    ``page``: a whole conversation with tools; ``prints_tools``: as the template does it, not as an estimate.
    """

    name: str
    specials: int
    fixed: int
    system_default: int
    frame_bytes: int
    texts: Callable[[str, str], tuple[str, ...]]
    fewer: Mapping[str, int] = field(default_factory=dict)
    page: Callable[[printing.Messages, Tools], printing.Page] | None = None
    prints_tools: bool = False

    def count(self, count: Callable[[str], int], messages: Sequence[tuple[str, str]]) -> int:
        """Prompt tokens of (role, content) messages, by the tokenizer that ``count`` stands for."""
        specials = self.specials
        tokens = self.fixed + (sum(self.fewer.get(role, specials) for role, _ in messages) if self.fewer else specials * len(messages))
        if self.system_default and not (messages and messages[0][0] == printing.SYSTEM):
            tokens += self.system_default
        return tokens + sum(count(text) for role, content in messages for text in self.texts(role, content))

    def count_with(
        self, tools: Tools, count: Callable[[str], int], count_line: Callable[[str], int], messages: Sequence[tuple[str, str]]
    ) -> int:
        """The same of a conversation with tools."""
        if self.page is not None:
            return self.page(messages, tools).count(count, count_line)
        around = LISTED_TOKENS if tools.functions else 0
        return around + self.count(count, messages) + printing.listed(tools).count(count, count_line)

    def bound(self, messages: int, role_tokens: int) -> int:
        """An upper bound of what this template adds to the contents' own bound; a text has at most as many tokens as bytes."""
        return self.fixed + self.system_default + messages * (self.specials + self.frame_bytes + role_tokens)


def _chatml(role: str, content: str) -> tuple[str, ...]:
    if role == printing.TOOL:  # rendered as the user's; Qwen 3 has special tokens for the brackets: counted as text, never too low
        return (f"user\n<tool_response>\n{content}\n</tool_response>",)
    return (f"{role}\n{content}",)


def _trimmed(role: str, content: str) -> tuple[str, ...]:
    return _chatml(role, content.strip())


def _llama3(role: str, content: str) -> tuple[str, ...]:
    return (role, f"\n\n{content.strip()}")


def _gpt(role: str, content: str) -> tuple[str, ...]:
    return (role, content)


def _none(_role: str, content: str) -> tuple[str, ...]:
    return (content,)


# A system message stands bare in front; of a second one the two newlines before it are not counted.
_DEEPSEEK_V3: Mapping[str, int] = MappingProxyType({printing.SYSTEM: 0, "user": 1, "assistant": 2})
_DEEPSEEK_V3_1: Mapping[str, int] = MappingProxyType({printing.SYSTEM: 0, "user": 1, "assistant": 3})

_CHATML_FRAME_BYTES = len("user\n<tool_response>\n\n</tool_response>")  # longer than "\n", the frame of the other roles
_QWEN_2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_IN_WORDS = ("<tool_response>", "</tool_response>")
_THINK = (printing.SPECIAL, "\n")


def _qwen(
    name: str,
    *,
    page: printing.Hermes,
    fixed: int = 3,
    system_default: int = 0,
    texts: Callable[[str, str], tuple[str, ...]] = _chatml,
) -> Template:
    """A message has <|im_start|>, <|im_end|> and the newline behind it; at the end is the head of the answer."""
    return Template(
        name=name, specials=3, fixed=fixed, system_default=system_default, frame_bytes=_CHATML_FRAME_BYTES, texts=texts, page=page,
        prints_tools=True,
    )  # fmt: skip


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        template.name: template
        for template in (
            _qwen("chatml", page=printing.Hermes()),
            # Qwen 2.5: 5 + the 16 tokens of its words; the brackets of results are no special tokens yet
            _qwen("chatml-default-system", system_default=21, page=printing.Hermes(system_default=_QWEN_2_5, brackets=_IN_WORDS)),
            # the Thinking models of Qwen 3: the answer begins with <think>\n
            _qwen("chatml-think", fixed=5, page=printing.Hermes(opening=_THINK)),
            # Qwen 3.5 and 3.6: the same; contents are trimmed, and tools are printed otherwise
            _qwen("qwen3.5", fixed=5, texts=_trimmed, page=printing.Xml(opening=_THINK)),
            # <|begin_of_text|>; a message has three; at the end the head of the answer: three and its role
            Template(name="llama3", specials=3, fixed=5, system_default=0, frame_bytes=2, texts=_llama3, page=printing.llama3),
            Template(name="gpt", specials=3, fixed=3, system_default=0, frame_bytes=0, texts=_gpt, page=printing.gpt),
            # <｜begin▁of▁sentence｜> and <｜Assistant｜>; an answer has that and an end; results of tools have four brackets at most
            Template(name="deepseek-v3", specials=4, fixed=2, system_default=0, frame_bytes=0, texts=_none, fewer=_DEEPSEEK_V3),
            # V3.1 and later: <think> or </think> follows every <｜Assistant｜>
            Template(name="deepseek-v3.1", specials=4, fixed=3, system_default=0, frame_bytes=0, texts=_none, fewer=_DEEPSEEK_V3_1),
            Template(name="none", specials=0, fixed=0, system_default=0, frame_bytes=0, texts=_none),
        )
    }
)
"""The names that ``chat_template`` may have in ``models.yaml``."""


def template_of(name: str) -> Template:
    """The template, or :class:`ConfigError` with the names that there are."""
    template = TEMPLATES.get(name)
    if template is None:
        raise ConfigError((Fault(file="chat_template", line=0, message=f"unknown: {name!r}; use one of {', '.join(TEMPLATES)}"),))
    return template
