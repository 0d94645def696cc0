"""The same house with TLS between Envoy and the workers, as where they are not on one machine: still lean, still replaced without a failure."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import NANOS_IN, NANOS_OUT, SMALL, Guest, House, short_directory, until
from wire import Told, call, chat, steering

sys.path.append(str(Path(__file__).parents[1] / "contract/transport"))
from client_certificate import client_certificate

from extproc.local import envoy_files, tls

CLUSTER = "    - name: extproc\n"
UPSTREAM_TLS = """\
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: localhost
          common_tls_context:
            alpn_protocols: [h2]
            tls_certificates: [{{certificate_chain: {{filename: "{cert}"}}, private_key: {{filename: "{key}"}}}}]
            validation_context: {{trusted_ca: {{filename: "{ca}"}}}}
"""


@pytest.fixture(scope="module")
def tls_house() -> Iterator[House]:
    directory = short_directory()
    files = tls.ensure(directory / "tls")
    cert, key = client_certificate(directory, files)
    names = {"cert_file": files.cert_file, "key_file": files.key_file, "client_ca_file": files.ca_file}
    render = envoy_files.render

    def with_tls(site: Any, where: Path) -> dict[str, str]:
        made = render(site, where)
        assert made["envoy.yaml"].count(CLUSTER) == 1
        return made | {
            "envoy.yaml": made["envoy.yaml"].replace(CLUSTER, CLUSTER + UPSTREAM_TLS.format(cert=cert, key=key, ca=files.ca_file))
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envoy_files, "render", with_tls)
        built = House(directory, settings=f"listen.tls={json.dumps(names, default=str)}")
    yield built
    built.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def visitor(tls_house: House) -> Iterator[Guest]:
    yield tls_house.guest()
    tls_house.close_clients()


def test_it_is_lean_over_tls(tls_house: House):
    lines = [json.loads(line)["msg"] for line in tls_house.log_file.read_text().splitlines() if '"transport ' in line]
    assert set(lines) == {"transport lean: it asks for a client certificate (listen.tls) and for ALPN h2"}
    assert tls_house.envoy.stat("cluster.extproc.ssl.handshake") > 0


@pytest.mark.parametrize("stream", [True, False])
def test_requests_are_billed(visitor: Guest, stream: bool):
    ask: dict[str, Any] = {"model": SMALL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 500}
    answer = visitor.openai().chat.completions.create(stream=stream, **ask)
    if stream:
        list(answer)
    visitor.at_rest()
    (row,) = visitor.rows()
    assert (row["cost"], row["usage_source"]) == (row["input_tokens"] * NANOS_IN + row["output_tokens"] * NANOS_OUT, "upstream")
    visitor.check()


async def test_workers_are_replaced_while_streams_run(tls_house: House, visitor: Guest):
    headers = {**visitor.headers, **steering(tokens=25, delay_ms=20)}
    before = await asyncio.to_thread(tls_house.pids)
    told: list[Told] = []
    asked: list[asyncio.Task[Told]] = []

    def replaced() -> bool:
        now = tls_house.pids()
        return now.keys() == before.keys() and set(now.values()).isdisjoint(before.values())

    tls_house.sidecar.signal(signal.SIGUSR2)
    over = asyncio.create_task(asyncio.to_thread(until, replaced, "everybody is replaced", 60))
    while not over.done():
        told.append(Told())
        asked.append(asyncio.create_task(call(tls_house, headers, chat(SMALL, max_tokens=100), told=told[-1])))
        await asyncio.sleep(0.05)
    await over
    await asyncio.gather(*asked)
    assert len(told) > 20
    assert [one for one in told if not one.done or one.tokens != 25] == []
    await asyncio.to_thread(visitor.check)
    assert {(row["ending"], row["output_tokens"]) for row in visitor.rows()} == {("settle", 25)}
    assert len(visitor.rows()) == len(told)
