"""Control: an action that a client asks for, and what it is answered (SOAP 1.1 as in UDA 1.1, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alg.upnp.elements import escape, read
from alg.upnp.errors import ActionError
from alg.upnp.services import UpnpService

_ENVELOPE = (
    '<?xml version="1.0"?>\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
)
_END = "</s:Body></s:Envelope>\n"


class SoapCall(NamedTuple):
    """A request for an action: the type of the service (a URN), the name of the action, and its arguments by their
    names."""

    service: str
    action: str
    arguments: Mapping[str, str]


def read_call(action_header: str, body: bytes) -> SoapCall:
    """Read a request with this SOAPACTION, with or without quotation marks. Raises ActionError(401) if the body is no
    envelope, or has another action than the header; (402) if an argument is there twice."""
    service, mark, action = action_header.strip().strip('"').strip().rpartition("#")
    if not mark:
        raise ActionError(401)
    try:
        envelope = read(body)
    except ValueError:
        raise ActionError(401) from None
    inner = envelope.child("Body") if envelope.name == "Envelope" else None
    if inner is None or len(inner.children) != 1 or inner.children[0].name != action:
        raise ActionError(401)
    arguments: dict[str, str] = {}
    for argument in inner.children[0].children:
        if argument.name in arguments or argument.children:
            raise ActionError(402)
        arguments[argument.name] = argument.text.strip()
    return SoapCall(service, action, arguments)


def answer(service: UpnpService, action: str, values: Sequence[object], type: str = "") -> bytes:
    """Return the body of an answer. `values` are those of the action's outputs, in their order; `type`: the URN with
    which the service was asked, if that is another version's."""
    outputs = service.actions[action].outputs
    inner = "".join(
        f"<{output.name}>{escape(str(value))}</{output.name}>" for output, value in zip(outputs, values, strict=True)
    )
    name = f"u:{action}Response"
    return f'{_ENVELOPE}<{name} xmlns:u="{type or service.type}">{inner}</{name}>{_END}'.encode()


def fault(error: ActionError) -> bytes:
    """Return the body of an answer that refuses (its status is 500)."""
    return (
        f"{_ENVELOPE}<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{error.code}</errorCode>'
        f"<errorDescription>{escape(error.description)}</errorDescription></UPnPError></detail></s:Fault>{_END}"
    ).encode()
