"""Random numbers and random orders that are addressed by what they are for, not by when."""

import functools

import numpy as np

AUGMENT = 1  # where a clip starts, what is cut out, whether it is mirrored
SHUFFLE = 2  # the order of an epoch
REPLACE = 3  # which record stands in for a damaged one
ROUNDS = 8
_MASK64 = (1 << 64) - 1


def generator(seed: int, purpose: int, *address: int) -> np.random.Generator:
    """A generator that depends on (seed, purpose, address) and on nothing else.

    Philox is a counter-based generator: seed and purpose are its key, and the address (up to
    three numbers) the high words of its counter, so that no two addresses share numbers.
    """
    counter = [0, *address, *(0,) * (3 - len(address))]
    bits = np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array(counter, np.uint64)
    )
    return np.random.Generator(bits)


def permuted(
    position: int, size: int, seed: int, epoch: int, *, purpose: int = SHUFFLE, stream: int = 0
) -> int:
    """Where ``position`` lands in the epoch's pseudo-random order of ``range(size)``.

    For a fixed (size, seed, epoch, purpose, stream) a bijection of ``range(size)``, in constant
    memory and without anything that another version of a library could order differently: a Feistel
    network (Luby and Rackoff, 1988) on the smallest even number of bits that holds ``size``,
    applied again until it lands inside (fewer than four times on average).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    keys = _round_keys(seed, purpose, epoch, stream)
    while True:
        left, right = position >> half_bits, position & half_mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & half_mask)
        position = (left << half_bits) | right
        if position < size:
            return position


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int, *address: int) -> tuple[int, ...]:
    raw = generator(seed, *address).bit_generator.random_raw(ROUNDS)
    return tuple(int(key) for key in raw)


def _mixed(value: int) -> int:
    """A 64-bit hash: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
