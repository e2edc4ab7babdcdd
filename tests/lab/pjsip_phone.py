"""A phone of pjsip with its defaults: `python -m tests.lab.pjsip_phone USER LOCAL_ADDRESS PROXY [DIAL]`.

Registers, dials or waits for a call, sends a tone, and says on standard output what happens, a JSON object a line. It
ends when it reads a line from standard input: with a BYE, if it is in a call.
"""

# mypy: ignore-errors
# pjsua2 says nothing of its types, and is not there everywhere.
from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

import pjsua2 as pj

DOMAIN = "example.test"
OVER_TCP = "x" * 400  # makes an INVITE longer than 1,300 bytes, so pjsip sends it over TCP (RFC 3261, 18.1.1)


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Call(pj.Call):
    """Sends a tone as soon as there are media."""

    def __init__(self, account: pj.Account, tone: pj.ToneGenerator, number: int = pj.PJSUA_INVALID_ID) -> None:
        super().__init__(account, number)
        self._tone = tone

    def onCallState(self, _: Any) -> None:
        info = self.getInfo()
        say(state=info.stateText, code=info.lastStatusCode)

    def onCallMediaState(self, _: Any) -> None:
        for index, media in enumerate(self.getInfo().media):
            if media.type == pj.PJMEDIA_TYPE_AUDIO and media.status == pj.PJSUA_CALL_MEDIA_ACTIVE:
                self._tone.startTransmit(self.getAudioMedia(index))
                say(media=self.getStreamInfo(index).remoteRtpAddress)


class Account(pj.Account):
    """Answers what comes."""

    def __init__(self, tone: pj.ToneGenerator) -> None:
        super().__init__()
        self._tone = tone
        self.call: Call | None = None

    def onRegState(self, parameters: Any) -> None:
        say(registered=parameters.code)

    def onIncomingCall(self, parameters: Any) -> None:
        self.call = Call(self, self._tone, parameters.callId)
        answer = pj.CallOpParam()
        answer.statusCode = 200
        self.call.answer(answer)


def main(user: str, address: str, proxy: str, dial: str | None) -> None:
    endpoint = pj.Endpoint()
    endpoint.libCreate()
    config = pj.EpConfig()
    config.logConfig.consoleLevel = 0
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = True
    endpoint.libInit(config)
    for kind in (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_TCP):
        transport = pj.TransportConfig()
        transport.port = 5060
        transport.boundAddress = address
        endpoint.transportCreate(kind, transport)
    endpoint.libStart()
    endpoint.audDevManager().setNullDev()
    tone = pj.ToneGenerator()
    tone.createToneGenerator()
    note = pj.ToneDesc()
    note.freq1, note.on_msec, note.off_msec = 500, 1000, 0
    notes = pj.ToneDescVector()
    notes.append(note)
    tone.play(notes, True)

    account = Account(tone)
    own = pj.AccountConfig()
    own.idUri = f"sip:{user}@{DOMAIN}"
    own.regConfig.registrarUri = f"sip:{DOMAIN}"
    own.sipConfig.proxies.append(f"sip:{proxy};lr")
    account.create(own)
    if dial is not None:
        asked = pj.CallOpParam(True)
        header = pj.SipHeader()
        header.hName, header.hValue = "X-Long", OVER_TCP
        if dial.endswith("+"):
            asked.txOption.headers.append(header)
        account.call = Call(account, tone)
        while account.getInfo().regStatus != 200:
            endpoint.libHandleEvents(50)
        account.call.makeCall(f"sip:{dial.rstrip('+')}@{DOMAIN}", asked)

    count = 0
    while not select.select([sys.stdin], [], [], 0)[0]:  # no thread: what pjsip is called from it has to know
        endpoint.libHandleEvents(50)
        count += 1
        if count % 10 == 0 and account.call is not None and account.call.isActive() and account.call.hasMedia():
            rtcp = account.call.getStreamStat(0).rtcp
            say(received=rtcp.rxStat.pkt, sent=rtcp.txStat.pkt)
    if account.call is not None and account.call.isActive():
        account.call.hangup(pj.CallOpParam())
        for _ in range(20):
            endpoint.libHandleEvents(50)
    say(over=True)
    os._exit(0)  # its destructors do not bear the order in which Python ends


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
