"""The parts of RFC 3261, 25 that matter here, as patterns over bytes.

Inside a header a CR LF can only be a fold (`message.parse` sees to it), so white space is any of blank, tab, CR, LF.
All repetitions are possessive where the next thing cannot begin with the same character: time is linear.
"""

from __future__ import annotations

import re

BLANKS = b" \t\r\n"
WS = rb"[" + BLANKS + rb"]"
S = WS + rb"*+"
TOKEN = rb"[A-Za-z0-9!%'*+.\-_`~]++"
QUOTED = rb'"(?:[^"\\]|\\.)*+"'
HOST = rb"(?:\[[0-9A-Fa-f:.]++\]|[A-Za-z0-9._\-]++)"
PORT = rb"[0-9]{1,5}+"
PARAMS = (
    rb"(?:" + S + rb";" + S + TOKEN + rb"(?:" + S + rb"=" + S + rb"(?:" + QUOTED + rb'|[^;,"<> \t\r\n=]++=*+))?+)*+'
)
SCHEME = rb"[A-Za-z][A-Za-z0-9+.\-]*+:"
END = rb"(?=" + S + rb"(?:,|\Z))"

REQUEST = re.compile(rb"([A-Za-z0-9!%'*+.\-_`~]+) (" + SCHEME + rb'[^\s<>"]+) SIP/2\.0\r\n')
STATUS = re.compile(rb"SIP/2\.0 ([1-6][0-9][0-9]) [^\r\n]*\r\n")
NAME = re.compile(TOKEN)
HEADER = re.compile(
    rb"(" + TOKEN + rb")[ \t]*+:(?:[ \t]|\r\n[ \t])*+([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)\r\n", re.DOTALL
)

# Of the values below the groups are what is read or replaced.
VIA = re.compile(
    rb"(?i:SIP)" + S + rb"/" + S + rb"2\.0" + S + rb"/" + S + rb"(" + TOKEN + rb")" + WS + rb"++"
    rb"(" + HOST + rb")(?:" + S + rb":" + S + rb"(" + PORT + rb"))?(" + PARAMS + rb")" + END,
    re.DOTALL,
)
NAME_ADDR = re.compile(
    rb"(?:"
    + QUOTED
    + rb"|[A-Za-z0-9!%'*+.\-_`~ \t\r\n]*+)"
    + S
    + rb"<("
    + SCHEME
    + rb'[^<>\s"]++)>('
    + PARAMS
    + rb")"
    + END,
    re.DOTALL,
)
ADDR_SPEC = re.compile(rb"(" + SCHEME + rb'[^<>\s",;?]++)(' + PARAMS + rb")" + END, re.DOTALL)
COMMA = re.compile(S + rb"," + S)
BLANK = re.compile(S)
CSEQ = re.compile(rb"([0-9]{1,10})" + WS + rb"++([A-Za-z0-9!%'*+.\-_`~]++)" + S)
CALL_ID = re.compile(rb"([^\s]+)" + S)
NUMBER = re.compile(rb"([0-9]+)" + S)
SIP_URI = re.compile(
    rb'(?i:(sips?)):(?:[^@<>\s"]*+@)?(' + HOST + rb")(?::(" + PORT + rb'))?((?:;[^;?<>\s"@]*+)*+)(\?[^\s<>"]*+)?'
)
PARAM = re.compile(
    rb";" + S + rb"(" + TOKEN + rb")(?:" + S + rb"=" + S + rb"(" + QUOTED + rb'|[^;,"<> \t\r\n]++))?+', re.DOTALL
)
CONTENT_TYPE = re.compile(
    rb"([A-Za-z0-9!%'*+.\-_`~]++)" + S + rb"/" + S + rb"([A-Za-z0-9!%'*+.\-_`~]++)(" + PARAMS + rb")" + S
)
