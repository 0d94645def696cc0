"""``POST /rerank`` (also ``/v1/rerank`` and ``/v2/rerank``): everything about it. The model reads each document together with the query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.exchange.ask import Ask, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints.pooling import TOKENS_EACH, Pooling, ask_of, texts

_OWN = frozenset({"model", "query", "documents", "top_n", "return_documents", "truncate_prompt_tokens"})
_KNOWN = frozenset({"max_tokens_per_doc", "use_activation"})


class Rerank(Pooling):
    """A query and documents in, the documents in order out (Jina's and Cohere's way)."""

    name = "rerank"
    paths = ("/v1/rerank", "/v2/rerank", "/rerank")

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        query = read.string(body.get("query"), "query")
        documents = texts(body.get("documents"), "documents")
        fields["query"], fields["documents"] = query, documents
        top = read.whole(body, "top_n", low=0, high=read.PROMPTS_MAX)
        if top is not None:
            fields["top_n"] = top
        prompt = Prompt(param="documents", shared=query, texts=tuple(documents), prompts=len(documents), tokens_each=TOKENS_EACH)
        return ask_of(self, body, fields, prompt)
