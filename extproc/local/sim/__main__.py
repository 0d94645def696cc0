"""``python -m extproc.local.sim --model NAME [--port N | --unix PATH] …``: one simulated vLLM server."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import uvloop

from extproc.local.sim.application import Simulator
from extproc.local.sim.ask import Model
from extproc.local.sim.pace import Pace
from extproc.local.sim.server import Connection
from extproc.local.sim.steering import Steering, Steerings
from extproc.local.sim.text import CHAT_TEMPLATES, Text
from extproc.local.sim.vocabulary import PATTERNS, load
from extproc.local.sim.witness import Witness

BACKLOG = 4_096
"""Connections that wait to be accepted: Envoy opens hundreds at once."""

DRAIN_S = 5.0
"""After SIGTERM; streams end at their next token, so only a stalled client takes longer."""


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; ``--help`` is its reference."""
    parser = argparse.ArgumentParser(prog="python -m extproc.local.sim", description="A simulator of vLLM's HTTP server.")
    parser.add_argument("--model", action="append", required=True, help="a name that is served; the first is the default (repeatable)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=0, help="0 = a free one")
    where.add_argument("--unix", type=Path, help="serve a Unix socket instead of a port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port-file", type=Path, help="where the port (or the socket's path) is written once it listens")
    parser.add_argument("--vocab", type=Path, help="a .tiktoken file, plain, .gz or .xz; without it: built-in words")
    parser.add_argument("--pattern", choices=sorted(PATTERNS), help="how words are cut; default: by the file's name, else qwen")
    parser.add_argument("--chat-template", choices=CHAT_TEMPLATES, default="chatml")
    parser.add_argument("--max-model-len", type=int, default=131_072)
    parser.add_argument("--enable-force-include-usage", "--force-include-usage", action="store_true", dest="force_include_usage")
    parser.add_argument("--enable-prompt-tokens-details", action="store_true", dest="prompt_tokens_details")
    parser.add_argument("--stream-interval", type=int, default=1)
    parser.add_argument("--log", type=Path, help="append a JSON line per request")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="default of an x-sim-NAME header (repeatable)")
    return parser.parse_args(argv)


def simulator(options: argparse.Namespace, loop: asyncio.AbstractEventLoop, log: BinaryIO | None) -> Simulator:
    """Raises ValueError for defaults that are not understood."""
    model = Model(
        names=tuple(options.model),
        context_tokens=options.max_model_len,
        force_include_usage=options.force_include_usage,
        prompt_tokens_details=options.prompt_tokens_details,
        stream_interval=options.stream_interval,
    )
    text = Text(load(options.vocab, pattern=options.pattern) if options.vocab else None, chat_template=options.chat_template)
    steerings = Steerings(text.languages, Steering())
    steerings.set_defaults(dict(setting.split("=", 1) for setting in options.set))
    return Simulator(model, text, steerings, Witness(log), Pace(loop))


async def serve(options: argparse.Namespace, log: BinaryIO | None) -> None:
    """Until SIGTERM or SIGINT; then streams end with ``abort``."""
    loop = asyncio.get_running_loop()
    application = simulator(options, loop, log)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    def connection() -> Connection:
        return Connection(application, loop)

    if options.unix:
        options.unix.unlink(missing_ok=True)
        server = await loop.create_unix_server(connection, str(options.unix), backlog=BACKLOG)
        address = str(options.unix)
    else:
        server = await loop.create_server(connection, options.host, options.port, backlog=BACKLOG)
        address = str(server.sockets[0].getsockname()[1])
    if options.port_file:
        unfinished = options.port_file.with_suffix(".part")
        unfinished.write_text(address)
        unfinished.rename(options.port_file)
    print(f"serving {', '.join(options.model)} on {address}", flush=True)  # noqa: T201 - a command's output
    await stopping.wait()
    server.close()
    try:
        async with asyncio.timeout(DRAIN_S):
            await application.drain()
    except TimeoutError:
        print("clients did not leave in time", flush=True)  # noqa: T201 - a command's output


def main(argv: list[str]) -> None:
    """Serve until a signal ends it."""
    options = arguments(argv)
    # Ten thousand streams are ten thousand descriptors; the usual soft limit is 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.log is None:
        uvloop.run(serve(options, None))
        return
    with options.log.open("ab") as log:
        uvloop.run(serve(options, log))


if __name__ == "__main__":
    main(sys.argv[1:])
