"""Luck that depends on nothing but who, when and what: draws by counter, not by order.

A draw is a hash of a seed, a purpose and whole numbers such as user, day, search and product. So what one
policy shows cannot change the luck of what another one shows: common random numbers.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), once for each number.

Shapes: N draws.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from experiments.marketplace.world.catalog import FloatArray, IntArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, purpose: str, *keys_N: IntArray | int) -> FloatArray:
    """Numbers in [0, 1) for these keys, float64; the same for the same seed, purpose and keys.

    Args:
        keys_N: arrays of whole numbers, or one number for all.
    """
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    state_N: npt.NDArray[np.uint64] = np.array([int.from_bytes(digest, "big")], np.uint64)
    for key_N in keys_N:
        state_N = _mixed(state_N ^ _mixed(np.atleast_1d(np.asarray(key_N, np.int64)).astype(np.uint64)))
    return (state_N >> np.uint64(11)) * 2.0**-53


def _mixed(value_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value_N = value_N + _GOLDEN  # wraps around
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))
