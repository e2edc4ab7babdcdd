"""floor.c in Python, as bare as the interpreter allows: no gevent, no object a connection, no rule, no log, no limit.

`floor_proxy.py HOST PORT PROCESSES`. Only to measure what Python costs by itself.
"""

from __future__ import annotations

import _socket
import os
import select
import sys
from socket import AF_INET, SHUT_WR, SO_REUSEADDR, SO_REUSEPORT, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, inet_ntoa

IN, OUT = select.EPOLLIN, select.EPOLLOUT
GREETING, REQUEST, CONNECTING, RELAY = range(4)
GRANTED = b"\5\0\0\1" + bytes(6)


def serve(host: str, port: int) -> None:
    """Until it is killed."""
    listener = _socket.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(4096)
    epoll = select.epoll()
    entrance = listener.fileno()
    epoll.register(entrance, IN)
    steps: dict[int, int] = {}
    socks: dict[int, _socket.socket] = {}
    others: dict[int, int] = {}
    ended: set[int] = set()

    def end(fd: int) -> None:
        for side in (fd, others.pop(fd, None)):
            if side is not None and side in socks:
                others.pop(side, None)
                ended.discard(side)
                del steps[side]
                socks.pop(side).close()

    while True:
        for fd, _events in epoll.poll(-1, 256):
            try:
                if fd == entrance:
                    while True:
                        fd, _address = listener._accept()  # type: ignore[attr-defined]
                        sock = socks[fd] = _socket.socket(AF_INET, SOCK_STREAM, 0, fileno=fd)
                        sock.setblocking(False)
                        steps[fd] = GREETING
                        epoll.register(fd, IN)
                step = steps.get(fd)
                if step == RELAY:
                    data = socks[fd].recv(16384)
                    other = others.get(fd)
                    if data and other is not None:
                        socks[other].send(data)
                    elif not data and other is not None and other not in ended:
                        ended.add(fd)
                        socks[other].shutdown(SHUT_WR)
                        epoll.modify(fd, 0)
                    else:
                        end(fd)
                elif step == CONNECTING:
                    steps[fd] = RELAY
                    socks[others[fd]].send(GRANTED)
                    epoll.modify(fd, IN)
                elif step is not None:
                    data = socks[fd].recv(512)
                    if len(data) == 3 and step == GREETING:
                        socks[fd].send(b"\5\0")
                        steps[fd] = REQUEST
                    elif len(data) == 10 and step == REQUEST:
                        sock = _socket.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)
                        there = sock.fileno()
                        socks[there], steps[there], steps[fd] = sock, CONNECTING, RELAY
                        others[there], others[fd] = fd, there
                        sock.connect_ex((inet_ntoa(data[4:8]), int.from_bytes(data[8:10], "big")))
                        epoll.register(there, OUT)
                    else:
                        end(fd)
            except BlockingIOError:
                pass
            except OSError:
                end(fd)


if __name__ == "__main__":
    for _ in range(int(sys.argv[3]) - 1):
        if not os.fork():
            break
    serve(sys.argv[1], int(sys.argv[2]))
