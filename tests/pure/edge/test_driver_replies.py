from __future__ import annotations

from types import SimpleNamespace

from extproc.edge.driver import Driver
from extproc.exchange.actions import Answer, End, Note
from extproc.exchange.record import Record
from extproc.money.hold import Ending, EndKind


def test_a_reply_that_cannot_be_made_does_not_keep_the_hold_from_being_ended():
    closed, ended = [], []
    driver = Driver.__new__(Driver)
    driver._loan = None
    driver._call = SimpleNamespace(send=lambda _: None, close=lambda *why: closed.append(why))
    driver._gate = SimpleNamespace(
        metrics=SimpleNamespace(illegal_event=lambda: None),
        beats=SimpleNamespace(drop=lambda _: None),
        closing=SimpleNamespace(end=ended.append),
    )
    ending = Ending(hold_id="h", owner="h", payer_id="p", key_id="k", kind=EndKind.VOID, charge_nanos=0, tokens=0, row=b"{}")
    driver._carry((Answer(status=400, body=b"", headers=(("x", "\ud800"),)), End(ending=ending)))
    assert ended == [ending]
    assert len(closed) == 1


def test_only_what_we_answer_ourselves_with_an_error_is_a_refusal():
    sent, rejected, rows = [], [], []
    driver = Driver.__new__(Driver)
    driver._call = SimpleNamespace(send=sent.append)
    driver._ending = None
    driver._gate = SimpleNamespace(metrics=SimpleNamespace(rejected=rejected.append, request_done=rows.append))
    driver._carry((Answer(status=429, body=b"{}", code="rate_limit_exceeded"), Answer(status=200, body=b"{}")))
    driver._carry((Note(record=Record(id="h", end_reason="upstream_error", status=500, error_code="http_500")),))
    assert (len(sent), rejected, len(rows)) == (2, ["rate_limit_exceeded"], 1)
