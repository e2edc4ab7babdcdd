"""The client's side of UPnP: descriptions as boxes have them, and what our own server says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alg.upnp import client, device, services, soap
from alg.upnp.client import ControlUrl, HttpAddress
from alg.upnp.errors import ActionError, HttpError
from alg.upnp.http import RequestReader, response
from tests.wire.upnp.play import DEVICES

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus" / "above"
BASE = HttpAddress("100.64.0.1", 5000, "/root.xml")
ADD = client.add_mapping("udp", 5001, "100.64.0.2", 5000, 3600, "algate")


def body_of(name: str) -> bytes:
    return client.read_answer((CORPUS / name).read_bytes())[1]


def described(control: str, base: str = "", kind: str = "WANIPConnection:1") -> bytes:
    return (
        f"<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:{kind}</serviceType>"
        f"<controlURL>{control}</controlURL></service></serviceList></device>{base}</root>"
    ).encode()


# --- descriptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "base", "path"),
    [
        ("/ctl/IPConn", "", "/ctl/IPConn"),
        ("ctl/IPConn", "", "/ctl/IPConn"),
        ("\n /ctl/IPConn ", "", "/ctl/IPConn"),
        ("http://100.64.0.1:49152/ctl?x=1", "", "/ctl?x=1"),
        ("ctl", "<URLBase>http://100.64.0.1:2828/upnp/</URLBase>", "/upnp/ctl"),
        ("/ctl", "<URLBase></URLBase>", "/ctl"),
    ],
)
def test_where_control_is(control: str, base: str, path: str) -> None:
    [found] = client.services(described(control, base), BASE)
    assert (found.host, found.path) == ("100.64.0.1", path)


@pytest.mark.parametrize(
    ("control", "base"),
    [
        ("http://192.0.2.1/ctl", ""),  # another host: the gateway as a way to others
        ("/ctl", "<URLBase>http://127.0.0.1/</URLBase>"),
        ("http://box.example/ctl", ""),
        ("https://100.64.0.1/ctl", ""),
        ("http://100.64.0.1:99999/ctl", ""),
        ("http://[::1]/ctl", ""),
        ("/ctl\r\nX: y" + "z" * 2000, ""),
        ("/ctl/\u00fc", ""),  # what no URL may have; a request with it could not be written
        ("/ctl/\u2028x", ""),
        ("/ctl&#32;HTTP/1.0", ""),
        ("ctl", "<URLBase>http://100.64.0.1/\u00e4/</URLBase>"),
    ],
)
def test_control_elsewhere_is_left_out(control: str, base: str) -> None:
    assert client.services(described(control, base), BASE) == []


def test_a_path_cannot_break_the_line() -> None:
    for control in client.services(described("/ctl&#13;&#10;X: y&#32;z"), BASE):
        assert b"\r\nX: y" not in client.call(control, "GetExternalIPAddress", {}).partition(b"\r\n")[0]
        assert len(client.call(control, "GetExternalIPAddress", {}).split(b"\r\n\r\n")[0].split(b"\r\n")) == 6


def test_the_best_service_comes_first() -> None:
    both = described("/a", kind="WANPPPConnection:1").replace(b"</serviceList>", b"") + b""
    document = described("/a", kind="WANPPPConnection:1").replace(
        b"</serviceList>",
        b"<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:2</serviceType>"
        b"<controlURL>/b</controlURL></service></serviceList>",
    )
    assert both
    assert [found.path for found in client.services(document, BASE)] == ["/b", "/a"]


def test_a_description_of_a_box() -> None:
    expected = [ControlUrl("urn:schemas-upnp-org:service:WANIPConnection:1", "100.64.0.1", 5000, "/ctl/IPConn")]
    assert client.services(body_of("description"), BASE) == expected
    assert client.services(body_of("chunked"), BASE) == expected
    assert client.is_whole((CORPUS / "chunked").read_bytes())
    assert not client.is_whole((CORPUS / "chunked").read_bytes()[:-1])
    assert not client.is_whole((CORPUS / "description").read_bytes()[:-1])


@pytest.mark.parametrize("version", [1, 2])
def test_our_own_description(version: int) -> None:
    own = DEVICES[version]
    [found, *_] = client.services(device.describe(own), BASE)
    assert found.service == f"urn:schemas-upnp-org:service:WANIPConnection:{version}"


# --- searches ---------------------------------------------------------------------------------------------------------


def test_where_a_description_is() -> None:
    data = (CORPUS / "search").read_bytes()
    assert client.read_location(data) == BASE
    assert client.read_location(data.replace(b"InternetGatewayDevice", b"MediaServer")) is None
    assert client.read_location(data.replace(b"100.64.0.1", b"box.example")) is None
    assert client.read_location(data.replace(b"http://", b"file://")) is None
    assert client.read_location(b"NOTIFY * HTTP/1.1\r\n" + data) is None


# --- actions ----------------------------------------------------------------------------------------------------------


def test_our_own_server_reads_what_is_asked() -> None:
    control = ControlUrl("urn:schemas-upnp-org:service:WANIPConnection:1", "100.64.0.1", 5000, "/ctl")
    reader = RequestReader()
    reader.feed(client.call(control, "AddPortMapping", ADD))
    request = reader.next()
    assert request is not None
    assert (request.method, request.target, request.headers["host"]) == ("POST", "/ctl", "100.64.0.1:5000")
    call = soap.read_call(request.headers["soapaction"], request.body)
    assert (call.service, call.action) == (control.service, "AddPortMapping")
    assert call.arguments == {name: str(value) for name, value in ADD.items()}
    assert [argument.name for argument in services.CONNECTION_1.actions["AddPortMapping"].inputs] == list(ADD)


def test_what_our_own_server_answers() -> None:
    said = response(200, soap.answer(services.CONNECTION_1, "GetExternalIPAddress", ["203.0.113.2"]))
    assert client.is_whole(said)
    assert client.read_outputs(*client.read_answer(said), "GetExternalIPAddress") == {
        "NewExternalIPAddress": "203.0.113.2"
    }
    with pytest.raises(ActionError) as error:
        client.read_outputs(*client.read_answer(response(500, soap.fault(ActionError(718)))), "AddPortMapping")
    assert error.value.code == 718


def test_what_boxes_answer() -> None:
    answer = client.read_outputs(*client.read_answer((CORPUS / "answer").read_bytes()), "GetExternalIPAddress")
    assert answer == {"NewExternalIPAddress": "1.2.3.2"}
    with pytest.raises(ActionError) as error:  # RouterOS writes faultCode where the standard has faultcode
        client.read_outputs(*client.read_answer((CORPUS / "fault").read_bytes()), "AddPortMapping")
    assert error.value.code == 725


@given(st.binary(max_size=3000) | st.sampled_from([path.read_bytes() for path in sorted(CORPUS.iterdir())]))
def test_whatever_bytes(data: bytes) -> None:
    client.is_whole(data)
    client.read_location(data)
    try:
        status, body = client.read_answer(data)
        client.read_outputs(status, body, "AddPortMapping")
    except (HttpError, ActionError):
        pass
