"""Workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool

from securifile.model.interfaces import IWorker
from securifile.node.worker import InlineWorker, ThreadWorker


@pytest.fixture(params=["inline", "threads"])
def worker(request: pytest.FixtureRequest) -> Iterator[IWorker]:
    """Both."""
    if request.param == "inline":
        yield InlineWorker()
        return
    pool = ThreadPool(0, 2)
    pool.start()
    yield ThreadWorker(cast(IReactorFromThreads, reactor), pool)
    pool.stop()


@pytest_twisted.ensureDeferred
async def test_results_and_errors_come_back(worker: IWorker) -> None:
    """The Deferred fires with what the work returned or raised."""
    assert await worker.do(divmod, 17, 5) == (3, 2)
    with pytest.raises(ZeroDivisionError):
        await worker.do(divmod, 17, 0)


@pytest_twisted.ensureDeferred
async def test_answers_come_in_the_reactors_thread() -> None:
    """Work is done in another thread, and its answer heard in the one that asked."""
    pool = ThreadPool(0, 1)
    pool.start()
    try:
        there = await ThreadWorker(cast(IReactorFromThreads, reactor), pool).do(threading.get_ident)
        assert there != threading.get_ident()
    finally:
        pool.stop()


@pytest_twisted.ensureDeferred
async def test_who_cancels_only_stops_listening() -> None:
    """Work goes on when its Deferred is cancelled, and the late answer harms nobody."""
    pool = ThreadPool(1, 1)
    pool.start()
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        done.set()

    try:
        worker = ThreadWorker(cast(IReactorFromThreads, reactor), pool)
        answer = worker.do(work)
        answer.cancel()
        with pytest.raises(CancelledError):
            await answer
        go.set()
        await worker.do(done.wait, 10)
        assert done.is_set()
    finally:
        pool.stop()
