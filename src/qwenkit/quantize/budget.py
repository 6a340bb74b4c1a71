"""How large the quantized layers may be, and the choice of bits that loses least within it.

The size of a layer is that of its codes, scales and zeros (quant.gptq.packed_bits); bits a weight are these
over the weights of all quantized layers. Knows sizes and costs, not how costs are measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenkit.core import RequestError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_STEPS = 100_000  # sizes are told apart to this share of the room


@dataclass(frozen=True)
class Budget:
    """Either mean bits of a quantized weight, or bytes of all tensors of the folder."""

    bits: float | None = None
    nbytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "4.3bits", "4.3", "480MB", "0.5GB". Raises RequestError for anything else."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
        unit = found[2].upper() if found else ""
        if found is None or unit not in ("", "BIT", "BITS", *_UNITS):
            raise RequestError(
                f"The budget is {text!r}.", "Give bits a weight (4.3bits) or the size of the weights (480MB)."
            )
        number = float(found[1])
        return cls(nbytes=int(number * _UNITS[unit])) if unit in _UNITS else cls(bits=number)

    def room(self, weights: int, others: int) -> int:
        """Bits for all quantized layers. weights: of these; others: bytes of all that is not packed."""
        if self.nbytes is not None:
            return 8 * (self.nbytes - others)
        return math.floor((self.bits or 0) * weights + 1e-6)

    def words(self, bits: int, weights: int, others: int) -> str:
        """A size of the quantized layers in the terms of this budget."""
        if self.nbytes is not None:
            return f"{(others + bits / 8) / 1e6:.1f} MB"
        return f"{math.ceil(1000 * bits / weights) / 1000:.3f} bits a weight"


@dataclass(frozen=True)
class Option:
    """One way to round some layers: its size in bits, and what it costs."""

    bits: int
    cost: float


def choose(units: Sequence[Sequence[Option]], room: int) -> list[int]:
    """Which option of each unit: the least sum of costs whose sum of bits is at most `room`.

    Exact by dynamic programming over the sizes in steps of their greatest common divisor. Where that makes
    more than 100 000 steps, sizes are rounded up to coarser ones: still within `room`.
    Raises RequestError if not even the smallest options fit.
    """
    least = [min(option.bits for option in options) for options in units]
    left = room - sum(least)
    if left < 0:
        raise RequestError(f"{room} bits for layers of at least {sum(least)}.", "Give a larger budget.")
    more = [[option.bits - low for option in options] for options, low in zip(units, least, strict=True)]
    step = math.gcd(*(size for sizes in more for size in sizes)) or 1
    step = max(step, -(-min(left, sum(map(max, more))) // _STEPS))
    places = min(left // step, sum(-(-max(sizes) // step) for sizes in more)) + 1
    best = np.zeros(places)
    taken = np.zeros((len(units), places), dtype=np.int16)
    for number, (options, sizes) in enumerate(zip(units, more, strict=True)):
        fresh = np.full(places, math.inf)
        for at in sorted(range(len(options)), key=lambda at: sizes[at]):
            shift = -(-sizes[at] // step)
            if shift >= places:
                continue
            cost = best[: places - shift] + options[at].cost
            better = cost < fresh[shift:]
            fresh[shift:][better] = cost[better]
            taken[number, shift:][better] = at
        best = fresh
    chosen, place = [0] * len(units), places - 1
    for number in reversed(range(len(units))):
        chosen[number] = at = int(taken[number, place])
        place -= -(-more[number][at] // step)
    return chosen
