"""Where a server's blocking work is done: disk, fsync, hashing.

The reactor's thread must never wait for a disk. A worker takes a function and answers with a Deferred; behind it is a
pool of threads, or, in tests, nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from securifile.model.interfaces import IWorker

T = TypeVar("T")


@implementer(IWorker)
class ThreadWorker:
    """Runs work in the threads of a pool, which whoever made it starts and stops."""

    def __init__(self, reactor: IReactorFromThreads, pool: ThreadPool) -> None:
        self._reactor = reactor
        self._pool = pool

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run `work(*arguments)` in a thread; the Deferred fires in the reactor's.

        Cancelling only stops the caller from hearing of it: the work goes on, and its result is dropped.
        """
        result: Deferred[T] = Deferred()

        def answer(success: bool, value: T | Failure) -> None:
            self._reactor.callFromThread(result.callback if success else result.errback, value)

        self._pool.callInThreadWithCallback(answer, work, *arguments)
        return result


@implementer(IWorker)
class InlineWorker:
    """Runs work at once, in the caller's thread: for tests, where disks are simulated or small."""

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run `work(*arguments)`; the Deferred has fired already."""
        return defer.execute(work, *arguments)
