"""Certificates for localhost that a strict client accepts, made once."""

from __future__ import annotations

import socket
import ssl
import stat
import threading

from extproc.local import tls


def test_a_client_that_trusts_the_authority_connects_by_name_and_by_address(tmp_path):
    files = tls.ensure(tmp_path / "tls")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.cert_file, files.key_file)
    client_side = ssl.create_default_context(cafile=str(files.ca_file))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", "127.0.0.1"):
        ours, theirs = socket.socketpair()

        def serve(theirs: socket.socket = theirs) -> None:
            with server_side.wrap_socket(theirs, server_side=True) as wrapped:
                wrapped.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        with client_side.wrap_socket(ours, server_hostname=name) as wrapped:
            assert wrapped.recv(5) == b"hello"
        thread.join()


def test_made_once_and_again_when_something_is_missing(tmp_path):
    files = tls.ensure(tmp_path)
    first = files.cert_file.read_bytes()
    assert tls.ensure(tmp_path) == files
    assert files.cert_file.read_bytes() == first
    for key in (files.key_file, files.ca_key_file):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    files.key_file.unlink()
    tls.ensure(tmp_path)
    assert files.cert_file.read_bytes() != first
