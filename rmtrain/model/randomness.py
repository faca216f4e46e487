"""Every random number of a model, from its own stream: (seed, purpose) decides it, whatever was drawn before and on which device."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream depends on `seed` and `purpose` alone."""
    return torch.Generator().manual_seed(_stream(seed, purpose))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Within it, torch's CPU generator stands at the stream of (`seed`, `purpose`); afterwards at where it was before.

    For code of others that draws from the global generator. Only the CPU's is touched: models are made on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_stream(seed, purpose))
        yield


def _stream(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:7], "big")
