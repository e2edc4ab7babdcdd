"""The values of the SIP headers that matter here, as patterns over bytes: strict where it matters, and lenient
elsewhere.

docs/protocols/sip.md lists these headers. Header lines, parameters, hosts: `alg.text.header`.
"""

from __future__ import annotations

import re

from alg.text.header import HOST, PARAMS, PORT, QUOTED, TOKEN, WS, S

VERSION = rb"(?i:SIP)/2\.0"
END = rb"(?=" + S + rb"(?:,|\Z))"

# What a far side's Contact had in it stands in the Request-URI: parameters with quotes and brackets, too.
REQUEST = re.compile(rb"(" + TOKEN + rb') ([^\s<>"]\S*) ' + VERSION + rb"[ \t]*\r?\n")
STATUS = re.compile(VERSION + rb" ([1-6][0-9][0-9])(?: [^\r\n]*)?\r?\n")

# Of the values below the groups are what is read or replaced.
_SENDER = (
    rb"(?i:SIP)" + S + rb"/" + S + rb"2\.0" + S + rb"/" + S + rb"(" + TOKEN + rb")" + WS + rb"++"
    rb"(" + HOST + rb")(?:" + S + rb":" + S + rb"((?:" + PORT + rb")?))?"
)
SENDER = re.compile(_SENDER + S)  # what stands before the parameters of Via
VIA = re.compile(_SENDER + rb"(" + PARAMS + rb")(?=" + S + rb"(?:\Z|," + S + rb"(?i:SIP)))", re.DOTALL)
# Where the parameters of others are odd (a comment behind them, a branch with blanks or brackets), sent-by is clear all
# the same, as long as no comma could begin another value.
VIA_LOOSE = re.compile(_SENDER + rb"(?=" + S + rb"[;(])([^,]*+)(?=\Z|," + S + rb"(?i:SIP)" + S + rb"/)", re.DOTALL)
# A name before <> is free text (UTF-8 without quotes, too), but for what would let it be read in two ways.
BRACKETED = rb'<([^<>\s"]*+)>(' + PARAMS + rb")"
NAME_ADDR = re.compile(rb"(?:" + QUOTED + rb'|[^"<>,;]++)*' + BRACKETED + END, re.DOTALL)
ADDR_SPEC = re.compile(rb'([^<>\s",;?]++)(' + PARAMS + rb")" + END, re.DOTALL)
ANY_NAME_ADDR = re.compile(QUOTED + rb"|" + BRACKETED, re.DOTALL)
# The same where names or parameters are not by the grammar. Blanks behind the URI are no part of it.
LOOSE_ADDR = re.compile(QUOTED + rb"|<" + S + rb"([A-Za-z][A-Za-z0-9+.\-]*+:[^<>]*+)>|([<>])", re.DOTALL)
BARE_URI = re.compile(rb'(?i:sips?|tel):[^\s<>",;]++')
COMMA = re.compile(S + rb"," + S)
BLANK = re.compile(S)
CSEQ = re.compile(rb"([0-9]{1,10})" + WS + rb"++(" + TOKEN + rb")" + S + rb"(?:[;,].*)?", re.DOTALL)
NUMBER = re.compile(rb"([0-9]+)" + S)
# The last `@` before the host ends the user; the host ends at the first `;` behind such an `@`.
SIP_URI = re.compile(
    rb"(?i:(sips?)):(?:[^@<>\r\n]*+(?:@[^@;?<>\r\n]*+(?=@))*@)?"
    rb"(" + HOST + rb")(?::((?:" + PORT + rb")?))?((?:[ \t]*+;(?:" + QUOTED + rb'|[^?<>\r\n"])*+)?)(\?[^\s<>"]*+)?'
)
CONTENT_TYPE = re.compile(rb"(" + TOKEN + rb")" + S + rb"/" + S + rb"(" + TOKEN + rb")(?=[;,\s]|\Z)")
