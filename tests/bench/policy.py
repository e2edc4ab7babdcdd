"""What a decision costs with many rules: `.venv/bin/python -m tests.bench.policy [RULES]`."""

from __future__ import annotations

import ipaddress
import random
import statistics
import sys
import time
from datetime import datetime

from alg.address import Address, Endpoint
from gateway.config.rules import compile_rule
from gateway.config.schema_rules import RuleSection
from gateway.model.requests import ConnectRequest
from gateway.policy.decide import Policy

INSIDE = [ipaddress.ip_network("10.0.0.0/8")]
ROUNDS = 20000


def sections(chance: random.Random, count: int) -> list[RuleSection]:
    """Rules as a site of that size may have them: networks, names, wildcards, ports, users; few match a request."""
    found = []
    for i in range(count):
        to: tuple[str, ...] = ()
        kind = i % 4
        if kind == 0:
            to = (f"{chance.randrange(11, 200)}.{chance.randrange(256)}.{chance.randrange(256)}.0/24",)
        elif kind == 1:
            to = (f"host{i}.example.com", f"*.site{i}.example.net")
        elif kind == 2:
            to = (f"2001:db8:{chance.randrange(65536):x}::/{chance.choice((48, 56, 64))}",)
        source = f"10.{chance.randrange(256)}.{chance.randrange(256)}.0/{chance.choice((16, 20, 24, 28))}"
        found.append(
            RuleSection(
                action=chance.choice(("permit", "deny")),
                from_=(str(ipaddress.ip_network(source, strict=False)),),
                to=to,
                port=(chance.choice((22, 25, 80, 443, "8000-8999", "1024-65535")),),
                user=(f"user{chance.randrange(500)}",) if i % 5 == 0 else (),
                time="Mo-Fr 08:00-18:00" if i % 7 == 0 else (),
            )
        )
    return found


def measure(count: int) -> tuple[float, float, float]:
    """Seconds to build the policy; the median and the 99th percentile of a decision on a client and an address."""
    chance = random.Random(1)
    wanted = sections(chance, count)
    began = time.perf_counter()
    rules = [compile_rule(section, f"rule[{i}]", "") for i, section in enumerate(wanted)]
    policy = Policy(INSIDE, rules, now=datetime.now)
    built = time.perf_counter() - began
    asked: list[tuple[ConnectRequest, Address]] = []
    for _ in range(2000):
        client = Endpoint(f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(256)}", 40000)
        i = chance.randrange(count)
        host = chance.choice((f"host{i}.example.com", f"www.site{i}.example.net", "203.0.113.9", "2001:db8:17::1"))
        address = ipaddress.ip_address(host if host[0] == "2" else "198.51.100.7")
        user = f"user{chance.randrange(500)}"
        asked.append((ConnectRequest("connect", client, host, chance.choice((22, 80, 443, 8080)), user), address))
    times = []
    for number in range(ROUNDS):
        request, address = asked[number % len(asked)]
        start = time.perf_counter()
        judgement = policy.judge(request)
        assert judgement.client is not None
        judgement.at(address)
        times.append(time.perf_counter() - start)
    return built, statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> None:
    for count in [int(word) for word in sys.argv[1:]] or [10, 1000, 10000]:
        built, median, worst = measure(count)
        print(
            f"{count:6} rules: both decisions on a request {median * 1e6:5.1f} µs (median),"
            f" {worst * 1e6:5.1f} µs (99 %); the policy is built in {built:.2f} s"
        )


if __name__ == "__main__":
    main()
