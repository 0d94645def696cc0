"""A gate that takes requests and never answers, as a process: argv = socket, marker file that is made when a request has come."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from extproc.edge.health import Health
from extproc.edge.transport.grpcio import GrpcioTransport
from extproc.edge.transport.port import Call, GoneReason, Listen


class Silent:
    def __init__(self, call: Call) -> None:
        self.call = call

    def message(self, data: bytes) -> None:
        unfinished = Path(f"{sys.argv[2]}.part")
        unfinished.write_bytes(data)
        unfinished.rename(sys.argv[2])

    def gone(self, reason: GoneReason) -> None:
        pass


async def main() -> None:
    health = Health()
    health.serve()
    await GrpcioTransport(Listen(address=f"unix:{sys.argv[1]}"), Silent, health).start()
    await asyncio.Event().wait()


asyncio.run(main())
