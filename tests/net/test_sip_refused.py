"""A server that does not listen at a module's port refuses its client at the SYN, as it does without a gateway: so
clients that could go by UDP, or to another address of it, do that (docs/decisions/0121-as-the-nat-would.md)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator

import pytest

from tests.lab.gateway import Gateway
from tests.lab.lab import CLIENT4, SERVER4, SERVER6, STRANGER4, Lab
from tests.lab.sip_peers import Kamailio
from tests.net.test_sip_pjsip import Phone


def refused_handshakes(gateway: Gateway) -> int:
    packets = next(row for row in gateway.admin("status") if row["process"] == "packets")
    return int(packets["handshakes_refused"])


@pytest.fixture
def kamailio(lab: Lab, gateway: Gateway) -> Iterator[Kamailio]:
    kamailio = Kamailio(lab, "outside", SERVER4, tcp=False)
    yield kamailio
    kamailio.stop()


@pytest.mark.skipif(importlib.util.find_spec("pjsua2") is None, reason="pjsua2 (pjsip) is not installed")
def test_pjsip_sends_a_large_request_over_udp_then(lab: Lab, gateway: Gateway, kamailio: Kamailio) -> None:
    """With its defaults it tries TCP above 1,300 bytes, and UDP if that is refused, but not if it is reset later."""
    phones: list[Phone] = []
    try:
        phones.append(Phone(lab, "stranger", "bob", STRANGER4))
        phones[0].wait_for("registered", 200)
        phones.append(Phone(lab, "inside", "ann", CLIENT4, "bob+"))
        for phone in phones:
            phone.wait_for("state", "CONFIRMED")
            phone.hears(15)
    finally:
        for phone in phones:
            phone.stop()


@pytest.mark.parametrize("port", [5060, 21, 554, 6667])
@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_nobody_listens(lab: Lab, gateway: Gateway, server: str, port: int) -> None:
    before = refused_handshakes(gateway)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            lab.connect("inside", server, port)
    assert refused_handshakes(gateway) == before + 3
    assert "event=transparent.refused" in "\n".join(gateway.log_lines())


@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_one_that_listens_is_served_and_found_again_soon(lab: Lab, gateway: Gateway, server: str) -> None:
    with lab.listen("outside", "::", 5060) as listener:

        def served() -> bool:  # it may be known as one that refuses, for two seconds
            try:
                with lab.connect("inside", server, 5060) as sock, listener.accept()[0] as connection:
                    connection.sendall(b"hello\r\n")  # the question whether it listens was no connection
                    sock.settimeout(5)
                    return sock.recv(64) == b"hello\r\n"
            except ConnectionRefusedError:
                return False

        lab.wait_for(served, 10, "the server to be known as one that serves")


def test_a_client_that_is_refused_tries_the_next_address(lab: Lab, gateway: Gateway) -> None:
    """A name with addresses of both families, one of which no FTP server has (RFC 8305, 5): curl goes to the other."""
    with lab.listen("outside", SERVER4, 21) as listener:
        listener.settimeout(10)
        addresses = f"files.example:21:{SERVER6},{SERVER4}"
        curl = ["curl", "-sS", "--max-time", "10", "--resolve", addresses, "ftp://files.example/"]
        process = lab.popen("inside", curl)
        with listener.accept()[0] as server:
            server.settimeout(10)
            server.sendall(b"220 ready\r\n")
            assert server.recv(100).startswith(b"USER ")
            server.sendall(b"530 no\r\n")
            assert process.wait(10) == 67  # the login was denied: it was there


def test_one_that_does_not_answer_is_no_refusal(lab: Lab, gateway: Gateway) -> None:
    """The SYN waits for a second at the most, and then all is as before."""
    began = time.monotonic()
    with lab.connect("inside", "203.0.113.99", 5060, timeout=10):  # nobody has this address
        assert time.monotonic() - began < 5
