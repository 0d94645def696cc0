"""A request is priced by the moment of its headers and by its account, and keeps that price whatever becomes dearer meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from msgspec import structs
from stage import DONE, RATE, chat, chunk, delta, ends, granted, headers, key, model, pinned, play, to_open, usage_event

from extproc.accounts.model import Change, Key
from extproc.catalog.model import Tariff, Tier
from extproc.exchange import events as ev
from extproc.exchange.machine import Exchange
from extproc.exchange.tab import Pinned
from extproc.money.hold import NO_LIMITS, Limits
from extproc.money.price import Rates

BEGUN_MS = headers().unix_ms
OLD = Tariff(rates=Rates(input=RATE, output=2 * RATE))


@pytest.mark.parametrize(("effective_ms", "times"), [(BEGUN_MS + 1, 1), (BEGUN_MS, 3)])
def test_a_scheduled_price_is_for_what_begins_from_then_on(effective_ms, times):
    new = Tariff(effective_ms=effective_ms, rates=Rates(input=3 * RATE, output=6 * RATE))
    exchange = Exchange(pinned(model(tariffs=(OLD, new))))
    to_open(exchange)
    play(exchange, chat(stream=True), ev.Amended(granted=granted()))
    play(exchange, ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    (end,) = ends(play(exchange, chunk(delta("a", "stop")), chunk(usage_event(10, 5)), chunk(DONE, end=True)))
    assert end.ending.charge_nanos == times * (10 * RATE + 5 * 2 * RATE) // 1_000_000


def charged(terms: Pinned, owner: Key) -> tuple[str, int]:
    """The tier and the charge of a request."""
    exchange = Exchange(terms)
    play(exchange, headers(), ev.KeyRead(key=owner), ev.Admitted(granted=granted()), chat(stream=True), ev.Amended(granted=granted()))
    play(exchange, ev.ResponseHeaders(status=200, headers={"content-type": "text/event-stream"}))
    (end,) = ends(play(exchange, chunk(delta("a", "stop")), chunk(usage_event(10, 5)), chunk(DONE, end=True)))
    return json.loads(end.ending.row)["tier"], end.ending.charge_nanos


@pytest.mark.parametrize(("effective_ms", "halved", "admitted"), [(BEGUN_MS + 1, 1, 7), (BEGUN_MS, 2, 9)])
def test_a_scheduled_tier_is_for_what_begins_from_then_on(effective_ms, halved, admitted):
    later = Tier(name="default", limits=Limits(requests_per_minute=9), price_factor=500_000, effective_ms=effective_ms)
    terms = pinned(limits=Limits(requests_per_minute=7), later=(later,))
    assert charged(terms, key()) == ("default", 20_000 // halved)
    exchange = Exchange(terms)
    (admit,) = play(exchange, headers(), ev.KeyRead(key=key()))[1:]
    assert admit.admission.account_limits.requests_per_minute == admitted


@pytest.mark.parametrize(("at_ms", "expected"), [(BEGUN_MS + 1, ("default", 20_000)), (BEGUN_MS, ("pro", 20_000 // 8))])
def test_a_scheduled_change_of_an_account_is_for_what_begins_from_then_on(at_ms, expected):
    terms = pinned()
    catalog = replace(terms.catalog, tiers={**terms.catalog.tiers, "pro": Tier(name="pro", limits=NO_LIMITS, price_factor=500_000)})
    owner = key(changes=(Change(at_ms=at_ms, tier="pro"), Change(at_ms=at_ms, price_factor=250_000)))
    assert charged(structs.replace(terms, catalog=catalog), owner) == expected


@pytest.mark.parametrize(("price_factor", "asks_for_money"), [(0, False), (1, True), (1_000_000, True)])
def test_who_pays_nothing_needs_no_money(price_factor, asks_for_money):
    exchange = Exchange(pinned())
    exchange.receive(headers())
    (admit,) = exchange.receive(ev.KeyRead(key=key(price_factor=price_factor)))
    assert (admit.admission.entry_nanos > 0) == asks_for_money
    exchange.receive(ev.Admitted(granted=granted()))
    assert (exchange.receive(chat())[0].amendment.reserved_nanos > 0) == asks_for_money
