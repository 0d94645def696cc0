from __future__ import annotations

import diagram

from extproc.exchange.machine import State


def test_the_page_is_drawn_from_the_table():
    assert diagram.PAGE.read_text() == diagram.page(), "run `python tests/pure/exchange/diagram.py --write`"


def test_every_state_can_be_reached_and_left():
    drawn = diagram.edges()
    assert {target for _, target in drawn} | {State.FRESH} == set(State)
    assert {source for source, target in drawn if source is not target} | {State.CLOSED} == set(State)
