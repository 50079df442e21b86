"""Open files that several jobs may use, and work on them that goes on though nobody waits for it any more.

Work that was begun is not cancelled with the Deferred that was waiting for it: a descriptor must not be closed under a
thread that reads from it, and a blob half sealed is nobody's. Who cancels only stops listening.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.interfaces import IWorker
from securifile.node.blob_folder import BlobFolder

T = TypeVar("T")

_log = Logger()


class Descriptor:
    """An open file that several jobs may use; closed after its owner has released it and the last job is over."""

    def __init__(self, number: int, folder: BlobFolder, worker: IWorker) -> None:
        self.number = number
        self._folder = folder
        self._worker = worker
        self._users = 1

    async def use(self, step: Callable[..., T], *arguments: Any) -> T:
        """Run `step(number, *arguments)` at the worker."""
        assert self._users > 0, "it was closed"
        self._users += 1
        try:
            return await self._worker.do(step, self.number, *arguments)
        finally:
            self.release()

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if not self._users:
            # At the worker, because closing a file that was removed frees its room, and that takes time.
            self._worker.do(self._folder.files.close, self.number).addErrback(log_bug)


def log_bug(failure: Failure) -> None:
    """For work that nobody waits for, and that should not have failed."""
    _log.failure("the blob store failed where nobody was waiting", failure)


def detached(work: Coroutine[Any, Any, T], unwanted: Callable[[T], object] = lambda result: None) -> Deferred[T]:
    """A Deferred for the result of `work`, which goes on when the Deferred is cancelled; its result is then `unwanted`."""
    caller: Deferred[T] = Deferred()

    def done(result: T) -> None:
        if caller.called:
            unwanted(result)
        else:
            caller.callback(result)

    def failed(failure: Failure) -> None:
        if not caller.called:
            caller.errback(failure)

    Deferred.fromCoroutine(work).addCallbacks(done, failed).addErrback(log_bug)
    return caller
