"""Certificates: what TLS is configured with. All take the text of files (PEM); errors say what is wrong in it."""

from __future__ import annotations

import os
import re
import ssl
from datetime import UTC, datetime
from typing import Any

_BEGIN = "-----BEGIN "
_CERTIFICATE = re.compile(r"-----BEGIN (?:TRUSTED )?CERTIFICATE-----.*?-----END (?:TRUSTED )?CERTIFICATE-----", re.S)
# Tags of DER (X.690) that a certificate begins with (RFC 5280 section 4.1).
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
SOON = 21 * 86400.0  # seconds before its end from which on a certificate is warned of: those that renew themselves have
# done so nine days before


def server_context(certificate: str, client_ca: str | None = None) -> ssl.SSLContext:
    """Return the TLS context of a listener. `certificate`: the chain and its key; `client_ca`: the authorities of
    clients' certificates, which are required then. Raises ValueError. There are no session tickets: each connection
    proves its identity anew, and a worker could not read another worker's tickets."""
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


def ends(text: str) -> list[float]:
    """Return when the certificates of a file end, in their order, as Unix time. Raises ValueError for one that cannot
    be read."""
    return [_end(ssl.PEM_cert_to_DER_cert(found[0].replace("TRUSTED ", ""))) for found in _CERTIFICATE.finditer(text)]


def end_of_chain(text: str) -> float:
    """Return when a chain cannot be used any more: at the first end in it. Raises ValueError."""
    return min(ends(text))


def end_of_authorities(text: str, now: float) -> float:
    """Return when the next authority of a file ends. Those that have ended count only when no other is left, because
    files keep the old ones beside their successors. Raises ValueError."""
    found = ends(text)
    return min((end for end in found if end > now), default=max(found))


def _end(der: bytes) -> float:
    """Return the notAfter of a certificate (RFC 5280 section 4.1.2.5)."""
    _, body, _ = _element(der, 0, _SEQUENCE)
    _, at, _ = _element(der, body, _SEQUENCE)
    if der[at : at + 1] == bytes([_VERSION]):
        at = _element(der, at)[2]
    for _ in range(3):  # serial number, algorithm, issuer
        at = _element(der, at)[2]
    _, at, _ = _element(der, at, _SEQUENCE)
    tag, start, stop = _element(der, _element(der, at)[2])
    words = der[start:stop].decode("ascii")
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("its validity cannot be read")
    if tag == _UTC_TIME:  # the years from 1950 to 2049
        words = ("19" if words >= "5" else "20") + words
    return datetime.strptime(words, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int, tag: int | None = None) -> tuple[int, int, int]:
    """Return tag, beginning and end of the contents of the element at `at`. Raises ValueError unless it is whole, and
    has the tag, if one is expected."""
    head = der[at : at + 2]
    if len(head) < 2 or (tag is not None and head[0] != tag):
        raise ValueError("it is no certificate")
    size, start = head[1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[start : start + count], "big")
        start += count
    if start + size > len(der):
        raise ValueError("it is cut off")
    return head[0], start, start + size
