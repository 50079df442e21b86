"""Things that come one by one and are cheaper done together: one trip, one message, one wait for the disk serves many.

While a batch is under way, what comes gathers for the next one. So nobody waits for company: the first goes at once, or with all that comes
in the same turn of the reactor, and the more there is to do, the larger the batches are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")
R = TypeVar("R")


class _Item(Generic[T, R]):
    """One thing, and who waits for what becomes of it."""

    def __init__(self, thing: T, forgotten: Callable[[_Item[T, R]], None]) -> None:
        self.thing = thing
        self.result: Deferred[R] = Deferred(lambda _: forgotten(self))
        self.wanted = True


class Batches(Generic[T, R]):
    """Does things in batches, one after the other."""

    def __init__(
        self,
        work: Callable[[Sequence[T]], Deferred[Sequence[R | Exception]]],
        *,
        size: Callable[[T], int],
        items_max: int,
        bytes_max: int,
        soon: Callable[[Callable[[], None]], object] = lambda begin: begin(),
    ) -> None:
        """Args:
        work: does a batch, and tells what became of each in the same order; when it fails, all of them fail with that.
        size: of a thing, in bytes.
        items_max, bytes_max: of a batch; one thing is always taken.
        soon: calls a function, at once or in the reactor's next turn.
        """
        self._work = work
        self._size = size
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._waiting: deque[_Item[T, R]] = deque()
        self._under_way: list[_Item[T, R]] = []
        self._working: Deferred[Sequence[R | Exception]] | None = None
        self._soon = soon
        self._beginning = False

    def do(self, thing: T) -> Deferred[R]:
        """Do it, with the next batch.

        Cancelling takes it out of those that wait. Of a batch that is under way the work is cancelled when nobody waits for any of it.
        """
        item: _Item[T, R] = _Item(thing, self._forget)
        self._waiting.append(item)
        if not self._under_way and not self._beginning:
            self._beginning = True
            self._soon(self._begin)
        return item.result

    def _begin(self) -> None:
        self._beginning = False
        while self._waiting and not self._under_way:
            size = 0
            while self._waiting and len(self._under_way) < self._items_max:
                size += self._size(self._waiting[0].thing)
                if self._under_way and size > self._bytes_max:
                    break
                self._under_way.append(self._waiting.popleft())
            self._working = self._work([item.thing for item in self._under_way])
            self._working.addCallbacks(self._done, self._failed)

    def _done(self, results: Sequence[R | Exception]) -> None:
        items = self._ended()
        for item, result in zip(items, results, strict=True):
            if not item.wanted:
                continue
            if isinstance(result, Exception):
                item.result.errback(result)
            else:
                item.result.callback(result)
        self._begin()

    def _failed(self, failure: Failure) -> None:
        for item in self._ended():
            if item.wanted:
                item.result.errback(failure)
        self._begin()

    def _ended(self) -> list[_Item[T, R]]:
        items, self._under_way, self._working = self._under_way, [], None
        return items

    def _forget(self, item: _Item[T, R]) -> None:
        item.wanted = False
        if item in self._waiting:
            self._waiting.remove(item)
        elif self._working is not None and not any(one.wanted for one in self._under_way):
            self._working.cancel()
