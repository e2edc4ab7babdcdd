"""Random inputs for all that reads what strangers send: `python -m tests.fuzz [--seconds S] [--only WORD] [--seed N]`.

Inputs are pieces of the corpus (tests/fuzz/corpus/TARGET/, and the dialogues of tests/wire), changed and put together
at random, and cut at random. An input at which a target raises, takes long or loses a byte is kept in the corpus, as
`found-...`: from then on every run of the tests begins with it. The exit code is 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import sys
import time
import traceback
from pathlib import Path

import structlog

from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
WIRE = Path(__file__).parents[1] / "wire"
LONGEST = 20_000  # bytes of an input
SLOW = 0.5  # seconds of a processor for one input
TOKENS = [
    b"\r\n", b"\n", b" ", b":", b",", b";", b"=", b"\0", b"\xff", b'"', b"<", b">", b"(", b")", b"[", b"]", b"|",
    b"SIP/2.0", b"HTTP/1.1", b"Content-Length: 0", b"Content-Length: 99999999999", b"PORT 1,2,3,4,5,6", b"227 ",
    b"229 ", b"PASV", b"EPSV", b"AUTH TLS", b"234 ", b"220 ", b"\x16\x03\x01\0\5", b"INVITE sip:a@b SIP/2.0",
    b"v=0", b"m=audio 4 ", b"c=IN IP4 ", b"192.168.56.10", b"203.0.113.5", b"\5\1\0", b"\4\1", b"\1\1\0\4",
    b"\xc0\x0c", b"65536", b"4294967296", b"-",
]  # fmt: skip


def main() -> int:
    """Run it; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all targets together")
    parser.add_argument("--only", default="", help="targets with this word in their names")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # what refuses says so
    chosen = {name: target for name, target in TARGETS.items() if arguments.only in name}
    found = 0
    for name, target in chosen.items():
        count, bad = fuzz(name, target, random.Random(seed), arguments.seconds / len(chosen))
        print(f"{name}: {count} inputs, {len(bad)} found", flush=True)
        found += len(bad)
    return 1 if found else 0


def seeds(name: str) -> list[bytes]:
    """The files of a target's corpus, and what the corpus of dialogues has for it."""
    folder = CORPUS / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    data = [path.read_bytes() for path in files]
    for path in sorted((WIRE / name.partition("-")[0]).glob("*.dialogue")):
        for line in path.read_text().splitlines():
            words = line.split(" ", 2)
            if words[0] == ">>" and len(words) == 3 and words[1] in ("client", "server"):
                data.append(words[2].encode("latin-1", "replace").decode("unicode_escape").encode("latin-1", "replace"))
    for path in sorted((WIRE / name).glob("*.datagram")):
        digits = [line for line in path.read_text().splitlines() if re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})*", line)]
        data.append(bytes.fromhex("".join(digits)))
    return data or [b""]


def fuzz(name: str, target: Target, rng: random.Random, seconds: float) -> tuple[int, list[bytes]]:
    """Fuzz one target; how many inputs there were, and those that were found and kept."""
    corpus, bad, count = seeds(name), list[bytes](), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(bad) < 10:
        count += 1
        data = change(corpus, rng)
        problem = run(target, data, rng.getrandbits(32))
        if problem:
            bad.append(data)
            print(f"{name}: {problem}\n  kept as {keep(name, data)}", file=sys.stderr)
    return count, bad


def run(target: Target, data: bytes, seed: int) -> str:
    """What is wrong with a target's answer to an input; nothing, if nothing is."""
    began = time.process_time()
    try:
        target(data, random.Random(seed))
    except Exception:
        return traceback.format_exc(limit=-3)
    took = time.process_time() - began
    return f"it takes {took:.1f} s" if took > SLOW else ""


def keep(name: str, data: bytes) -> Path:
    """Add an input to the corpus."""
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def change(corpus: list[bytes], rng: random.Random) -> bytes:
    """Some inputs of the corpus, put together and changed in some places."""
    data = bytearray(b"".join(rng.choice(corpus) for _ in range(rng.choice([1, 1, 2, 3, 8]))))
    for _ in range(rng.choice([0, 1, 2, 4, 10])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                data[at:at] = rng.choice(TOKENS)
            case 1:
                data[at : at + rng.choice([1, 1, 4, 50])] = b""
            case 2:
                data[at:at] = rng.randbytes(rng.choice([1, 2, 30]))
            case 3:
                data[at:at] = data[at : at + rng.choice([1, 5, 60])] * rng.choice([2, 20, 300])
            case 4:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 5:
                data[at:at] = rng.choice(TOKENS) * rng.choice([2, 40, 1000])
            case 6:
                del data[at:]
    return bytes(data[:LONGEST])


if __name__ == "__main__":
    sys.exit(main())
