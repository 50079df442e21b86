"""Resumable uploads on one holder: what was acknowledged is there, whatever happens at any step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.errors import Code, NoSuchBlob, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.settings import ClusterSettings
from securifile.model.staged import StagedUpload
from securifile.node.blobs import DiskBlobs
from securifile.node.staged import COMMITTED_KEPT_S, EXPIRE_S, NOTE_BYTES, StagedUploads
from securifile.workers import InlineWorker
from tests.node.simulated_files import Crash, SimulatedFiles

T = TypeVar("T")

ATTEMPT = AttemptId(b"u" * 16)
FILE = EntryId(b"f" * 16)
DATA = random.Random(7).randbytes(700_000)


def upload(number: int = 0, **others: Any) -> StagedUpload:
    given: dict[str, Any] = {
        "attempt": AttemptId(bytes([number]) * 16) if number else ATTEMPT,
        "person": "alice",
        "path": "alice/big",
        "file": FILE,
        "algorithm": DigestAlgorithm.SHA256,
        "created_at": 0.0,
        "length": len(DATA),
    }
    return StagedUpload(**{**given, **others})


def now(waited: Awaitable[T]) -> T:
    """The result of what does not wait."""
    results: list[Any] = []

    async def run() -> T:
        return await waited

    Deferred.fromCoroutine(run()).addBoth(results.append)
    if not results:
        pytest.fail("it waits")
    if hasattr(results[0], "raiseException"):
        results[0].raiseException()
    result: T = results[0]
    return result


class Holder:
    """One node's disk, and the process on it."""

    def __init__(self, files: SimulatedFiles | None = None, **chosen: Any) -> None:
        self.files = files or SimulatedFiles()
        self.settings = ClusterSettings(**chosen)
        self.files.make_directory("/data")
        self.files.sync_directory("/")
        self.wall = 1000.0
        self.start()

    def start(self) -> None:
        """A process."""
        self.clock = Clock()
        self.blobs = DiskBlobs(directory="/data", worker=InlineWorker(), clock=self.clock, files=self.files, reserve_bytes=0)
        self.staged = StagedUploads(clock=self.clock, wall=lambda: self.wall, blobs=self.blobs, settings=lambda: self.settings)
        now(self.blobs.recover())
        now(self.staged.recover())

    def restart(self) -> None:
        """The process dies; the machine goes on."""
        self.files.restart()
        self.start()

    def append(self, data: bytes, offset: int, *, checked: bool = False, **others: Any) -> int:
        append = now(self.staged.begin(upload(**others), offset, length=None, checked=checked))
        for start in range(0, len(data), 100_000):
            now(append.write(data[start : start + 100_000]))
        return now(append.finish())

    @property
    def offset(self) -> int | None:
        """How far the upload is, as this holder tells."""
        found = now(self.staged.look(ATTEMPT, "alice"))
        return None if found is None else found.note.offset

    def seal(self) -> bytes:
        """The digest of the blob that it becomes."""
        return now(self.staged.seal(ATTEMPT, FILE, 1, len(DATA))).digest

    def content(self) -> bytes:
        reader = now(self.blobs.open(ATTEMPT))
        source = reader.source(0, reader.size)
        content = b""
        while data := now(source.read()):
            content += data
        reader.close()
        return content


def refused(waited: Awaitable[Any]) -> Code:
    with pytest.raises(Refusal) as caught:
        now(waited)
    return caught.value.code


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=6), restarts=st.sets(st.integers(0, 6)))
def test_an_upload_in_any_pieces_is_the_whole(cuts: list[int], restarts: set[int]) -> None:
    """Appended in any pieces, with the process restarted between any of them, it becomes a blob of these bytes and their digest."""
    holder = Holder()
    at = 0
    for number, cut in enumerate([*sorted(cuts), len(DATA)]):
        assert holder.append(DATA[at:cut], at) == cut
        if number in restarts:
            holder.restart()
        assert holder.offset == cut
        at = cut
    assert holder.seal() == hashlib.sha256(DATA).digest()
    assert holder.content() == DATA


def test_bytes_that_are_here_already_are_passed_over() -> None:
    """Whoever was told an earlier offset than this holder has may send from there."""
    holder = Holder()
    holder.append(DATA[:300_000], 0)
    assert holder.append(DATA[100_000:400_000], 100_000) == 400_000
    holder.append(DATA[400_000:], 400_000)
    assert holder.seal() == hashlib.sha256(DATA).digest()


def test_a_gap_is_refused() -> None:
    """Bytes from beyond what is here are not taken, and an upload that is not here begins at its beginning."""
    holder = Holder()
    assert refused(holder.staged.begin(upload(), 5, length=None, checked=False)) is Code.NOT_FOUND
    holder.append(DATA[:10], 0)
    assert refused(holder.staged.begin(upload(), 11, length=None, checked=False)) is Code.CONFLICT
    assert refused(holder.staged.seal(ATTEMPT, FILE, 1, len(DATA))) is Code.CONFLICT


def test_the_newest_request_wins() -> None:
    """A look of the same person ends the append that is under way, and what had come is kept; the ended one can write no more."""
    holder = Holder()
    first = now(holder.staged.begin(upload(), 0, length=None, checked=False))
    now(first.write(DATA[:200_000]))
    assert now(holder.staged.look(ATTEMPT, "bob")) is None
    now(first.write(DATA[200_000:300_000]))
    assert holder.offset == 300_000
    assert refused(first.write(b"more")) is Code.CONFLICT
    assert refused(first.finish()) is Code.CONFLICT
    second = now(holder.staged.begin(upload(), 300_000, length=None, checked=False))
    now(second.write(DATA[300_000:400_000]))
    third = now(holder.staged.begin(upload(), 300_000, length=None, checked=False))
    assert refused(second.finish()) is Code.CONFLICT
    now(third.write(DATA[300_000:]))
    assert now(third.finish()) == len(DATA)
    assert holder.seal() == hashlib.sha256(DATA).digest()


def test_a_chunk_with_a_checksum_counts_only_when_it_is_finished() -> None:
    """Of a chunk that is to be checked nothing is left when it is broken off, not even after a restart; the next one is right."""
    holder = Holder()
    holder.append(DATA[:200_000], 0)
    for restart in (False, True):
        append = now(holder.staged.begin(upload(), 200_000, length=None, checked=True))
        now(append.write(b"x" * 600_000))
        if restart:
            holder.restart()
        else:
            now(append.abort())
        assert holder.offset == 200_000
    assert holder.append(DATA[200_000:], 200_000, checked=True) == len(DATA)
    assert holder.seal() == hashlib.sha256(DATA).digest()


def test_a_long_stream_is_noted_on_the_way() -> None:
    """What was noted on the way survives the process, though the append was never finished."""
    holder = Holder()
    append = now(holder.staged.begin(upload(length=None), 0, length=None, checked=False))
    block = bytes(1024 * 1024)
    for _ in range(NOTE_BYTES // len(block) + 2):
        now(append.write(block))
    holder.restart()
    assert (holder.offset or 0) >= NOTE_BYTES


def test_what_rotted_while_it_rested_is_not_taken_for_what_was_sent() -> None:
    """A holder whose bytes changed drops them: others have them, or the client sends them again."""
    for place in (5, 262_144 + 7, 299_999):
        holder = Holder()
        holder.append(DATA[:300_000], 0)
        holder.restart()
        descriptor = holder.files.open(f"/data/uploads/{ATTEMPT}", writing=True)
        holder.files.write(descriptor, bytes([DATA[place] ^ 1]), place)
        assert refused(holder.staged.begin(upload(), 300_000, length=None, checked=False)) is Code.NOT_FOUND
        assert holder.offset is None


def test_a_peer_reads_what_is_certain() -> None:
    """A source gives any part of what was noted, checked; of a sealed upload the blob is the source."""
    holder = Holder()
    holder.append(DATA[:600_000], 0)
    size, source = now(holder.staged.read(ATTEMPT, 100_001, None))
    content = b""
    while data := now(source.read()):
        content += data
    assert (size, content) == (600_000, DATA[100_001:600_000])
    holder.append(DATA[600_000:], 600_000)
    holder.seal()
    with pytest.raises(NoSuchBlob):
        now(holder.staged.read(ATTEMPT, 0, None))


def test_sealing_twice_is_sealing_once() -> None:
    """After a restart too; the upload stays known, so that its outcome can be told, until it is dropped; the blob stays then."""
    holder = Holder()
    holder.append(DATA, 0)
    digest = holder.seal()
    assert holder.seal() == digest
    holder.restart()
    found = now(holder.staged.look(ATTEMPT, "alice"))
    assert found is not None and found.sealed and holder.seal() == digest
    assert refused(holder.staged.begin(upload(), len(DATA), length=None, checked=False)) is Code.CONFLICT
    now(holder.staged.drop(ATTEMPT))
    assert holder.offset is None and holder.content() == DATA


def test_what_nobody_finishes_expires() -> None:
    """A day after the last byte it is gone, not earlier; each append puts that off."""
    holder = Holder()
    holder.staged.start()
    holder.append(DATA[:10], 0)
    holder.wall += 80_000
    holder.append(DATA[10:20], 10)
    holder.wall += 80_000
    holder.clock.advance(EXPIRE_S)
    assert holder.offset == 20
    holder.wall += 10_000
    holder.clock.advance(EXPIRE_S)
    assert holder.offset is None
    assert not [path for path in holder.files.tree() if "uploads" in path]
    now(holder.staged.stop())


def test_what_was_committed_is_known_for_an_hour() -> None:
    """Long enough for who lost the answer; the blob stays."""
    holder = Holder()
    holder.staged.start()
    holder.append(DATA, 0)
    digest = holder.seal()
    version = Version(
        number=1,
        attempt=ATTEMPT,
        size=len(DATA),
        digest=digest,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=(),
    )
    holder.staged.learn(File(id=FILE, owner="alice", parent=FILE, name="big", created_at=0.0, version=version))
    holder.wall += COMMITTED_KEPT_S - 1
    holder.clock.advance(EXPIRE_S)
    assert holder.staged.has(ATTEMPT)
    holder.wall += 2
    holder.clock.advance(EXPIRE_S)
    assert not holder.staged.has(ATTEMPT) and holder.content() == DATA


def test_one_person_may_have_so_many() -> None:
    """The number of unfinished uploads of one person is limited; a finished one does not count."""
    holder = Holder(uploads_open_max=2)
    holder.append(b"", 0, number=1)
    holder.append(DATA, 0)
    assert refused(holder.staged.begin(upload(3), 0, length=None, checked=False)) is Code.TOO_MANY_REQUESTS
    now(holder.staged.begin(upload(4, person="bob"), 0, length=None, checked=False))
    holder.seal()
    now(holder.staged.begin(upload(3), 0, length=None, checked=False))


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_any_step_takes_nothing_that_was_acknowledged(seed: int) -> None:
    """The machine dies at each call that changes something: what was answered is there, and the upload goes on to its right end."""
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(DATA)) for _ in range(2))
    parts = list(zip([0, *cuts], [*cuts, len(DATA)], strict=True))
    step = 0
    while True:
        holder = Holder()
        first = len(holder.files.calls) + step

        def before(number: int, name: str, first: int = first) -> None:
            if number == first:
                raise Crash

        holder.files.before = before
        acknowledged: int | None = None
        try:
            for start, stop in parts:
                acknowledged = holder.append(DATA[start:stop], start)
            holder.seal()
            over = True
        except (Crash, Refusal):
            over = False
        holder.files.crash(chance)
        holder.start()
        offset = holder.offset
        assert (offset or 0) >= (acknowledged or 0), f"step {step}"
        found = now(holder.staged.look(ATTEMPT, "alice"))
        if found is None or not found.sealed:
            holder.append(DATA[offset or 0 :], offset or 0)
        assert holder.seal() == hashlib.sha256(DATA).digest(), f"step {step}"
        assert holder.content() == DATA
        if over:
            break
        step += 1
    assert step > 20
