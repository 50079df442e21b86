"""Names of things: ids that are never reused, and positions in the catalogue's history."""

from __future__ import annotations

from typing import TypeVar

import attrs

_ID_BYTES = 16

SomeId = TypeVar("SomeId", bound="_Id")


def _sixteen_bytes(instance: object, attribute: object, value: bytes) -> None:
    if not isinstance(value, bytes) or len(value) != _ID_BYTES:
        raise ValueError(f"an id is {_ID_BYTES} bytes, not {value!r}")


@attrs.frozen(order=True)
class _Id:
    """A random 128-bit id; shown and parsed as 32 hexadecimal digits."""

    value: bytes = attrs.field(validator=_sixteen_bytes)

    def __str__(self) -> str:
        return self.value.hex()

    @classmethod
    def parse(cls: type[SomeId], text: str) -> SomeId:
        """Read what `str` wrote. Raises `ValueError` for anything else."""
        return cls(bytes.fromhex(text))


@attrs.frozen(order=True, repr=False)
class EntryId(_Id):
    """The id of a file or folder. A path created again after a delete is a new entry."""

    def __repr__(self) -> str:
        return f"EntryId({self})"


@attrs.frozen(order=True, repr=False)
class AttemptId(_Id):
    """The id of one upload on its way to become a version; it also names the blob."""

    def __repr__(self) -> str:
        return f"AttemptId({self})"


@attrs.frozen(order=True)
class Position:
    """A place in the catalogue's history: which life of the database, and how far into it.

    Positions of one cluster are totally ordered: a later epoch is after every revision of an earlier one.
    """

    epoch: int
    revision: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.revision}"


BEGINNING = Position(0, 0)
"""Before the first change: the position of an index that knows nothing."""
