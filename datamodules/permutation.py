# SPDX-License-Identifier: Apache-2.0
"""A shuffle that is a function: where place i goes is computed, so a shuffle of 10⁹ samples needs no list.

A Feistel network is a permutation of the numbers below a power of four whatever its round function is; what
lands outside the wanted range is sent through again until it lands inside (cycle walking). See J. Black and
P. Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002). It shuffles, it does not protect: the round
function is a mixer of integers (SplitMix64; Steele, Lea and Flood, 2014), no cipher.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

ROUNDS = 6
"""Rounds of the network. Four are the theory's least; six leave no trace in the tests of uniformity."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: int | str) -> int:
    """A 64-bit key that depends on every part, the same in every process and on every machine."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(places: Int64[np.ndarray, " N"], size: int, key: int) -> Int64[np.ndarray, " N"]:
    """Where the permutation of ``range(size)`` that belongs to ``key`` sends each of ``places``.

    Args:
        places: numbers in ``range(size)``, in any order and with repeats.
        size: how many numbers are permuted, at most 2⁶².
        key: from ``key_of``.

    Raises:
        IndexError: a place is outside ``range(size)``.
    """
    if len(places) and not (places.min() >= 0 and places.max() < size):
        raise IndexError(f"places from {places.min()} to {places.max()} are not all in range({size})")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = mix(np.arange(ROUNDS, dtype=np.uint64) ^ np.uint64(key))
    values = _network(places.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _network(values[outside], half, keys)
    return values.astype(np.int64)


def mix(values: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Numbers that look random, one for each value and the same for the same value (SplitMix64)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2⁶⁴ is what is meant
        values = values + GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _network(
    values: UInt64[np.ndarray, " N"], half: np.uint64, keys: UInt64[np.ndarray, " R"]
) -> UInt64[np.ndarray, " N"]:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & low)
    return (left << half) | right
