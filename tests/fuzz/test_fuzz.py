"""The corpus of the fuzzer, every file of it, and new inputs: FUZZ_SECONDS for all targets (20; CI has minutes)."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.__main__ import change, fuzz, run, seeds
from tests.fuzz.targets import TARGETS

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before(name: str) -> None:
    for data in seeds(name):
        for seed in range(3):
            assert not run(TARGETS[name], data, seed), data[:200]


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs(name: str) -> None:
    count, found = fuzz(name, TARGETS[name], random.Random(SEED), SECONDS / len(TARGETS))
    assert not found
    assert count > 10


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["handshakes", "datagrams", "client", "inside"])
def test_so_many_inputs_of_both_ends_of_socks(name: str, count: int) -> None:
    """The codecs of the server and of the client, by number and not by time."""
    corpus, rng = seeds(name), random.Random(SEED)
    for _ in range(count):
        data = change(corpus, rng)
        assert not run(TARGETS[name], data, rng.getrandbits(32)), data[:200]
