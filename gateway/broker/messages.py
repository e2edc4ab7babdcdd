"""The messages of nftables and of connection tracking, as pyroute2 has them, and nothing else of it.

`import pyroute2` loads interfaces, routes and a database of both: a quarter of a second, nine megabytes, and code that
the one privileged process never needs. So these modules are loaded below a package that is empty.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec

_spec = find_spec("pyroute2") if "pyroute2" not in sys.modules else None
if _spec is not None:
    sys.modules["pyroute2"] = module_from_spec(_spec)
try:
    from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES
    from pyroute2.netlink.nfnetlink.nfctsocket import (
        FILTER_FLAG_CTA_IP_DST,
        FILTER_FLAG_CTA_IP_SRC,
        FILTER_FLAG_CTA_PROTO_NUM,
        IPCTNL_MSG_CT_DELETE,
        IPCTNL_MSG_CT_GET,
        IPCTNL_MSG_CT_GET_STATS,
    )
    from pyroute2.netlink.nfnetlink.nftsocket import (
        NFT_MSG_DELSETELEM,
        NFT_MSG_DELTABLE,
        NFT_MSG_GETRULE,
        NFT_MSG_GETSETELEM,
        NFT_MSG_GETTABLE,
        NFT_MSG_NEWSETELEM,
        nft_table_msg,
    )
finally:
    if _spec is not None:
        del sys.modules["pyroute2"]  # another import loads all of it

__all__ = [
    "FILTER_FLAG_CTA_IP_DST",
    "FILTER_FLAG_CTA_IP_SRC",
    "FILTER_FLAG_CTA_PROTO_NUM",
    "IPCTNL_MSG_CT_DELETE",
    "IPCTNL_MSG_CT_GET",
    "IPCTNL_MSG_CT_GET_STATS",
    "NFNL_SUBSYS_CTNETLINK",
    "NFNL_SUBSYS_NFTABLES",
    "NFT_MSG_DELSETELEM",
    "NFT_MSG_DELTABLE",
    "NFT_MSG_GETRULE",
    "NFT_MSG_GETSETELEM",
    "NFT_MSG_GETTABLE",
    "NFT_MSG_NEWSETELEM",
    "nft_table_msg",
]
