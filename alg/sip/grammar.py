"""The values of the SIP headers that matter here, as patterns over bytes: strict where it matters, and lenient
elsewhere.

docs/protocols/sip.md lists these headers. Header lines, parameters, hosts: `alg.text.header`.
"""

from __future__ import annotations

import re

from alg.text.header import HOST, PARAMS, PORT, QUOTED, TOKEN, WS, S

VERSION = rb"(?i:SIP)/2\.0"
END = rb"(?=" + S + rb"(?:,|\Z))"

REQUEST = re.compile(rb"(" + TOKEN + rb') ([^\s<>"]+) ' + VERSION + rb"\r?\n")
STATUS = re.compile(VERSION + rb" ([1-6][0-9][0-9])(?: [^\r\n]*)?\r?\n")

# Of the values below the groups are what is read or replaced.
VIA = re.compile(
    rb"(?i:SIP)" + S + rb"/" + S + rb"2\.0" + S + rb"/" + S + rb"(" + TOKEN + rb")" + WS + rb"++"
    rb"(" + HOST + rb")(?:" + S + rb":" + S + rb"(" + PORT + rb"))?(" + PARAMS + rb")"
    rb"(?=" + S + rb"(?:\Z|," + S + rb"(?i:SIP)))",
    re.DOTALL,
)
# A name before <> is free text (UTF-8 without quotes, too), but for what would let it be read in two ways.
BRACKETED = rb'<([^<>\s"]*+)>(' + PARAMS + rb")"
NAME_ADDR = re.compile(rb"(?:" + QUOTED + rb'|[^"<>,;]++)*' + BRACKETED + END, re.DOTALL)
ADDR_SPEC = re.compile(rb'([^<>\s",;?]++)(' + PARAMS + rb")" + END, re.DOTALL)
ANY_NAME_ADDR = re.compile(QUOTED + rb"|" + BRACKETED, re.DOTALL)
COMMA = re.compile(S + rb"," + S)
BLANK = re.compile(S)
CSEQ = re.compile(rb"([0-9]{1,10})" + WS + rb"++(" + TOKEN + rb")" + S)
NUMBER = re.compile(rb"([0-9]+)" + S)
# The last `@` before the host ends the user; the host ends at the first `;` behind such an `@`.
SIP_URI = re.compile(
    rb'(?i:(sips?)):(?:[^@<>\s"]*+(?:@[^@;?<>\s"]*+(?=@))*@)?'
    rb"(" + HOST + rb")(?::(" + PORT + rb'))?((?:;[^?<>\s"]*+)?)(\?[^\s<>"]*+)?'
)
CONTENT_TYPE = re.compile(rb"(" + TOKEN + rb")" + S + rb"/" + S + rb"(" + TOKEN + rb")(?=[;\s]|\Z)")
