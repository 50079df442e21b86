"""The format of a pack: several small blobs with their sidecars in one file.

    +-------+--------+-------+------------------------------------------+--------+ +------------+ +-----------+
    | magic | format | count | for each blob: attempt, where its sidecar| BLAKE3 | | sidecars,  | | bytes of  |
    |  4    |  1     |  2    | begins and its length, where its bytes   |   16   | | each with  | | the blobs |
    |       |        |       | begin and their length; 16 + 4 * 4       |        | | its note   | |           |
    +-------+--------+-------+------------------------------------------+--------+ +------------+ +-----------+

All of it is written once, with fsync, before any of its blobs is there; only the commit notes are written later, in place, as in a
sidecar of its own (`sidecars.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import attrs

from securifile.model.ids import AttemptId
from securifile.node.sidecars import CHECKSUM_BYTES, DamagedSidecar, checksum

_MAGIC = b"SFpk"
_FORMAT = 1
_HEAD = struct.Struct(">4sBH")
_PLACE = struct.Struct(">16sIIII")

FIRST_BYTES = 8192
"""What is read of a pack at first: the places of some hundred blobs, or of thirty with their sidecars."""


@attrs.frozen
class Place:
    """Where one blob of a pack is, in bytes from the beginning."""

    sidecar: int
    sidecar_bytes: int
    start: int
    size: int


def encode_pack(blobs: Sequence[tuple[AttemptId, bytes, bytes]]) -> bytes:
    """The file with these: of each its attempt, its sidecar as `encode_sidecar` makes it, and its bytes."""
    sidecar = _HEAD.size + len(blobs) * _PLACE.size + CHECKSUM_BYTES
    start = sidecar + sum(len(one) for _, one, _ in blobs)
    places = []
    for attempt, beside, data in blobs:
        places.append(_PLACE.pack(attempt.value, sidecar, len(beside), start, len(data)))
        sidecar += len(beside)
        start += len(data)
    head = _HEAD.pack(_MAGIC, _FORMAT, len(blobs)) + b"".join(places)
    return b"".join((head, checksum(head), *(beside for _, beside, _ in blobs), *(data for _, _, data in blobs)))


def decode_places(first: bytes) -> Mapping[AttemptId, Place]:
    """Where the blobs are, from the first bytes of a pack.

    Raises:
        DamagedSidecar: it is no pack, or its head is not what was written: none of its blobs can be found.
    """
    if len(first) < _HEAD.size:
        raise DamagedSidecar("the pack is shorter than its head")
    magic, format_number, count = _HEAD.unpack_from(first)
    if magic != _MAGIC:
        raise DamagedSidecar("it is not a pack")
    if format_number != _FORMAT:
        raise DamagedSidecar(f"the pack has format {format_number}, and this release reads {_FORMAT}")
    end = _HEAD.size + count * _PLACE.size
    if len(first) < end + CHECKSUM_BYTES or checksum(first[:end]) != first[end : end + CHECKSUM_BYTES]:
        raise DamagedSidecar("the head of the pack is torn or changed")
    return {AttemptId(attempt): Place(*numbers) for attempt, *numbers in _PLACE.iter_unpack(first[_HEAD.size : end])}
