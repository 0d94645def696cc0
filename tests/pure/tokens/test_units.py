"""Characters and words are those of the whole text, however it comes."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from extproc.tokens.units import TextUnits

WHITE = " \t\n\r\x0b\x1c\x85\u00a0\u2003\u3000"


@settings(max_examples=60, deadline=None)
@example(pieces=["two", "gether a", "", "part", " "])
@given(pieces=st.lists(st.text(alphabet=st.sampled_from("ab世😀\u0301\u200b" + WHITE), max_size=6), max_size=12))
def test_any_pieces(pieces: list[str]) -> None:
    units, text = TextUnits(), ""
    for piece in pieces:
        units.feed(piece)
        text += piece
        assert units.characters == len(text)
        assert units.words == len(text.split())
