"""Workers."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorFromThreads

from securifile.model.interfaces import IWorker
from securifile.node.worker import InlineWorker, ThreadWorker
from securifile.workers import NICENESS, without_interrupting


def threads_of(threads_max: int) -> ThreadWorker:
    return ThreadWorker(cast(IReactorFromThreads, reactor), threads_max, "test")


@pytest.fixture(params=["inline", "threads"])
def worker(request: pytest.FixtureRequest) -> Iterator[IWorker]:
    """Both."""
    if request.param == "inline":
        yield InlineWorker()
        return
    worker = threads_of(2)
    yield worker
    worker.stop()


@pytest.fixture
def one() -> Iterator[ThreadWorker]:
    """With one thread."""
    worker = threads_of(1)
    yield worker
    worker.stop()


@pytest_twisted.ensureDeferred
async def test_results_and_errors_come_back(worker: IWorker) -> None:
    """The Deferred fires with what the work returned or raised."""
    assert await worker.do(divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        await worker.do(divmod, 17, 0)


@pytest_twisted.ensureDeferred
async def test_answers_come_in_the_reactors_thread(one: ThreadWorker) -> None:
    """Work is done in another thread, and its answer heard in the one that asked."""
    heard: list[int] = []
    there = one.do(threading.get_ident)
    there.addCallback(lambda ident: heard.extend([ident, threading.get_ident()]))
    await there
    assert heard[0] != threading.get_ident() == heard[1]


@pytest_twisted.ensureDeferred
async def test_who_cancels_only_stops_listening(one: ThreadWorker) -> None:
    """Work goes on when its Deferred is cancelled, and the late answer harms nobody."""
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        done.set()

    answer = one.do(work)
    answer.cancel()
    with pytest.raises(CancelledError):
        await answer
    go.set()
    await one.do(done.wait, 10)
    assert done.is_set()


@pytest_twisted.ensureDeferred
async def test_as_many_work_at_once_as_there_may_be_threads() -> None:
    """Two jobs that wait for each other both end, and a hundred more are all answered."""
    worker = threads_of(2)
    meeting = threading.Barrier(2)
    await gatherResults([worker.do(meeting.wait, 10), worker.do(meeting.wait, 10)])
    answers: list[int] = await gatherResults([worker.do(int, number) for number in range(100)])
    assert answers == list(range(100))
    worker.stop()


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_what_was_asked(one: ThreadWorker) -> None:
    """What was asked before `stop` is done when that returns; its answers still come; nothing that is asked afterwards is begun."""
    done: list[int] = []
    answers: list[Deferred[None]] = [one.do(done.append, number) for number in range(5)]
    one.stop()
    assert done == [0, 1, 2, 3, 4]
    one.do(done.append, 5)
    await gatherResults(answers)
    assert done == [0, 1, 2, 3, 4]


@pytest_twisted.ensureDeferred
async def test_threads_go_at_rest_and_come_back(one: ThreadWorker) -> None:
    """Threads that have nothing to do end when told to rest, one that is busy does not, and what is asked afterwards is done."""
    go = threading.Event()
    waiting = one.do(go.wait, 10)
    one.rest()
    go.set()
    assert await waiting
    thread = await one.do(threading.current_thread)
    one.rest()
    thread.join(10)
    assert not thread.is_alive()
    assert (await one.do(threading.current_thread)).is_alive()


@pytest_twisted.ensureDeferred
async def test_a_thread_holds_nothing_between_two_jobs(one: ThreadWorker) -> None:
    """What a job was given and what it answered can go once the answer was heard: a thread may idle for hours."""

    class Large:
        pass

    async def ask() -> weakref.ref[Large]:
        large = Large()
        assert await one.do(lambda given: given, large) is large
        return weakref.ref(large)

    gone = await ask()
    await one.do(int)
    assert gone() is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
@pytest_twisted.ensureDeferred
async def test_threads_come_after_the_reactors(one: ThreadWorker) -> None:
    """A thread that moves a gigabyte stands back for the one that answers heartbeats, which keeps its priority."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    there = await one.do(os.getpriority, os.PRIO_PROCESS, 0)
    assert there == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no policies of their own")
@pytest_twisted.ensureDeferred
async def test_a_job_that_moves_much_lets_others_finish(one: ThreadWorker) -> None:
    """Its thread does not interrupt while it lasts, even if it fails; the next job in it, and the reactor's thread, are as before."""

    def job(*, fails: bool) -> int:
        with without_interrupting():
            if fails:
                raise ValueError
            return os.sched_getscheduler(0)

    assert await one.do(lambda: job(fails=False)) == os.SCHED_BATCH
    with pytest.raises(ValueError):
        await one.do(lambda: job(fails=True))
    assert await one.do(os.sched_getscheduler, 0) == os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no policies of their own")
@pytest_twisted.ensureDeferred
async def test_what_an_operator_chose_for_the_process_stays(one: ThreadWorker) -> None:
    """A server that is to have only what others leave of the processors does not take more."""

    def job() -> tuple[int, int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with without_interrupting():
            within = os.sched_getscheduler(0)
        return within, os.sched_getscheduler(0)

    assert await one.do(job) == (os.SCHED_IDLE, os.SCHED_IDLE)
