"""The client's side: programs and libraries that go through a gateway. Needs the standard library and `alg.socks` only.

from gateway.client import connect
sock = connect("socks5://192.168.56.1:1080", "www.example.org", 80, timeout=10)
"""

from alg.socks.errors import ProxyError
from gateway.client.blocking import Datagrams, Listening, connect, datagrams, listen, resolve, resolve_address
from gateway.client.patch import socksified
from gateway.client.proxy import Chain, Proxy, ProxySyntaxError

__all__ = [
    "Chain",
    "Datagrams",
    "Listening",
    "Proxy",
    "ProxyError",
    "ProxySyntaxError",
    "connect",
    "datagrams",
    "listen",
    "resolve",
    "resolve_address",
    "socksified",
]
