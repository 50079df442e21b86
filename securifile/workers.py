"""Where a server's blocking work is done: disk, fsync, hashing.

The reactor's thread must never wait for a disk. A worker takes a function and answers with a Deferred; behind it are a few
threads, or, in tests, nothing at all.

What a trip to a thread costs is mostly the handing over of the interpreter's lock, so a worker takes as few steps as it can: jobs go
through one queue of the interpreter's own, a thread is begun when all others are busy, and answers that come before the reactor has looked
are brought to it in one call. (Twisted's thread pool has a coordinator between both, and wakes the reactor for each answer.)
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.model.interfaces import IWorker

T = TypeVar("T")

NICENESS = 10
"""How much the threads stand back behind the reactor's (nice(2); on Linux each thread has its own): a tenth of its share of a processor
when both want the same one. The reactor has little to do, for each message, and has to do it at once; the threads have much. Half of the
heartbeats beside a large upload took 3.1 ms before and 2.3 since, and with 16 uploads 6.0 and 3.7, at the same speed. With 19 it was
1.9, but then whatever else runs on the machine could hold up a thread that has the interpreter's lock, and with it the reactor.
"""

_Job = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]


@implementer(IWorker)
class ThreadWorker:
    """Runs work in threads of its own, in the order in which it is asked. Whoever made it stops it."""

    def __init__(self, reactor: IReactorFromThreads, threads_max: int, name: str) -> None:
        """Args:
        name: of the threads, for who looks at the process.
        """
        self._reactor = reactor
        self._threads_max = threads_max
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._under_way = 0
        self._answers: deque[tuple[Deferred[Any], Any]] = deque()
        self._reactor_knows = False
        """Whether the reactor will look at the answers without being told of another one."""
        self._stopped = False

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run `work(*arguments)` in a thread; the Deferred fires in the reactor's.

        Cancelling only stops the caller from hearing of it: the work goes on, and its result is dropped.
        After `stop` nothing is begun, and nobody is answered.
        """
        result: Deferred[T] = Deferred()
        if not self._stopped:
            self._under_way += 1
            if self._under_way > len(self._threads) and len(self._threads) < self._threads_max:
                thread = threading.Thread(target=self._run, args=(self._jobs,), name=f"{self._name}-{len(self._threads)}")
                self._threads.append(thread)
                thread.start()
            self._jobs.put((result, work, arguments))
        return result

    def rest(self) -> None:
        """Let the threads go, with the memory that each has, unless one of them is needed. Others are begun when there is work."""
        if not self._under_way:
            # Nobody waits for them: on a machine that is busy with other things they may take a while.
            self._let_go()
            self._jobs = SimpleQueue()

    def stop(self) -> None:
        """Return when all that was asked is done. Its answers come while the reactor goes on. Harmless twice."""
        self._stopped = True
        for thread in self._let_go():
            thread.join()

    def _let_go(self) -> list[threading.Thread]:
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        return threads

    def _run(self, jobs: SimpleQueue[_Job | None]) -> None:
        """In a thread."""
        _stand_back()
        while self._do_next(jobs):
            pass

    def _do_next(self, jobs: SimpleQueue[_Job | None]) -> bool:
        # A function of its own, so that between two jobs nothing of the last one is held.
        job = jobs.get()
        if job is None:
            return False
        result, work, arguments = job
        try:
            answer = work(*arguments)
        except BaseException:  # whatever it is, it is for who asked; the thread goes on
            answer = Failure()
        self._answers.append((result, answer))
        # First the answer, then the look at whether it will be found: `_give_answers` does it the other way round.
        if not self._reactor_knows:
            self._reactor_knows = True
            self._reactor.callFromThread(self._give_answers)
        return True

    def _give_answers(self) -> None:
        self._reactor_knows = False
        while self._answers:
            result, answer = self._answers.popleft()
            self._under_way -= 1
            # A `Failure` given as a result is one.
            result.callback(answer)


def _stand_back() -> None:
    """Let this thread come after the reactor's, where threads have priorities of their own."""
    if sys.platform == "linux":
        os.nice(NICENESS)


@contextmanager
def without_interrupting() -> Iterator[None]:
    """For a job that moves much: whenever its thread wakes for more, whoever has the processor finishes first (SCHED_BATCH, sched(7)).

    One upload with three copies was 1.01 to 1.11 times as fast for it, 16 at once 0.98 to 1.20, with half a dozen threads on two cores. Not
    for all jobs: of small uploads, whose jobs are short and waited for, there were 0.81 to 0.99 times as many.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        # Elsewhere there is no such thing for a thread; and what an operator has chosen stays.
        yield
        return
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@implementer(IWorker)
class InlineWorker:
    """Runs work at once, in the caller's thread: for tests, where disks are simulated or small."""

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Run `work(*arguments)`; the Deferred has fired already."""
        return defer.execute(work, *arguments)
