"""Discovery: what clients search for, what they are answered, what the gateway says of itself (UDA 1.1, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alg.upnp.device import Device
from alg.upnp.errors import HttpError
from alg.upnp.http import read_head

PORT = 1900
GROUP4 = "239.255.255.250"
GROUP6 = "ff02::c"  # of the link
MAX_AGE = 1800  # seconds that clients may believe an answer
LONGEST_SEARCH = 1024  # bytes
LONGEST_WAIT = 3.0  # seconds

_DELAY = re.compile(r"[0-9]{1,5}")


class SsdpSearch(NamedTuple):
    """A search: `target` as it was written, and the seconds within which to answer."""

    target: str
    wait: float


class Speaker(NamedTuple):
    """The gateway at one of its addresses: the devices (the announced one first), `base`, as "http://192.168.1.1:5000",
    what it calls itself, and `boot`, a number that is greater after each start."""

    devices: Sequence[Device]
    base: str
    server: str
    boot: int


def read_search(data: bytes) -> SsdpSearch | None:
    """Read an M-SEARCH; None for whatever else comes to the port. One without MX is to be answered within a second, as
    a search that was sent to this host alone has none (1.3.2)."""
    if len(data) > LONGEST_SEARCH or not data.startswith(b"M-SEARCH "):
        return None
    try:
        method, target, _, headers = read_head(data)
    except HttpError:
        return None
    if method != "M-SEARCH" or target != "*" or headers.get("man", "").strip('"').lower() != "ssdp:discover":
        return None
    wanted = headers.get("st", "")
    delay = headers.get("mx", "1")
    if not wanted or _DELAY.fullmatch(delay) is None:
        return None
    return SsdpSearch(wanted, min(float(delay), LONGEST_WAIT))


def answers(search: SsdpSearch, speaker: Speaker, date: str) -> list[bytes]:
    """Return the answers to a search, each a datagram.

    A device, service or UUID is answered by the root device that has it, with the version that was asked for. Searches
    for all, or for root devices, find the announced one only: clients that read a description of version 2 although
    they know version 1 stop there.
    """
    announced = speaker.devices[0]
    if search.target == "ssdp:all":
        found = [(announced, target, usn) for target, usn in announced.adverts()]
    elif search.target == "upnp:rootdevice":
        found = [(announced, target, usn) for target, usn in announced.adverts() if target == search.target]
    else:
        found = list(_named(search.target, speaker.devices))
    return [
        _message(
            "HTTP/1.1 200 OK",
            [("DATE", date), ("EXT", ""), ("ST", target), ("USN", usn), *_common(device, speaker)],
        )
        for device, target, usn in found
    ]


def _named(wanted: str, devices: Sequence[Device]) -> Iterator[tuple[Device, str, str]]:
    """Return the device that has this target; where only a device of version 2 is there, that for version 1 as well (a
    device does what earlier versions of its type did)."""
    for name in (wanted, _second(wanted)):
        for device in devices:
            for target, usn in device.adverts():
                if target == name:
                    yield device, wanted, usn.replace(name, wanted)
                    return


def _second(wanted: str) -> str:
    """Return the URN of version 2 for one of version 1."""
    return f"{wanted[:-2]}:2" if wanted.startswith("urn:") and wanted.endswith(":1") else wanted


def alive(speaker: Speaker, group: str) -> list[bytes]:
    """Return the messages that announce the device to `group` from time to time."""
    device = speaker.devices[0]
    return [
        _message(
            "NOTIFY * HTTP/1.1",
            [("HOST", _host(group)), ("NT", target), ("NTS", "ssdp:alive"), ("USN", usn), *_common(device, speaker)],
        )
        for target, usn in device.adverts()
    ]


def byebye(speaker: Speaker, group: str) -> list[bytes]:
    """Return the messages that revoke the announcement of the device to `group`: sent at the end, and before the first
    `alive`."""
    return [
        _message(
            "NOTIFY * HTTP/1.1",
            [
                ("HOST", _host(group)),
                ("NT", target),
                ("NTS", "ssdp:byebye"),
                ("USN", usn),
                ("BOOTID.UPNP.ORG", str(speaker.boot)),
                ("CONFIGID.UPNP.ORG", "1"),
            ],
        )
        for target, usn in speaker.devices[0].adverts()
    ]


def _common(device: Device, speaker: Speaker) -> list[tuple[str, str]]:
    return [
        ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
        ("LOCATION", f"{speaker.base}{device.description}"),
        ("SERVER", speaker.server),
        ("BOOTID.UPNP.ORG", str(speaker.boot)),
        ("CONFIGID.UPNP.ORG", "1"),
    ]


def _host(group: str) -> str:
    return f"[{group}]:{PORT}" if ":" in group else f"{group}:{PORT}"


def _message(start: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [start, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")
