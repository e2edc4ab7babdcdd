"""Certificates: what TLS is configured with, read from files, with errors that say what is wrong in them."""

from __future__ import annotations

import ssl
from typing import Any

_BEGIN = "-----BEGIN "


def server_context(certificate: str, client_ca: str | None = None) -> ssl.SSLContext:
    """Return the context of a listener. `certificate`: a file with the chain and its key; `client_ca`: a file with the
    authorities of clients' certificates, which then are required. Raises ValueError with what is wrong, OSError.

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
    """Return the context of a connection to an upstream. `ca`: a file with the authorities of its certificate (empty:
    the system's); `certificate`: a file with our own chain and key (empty: none). Raises ValueError, OSError."""
    context = ssl.create_default_context() if not ca else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca:
        load_authorities(context, ca)
    if certificate:
        load_chain(context, certificate)
    return context


def load_chain(context: ssl.SSLContext, path: str) -> None:
    """Load a chain and its key. Raises ValueError with what is wrong in the file, OSError."""
    text = _text(path)
    if f"{_BEGIN}CERTIFICATE" not in text:
        raise ValueError("there is no certificate in it (PEM)")
    if "PRIVATE KEY-----" not in text:
        raise ValueError("there is no private key in it (PEM, in the same file as the chain)")
    if "ENCRYPTED" in text:
        raise ValueError("its key is encrypted, and nobody can be asked for the passphrase")
    try:
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError("its key is not the key of its first certificate") from None
        raise ValueError(f"OpenSSL cannot read it ({error.reason or error})") from None


def load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Load certificates of authorities. Raises ValueError with what is wrong in the file, OSError."""
    text = _text(path)
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


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()
