"""Random numbers as a function of a key, so that nothing depends on what was drawn before.

A key is an int64 tensor. Episode i of a split takes the key folded from the
seed, the split and i; whatever it needs is then hashed from that key. The same
numbers come out on one process or eight, resumed or not, one episode at a time
or a thousand under `vmap`, on any device.

`torch.Generator` cannot do this: it has one sequence, and `vmap` cannot give
each episode its own.

Reference:
    Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators:
    the 64-bit finaliser. Floyd's sampling: Bentley, Floyd (1987), A sample of
    brilliance.
"""

from __future__ import annotations

import math
import operator
import zlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


ROUNDS = 8  # of the network behind `shuffled`
FEW = 1 << 12  # numbers whose order needs more rounds: pairs of small ranges mix slowly
ROUNDS_OF_FEW = 20  # with 12, the 720 orders of six differ in how often they come up

_WORDS = 1 << 64
_GAMMA = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, n: int) -> Tensor:
    # Logical, where >> on int64 keeps the sign.
    return (x >> n).bitwise_and_((1 << (64 - n)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(_M1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_M2)
    return _shift(x, 31).bitwise_xor_(x)


def _mixed(x: int) -> int:
    """`_mix` of a plain number: a GPU need not wait for it to be copied there."""
    x %= _WORDS
    x = (x ^ x >> 30) * _M1 % _WORDS
    x = (x ^ x >> 27) * _M2 % _WORDS
    return _signed(x ^ x >> 31)


def key(seed: int, *path: int | str, device: torch.device | str = "cpu") -> Tensor:
    """The key of a seed and a path of names or numbers below it.

    Args:
        seed: any integer.
        path: "meta_train" and an episode number, say.
        device: where the key lives.

    Returns:
        0-d int64 tensor.

    Example:
        >>> int(key(0, "meta_train")) == int(key(0, "meta_test"))
        False
    """
    out = _mixed(operator.index(seed) + _GAMMA)  # numpy's integers are of 64 bits
    for part in path:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        out = _mixed(_mixed(out + _GAMMA) ^ _mixed(number * _GAMMA))
    return torch.full((), out, device=device)


def fold(key: Tensor, data: int | Tensor) -> Tensor:
    """A new key from a key and a number; tensors of numbers give tensors of keys.

    Args:
        key: int64, shape (...).
        data: int, or int64 that broadcasts with `key`.

    Returns:
        int64 keys of the broadcast shape.
    """
    if isinstance(data, Tensor):
        return _mix(_mix(key + _GAMMA) ^ _mix(data.to(key.device) * _GAMMA))
    return _mix(_mix(key + _GAMMA) ^ _mixed(data * _GAMMA))


def bits(key: Tensor, n: int) -> Tensor:
    """n words of 64 random bits for each key: shape (..., n), int64."""
    return fold(key.unsqueeze(-1), torch.arange(n, device=key.device))


def parts(key: Tensor, n: int) -> Tensor:
    """Keys folded from 0 to n - 1: shape (n, ...), at the cost of little more than one."""
    return fold(key, _upwards(0, n, key))


def _upwards(first: int, n: int, like: Tensor) -> Tensor:
    """n numbers from the first on, along a new leading axis of a tensor: shape (n, 1, ...)."""
    numbers = torch.arange(first, first + n, device=like.device)
    return numbers.reshape(n, *[1] * like.ndim)


def uniform(key: Tensor, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """n numbers in [low, high) for each key: shape (..., n), float64."""
    return low + (high - low) * (_shift(bits(key, n), 11).double() * 2.0**-53)


def normal(key: Tensor, n: int) -> Tensor:
    """n standard normal numbers for each key: shape (..., n), float64."""
    u, v = uniform(fold(key, 1), n), uniform(fold(key, 2), n)
    return (-2.0 * torch.log1p(-u)).sqrt() * torch.cos(2.0 * math.pi * v)


def permutation(key: Tensor, n: int) -> Tensor:
    """A random order of 0..n-1 for each key: shape (..., n), int64."""
    return bits(key, n).argsort(-1)


def shuffled(key: Tensor, place: Tensor, n: int) -> Tensor:
    """What stands at a place of a shuffled 0..n-1, without making the shuffle.

    Costs the same for any n. Not for use under `vmap`: how often it walks depends on the key.

    Args:
        key: int64, one for each shuffle; shape that broadcasts with `place`.
        place: int64, 0 to n - 1.
        n: 1 to 2**62.

    Returns:
        int64 of the broadcast shape: for one key, a bijection of the places.

    Reference:
        Black, Rogaway (2002), Ciphers with arbitrary finite domains: a Feistel network on pairs
        of numbers, and cycle walking where a product of their ranges exceeds n.

    Example:
        >>> sorted(shuffled(key(0), torch.arange(6), 6).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    width = math.isqrt(n - 1) + 1  # pairs (high, low) below (height, width), as few as will do
    height = -(-n // width)
    rounds = [fold(key, number) for number in range(ROUNDS if n > FEW else ROUNDS_OF_FEW)]

    def walk(x: Tensor) -> Tensor:
        high, low = x // width, x % width
        for number, one in enumerate(rounds):
            if number % 2:
                high = (high + _shift(fold(one, low), 1) % height) % height
            else:
                low = (low + _shift(fold(one, high), 1) % width) % width
        return high * width + low

    out = walk(place.expand(torch.broadcast_shapes(key.shape, place.shape)))
    while bool((beyond := out >= n).any()):
        out = torch.where(beyond, walk(out), out)
    return out


def distinct(key: Tensor, population: int | Tensor, n: int) -> Tensor:
    """n different numbers below `population` for each key, in random order.

    The cost does not depend on the population (Floyd's algorithm).

    Args:
        key: int64, shape (...).
        population: int, or int64 of key's shape; at least n each.
        n: how many.

    Returns:
        Shape (..., n), int64.

    Example:
        >>> sorted(distinct(key(0), 4, 4).tolist())
        [0, 1, 2, 3]
    """
    size = population if isinstance(population, Tensor) else torch.full_like(key, population)
    last = size.expand(key.shape) + _upwards(-n, n, key)
    draws, order = parts(fold(key, _upwards(1, 2, key)), n).unbind(1)  # each (n, ...)
    picks = _shift(draws, 1) % (last + 1)
    for j in range(1, n):
        taken = (picks[:j] == picks[j]).any(0)
        picks[j] = torch.where(taken, last[j], picks[j])
    return picks.gather(0, order.argsort(0)).movedim(0, -1)
