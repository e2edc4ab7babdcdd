"""The client's side of an Internet gateway device: searches, descriptions and actions (UDA 1.1; WANIPConnection :1 and
:2, WANPPPConnection:1)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from alg.upnp import elements
from alg.upnp.elements import XmlElement, escape
from alg.upnp.errors import ActionError, HttpError

DEVICES = tuple(f"urn:schemas-upnp-org:device:InternetGatewayDevice:{version}" for version in (2, 1))
SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
"""The services that have mappings, the best first."""

LONGEST_ANSWER = 65536  # bytes of an answer of HTTP
MOST_SERVICES = 8
LONGEST_URL = 1024  # characters of a URL in a description; others are none
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r\n]")
_LENGTH = re.compile(rb"\r?\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r?\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r?\ntransfer-encoding:[ \t]*chunked[ \t]*\r?\n", re.IGNORECASE)
_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,6})[^\r\n]*\r?\n")
_PATH = re.compile(r"/[!-~]{0,1023}")
_LOCATION = re.compile(rb"\r?\nlocation:[ \t]*([!-~]{1,1024})[ \t]*\r?\n", re.IGNORECASE)


class ControlUrl(NamedTuple):
    """The control URL of a service: the service's type, and the URL's host, port and path."""

    service: str
    host: str
    port: int
    path: str


class HttpAddress(NamedTuple):
    """An address of the web: host (the text of an address), port and path."""

    host: str
    port: int
    path: str


def search(target: str, host: str) -> bytes:
    """An M-SEARCH for `target`, to the group or a router alone (`host`, an address; sections 1.3.2 and 1.3.3)."""
    return (
        f'M-SEARCH * HTTP/1.1\r\nHOST: {host}:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'
    ).encode("ascii")


def read_location(data: bytes) -> HttpAddress | None:
    """Return where the description is that an answer to a search names; None for whatever else came."""
    if _STATUS.match(data) is None or b"InternetGatewayDevice" not in data:
        return None
    found = _LOCATION.search(data)
    return None if found is None else place(found[1].decode("ascii"))


def place(url: str) -> HttpAddress | None:
    """Read a URL; None where it is not http, names its host by a name, or has characters that no URL has."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return None
    if parts.scheme != "http" or re.fullmatch(r"[0-9.]{7,15}", host) is None:
        return None
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return HttpAddress(host, port, path) if _PATH.fullmatch(path) else None


def get(where: HttpAddress) -> bytes:
    """A request for a description."""
    return f"GET {where.path} HTTP/1.1\r\nHost: {where.host}:{where.port}\r\nConnection: close\r\n\r\n".encode("ascii")


def services(document: bytes, base: HttpAddress) -> list[ControlUrl]:
    """Return the services of a description that have mappings, the best first. `base`: where the description was; URLs
    that lead to another host are left out. Raises ValueError for what is no description."""
    root = elements.read(document, longest=LONGEST_ANSWER)
    url = f"http://{base.host}:{base.port}{base.path}"
    stated = root.child("URLBase")
    if stated is not None and stated.text.strip():
        url = _join(url, stated.text.strip())
    found = []
    for service in _services(root):
        type_, control = service.child("serviceType"), service.child("controlURL")
        if type_ is None or control is None or type_.text.strip() not in SERVICES:
            continue
        where = place(_join(url, control.text.strip()))
        if where is not None and where.host == base.host:
            found.append(ControlUrl(type_.text.strip(), *where))
    return sorted(found, key=lambda each: SERVICES.index(each.service))[:MOST_SERVICES]


def _join(base: str, url: str) -> str:
    """Return a URL of a description, as it is meant there; "" for one that is too long to be one."""
    return urljoin(base, url) if len(url) <= LONGEST_URL else ""


def _services(root: XmlElement) -> list[XmlElement]:
    """Return the services within an element, from the outside in."""
    found, todo = [], deque([root])
    while todo:
        element = todo.popleft()
        if element.name == "service":
            found.append(element)
        else:
            todo += element.children
    return found


def call(control: ControlUrl, action: str, arguments: Mapping[str, object]) -> bytes:
    """A request for an action (section 3.2.1)."""
    inner = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{control.service}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()
    head = (
        f"POST {control.path} HTTP/1.1\r\nHost: {control.host}:{control.port}\r\nConnection: close\r\n"
        f'Content-Type: text/xml; charset="utf-8"\r\nSOAPAction: "{control.service}#{action}"\r\n'
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def add_mapping(
    transport: str, public: int, client: str, port: int, seconds: int, description: str
) -> dict[str, object]:
    """The arguments of AddPortMapping and of AddAnyPortMapping. `seconds` 0: for good."""
    return {
        **mapping_key(transport, public),
        "NewInternalPort": port,
        "NewInternalClient": client,
        "NewEnabled": 1,
        "NewPortMappingDescription": description,
        "NewLeaseDuration": seconds,
    }


def mapping_key(transport: str, public: int) -> dict[str, object]:
    """The arguments by which a mapping is named."""
    return {"NewRemoteHost": "", "NewExternalPort": public, "NewProtocol": transport.upper()}


def is_whole(data: bytes) -> bool:
    """Whether nothing of an answer of HTTP is missing, as far as it says how long it is. One that does not say it ends
    with its connection."""
    end = _END.search(data)
    if end is None:
        return False
    head = data[: end.start()] + b"\r\n"
    if _CHUNKED.search(head):
        return data.endswith(b"0\r\n\r\n")
    length = _LENGTH.search(head)
    return length is not None and len(data) - end.end() >= int(length[1])


def read_answer(data: bytes) -> tuple[int, bytes]:
    """Return status and body of an HTTP response. Raises HttpError(400) if the bytes are not one."""
    start, end = _STATUS.match(data), _END.search(data)
    if start is None or end is None:
        raise HttpError(400)
    head, body = data[: end.start()] + b"\r\n", data[end.end() :]
    if _CHUNKED.search(head):
        body = _unchunked(body)
    elif (length := _LENGTH.search(head)) is not None:
        body = body[: int(length[1])]
    return int(start[1]), body


def _unchunked(body: bytes) -> bytes:
    found, at = b"", 0
    while (line := _CHUNK.match(body, at)) is not None and (size := int(line[1], 16)):
        found += body[line.end() : line.end() + size]
        at = line.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else 1
    return found


def read_outputs(status: int, body: bytes, action: str) -> dict[str, str]:
    """Return the output arguments of an action. Raises ActionError with the code of the fault, or 501 if the response
    is not one to this action."""
    try:
        root = elements.read(body, longest=LONGEST_ANSWER)
    except ValueError:
        raise ActionError(501) from None
    inner = root.child("Body")
    if inner is None or not inner.children:
        raise ActionError(501)
    answer = inner.children[0]
    if answer.name == f"{action}Response" and status == 200:
        return {output.name: output.text.strip() for output in answer.children}
    code = _find(answer, "errorCode")
    text = code.text.strip() if code is not None else ""
    raise ActionError(int(text) if re.fullmatch(r"[0-9]{3}", text) else 501)


def _find(element: XmlElement, name: str) -> XmlElement | None:
    todo = [element]
    while todo:
        element = todo.pop()
        if element.name == name:
            return element
        todo += element.children
    return None
