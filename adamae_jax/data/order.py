"""Which record stands where in the training stream, and random numbers by what they are for.

Both are pure functions of a seed and an address. The order of an epoch is a permutation in constant
memory and time, whatever its size. (Grain's own `shuffle` takes 15 ms for a position of a dataset
of seven records: it tries numbers of 16 bits until one is small enough.)
"""

import dataclasses
import functools
import itertools

import grain
import numpy as np

from adamae_jax.data.mixture import MixedDataset, parts_of
from adamae_jax.data.records import Dataset

# What random numbers are for.
AUGMENT = 1  # where a clip starts, what is cut out, whether it is mirrored
SHUFFLE = 2  # the order of an epoch
REPLACE = 3  # which record stands in for a damaged one
ENDLESS = 2**62
ROUNDS = 8
_MASK64 = (1 << 64) - 1


def generator(seed: int, purpose: int, *address: int) -> np.random.Generator:
    """Returns a generator that depends on (seed, purpose, address) and on nothing else.

    Philox is a counter-based generator: seed and purpose are its key, and the address (up to
    three numbers) the high words of its counter, so that no two addresses share numbers.
    """
    counter = [0, *address, *(0,) * (3 - len(address))]
    bits = np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array(counter, np.uint64)
    )
    return np.random.Generator(bits)


def record_order(dataset: Dataset | MixedDataset, seed: int) -> grain.MapDataset[int]:
    """Returns which record stands at each position of the training stream, without an end.

    Each part of a mixture has its turns evenly among the others', and goes through epochs of its
    own, each in an order of its own. Records are numbered through all parts.
    """
    parts, weights = parts_of(dataset)
    starts = itertools.accumulate(map(len, parts), initial=0)
    turns = [
        grain.MapDataset.source(Epochs(start, len(part), seed, number))
        for number, (part, start) in enumerate(zip(parts, starts, strict=False))
    ]
    return grain.MapDataset.mix(turns, weights)


@dataclasses.dataclass(frozen=True)
class Epochs:
    """A source for grain: the records of one part, epoch after epoch, each in another order.

    Attributes:
        start: number of the first record.
        size: how many there are.
        seed: of all orders.
        part: number of the part; each has orders of its own.
    """

    start: int
    size: int
    seed: int
    part: int = 0

    def __len__(self) -> int:
        """Returns a number that no run reaches."""
        return ENDLESS

    def __getitem__(self, turn: int) -> int:
        """Returns the record whose turn it is."""
        epoch, place = divmod(turn, self.size)
        return self.start + permuted(place, self.size, self.seed, epoch, self.part)


def permuted(place: int, size: int, seed: int, epoch: int, part: int = 0) -> int:
    """Returns where ``place`` lands in the epoch's pseudo-random order of ``range(size)``.

    A Feistel network (Luby and Rackoff, 1988) on the smallest even number of bits that holds
    ``size``, applied again until it lands inside (fewer than four times on average).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    keys = _round_keys(seed, epoch, part)
    while True:
        left, right = place >> half_bits, place & half_mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & half_mask)
        place = (left << half_bits) | right
        if place < size:
            return place


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, *address: int) -> tuple[int, ...]:
    raw = generator(seed, SHUFFLE, *address).bit_generator.random_raw(ROUNDS)
    return tuple(int(key) for key in raw)


def _mixed(value: int) -> int:
    """A 64-bit hash: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
