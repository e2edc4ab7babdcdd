"""One agent of ICE (RFC 8445) as WebRTC has it: `python ice_agent.py SERVER PORT controlling|controlled`.

It says its candidates as a line of JSON, reads those of the other one, finds a way, and says what it heard by which.
Only STUN, no relay.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aioice


async def main(host: str, port: int, role: str) -> None:
    connection = aioice.Connection(
        ice_controlling=role == "controlling", stun_server=(host, port), use_ipv4=True, use_ipv6=False
    )
    await connection.gather_candidates()
    candidates = [candidate.to_sdp() for candidate in connection.local_candidates]
    own = {"user": connection.local_username, "password": connection.local_password, "candidates": candidates}
    print(json.dumps(own), flush=True)
    other = json.loads(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))
    connection.remote_username, connection.remote_password = other["user"], other["password"]
    for text in other["candidates"]:
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(text))
    await connection.add_remote_candidate(None)
    await connection.connect()
    await connection.send(f"I am {role}".encode())
    heard = await asyncio.wait_for(connection.recv(), 10)
    print(json.dumps({"heard": heard.decode()}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)  # until the other one has heard, too
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
