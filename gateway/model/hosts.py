"""Host names: one spelling for one name, so that the rules judge the very name that is then looked up."""

from __future__ import annotations

import re

import dns.exception
import dns.name

MAX_LENGTH = 253

# What DNS carries is a name (RFC 2181, section 11), whatever RFC 952 says of host names: labels begin and end with
# hyphens, and have underscores, or what else a URL may have in its host (RFC 3986, 3.2.2). Left out is only what means
# something where names are written: in zone files, in lists, in rules (`*`), in addresses.
_LABEL = re.compile(r"[a-z0-9_!$&'+=~-]{1,63}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


def canonical_name(text: str) -> str:
    """`text` in lower case ASCII (IDNA) without the last dot. ValueError if it cannot be a host name.

    What the C library reads as an address in other spellings (127.1, 0x7f000001) is none either, nor is a name with
    the escapes of zone files (`ex\\097mple.com`), which two readers might read differently.
    """
    name = text.lower()
    if "\\" in text:
        raise ValueError(f"{text!r} is not a host name")
    if not text.isascii():
        try:
            name = dns.name.from_text(text, None).to_text().lower()
        except (dns.exception.DNSException, UnicodeError) as error:
            raise ValueError(f"{text!r} is not a host name: {error}") from None
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_LENGTH or not all(map(_LABEL.fullmatch, labels)) or _NUMBER.fullmatch(labels[-1]):
        raise ValueError(f"{text!r} is not a host name")
    return name
