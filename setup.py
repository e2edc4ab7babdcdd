"""What of algate is compiled to C where it is built with ALGATE_COMPILE=1 (docs/decisions/0074-compiled.md); all the
rest of the package is in pyproject.toml.

The sources are as they are for an interpreter too, and stand beside the compiled modules: a Python for which these were
not made takes the sources.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup


def _modules(package: str, *names: str) -> list[str]:
    return [f"{package}/{name}.py" for name in names]


# What a message, a pinhole or a connection passes through, and a measurement says so. Not what makes objects that
# msgspec fills.
COMPILED = {
    "alg.compiled": [
        *_modules("alg", "address", "api", "bucket", "datagrams"),
        *_modules("alg/text", "header", "heads", "sdp"),
        *_modules("alg/sip", "bindings", "call", "calls", "core", "edits", "grammar", "ladder", "message"),
        *_modules("alg/sip", "peers", "rows", "sdp", "sockets", "stand_down", "stream", "tcp", "udp"),
    ],
    "gateway.compiled": [
        *_modules("gateway/driver", "activity", "conversations", "datagrams", "faults", "guard", "ordering", "outbox"),
        *_modules("gateway/front/packets", "packet", "queue"),
        *_modules("gateway/front/udp", "reader"),
        *_modules(
            "gateway/broker", "elements", "element_messages", "engine", "netfilter", "netlink", "nfqueue", "stale"
        ),
        *_modules("gateway/broker", "guard", "nat", "pending", "permits", "ports", "server", "sharing", "translations"),
        *_modules("gateway/broker", "usage"),
        *_modules("gateway/lease", "calls", "ports", "quotas", "sockets", "table", "validate"),
        *_modules("gateway/net", "neighbours"),
        *_modules("gateway/observe", "batch", "ladders", "logfmt", "pinhole_log", "trace"),
        *_modules("gateway/pinhole", "client"),
        *_modules("gateway/net/relay", "connection", "half", "pipes", "poller", "splice", "wheel"),
        *_modules("gateway/policy", "clients", "decide", "index", "shared_counts"),
        *_modules("gateway/model", "hosts"),
        *_modules("gateway/flow", "quick_dial", "table"),
        *_modules("gateway/front", "accept"),
        *_modules("gateway/front/transparent", "original_dst"),
        *_modules("gateway/front/socks", "quick"),
        *_modules("gateway/observe", "flow_log"),
        *_modules("gateway/net", "fair_line", "sockets"),
    ],
}


def extensions() -> list[Extension]:
    if os.environ.get("ALGATE_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    return [
        extension
        for name, modules in COMPILED.items()
        for extension in mypycify(
            ["--strict", "--explicit-package-bases", *modules], opt_level="3", debug_level="0", group_name=name
        )
    ]


setup(ext_modules=extensions())
