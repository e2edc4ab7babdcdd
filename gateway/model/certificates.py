"""Certificates: what TLS is configured with. All take the text of files (PEM); errors say what is wrong in it."""

from __future__ import annotations

import os
import ssl
from typing import Any

_BEGIN = "-----BEGIN "


def server_context(certificate: str, client_ca: str | None = None) -> ssl.SSLContext:
    """Return the context of a listener. `certificate`: the chain and its key; `client_ca`: the authorities of clients'
    certificates, which then are required. Raises ValueError.

    There are no session tickets: each connection proves anew who it is, and a worker could not read another one's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])  # browsers offer HTTP/2 too
    load_chain(context, certificate)
    if client_ca is not None:
        load_authorities(context, client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: str = "", certificate: str = "") -> ssl.SSLContext:
    """Return the context of a connection to an upstream. `ca`: the authorities of its certificate (empty: the
    system's); `certificate`: our own chain and key (empty: none). Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # what is sent in the middle of another handshake would be lost
    if ca:
        load_authorities(context, ca)
    if certificate:
        load_chain(context, certificate)
    return context


def load_chain(context: ssl.SSLContext, text: str) -> None:
    """Load a chain and its key. Raises ValueError with what is wrong."""
    if f"{_BEGIN}CERTIFICATE" not in text:
        raise ValueError("there is no certificate in it (PEM)")
    if "PRIVATE KEY-----" not in text:
        raise ValueError("there is no private key in it (PEM, in the same file as the chain)")
    if "ENCRYPTED" in text:
        raise ValueError("its key is encrypted, and nobody can be asked for the passphrase")
    memfd = os.memfd_create("algate-certificate")  # OpenSSL reads a key from a file only
    try:
        with open(memfd, "w", closefd=False) as file:
            file.write(text)
        context.load_cert_chain(f"/proc/self/fd/{memfd}")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("its key is not the key of its first certificate") from None
        raise ValueError(f"OpenSSL cannot read it ({error.reason or error})") from None
    finally:
        os.close(memfd)


def load_authorities(context: ssl.SSLContext, text: str) -> None:
    """Load certificates of authorities. Raises ValueError with what is wrong."""
    if f"{_BEGIN}CERTIFICATE" not in text:
        raise ValueError("there is no certificate in it (PEM)")
    try:
        context.load_verify_locations(cadata=text)
    except ssl.SSLError as error:
        raise ValueError(f"OpenSSL cannot read it ({error.reason or error})") from None


def common_name(certificate: dict[str, Any]) -> str:
    """Return the common name of a certificate's subject. Raises ValueError if there is not exactly one that can be a
    user's name."""
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    if len(names) != 1 or not names[0] or len(names[0]) > 255 or not names[0].isprintable():
        raise ValueError(f"its subject has {len(names)} common names that can be a user's, and not one")
    return str(names[0])
