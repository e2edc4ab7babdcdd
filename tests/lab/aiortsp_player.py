"""A player by aiortsp: `aiortsp_player.py URL`; a URL that begins with rtspt:// goes over TCP. Prints how many packets
of pictures have come."""

import asyncio
import sys

from aiortsp.rtsp.reader import RTSPReader

WANTED = 20


async def main() -> None:
    count = 0
    async with RTSPReader(sys.argv[1], timeout=20) as reader:
        async for _ in reader.iter_packets():
            count += 1
            if count == WANTED:
                break
    print(count)


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(), 60))
