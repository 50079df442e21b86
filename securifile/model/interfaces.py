"""The seams of the house: what one room promises to another.

Each interface here has two implementations, or an implementation and a verified fake on which the same contract
suite runs. All of them are asynchronous by `Deferred`, so that a fake may answer at once and a real one later;
nobody may assume which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

T = TypeVar("T")

Row = tuple[Any, ...]


class IByteSource(Interface):
    """Bytes on their way in, pulled by the reader, in order and once."""

    def read() -> Deferred[bytes]:
        """The next chunk, of any size the source finds convenient; `b""` for ever once it has ended well.

        Never more than one read may be waiting. While nobody reads, the source holds a bounded amount and makes its
        own sender wait.

        Raises:
            Exception: when the stream broke before its end. What came before stays valid.
        """

    def close() -> None:
        """Say that no more is wanted; may be called at any time and more than once."""


class IByteSink(Interface):
    """Bytes on their way out, in order."""

    def write(data: bytes) -> Deferred[None]:
        """Take `data`; fires when more is welcome (back-pressure), which does not mean that it has arrived.

        Raises:
            Exception: when the other end has gone or refused; nothing more can be written then.
        """

    def abort() -> None:
        """Break the stream so that the other end cannot take it for complete."""


class IWorker(Interface):
    """Where blocking work (disk, fsync, hashing, argon2) is done without stopping the reactor."""

    def do(work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run `work(*arguments)` elsewhere; fires with its result. Not cancellable once begun."""


class ISql(Interface):
    """A place to ask SQL questions: a transaction, or a connection used for reading.

    Statements are written once for PostgreSQL and SQLite, with parameters as `:name`.
    """

    def query(statement: str, parameters: Mapping[str, Any] = {}) -> Awaitable[Sequence[Row]]:
        """All rows of the answer. BYTEA columns come as `bytes`."""

    def execute(statement: str, parameters: Mapping[str, Any] = {}) -> Awaitable[int]:
        """Run a statement for its effect; the number of rows it touched."""

    def later(statement: str, parameters: Mapping[str, Any] = {}) -> None:
        """Run a statement for its effect, before the next question is asked or the transaction commits.

        What it fails with is raised here, by the next question, or by the transaction. A transaction that is rolled back may not have
        run it at all.
        """


class IDatabase(Interface):
    """A database that runs named transactions."""

    def transact(name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """Run `work(sql)` (an `ISql`) in one transaction and commit; roll back when it raises.

        `work` does nothing but ask `sql`: it may be run again after a serialisation failure or a dead connection.

        Raises:
            DatabaseUnavailable: certainly not committed: no connection, or lost before COMMIT was sent.
            OutcomeUnknown: the connection was lost between COMMIT and its answer.
        """

    def read(work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """Run `work(sql)` on one consistent snapshot, without writing.

        Raises:
            DatabaseUnavailable: no connection.
        """


class IBlobWriter(Interface):
    """One blob on its way to the disk."""

    received = Attribute("How many bytes were taken so far (int).")

    def write(data: bytes) -> Deferred[None]:
        """Append; fires when more is welcome (a bounded amount waits for the disk). Raises `DiskFull`, `OSError`, `StreamBroken`.

        What fails after this fired is told by the next `write`, and by `finish`; nothing is left behind on the disk.
        """

    def finish(file: Any, version: int, sent: Any = ...) -> Deferred[Any]:
        """Make it durable (fsync, sidecar, rename, fsync of the directory) in state `staged`; a `BlobSummary`.

        Args:
            sent: the `BlobSummary` that its sender told, if the blob is `vouched`.

        Raises:
            StreamBroken: it is not what was sent; nothing is kept.
        """

    def abandon() -> Deferred[None]:
        """Forget it, leaving nothing behind. Harmless after `finish` or twice."""

    def replay() -> Any:
        """An `IByteSource` over what was received so far, read from the temporary (or finished) file.

        It ends as soon as it has caught up with `received` as it is when `read` is called, and that answer comes at once:
        who awaits it can go on with the live chunks without a gap. After `abandon` it raises `StreamBroken`.
        """


class IBlobReader(Interface):
    """An open blob; stays readable until closed even when the blob is dropped meanwhile."""

    size = Attribute("Bytes in the blob (int).")

    def source(start: int, stop: int) -> Any:
        """An `IByteSource` over [start, stop), each block checked before it is handed out. Raises `CorruptBlock` in `read`."""

    def close() -> None:
        """Let go of the file."""


class IBlobStore(Interface):
    """The blobs on one node's disk, named by attempt."""

    def begin(attempt: Any, algorithm: Any, *, vouched: bool = ...) -> Deferred[Any]:
        """Start a blob: an `IBlobWriter`. Raises `DiskFull`, `BlobExists`.

        Args:
            vouched: its digest is not computed here; who sends it tells it at the end, with the checksum that this store computes, too.
        """

    def keep(blob: Any) -> Deferred[Any]:
        """Store a `WholeBlob`, as `begin`, `write` and `finish` would; fires with the `BlobSummary`. What was begun goes on when cancelled.

        Raises:
            DiskFull, BlobExists: nothing was stored.
            OSError: the disk failed, and the blob was given up.
        """

    def open(attempt: Any) -> Deferred[Any]:
        """An `IBlobReader`. Raises `NoSuchBlob`, `CorruptBlock` (what is needed to check it is damaged)."""

    def small(attempt: Any) -> Deferred[bytes]:
        """The whole content of a blob of at most 64 KiB, checked as `IBlobReader.source` does; of a larger one only a part.

        Raises:
            NoSuchBlob: it is not here.
            CorruptBlock: it is not what was written, or what is needed to check it is damaged.
        """

    def feed(wanted: Sequence[Any]) -> Deferred[Any]:
        """Have the bytes of blobs given to functions in order, one blob after another, perhaps by another thread.

        Args:
            wanted: a `Wanted` for each blob.

        Returns:
            For each its `Sidecar` if all was given; or a `NoSuchBlob`, the disk's `OSError`, or a `CorruptBlock`: what was given ended
            before a block that is not there, or, if it was to be checked as `IBlobReader.source` does, is not what was written.
        """

    def commit(attempt: Any, version: int, position: Any) -> Deferred[None]:
        """Note in the sidecar that the attempt was committed. Raises `NoSuchBlob`."""

    def sidecar(attempt: Any) -> Deferred[Any]:
        """The `Sidecar` of a finished blob. Raises `NoSuchBlob`."""

    def sidecars() -> Deferred[Any]:
        """A list of every finished blob's `Sidecar`."""

    def drop(attempt: Any) -> Deferred[None]:
        """Delete the blob, if it is there. Open readers go on."""

    def quarantine(attempt: Any, reason: str) -> Deferred[None]:
        """Move the blob aside, never to be served again, kept for the operator."""

    def settle() -> Deferred[None]:
        """Do what was put off when blobs were stored, so that what leaves stays away after a restart, too. Any time, now and then."""

    def quarantined_count() -> Deferred[int]:
        """How many blobs lie aside, and nobody has looked after them yet."""

    def space() -> Deferred[Any]:
        """`Space(used_bytes, available_bytes)`: what blobs take, what more would fit."""


class IAuditLog(Interface):
    """Where every access by a person, and every change of a server's status, is written down."""

    def keep(record: Any) -> Deferred[None]:
        """Take an `AuditRecord`; fires when it is on this machine's disk.

        Raises:
            SpoolFull: no room; the request must be refused.
        """

    def note(record: Any) -> None:
        """Take an `AuditRecord` of something that changed nothing; it is on this machine's disk within 100 ms.

        Raises:
            SpoolFull: at once: no room; the request must be refused.
        """

    def has_room() -> bool:
        """Whether a new request may begin: asked before there is anything to take back."""
