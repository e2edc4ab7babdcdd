"""A phone made of pjsip, with its defaults.

    python tests/lab/pjsua_phone.py USER LOCAL PORT PROXY TRANSPORT [DIAL] [PAD]

Registers at PROXY (HOST:PORT), answers every call, and calls DIAL if there is one, with PAD bytes of a header that
nobody reads. Says a line for each thing that happens: "registered CODE", "confirmed", "media RECEIVED SENT" (packets of
RTP, several times a second), "ended CODE". After the line "hang up" on its standard input it ends its call, and itself.
"""

from __future__ import annotations

import select
import sys
import time

import pjsua2 as pj

DOMAIN = "example.test"


def say(*words: object) -> None:
    print(*words, flush=True)


class Call(pj.Call):  # type: ignore[misc]
    def onCallState(self, prm: object) -> None:
        info = self.getInfo()
        if info.state == pj.PJSIP_INV_STATE_CONFIRMED:
            say("confirmed")
        elif info.state == pj.PJSIP_INV_STATE_DISCONNECTED:
            say("ended", info.lastStatusCode)

    def onCallMediaState(self, prm: object) -> None:
        sound, devices = self.getAudioMedia(-1), pj.Endpoint.instance().audDevManager()
        devices.getCaptureDevMedia().startTransmit(sound)
        sound.startTransmit(devices.getPlaybackDevMedia())

    def media(self) -> None:
        try:
            stat = self.getStreamStat(0).rtcp
        except pj.Error:
            return
        say("media", stat.rxStat.pkt, stat.txStat.pkt)


class Account(pj.Account):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def onRegState(self, prm: object) -> None:
        say("registered", prm.code)  # type: ignore[attr-defined]

    def onIncomingCall(self, prm: object) -> None:
        call = Call(self, prm.callId)  # type: ignore[attr-defined]
        self.calls.append(call)
        answer = pj.CallOpParam()
        answer.statusCode = 200
        call.answer(answer)


def main() -> None:
    user, local, port, proxy, transport = sys.argv[1:6]
    dial, pad = (*sys.argv[6:], "", "")[:2]
    endpoint = pj.Endpoint()
    endpoint.libCreate()
    config = pj.EpConfig()
    config.uaConfig.threadCnt, config.uaConfig.mainThreadOnly = 0, True
    config.logConfig.level, config.logConfig.consoleLevel = 4, 0
    config.medConfig.noVad = True
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    for kind in (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_TCP):
        transport_config = pj.TransportConfig()
        transport_config.port, transport_config.boundAddress = int(port), local
        endpoint.transportCreate(kind, transport_config)
    endpoint.libStart()
    suffix = ";transport=tcp" if transport == "tcp" else ""
    account_config = pj.AccountConfig()
    account_config.idUri = f"sip:{user}@{DOMAIN}"
    account_config.regConfig.registrarUri = f"sip:{DOMAIN}{suffix}"
    account_config.sipConfig.proxies.append(f"sip:{proxy}{suffix};lr")
    account_config.mediaConfig.transportConfig.boundAddress = local
    account = Account()
    account.create(account_config)
    begin, asked = time.monotonic() + 0.5, False
    while True:
        endpoint.libHandleEvents(50)
        if dial and not asked and time.monotonic() >= begin and account.getInfo().regStatus == 200:
            asked = True
            call = Call(account)
            account.calls.append(call)
            param = pj.CallOpParam(True)
            if pad:
                header = pj.SipHeader()
                header.hName, header.hValue = "X-Padding", "x" * int(pad)
                param.txOption.headers.append(header)
            call.makeCall(f"sip:{dial}@{DOMAIN}{suffix}", param)
        for call in account.calls:
            if call.isActive():
                call.media()
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                break
            for call in account.calls:
                if call.isActive():
                    call.hangup(pj.CallOpParam())
            until = time.monotonic() + 2
            while time.monotonic() < until:
                endpoint.libHandleEvents(50)
            break
    endpoint.libDestroy()


if __name__ == "__main__":
    main()
