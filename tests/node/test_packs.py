"""Small blobs that share a file."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.entries import BlobSummary, WholeBlob
from securifile.model.errors import CorruptBlock, NoSuchBlob
from securifile.model.ids import AttemptId, Position
from securifile.node.blob_folder import BlobFolder
from securifile.node.feeding import Wanted
from securifile.node.pack_format import Place, decode_places, encode_pack
from securifile.node.packs import SETTLE_BLOBS
from securifile.node.sidecars import DamagedSidecar
from tests.node.simulated_files import Crash, SimulatedFiles
from tests.node.test_blobs_crash import FILE, SHA256, a_store, get, run, spoil, stop_at

ROOT = "/srv/store"
BYTES_16 = st.binary(min_size=16, max_size=16)
CONTENTS = st.lists(
    st.tuples(st.builds(AttemptId, BYTES_16), st.binary(max_size=300), st.binary(max_size=300)), min_size=1, unique_by=lambda one: one[0]
)
NOTE = (3, Position(1, 7))


def blobs(count: int = 6) -> list[WholeBlob]:
    """Of some thousand bytes each, most in folders of their own."""
    return [
        WholeBlob(
            attempt=AttemptId(bytes([7 * number % 5]) + bytes([number]) * 15),
            file=FILE,
            version=1,
            algorithm=SHA256,
            data=random.Random(number).randbytes(4000 + number),
        )
        for number in range(count)
    ]


def packed(files: SimulatedFiles, some: list[WholeBlob] | None = None) -> BlobFolder:
    """A store with these in one pack."""
    folder = BlobFolder(ROOT, files, 0)
    folder.recover()
    assert all(isinstance(one, BlobSummary) for one in folder.keep_all(some or blobs()))
    return folder


def path_of(attempt: AttemptId, kind: str = ".pack") -> str:
    return f"{ROOT}/blobs/{str(attempt)[:2]}/{attempt}{kind}"


def is_whole(files: SimulatedFiles, blob: WholeBlob) -> bool:
    """Whether the store gives back what was put into it."""
    store = a_store(files)
    return bool(run(get(store, blob.attempt)) == blob.data == run(store.small(blob.attempt)))


@given(CONTENTS)
def test_a_pack_has_what_was_put_into_it(contents: list[tuple[AttemptId, bytes, bytes]]) -> None:
    """Each sidecar and all bytes are where the head says, and nothing else is there."""
    pack = encode_pack(contents)
    places = decode_places(pack)
    assert list(places) == [attempt for attempt, _, _ in contents]
    for attempt, beside, data in contents:
        place = places[attempt]
        assert pack[place.sidecar : place.sidecar + place.sidecar_bytes] == beside
        assert pack[place.start : place.start + place.size] == data
    last = places[contents[-1][0]]
    assert last.start + last.size == len(pack)


def test_the_format_stays() -> None:
    """Packs that were written by this release can be read by later ones."""
    written = (
        b"SFpk\x01\x00\x02"
        + (b"a" * 16 + b"\0\0\0W\0\0\0\x03\0\0\0a\0\0\0\x05")
        + (b"b" * 16 + b"\0\0\0Z\0\0\0\x07\0\0\0f\0\0\0\0")
        + b"<\xf8\xa4p\xda\x9cp\xa5\x88\x024y\\\x88>~"
        + b"oneanotherbytes"
    )
    assert encode_pack([(AttemptId(b"a" * 16), b"one", b"bytes"), (AttemptId(b"b" * 16), b"another", b"")]) == written
    assert decode_places(written) == {AttemptId(b"a" * 16): Place(87, 3, 97, 5), AttemptId(b"b" * 16): Place(90, 7, 102, 0)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pack: pack.clear(), "the pack is shorter than its head"),
        (lambda pack: pack.__setitem__(0, 0), "it is not a pack"),
        (lambda pack: pack.__setitem__(4, 2), "the pack has format 2, and this release reads 1"),
        (lambda pack: pack.__setitem__(30, pack[30] ^ 1), "the head of the pack is torn or changed"),
        (lambda pack: pack.__delitem__(slice(60, None)), "the head of the pack is torn or changed"),
    ],
)
def test_a_damaged_head_is_noticed(change: Callable[[bytearray], None], reason: str) -> None:
    """With the reason; recovery sets each of its blobs aside."""
    files = SimulatedFiles()
    folder = packed(files)
    folder.packs.settle()
    spoil(files, path_of(blobs()[0].attempt), change)
    with pytest.raises(DamagedSidecar, match=reason):
        decode_places(files.tree()[path_of(blobs()[0].attempt)])
    for blob in blobs():
        with pytest.raises(CorruptBlock):
            folder.open(blob.attempt)
    recovery = BlobFolder(ROOT, files, 0).recover()
    assert (recovery.blobs, len(recovery.quarantined)) == (0, len(blobs()))
    assert all(reason in why for _, why in recovery.quarantined)


def test_blobs_in_a_pack_are_blobs() -> None:
    """They are read, listed, noted as committed and counted as others are, also by whoever comes after."""
    files = SimulatedFiles()
    packed(files)
    store = a_store(files)
    assert run(store.recover()).used_bytes == sum(len(blob.data) for blob in blobs())
    for blob in blobs():
        run(store.commit(blob.attempt, *NOTE))
    assert all(is_whole(files, blob) for blob in blobs())
    assert files.descriptors == len(blobs()), "those that are at hand"
    for one in (store, a_store(files)):
        assert {sidecar.attempt for sidecar in run(one.sidecars())} == {blob.attempt for blob in blobs()}
        for blob in blobs():
            sidecar = run(one.sidecar(blob.attempt))
            assert (sidecar.size, sidecar.version, sidecar.committed_at) == (len(blob.data), 3, (1, 7))
    fed: list[bytes] = []
    wanted = [Wanted(attempt=blob.attempt, take=lambda piece: fed.append(bytes(piece)), checked=False) for blob in blobs()]
    run(store.feed(wanted))
    assert fed == [blob.data for blob in blobs()]
    assert files.calls.count("create") == 1


def test_one_rotten_blob_is_one_rotten_blob() -> None:
    """Its neighbours are sound; it goes to the quarantine, and what mends it has its place."""
    files = SimulatedFiles()
    packed(files)
    store = a_store(files)
    run(store.recover())
    bad, *good = blobs()
    place = decode_places(files.tree()[path_of(bad.attempt)])[bad.attempt]
    spoil(files, path_of(bad.attempt), lambda pack: pack.__setitem__(place.start + 9, pack[place.start + 9] ^ 1))
    with pytest.raises(CorruptBlock):
        run(get(store, bad.attempt))
    run(store.quarantine(bad.attempt, "it smells"))
    assert {f"{ROOT}/quarantine/{bad.attempt}.pack", f"{ROOT}/quarantine/{bad.attempt}.reason"} <= set(files.tree())
    assert run(store.quarantined_count()) == 1
    assert run(store.space()).used_bytes == sum(len(blob.data) for blob in good)
    with pytest.raises(NoSuchBlob):
        run(store.open(bad.attempt))
    run(store.keep(bad))
    assert all(is_whole(files, blob) for blob in blobs())


def test_those_who_stay_leave_the_pack_when_most_have_left() -> None:
    """They get files of their own, with their notes; then nothing of the pack is left."""
    files = SimulatedFiles()
    folder = packed(files)
    folder.packs.settle()
    for blob in blobs():
        folder.note_commit(blob.attempt, *NOTE)
    for number, blob in enumerate(blobs()[:4]):
        assert len([path for path in files.tree() if path.endswith(".pack")]) == 6 - number
        assert folder.remove(blob.attempt) == len(blob.data)
    assert {path for path in files.tree() if "/blobs/" in path} == {
        path_of(one.attempt, kind) for one in blobs()[4:] for kind in ("", ".meta")
    }
    for blob in blobs()[4:]:
        assert files.tree()[path_of(blob.attempt, "")] == blob.data
        assert folder.sidecar(blob.attempt).sidecar.committed_at == (1, 7)
        assert is_whole(files, blob)
    assert folder.remove(blobs()[0].attempt) == 0


def test_on_a_full_disk_they_stay_where_they_are() -> None:
    """What is to leave leaves all the same."""
    files = SimulatedFiles()
    folder = packed(files)

    def full(number: int, name: str) -> None:
        if name in ("create", "write"):
            raise OSError(errno.ENOSPC, "full")

    files.before = full
    for blob in blobs()[:5]:
        assert folder.remove(blob.attempt) == len(blob.data)
    assert [path for path in files.tree() if "/blobs/" in path or "/incoming/" in path] == [path_of(blobs()[5].attempt)]
    assert is_whole(files, blobs()[5])


def test_the_names_are_made_certain_later() -> None:
    """For thousands of blobs at once; until then the name of the pack stands for them, and is enough."""
    files = SimulatedFiles()
    folder = packed(files)
    assert not folder.packs.wants_settling
    begun = len(files.calls)
    folder.packs.settle()
    assert files.calls[begun:] == ["sync_directory"] * 5 + ["remove"]
    many = [
        WholeBlob(attempt=AttemptId((2**64 + number).to_bytes(16)), file=FILE, version=1, algorithm=SHA256, data=b"")
        for number in range(SETTLE_BLOBS)
    ]
    for start in range(0, SETTLE_BLOBS, 64):
        assert not folder.packs.wants_settling
        folder.keep_all(many[start : start + 64])
    assert folder.packs.wants_settling
    folder.packs.settle()
    assert not folder.packs.wants_settling
    assert not [path for path in files.tree() if "/packs/" in path]


def test_a_pack_that_cannot_be_read_after_a_crash_is_put_aside() -> None:
    """With the reason, for the operator; whatever else lies there is left alone."""
    files = SimulatedFiles()
    folder = packed(files)
    name = str(blobs()[0].attempt)
    for blob in blobs():
        files.remove(path_of(blob.attempt))
    spoil(files, f"{ROOT}/packs/{name}", lambda pack: pack.__setitem__(30, pack[30] ^ 1))
    files.close(files.create(f"{ROOT}/packs/README"))
    recovery = folder.recover()
    assert recovery.quarantined == ((blobs()[0].attempt, "the head of the pack is torn or changed"),)
    assert {f"{ROOT}/quarantine/{name}.pack", f"{ROOT}/quarantine/{name}.reason", f"{ROOT}/packs/README"} == set(files.tree())


def a_life(folder: BlobFolder, done: list[str]) -> None:
    """Blobs come together, are committed, leave one after the other, and others come."""
    folder.recover()
    done.append("recovered")
    first, second = blobs()[:4], blobs()[4:]
    assert all(isinstance(one, BlobSummary) for one in folder.keep_all(first))
    done.append("kept")
    folder.note_commits([(blob.attempt, *NOTE) for blob in first])
    folder.packs.settle()
    done.append("leaving")
    folder.remove(first[0].attempt)
    folder.remove(first[1].attempt)
    folder.remove(first[2].attempt)
    folder.keep_all(second)
    done.append("all kept")
    folder.packs.settle()


def steps_of_a_life() -> int:
    files = SimulatedFiles()
    a_life(BlobFolder(ROOT, files, 0), [])
    return len(files.calls)


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_at_any_step(seed: int) -> None:
    """However badly the disk forgets: what was promised and has not left is whole, and all else whole or not there."""
    steps = steps_of_a_life()
    files = SimulatedFiles()
    BlobFolder(ROOT, files, 0).recover()
    for step in range(len(files.calls), steps):
        crash_at(step, seed * 1000 + step)


def crash_at(step: int, seed: int) -> None:
    files, done = SimulatedFiles(), list[str]()
    files.before = stop_at(step, Crash())
    with pytest.raises(Crash):
        a_life(BlobFolder(ROOT, files, 0), done)
    files.crash(random.Random(seed))
    folder = BlobFolder(ROOT, files, 0)
    recovery = folder.recover()
    assert recovery.quarantined == ()
    promised = [*(blobs()[:4] if "kept" in done else ()), *(blobs()[4:] if "all kept" in done else ())]
    left = blobs()[:3] if "leaving" in done else []
    there = {sidecar.attempt for sidecar in folder.sidecars()}
    assert {blob.attempt for blob in promised if blob not in left} <= there
    assert (recovery.blobs, recovery.used_bytes) == (len(there), sum(len(blob.data) for blob in blobs() if blob.attempt in there))
    for blob in blobs():
        if blob.attempt in there:
            assert folder.has(blob.attempt)
            assert is_whole(files, blob)
        else:
            assert not folder.has(blob.attempt)
            assert isinstance(folder.keep_all([blob])[0], BlobSummary)
            assert is_whole(files, blob)
    assert not [path for path in files.tree() if "/incoming/" in path or "/packs/" in path]


def test_a_recovery_that_is_cut_short_is_done_by_the_next() -> None:
    """Names that a crash has lost are given again, whatever the step at which the next crash comes."""

    def crashed() -> SimulatedFiles:
        files = SimulatedFiles()
        packed(files)
        files.crash(random.Random(5))
        return files

    def steps() -> int:
        files = crashed()
        before = len(files.calls)
        assert BlobFolder(ROOT, files, 0).recover().blobs == len(blobs())
        return len(files.calls) - before

    for step in range(steps()):
        files = crashed()
        files.before = stop_at(len(files.calls) + step, Crash())
        with pytest.raises(Crash):
            BlobFolder(ROOT, files, 0).recover()
        for seed in range(3):
            files.crash(random.Random(3 * step + seed))
            assert BlobFolder(ROOT, files, 0).recover().blobs == len(blobs())
        assert all(is_whole(files, blob) for blob in blobs())
