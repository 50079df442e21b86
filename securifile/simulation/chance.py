"""All chance of a run, from one seed.

A draw that is added somewhere must not change what is drawn elsewhere: else no two versions of the program could be compared on
one seed. So everything that draws has a stream of its own, derived from the seed and a name:

    chance = Chance(7)
    chance.stream("network").fraction()
    chance.stream("node n1, boot 2").random(16)

A stream is SHA-256 of its key and a counter: slow for a generator, fast enough here, and the same everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of chance."""

    def __init__(self, seed: int | bytes) -> None:
        self._key = hashlib.sha256(b"securifile simulation " + (str(seed).encode() if isinstance(seed, int) else seed)).digest()
        self._counter = 0
        self._left = b""

    def stream(self, name: str) -> Chance:
        """The stream of that name; always the same one, from its beginning, whatever was drawn here."""
        return Chance(self._key + name.encode())

    def random(self, count: int) -> bytes:
        """So many bytes."""
        if len(self._left) < count:
            blocks = [self._left]
            for _ in range((count - len(self._left) + 31) // 32):
                blocks.append(hashlib.sha256(self._key + self._counter.to_bytes(8, "big")).digest())
                self._counter += 1
            self._left = b"".join(blocks)
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn

    def below(self, limit: int) -> int:
        """An integer from 0 to `limit` - 1."""
        # 64 bits more than asked for: what modulo favours is immeasurable.
        count = (limit.bit_length() + 7) // 8 + 8
        return int.from_bytes(self.random(count), "big") % limit

    def fraction(self) -> float:
        """A number in [0, 1)."""
        return int.from_bytes(self.random(8), "big") / 2**64

    def between(self, least: float, most: float) -> float:
        """A number in [least, most)."""
        return least + (most - least) * self.fraction()

    def happens(self, probability: float) -> bool:
        """True with that probability."""
        return self.fraction() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def shuffled(self, things: Sequence[T]) -> list[T]:
        """All of them, in any order."""
        rest, mixed = list(things), []
        while rest:
            mixed.append(rest.pop(self.below(len(rest))))
        return mixed

    def __repr__(self) -> str:
        return f"<Chance {self._key.hex()[:8]} at {self._counter}>"
