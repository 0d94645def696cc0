"""Bytes → requests, however they are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.local.sim import http
from extproc.local.sim.http import BrokenRequest, RequestReader, header_pairs

PLAIN = b"POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nX-Two: 1\r\nX-Two: 2\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: t\r\n\r\n"
BARE = b"GET /health HTTP/1.0\r\n\r\n"


@given(st.lists(st.integers(0, len(PLAIN + CHUNKED + BARE)), max_size=12))
def test_any_cut_gives_the_same_requests(cuts):
    data = PLAIN + CHUNKED + BARE
    edges = sorted({0, *cuts, len(data)})
    reader = RequestReader()
    requests = [request for start, end in itertools.pairwise(edges) for request in reader.feed(data[start:end])]
    assert [(one.method, one.path, one.query, one.body) for one in requests] == [
        ("POST", "/v1/x", "a=1", b"hello"),
        ("POST", "/c", "", b"hello"),
        ("GET", "/health", "", b""),
    ]
    assert [one.keep_alive for one in requests] == [True, True, False]
    assert header_pairs(requests[0].head) == [("Host", "h"), ("X-Two", "1"), ("X-Two", "2"), ("Content-Length", "5")]


@pytest.mark.parametrize(
    "data",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nname : v\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (http.BODY_BYTES_MAX + 1),
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%b" % (b"0" * http.CHUNK_LINE_BYTES_MAX),
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % (http.BODY_BYTES_MAX + 1),
        b"a" * (http.HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_broken_is_refused(data):
    with pytest.raises(BrokenRequest):
        list(RequestReader().feed(data))
