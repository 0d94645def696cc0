"""What a client asks for, and how it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Prompt


class Refused(Exception):
    """An HTTP error of vLLM's shape."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        return error_json(self.status, self.message, kind=self.kind, param=self.param)


def error_json(status: int, message: str, *, kind: str, param: str | None = None) -> bytes:
    """The error object of vLLM."""
    return json_bytes({"error": {"message": message, "type": kind, "param": param, "code": status}})


def missing(name: str) -> Refused:
    """As pydantic says it."""
    return Refused(400, f"[{{'type': 'missing', 'loc': ('body', '{name}'), 'msg': 'Field required'}}]", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the server was started with."""

    names: tuple[str, ...]
    context_tokens: int
    force_include_usage: bool = False
    prompt_tokens_details: bool = False
    stream_interval: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that will be served. Choices = prompts × n."""

    model: str
    prompts: tuple[Prompt, ...]
    stream: bool = False
    n: int = 1
    limit: int = 0
    """The most that may be generated, per choice."""
    tokens: int = 0
    """To be generated, per choice."""
    finish_reason: str | None = None
    include_usage: bool = True
    continuous_usage: bool = False
    stream_interval: int = 1
    include_reasoning: bool = True
    calls: tuple[str, ...] = ()
    """Names of the functions that each choice calls; then it says nothing else."""
    echoes: tuple[bytes, ...] = ()
    """What each prompt's answers begin with, JSON-escaped."""
    is_silent: bool = False
    """Shows nothing of what is generated."""
    ends_incomplete: bool = False
    """A response that is cut ends with an event of that name."""
    runs: bool = True
    """Whether the engine has anything to do with it."""
    priority: int = 0
    cache_salt: str = ""
    request_id: str | None = None
    seconds: float | None = None
    """Of sound."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The request, for answers that repeat some of it."""

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """One number per prompt."""
        return tuple(prompt.tokens for prompt in self.prompts)
