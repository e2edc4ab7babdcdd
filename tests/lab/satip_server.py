"""A server of SAT>IP (television by RTSP: MPEG-TS over RTP): `python satip_server.py HOST PORT FFMPEG`.

It serves one viewer after another. The pictures are ffmpeg's, and go to the ports that it reads in SETUP.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys


def answer(cseq: str, *fields: str) -> bytes:
    """A reply of RTSP."""
    return "\r\n".join(["RTSP/1.0 200 OK", f"CSeq: {cseq}", *fields, "", ""]).encode()


def serve(connection: socket.socket, viewer: str, ffmpeg: str) -> None:
    """Talk with a viewer until it hangs up."""
    said = connection.makefile("rb")
    port, playing = 0, None
    try:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = said.readline()
                if not line:
                    return
                head += line
            text = head.decode()
            cseq = re.search(r"(?im)^CSeq: *(\d+)", text)
            method, fields = text.split()[0], ["Session: 77;timeout=60"]
            if method == "SETUP" and (found := re.search(r"client_port=(\d+)-(\d+)", text)):
                port = int(found[1])
                fields += ["com.ses.streamID: 1", f"Transport: RTP/AVP;unicast;{found[0]};server_port=6970-6971"]
            elif method == "PLAY":
                source = ["-re", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=15", "-c:v", "mpeg2video"]
                target = ["-f", "rtp_mpegts", f"rtp://{viewer}:{port}?localport=6970"]
                playing = subprocess.Popen([ffmpeg, "-nostdin", "-loglevel", "error", *source, *target])
                fields += ["RTP-Info: url=rtsp://television/stream=1"]
            elif method == "OPTIONS":
                fields = ["Public: OPTIONS, SETUP, PLAY, TEARDOWN"]
            connection.sendall(answer(cseq[1] if cseq else "0", *fields))
    finally:
        if playing is not None:
            playing.kill()
            playing.wait()


def main() -> None:
    """Listen for ever."""
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
    print("listening", flush=True)
    while True:
        connection, (viewer, _) = listener.accept()
        with connection:
            serve(connection, viewer, sys.argv[3])


if __name__ == "__main__":
    main()
