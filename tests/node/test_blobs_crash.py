"""The blob store on a disk that crashes, fails and fills up at every step."""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, WholeBlob
from securifile.model.errors import CorruptBlock, DiskFull, NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.node.blob_folder import BlobFolder
from securifile.node.blobs import DiskBlobs
from securifile.node.worker import InlineWorker
from tests.node.simulated_files import Crash, SimulatedFiles

A = AttemptId(b"a" * 16)
B = AttemptId(b"b" * 16)
C = AttemptId(b"c" * 16)
FILE = EntryId(b"f" * 16)
SHA256 = DigestAlgorithm.SHA256
DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)


def a_store(files: SimulatedFiles) -> DiskBlobs:
    return DiskBlobs(directory="/srv/store", worker=InlineWorker(), clock=Clock(), files=files, reserve_bytes=0)


def run(work: Awaitable[Any]) -> Any:
    """The result of something that never has to wait, since the worker works at once."""
    results: list[Any] = []
    failures: list[Any] = []

    async def wrapped() -> None:
        results.append(await work)

    Deferred.fromCoroutine(wrapped()).addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "it waits"
    return results[0]


async def put(store: DiskBlobs, attempt: AttemptId, data: bytes) -> None:
    writer = await store.begin(attempt, SHA256)
    for start in range(0, len(data), 70_000):
        await writer.write(data[start : start + 70_000])
    await writer.finish(FILE, 1)


async def get(store: DiskBlobs, attempt: AttemptId) -> bytes:
    reader = await store.open(attempt)
    source = reader.source(0, reader.size)
    data = b""
    while piece := await source.read():
        data += piece
    reader.close()
    return data


@attrs.define
class Told:
    """What the store's callers were told before the crash."""

    finished: set[AttemptId] = attrs.field(factory=set)
    dropped: set[AttemptId] = attrs.field(factory=set)
    committing: bool = False


async def a_life(store: DiskBlobs, told: Told) -> None:
    """A little of everything: two uploads, one given up, a commit, a quarantine, a drop."""
    await store.recover()
    await put(store, A, DATA)
    told.finished.add(A)
    given_up = await store.begin(B, SHA256)
    await given_up.write(OTHER)
    await given_up.abandon()
    told.committing = True
    await store.commit(A, 1, Position(1, 7))
    await store.commit(A, 1, Position(2, 8))
    await put(store, B, OTHER)
    told.finished.add(B)
    told.dropped.add(B)
    await store.drop(B)


def steps_of(life: Callable[[DiskBlobs], Awaitable[None]]) -> list[str]:
    """The steps of a life without accidents."""
    files = SimulatedFiles()
    run(life(a_store(files)))
    return files.calls


def stop_at(step: int, error: BaseException) -> Callable[[int, str], None]:
    def before(number: int, name: str) -> None:
        if number == step:
            raise error

    return before


STEPS = steps_of(lambda store: a_life(store, Told()))


def crash_and_recover(step: int, seed: int) -> None:
    files = SimulatedFiles()
    files.before = stop_at(step, Crash())
    told = Told()
    with pytest.raises(Crash):
        run(a_life(a_store(files), told))
    files.crash(random.Random(seed))
    store = a_store(files)
    recovery = run(store.recover())
    there = {sidecar.attempt: sidecar for sidecar in run(store.sidecars())}
    for attempt, data in ((A, DATA), (B, OTHER)):
        if attempt in told.finished and attempt not in told.dropped:
            assert attempt in there, "it was promised"
        if attempt in there:
            assert run(get(store, attempt)) == data, "whole or not there"
        else:
            with pytest.raises(NoSuchBlob):
                run(store.open(attempt))
            run(put(store, attempt, data))
            assert run(get(store, attempt)) == data
    if A in there:
        assert there[A].committed_at in ({(1, 7), (2, 8), None} if told.committing else {None})
    assert recovery.blobs == len(there)
    assert recovery.used_bytes == sum(sidecar.size for sidecar in there.values())
    assert not [path for path in files.tree() if "/incoming/" in path]
    assert files.descriptors == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_at_any_step(seed: int) -> None:
    """Whatever the step and however badly the disk forgets: what was promised is whole, the rest whole or not there."""
    making = next(number for number, name in enumerate(STEPS) if name == "create") - 2
    for step in range(making, len(STEPS)):
        crash_and_recover(step, seed * 1000 + step)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(STEPS) - 1), st.integers())
def test_a_crash_anywhere(step: int, seed: int) -> None:
    """The same with any step, the making of the directories included, and any fate."""
    crash_and_recover(step, seed)


def a_broken_upload() -> SimulatedFiles:
    """One blob, another on its way, a third that has lost its sidecar; then the machine was started again."""
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    run(put(store, A, DATA))
    run(put(store, C, OTHER))
    files.remove(f"/srv/store/blobs/63/{C}.meta")
    run(run(store.begin(B, SHA256)).write(OTHER))
    files.sync_directory("/srv/store/incoming")
    files.sync_directory("/srv/store/blobs/63")
    files.crash(random.Random(0))
    files.calls.clear()
    return files


def test_a_crash_in_the_recovery() -> None:
    """A recovery that is cut short is done by the next."""
    files = a_broken_upload()
    recovery = run(a_store(files).recover())
    assert (recovery.blobs, recovery.leftovers, len(recovery.quarantined)) == (1, 1, 1)
    for step in range(len(files.calls)):
        again = a_broken_upload()
        again.before = stop_at(step, Crash())
        with pytest.raises(Crash):
            run(a_store(again).recover())
        again.crash(random.Random(step))
        store = a_store(again)
        run(store.recover())
        assert run(get(store, A)) == DATA
        for attempt in (B, C):
            with pytest.raises(NoSuchBlob):
                run(store.open(attempt))


def upload_steps() -> tuple[int, list[str]]:
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    begun = len(files.calls)
    run(put(store, A, DATA))
    return begun, files.calls[begun:]


BEGUN, UPLOAD = upload_steps()


def test_the_order_of_an_upload() -> None:
    """Bytes are certain before the sidecar, the sidecar before its name, and all of it before anybody is told."""
    assert UPLOAD == ["create", "write", "write", "sync", "create", "write", "sync", "rename", "rename", "sync_directory"]


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, OSError)])
@pytest.mark.parametrize("step", range(len(UPLOAD)))
def test_a_failure_at_any_step_of_an_upload(step: int, number: int, expected: type[Exception]) -> None:
    """The upload fails, is not tried again, leaves no file and no descriptor; the next one succeeds."""
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    before = files.tree()
    files.before = stop_at(BEGUN + step, OSError(number, "as the test says"))
    with pytest.raises(expected):
        run(put(store, A, DATA))
    assert files.tree() == before
    assert files.descriptors == 0
    assert run(store.space()).used_bytes == 0
    assert files.calls.count("sync") <= UPLOAD[: step + 1].count("sync")
    run(put(store, A, DATA))
    assert run(get(store, A)) == DATA
    assert files.descriptors == 0


def some_whole_blobs() -> list[WholeBlob]:
    """Five, of which two and two go into the same folder."""
    attempts = [AttemptId(bytes([first]) + bytes([number]) * 15) for number, first in enumerate([1, 1, 2, 3, 3])]
    return [
        WholeBlob(attempt=attempt, file=FILE, version=1, algorithm=SHA256, data=DATA[: 4096 + number])
        for number, attempt in enumerate(attempts)
    ]


def keep_all(files: SimulatedFiles) -> list[BlobSummary | Exception]:
    return BlobFolder("/srv/store", files, 0).keep_all(some_whole_blobs())


def keeping_steps() -> tuple[int, list[str]]:
    files = SimulatedFiles()
    run(a_store(files).recover())
    begun = len(files.calls)
    keep_all(files)
    return begun, files.calls[begun:]


KEEPING_BEGUN, KEEPING = keeping_steps()


def test_the_order_in_which_whole_blobs_are_kept() -> None:
    """The file with all of them is certain, and so is its name, before any has one of its own; those are certain by it."""
    assert KEEPING == ["create", "write", "sync", "rename", "sync_directory"] + ["link"] * 5


def test_what_comes_alone_is_kept_as_a_large_blob_is() -> None:
    """In two files of its own, which are certain before anybody is told."""
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    begun = len(files.calls)
    run(store.keep(some_whole_blobs()[0]))
    assert files.calls[begun:] == ["create", "write", "sync", "create", "write", "sync", "rename", "rename", "sync_directory"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", range(len(KEEPING) + 1))
def test_a_crash_while_whole_blobs_are_kept(step: int, seed: int) -> None:
    """Each is whole or not there afterwards; when the crash came after the last step, all are there: they were promised."""
    files = SimulatedFiles()
    run(a_store(files).recover())
    files.before = stop_at(KEEPING_BEGUN + step, Crash())
    if step < len(KEEPING):
        with pytest.raises(Crash):
            keep_all(files)
    else:
        keep_all(files)
    files.crash(random.Random(seed * 1000 + step))
    store = a_store(files)
    recovery = run(store.recover())
    there = {sidecar.attempt for sidecar in run(store.sidecars())}
    assert step < len(KEEPING) or there == {blob.attempt for blob in some_whole_blobs()}
    assert recovery.blobs == len(there)
    for blob in some_whole_blobs():
        if blob.attempt in there:
            assert run(get(store, blob.attempt)) == blob.data
        else:
            assert run(store.keep(blob)).size == len(blob.data)
    assert not [path for path in files.tree() if "/incoming/" in path]
    assert files.descriptors == 0


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, DiskFull), (errno.EIO, OSError)])
@pytest.mark.parametrize("step", range(len(KEEPING)))
def test_a_failure_while_whole_blobs_are_kept(step: int, number: int, expected: type[Exception]) -> None:
    """Whom the failing step concerned is told, and is not there; the others are kept; what failed may come again."""
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    files.before = stop_at(KEEPING_BEGUN + step, OSError(number, "as the test says"))
    ended = dict(zip(some_whole_blobs(), keep_all(files), strict=True))
    failed = [blob for blob, end in ended.items() if isinstance(end, expected)]
    assert len(failed) == (1 if KEEPING[step] == "link" else 5)
    assert len(failed) + sum(isinstance(end, BlobSummary) for end in ended.values()) == 5
    assert {sidecar.attempt for sidecar in run(store.sidecars())} == {blob.attempt for blob in ended if blob not in failed}
    assert not [path for path in files.tree() if "/incoming/" in path or any(f"/{blob.attempt}." in path for blob in failed)]
    assert not [path for path in files.tree() if "/packs/" in path] or KEEPING[step] == "link"
    assert files.descriptors == 0
    for blob in failed:
        run(store.keep(blob))
        assert run(get(store, blob.attempt)) == blob.data


def test_a_failed_fsync_is_final() -> None:
    """After an fsync that failed the writer cannot be finished a second time, and gives nothing back."""
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    writer = run(store.begin(A, SHA256))
    run(writer.write(DATA))

    def before(number: int, name: str) -> None:
        if name == "sync":
            files.before = lambda number, name: None
            raise OSError(errno.EIO, "the medium")

    files.before = before
    for _ in range(2):
        with pytest.raises(OSError, match="the medium"):
            run(writer.finish(FILE, 1))
    with pytest.raises(StreamBroken):
        run(writer.replay().read())
    with pytest.raises(NoSuchBlob):
        run(store.open(A))


def a_full_store() -> tuple[SimulatedFiles, DiskBlobs]:
    files = SimulatedFiles()
    store = a_store(files)
    run(store.recover())
    run(put(store, A, DATA))
    run(put(store, B, OTHER))
    return files, store


def spoil(files: SimulatedFiles, path: str, change: Callable[[bytearray], None]) -> None:
    directory, _, name = path.rpartition("/")
    change(files._directories[directory].names[name].data)


DATA_PATH = f"/srv/store/blobs/61/{A}"


@pytest.mark.parametrize(
    ("path", "change", "reason"),
    [
        (DATA_PATH, lambda data: data.append(0), "it has 300001 bytes where its sidecar says 300000"),
        (DATA_PATH + ".meta", lambda data: data.clear(), "its sidecar is damaged: shorter than its head"),
        (DATA_PATH + ".meta", lambda data: data.__setitem__(40, data[40] ^ 1), "its sidecar is damaged: torn or changed"),
    ],
)
def test_recovery_sets_aside_what_cannot_be_served(path: str, change: Callable[[bytearray], None], reason: str) -> None:
    """A blob of another size than its sidecar says, or with a damaged sidecar, goes to the quarantine with the reason."""
    files, _ = a_full_store()
    spoil(files, path, change)
    store = a_store(files)
    recovery = run(store.recover())
    assert recovery.quarantined == ((A, reason),)
    assert recovery.blobs == 1
    assert files.tree()[f"/srv/store/quarantine/{A}.reason"] == reason.encode() + b"\n"
    assert {f"/srv/store/quarantine/{A}", f"/srv/store/quarantine/{A}.meta"} <= set(files.tree())
    with pytest.raises(NoSuchBlob):
        run(store.open(A))
    run(put(store, A, DATA))
    assert run(get(store, A)) == DATA


def test_recovery_keeps_bytes_without_a_sidecar_aside() -> None:
    """Bytes whose sidecar is gone are kept for the operator; a sidecar without bytes is removed; strange files are let be."""
    files, _ = a_full_store()
    files.remove(DATA_PATH + ".meta")
    files.remove(f"/srv/store/blobs/62/{B}")
    files.close(files.create("/srv/store/blobs/62/README"))
    recovery = run(a_store(files).recover())
    assert (recovery.quarantined, recovery.blobs, recovery.leftovers) == (((A, "it has no sidecar"),), 0, 1)
    assert sorted(files.tree()) == [
        "/srv/store/blobs/62/README",
        f"/srv/store/quarantine/{A}",
        f"/srv/store/quarantine/{A}.reason",
    ]


def test_a_damaged_sidecar_serves_nothing() -> None:
    """While the node runs, a blob whose sidecar is damaged is corrupt, whoever asks; the others are listed."""
    files, store = a_full_store()
    spoil(files, DATA_PATH + ".meta", lambda data: data.__setitem__(40, data[40] ^ 1))
    for ask in (store.open, store.sidecar, lambda attempt: store.commit(attempt, 1, Position(1, 1))):
        with pytest.raises(CorruptBlock) as caught:
            run(ask(A))
        assert (caught.value.attempt, caught.value.block) == (A, None)
    assert [sidecar.attempt for sidecar in run(store.sidecars())] == [B]
    run(store.quarantine(A, "found while serving"))
    assert run(store.space()).used_bytes == len(OTHER)
    assert files.descriptors == 0


class Scratched(SimulatedFiles):
    """Cannot read the second block of anything, nor any sidecar of the blob A."""

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        data = super().read(descriptor, count, offset)
        if offset or (data[:4] == b"SFbm" and A.value in data):
            raise OSError(errno.EIO, "scratched")
        return data


def test_a_block_the_medium_cannot_read_is_corrupt() -> None:
    """An I/O error in the middle of a blob is a bad block, so that another holder's is taken; the good ones before it come out."""
    files = Scratched()
    store = a_store(files)
    run(store.recover())
    run(put(store, B, OTHER))
    reader = run(store.open(B))
    source = reader.source(0, reader.size)
    assert run(source.read()) == OTHER[: 256 * 1024]
    with pytest.raises(CorruptBlock):
        run(source.read())


def test_a_sidecar_the_medium_cannot_read_does_not_stop_the_node() -> None:
    """The node starts without that blob."""
    files = Scratched()
    store = a_store(files)
    run(store.recover())
    run(put(store, A, DATA))
    run(put(store, B, OTHER))
    recovery = run(a_store(files).recover())
    assert ([attempt for attempt, _ in recovery.quarantined], recovery.blobs) == ([A], 1)


def test_a_full_disk_does_not_keep_a_bad_blob_in_service() -> None:
    """Where there is no room for the reason, the blob goes to the quarantine without."""
    files, store = a_full_store()

    def full(number: int, name: str) -> None:
        if name in ("create", "write"):
            raise OSError(errno.ENOSPC, "full")

    files.before = full
    run(store.quarantine(A, "it smells"))
    with pytest.raises(NoSuchBlob):
        run(store.open(A))
    assert f"/srv/store/quarantine/{A}" in files.tree()


def test_a_torn_commit_note_leaves_the_blob_staged() -> None:
    """A note that the crash tore does not harm the blob: it is staged again, and may be committed again."""
    files, store = a_full_store()
    run(store.commit(A, 4, Position(9, 9)))
    spoil(files, DATA_PATH + ".meta", lambda data: data.__setitem__(-20, data[-20] ^ 1))
    assert (run(store.sidecar(A)).committed_at, run(store.sidecar(A)).version) == (None, 1)
    assert run(get(store, A)) == DATA
    run(store.commit(A, 4, Position(9, 10)))
    assert run(store.sidecar(A)).committed_at == (9, 10)
