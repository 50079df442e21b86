"""The format of sidecars."""

from __future__ import annotations

import attrs
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Sidecar
from securifile.model.ids import AttemptId, Position
from securifile.node.sidecars import (
    BLOCK_BYTES,
    CHECKSUM_BYTES,
    BlockChecksums,
    DamagedSidecar,
    block_count,
    decode_sidecar,
    encode_note,
    encode_sidecar,
)

BINARY_16 = st.binary(min_size=16, max_size=16)
SIDECARS = st.builds(
    Sidecar,
    attempt=st.builds(AttemptId, BINARY_16),
    file=BINARY_16,
    version=st.integers(1, 2**40),
    size=st.integers(0, 5 * BLOCK_BYTES),
    digest=st.binary(min_size=20, max_size=64),
    algorithm=st.sampled_from(DigestAlgorithm),
    committed_at=st.none(),
)
EXAMPLE = Sidecar(
    attempt=AttemptId(bytes(range(16))),
    file=b"f" * 16,
    version=3,
    size=11,
    digest=b"d" * 32,
    algorithm=DigestAlgorithm.SHA256,
    committed_at=None,
)
STORED = bytes.fromhex(
    "5346626d01000000a888a7617474656d7074c410000102030405060708090a0b0c0d0e0fa466696c65c41066666666666666666666666666666666a7"
    "76657273696f6e03a473697a650ba6646967657374c4206464646464646464646464646464646464646464646464646464646464646464a9616c676f"
    "726974686da6736861323536ab626c6f636b5f6279746573ce00040000a9636865636b73756d73c410d74981efa70a0c880b8d8c1985d075dbfb8899"
    "e800ba61d59b7d8607a23ecd92000000000000000400000000000000020000000000000011651da4567842eaedbd36418b287db57d"
)
"""The file of `EXAMPLE` with its commit note, as format 1 was first written. It must be readable for ever."""


def checksums_for(sidecar: Sidecar) -> bytes:
    return bytes(block_count(sidecar.size) * CHECKSUM_BYTES)


@given(st.binary(max_size=100), st.integers(0, 3 * BLOCK_BYTES), st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=8))
def test_any_split_gives_the_same_checksums(pattern: bytes, size: int, cuts: list[int]) -> None:
    """However the bytes arrive, each block has the checksum it has on its own."""
    data = (pattern or b"\0") * (size // max(len(pattern), 1) + 1)
    data = data[:size]
    split = BlockChecksums()
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, stop in zip(edges, edges[1:], strict=False):
        split.update(data[start:stop])
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, size, BLOCK_BYTES)]
    assert split.digest() == b"".join(blake3(block).digest()[:CHECKSUM_BYTES] for block in blocks)
    assert len(blocks) == block_count(size)


@given(SIDECARS, st.integers(1, 2**60), st.integers(0, 2**60), st.integers(0, 2**60))
def test_round_trip(sidecar: Sidecar, version: int, epoch: int, revision: int) -> None:
    """What was written is read; a note changes the version and the position, and nothing else."""
    data = encode_sidecar(sidecar, checksums_for(sidecar))
    staged = decode_sidecar(data)
    assert (staged.sidecar, staged.checksums) == (sidecar, checksums_for(sidecar))
    noted = data[: staged.note_offset] + encode_note(version, Position(epoch, revision))
    assert len(noted) == len(data)
    assert decode_sidecar(noted).sidecar == attrs.evolve(sidecar, version=version, committed_at=(epoch, revision))


@given(SIDECARS, st.data())
def test_damage_is_noticed(sidecar: Sidecar, data: st.DataObject) -> None:
    """A sidecar cut short or with any bit of its first part changed is damaged; a damaged note leaves the blob staged."""
    whole = encode_sidecar(sidecar, checksums_for(sidecar))
    end = decode_sidecar(whole).note_offset
    noted = whole[:end] + encode_note(7, Position(1, 2))
    place = data.draw(st.integers(0, len(noted) - 1))
    flipped = bytearray(noted)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), noted[:place]):
        if place < end:
            with pytest.raises(DamagedSidecar):
                decode_sidecar(damaged)
        else:
            assert decode_sidecar(damaged).sidecar == sidecar


@given(st.binary(max_size=200))
def test_nonsense_is_damaged(data: bytes) -> None:
    """No bytes whatever raise anything else."""
    with pytest.raises(DamagedSidecar):
        decode_sidecar(data)


def test_the_stored_example_is_read() -> None:
    """A file written by the first release is read as it was meant."""
    read = decode_sidecar(STORED)
    assert read.sidecar == attrs.evolve(EXAMPLE, version=4, committed_at=(2, 17))
    assert read.good(0, b"hello world")
    assert not read.good(0, b"hello worlt")


def test_another_format_is_refused() -> None:
    """A file of a later format is told from a damaged one."""
    with pytest.raises(DamagedSidecar, match="format 2"):
        decode_sidecar(STORED[:4] + b"\x02" + STORED[5:])
