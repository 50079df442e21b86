"""The blob store on disk: what only it promises. How it keeps memory bounded, and what it leaves in the directory."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.task import Clock
from zope.interface import implementer

from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import NoSuchBlob, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.interfaces import IWorker
from securifile.node.blob_reading import READ_AHEAD_BYTES
from securifile.node.blob_writing import QUEUE_BYTES_MAX, SYNC_STEP_BYTES
from securifile.node.blobs import DiskBlobs
from securifile.node.files import OsFiles
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.sidecars import BLOCK_BYTES, block_count, checksum, decode_sidecar
from securifile.node.worker import InlineWorker
from tests.node.simulated_files import SimulatedFiles
from tests.node.test_blobs_crash import run

T = TypeVar("T")

A = AttemptId(b"a" * 16)
FILE = EntryId(b"f" * 16)
SHA256 = DigestAlgorithm.SHA256


@implementer(IWorker)
class HeldWorker:
    """Does its work when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        self.jobs.append((answer, work, arguments))
        return answer

    def step(self) -> None:
        """Do the job that has waited longest."""
        answer, work, arguments = self.jobs.pop(0)
        execute(work, *arguments).addCallbacks(answer.callback, answer.errback)

    def finish(self) -> None:
        """Do all there is, and what comes of it."""
        while self.jobs:
            self.step()


@attrs.frozen
class Bench:
    """A store whose worker and disk the test holds."""

    worker: HeldWorker = attrs.field(factory=HeldWorker)
    files: SimulatedFiles = attrs.field(factory=SimulatedFiles)
    clock: Clock = attrs.field(factory=Clock)
    store: DiskBlobs = attrs.field()

    @store.default
    def _store(self) -> DiskBlobs:
        return DiskBlobs(directory="/srv", worker=self.worker, clock=self.clock, files=self.files, reserve_bytes=100)

    def get(self, answer: Deferred[T]) -> T:
        """The result, after all the work that is needed."""
        self.worker.finish()
        result: T = run(answer)
        return result


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.get(made.store.recover())
    return made


def test_a_writer_makes_its_caller_wait(bench: Bench) -> None:
    """At most a mebibyte is queued before the caller has to wait; one job is under way, and the next takes all that has gathered."""
    writer = bench.get(bench.store.begin(A, SHA256))
    answers = []
    while writer.received < QUEUE_BYTES_MAX:
        answers.append(writer.write(bytes(64 * 1024)))
    assert all(answer.called for answer in answers)
    waiting = writer.write(b"x")
    assert not waiting.called
    assert len(bench.worker.jobs) == 1
    bench.worker.step()
    assert waiting.called
    assert len(bench.worker.jobs) == 1
    bench.worker.step()
    assert bench.worker.jobs == []
    summary = bench.get(writer.finish(FILE, 1))
    assert summary.digest == hashlib.sha256(bytes(QUEUE_BYTES_MAX) + b"x").digest()
    assert len([call for call in bench.files.calls if call == "write"]) == 2 + 1  # bytes, and the sidecar


def test_small_chunks_are_gathered(bench: Bench) -> None:
    """No thread is troubled for a small chunk; finish writes what was gathered."""
    writer = bench.get(bench.store.begin(A, SHA256))
    for _ in range(100):
        assert writer.write(b"x" * 1000).called
    assert bench.worker.jobs == []
    assert bench.get(writer.finish(FILE, 1)).size == 100_000


def test_the_disk_begins_to_write_while_the_rest_comes(bench: Bench) -> None:
    """Of a large blob little is left for the fsync at its end; of a small one all of it."""
    writer = bench.get(bench.store.begin(A, SHA256))
    chunk = bytes(QUEUE_BYTES_MAX // 2)
    for _ in range(2 * SYNC_STEP_BYTES // len(chunk)):
        bench.get(writer.write(chunk))
    bench.get(writer.write(b"x"))
    bench.get(writer.finish(FILE, 1))
    assert bench.files.syncs_begun == [(0, SYNC_STEP_BYTES), (SYNC_STEP_BYTES, SYNC_STEP_BYTES)]


def test_a_waiting_caller_is_told_of_the_failure(bench: Bench) -> None:
    """Who waits for room hears that the disk failed, and so does everybody later."""
    writer = bench.get(bench.store.begin(A, SHA256))
    bench.files.room = 0
    waiting = writer.write(bytes(QUEUE_BYTES_MAX + 1))
    later = writer.write(b"x")
    bench.worker.finish()
    answers: list[Deferred[Any]] = [waiting, later, writer.write(b"x"), writer.finish(FILE, 1)]
    for answer in answers:
        with pytest.raises(Exception, match="in reserve"):
            bench.get(answer)
    assert bench.files.descriptors == 0
    assert bench.files.tree() == {}


def test_an_upload_given_up_while_the_disk_works(bench: Bench) -> None:
    """The file is closed after the job that uses it, not under it; a caller that waits hears of it."""
    writer = bench.get(bench.store.begin(A, SHA256))
    waiting = writer.write(bytes(QUEUE_BYTES_MAX + 1))
    gone = writer.abandon()
    assert len(bench.worker.jobs) == 1, "nothing is removed or closed while that one works"
    assert not gone.called
    bench.get(gone)
    assert bench.get(waiting.addErrback(lambda failure: failure.check(StreamBroken))) in (None, StreamBroken)
    assert bench.files.descriptors == 0
    assert bench.files.tree() == {}


def test_abandoning_waits_for_a_finish_under_way(bench: Bench) -> None:
    """Once a blob is being sealed it is too late to abandon it: it is there, and whole."""
    writer = bench.get(bench.store.begin(A, SHA256))
    writer.write(b"abc")
    finished, gone = writer.finish(FILE, 1), writer.abandon()
    assert bench.get(finished).size == 3
    bench.get(gone)
    assert bench.get(bench.store.sidecar(A)).size == 3


def test_who_cancels_only_stops_listening(bench: Bench) -> None:
    """A cancelled finish is finished all the same; a cancelled begin or open leaves nothing behind."""
    begun = bench.store.begin(A, SHA256)
    begun.cancel()
    with pytest.raises(CancelledError):
        bench.get(begun)
    bench.worker.finish()
    assert (bench.files.descriptors, bench.files.tree()) == (0, {})
    writer = bench.get(bench.store.begin(A, SHA256))
    finished = writer.finish(FILE, 1)
    finished.cancel()
    with pytest.raises(CancelledError):
        bench.get(finished)
    assert bench.get(bench.store.sidecar(A)).size == 0
    opened = bench.store.open(A)
    opened.cancel()
    with pytest.raises(CancelledError):
        bench.get(opened)
    bench.worker.finish()
    assert bench.files.descriptors == 0


def test_a_reader_reads_ahead_by_one_job(bench: Bench) -> None:
    """One job reads a mebibyte; the next is begun when its last piece goes out; closing waits for the job that uses the file."""
    writer = bench.get(bench.store.begin(A, SHA256))
    bench.get(writer.write(bytes(3 * READ_AHEAD_BYTES)))
    bench.get(writer.finish(FILE, 1))
    reader = bench.get(bench.store.open(A))
    source = reader.source(0, reader.size)
    assert bench.worker.jobs == []
    first = source.read()
    assert len(bench.worker.jobs) == 1
    bench.worker.step()
    assert len(run(first)) == BLOCK_BYTES
    pieces = [source.read() for _ in range(READ_AHEAD_BYTES // BLOCK_BYTES - 2)]
    assert all(piece.called for piece in pieces)
    assert bench.worker.jobs == []
    assert source.read().called
    assert len(bench.worker.jobs) == 1
    reader.close()
    assert bench.files.descriptors == 1
    bench.worker.finish()
    assert bench.files.descriptors == 0


def test_a_cancelled_read_loses_nothing(bench: Bench) -> None:
    """Who stops waiting for a piece gets it with the next read."""
    writer = bench.get(bench.store.begin(A, SHA256))
    writer.write(b"abc")
    bench.get(writer.finish(FILE, 1))
    reader = bench.get(bench.store.open(A))
    source = reader.source(0, 3)
    given_up = source.read()
    given_up.cancel()
    with pytest.raises(CancelledError):
        run(given_up)
    assert bench.get(source.read()) == b"abc"


def test_a_replay_closed_over_the_finish_closes_its_file(bench: Bench) -> None:
    """Whenever a replay is closed, no file stays open."""
    for reads in range(6):
        attempt = AttemptId(bytes([reads]) * 16)
        writer = bench.get(bench.store.begin(attempt, SHA256))
        bench.get(writer.write(bytes(3 * BLOCK_BYTES)))
        source = writer.replay()
        bench.get(source.read())
        bench.get(writer.finish(FILE, 1))
        for _ in range(reads):
            bench.get(source.read())
        late = source.read()
        source.close()
        bench.worker.finish()
        late.addErrback(lambda failure: failure.trap(StreamBroken))
        assert late.called
        assert bench.files.descriptors == 0


def test_space_is_a_second_old_at_most(bench: Bench) -> None:
    """The file system is asked once a second; what blobs take is counted at once; the reserve is not for blobs."""
    bench.files.room = 1000
    assert bench.get(bench.store.space()).available_bytes == 900
    bench.files.room = 500
    bench.clock.advance(0.9)
    assert bench.get(bench.store.space()).available_bytes == 900
    bench.clock.advance(0.1)
    assert bench.get(bench.store.space()).available_bytes == 400
    bench.files.room = 50
    bench.clock.advance(1)
    assert bench.get(bench.store.space()).available_bytes == 0


def test_what_is_in_the_directory(tmp_path: Path) -> None:
    """The data file is exactly the bytes; files are for their owner only; the quarantine says why."""
    store = DiskBlobs(directory=str(tmp_path / "store"), worker=InlineWorker(), clock=Clock(), reserve_bytes=0)
    run(store.recover())
    writer = run(store.begin(A, SHA256))
    run(writer.write(b"hello world"))
    assert [path.name for path in (tmp_path / "store" / "incoming").iterdir()] == [str(A)]
    run(writer.finish(FILE, 1))
    data = tmp_path / "store" / "blobs" / "61" / str(A)
    meta = data.with_name(f"{A}.meta")
    assert data.read_bytes() == b"hello world"
    assert decode_sidecar(meta.read_bytes()).checksums == checksum(b"hello world")
    assert list((tmp_path / "store" / "incoming").iterdir()) == []
    for path in (tmp_path / "store").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    run(store.quarantine(A, "it smells"))
    aside = tmp_path / "store" / "quarantine"
    assert {path.name: path.read_bytes() for path in aside.iterdir() if path.suffix != ".meta"} == {
        str(A): b"hello world",
        f"{A}.reason": b"it smells\n",
    }
    again = DiskBlobs(directory=str(tmp_path / "store"), worker=InlineWorker(), clock=Clock(), files=OsFiles(), reserve_bytes=0)
    assert run(again.recover()).blobs == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400_000), max_size=8), st.sampled_from([SHA256, DigestAlgorithm.SHA1, DigestAlgorithm.SHA3_512]))
def test_any_split_gives_the_same_blob(sizes: list[int], algorithm: DigestAlgorithm) -> None:
    """However the bytes are cut on their way in, digest, blocks and bytes are the same."""
    files = SimulatedFiles()
    store = DiskBlobs(directory="/srv", worker=InlineWorker(), clock=Clock(), files=files, reserve_bytes=0)
    run(store.recover())
    writer = run(store.begin(A, algorithm))
    data = b""
    for number, size in enumerate(sizes):
        chunk = bytes([number]) * size
        data += chunk
        run(writer.write(chunk))
    summary = run(writer.finish(FILE, 1))
    hasher = algorithm.hasher()
    hasher.update(data)
    assert (summary.size, summary.digest) == (len(data), hasher.digest())
    loaded = decode_sidecar(files.tree()[f"/srv/blobs/61/{A}.meta"])
    assert files.tree()[f"/srv/blobs/61/{A}"] == data
    assert all(loaded.good(block, data[block * BLOCK_BYTES :][:BLOCK_BYTES]) for block in range(block_count(len(data))))


ATTEMPTS = st.sampled_from([AttemptId(letter * 16) for letter in (b"a", b"b", b"c")])


class SameAsMemory(RuleBasedStateMachine):
    """Whatever is done, disk and memory answer alike; a restart forgets the uploads under way and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.files = SimulatedFiles()
        self.memory = MemoryBlobs()
        self.disk = self.started()
        self.writers: dict[AttemptId, tuple[Any, Any]] = {}

    def started(self) -> DiskBlobs:
        store = DiskBlobs(directory="/srv", worker=InlineWorker(), clock=Clock(), files=self.files, reserve_bytes=0)
        run(store.recover())
        return store

    def both(self, ask: Callable[[Any], Deferred[Any]]) -> tuple[Any, Any]:
        """What the two answer, after making sure that both answer or both raise the same."""
        answers = []
        for store in (self.disk, self.memory):
            try:
                answers.append(run(ask(store)))
            except Exception as error:
                answers.append(type(error))
        assert isinstance(answers[0], type) == isinstance(answers[1], type), answers
        return answers[0], answers[1]

    @rule(attempt=ATTEMPTS)
    def begin(self, attempt: AttemptId) -> None:
        disk, memory = self.both(lambda store: store.begin(attempt, SHA256))
        if isinstance(disk, type):
            assert disk is memory
        else:
            self.writers[attempt] = (disk, memory)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), size=st.integers(0, 700_000))
    def write(self, data: st.DataObject, size: int) -> None:
        disk, memory = self.writers[data.draw(st.sampled_from(sorted(self.writers)))]
        for writer in (disk, memory):
            run(writer.write(b"w" * size))
        assert disk.received == memory.received

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        got = []
        for writer in self.writers[data.draw(st.sampled_from(sorted(self.writers)))]:
            source, whole = writer.replay(), b""
            while piece := run(source.read()):
                whole += piece
            got.append(whole)
        assert got[0] == got[1]

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        disk, memory = self.writers.pop(data.draw(st.sampled_from(sorted(self.writers))))
        if keep:
            assert run(disk.finish(FILE, 1)) == run(memory.finish(FILE, 1))
        else:
            run(disk.abandon())
            run(memory.abandon())

    @rule(attempt=ATTEMPTS, version=st.integers(1, 9), revision=st.integers(0, 99))
    def commit(self, attempt: AttemptId, version: int, revision: int) -> None:
        disk, memory = self.both(lambda store: store.commit(attempt, version, Position(1, revision)))
        assert disk == memory

    @rule(attempt=ATTEMPTS, aside=st.booleans())
    def leave(self, attempt: AttemptId, aside: bool) -> None:
        self.both(lambda store: store.quarantine(attempt, "a rule") if aside else store.drop(attempt))

    @rule()
    def restart(self) -> None:
        for _, memory in self.writers.values():
            run(memory.abandon())
        self.writers.clear()
        self.files.restart()
        self.disk = self.started()

    @invariant()
    def same(self) -> None:
        disk, memory = self.both(lambda store: store.sidecars())
        assert sorted(disk, key=lambda sidecar: sidecar.attempt) == sorted(memory, key=lambda sidecar: sidecar.attempt)
        assert run(self.disk.space()).used_bytes == run(self.memory.space()).used_bytes
        for sidecar in disk:
            reader = run(self.disk.open(sidecar.attempt))
            assert reader.size == sidecar.size
            reader.close()

    def teardown(self) -> None:
        for writer, _ in self.writers.values():
            run(writer.abandon())
        assert self.files.descriptors == 0
        with pytest.raises(NoSuchBlob):
            run(self.disk.open(AttemptId(bytes(16))))


TestSameAsMemory = SameAsMemory.TestCase
TestSameAsMemory.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
