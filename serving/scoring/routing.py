"""Which variant of an experiment a unit (a consumer) sees: a pure function of unit, salt and shares.

The same unit sees the same variant on every worker, host and day, without a table of assignments.
"""

import hashlib
import math
from collections.abc import Mapping

_BYTES = 8
_STEPS = 2.0 ** (8 * _BYTES)


def position(unit: str, salt: str) -> float:
    """Where a unit lies in [0, 1): uniform over units, independent between salts."""
    digest = hashlib.blake2b(unit.encode(), digest_size=_BYTES, key=hashlib.sha256(salt.encode()).digest())
    return min(int.from_bytes(digest.digest(), "big") / _STEPS, math.nextafter(1.0, 0.0))


def assign(unit: str, salt: str, shares: Mapping[str, float]) -> str:
    """The variant of a unit: variants lie in [0, 1) in the order of `shares`, each as wide as its share.

    A share that grows at the cost of its right neighbour moves only units of that neighbour.

    Raises:
        ValueError: a share is not between 0 and 1, or they do not add up to 1.
    """
    check_shares(shares)
    where, end = position(unit, salt), 0.0
    for variant, share in shares.items():
        end += share
        if where < end:
            return variant
    return next(
        variant for variant in reversed(list(shares)) if shares[variant] > 0
    )  # the sum fell short of 1


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError if shares are not those of a whole."""
    for variant, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"the share of {variant} is {share}: give a number from 0 to 1")
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-9:
        raise ValueError(f"the shares {dict(shares)} add up to {total:.6g}: make them add up to 1")
