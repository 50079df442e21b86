"""What nodes tell of single copies: that one is there now, or cannot be used. What comes meanwhile is noted with the next transaction.

Repair makes small copies by the hundred, and each is told of alone; a transaction each would be the bound of it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from securifile.admin.ledger import Decision, Ledger
from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.protocol import messages as m
from securifile.sql import directory

GROUP_MAX = 200
"""Copies noted with one change: its facts go to every node in one message."""


@attrs.frozen(eq=False)
class _Told:
    """What a node told of its copy, and who waits for it to be noted."""

    file: EntryId
    attempt: AttemptId
    node: str
    durable: bool
    noted: Deferred[m.Done]


class Copies:
    """Notes in the catalogue which copies are durable."""

    _log = Logger()

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[_Told] = deque()
        self._noting = False

    def note(self, file: EntryId, attempt: AttemptId, node: str, *, durable: bool) -> Deferred[m.Done]:
        """A node's copy of an attempt is durable, or is pending again; of what is not the current version any more nothing is noted.

        Raises:
            Refusal: nothing can be changed now.
            DatabaseUnavailable: nothing was noted.
            OutcomeUnknown: perhaps it was; to be told of again.
        """
        told = _Told(file, attempt, node, durable, Deferred())
        self._waiting.append(told)
        if not self._noting:
            self._noting = True
            noting = Deferred.fromCoroutine(self._note_all())
            noting.addErrback(lambda failure: self._log.failure("noting copies has stopped", failure))
        return told.noted

    async def _note_all(self) -> None:
        try:
            while self._waiting:
                await self._note_together([self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))])
        finally:
            self._noting = False

    async def _note_together(self, group: list[_Told]) -> None:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            before = {file.id: file for file in await directory.files(sql, list({told.file.value: None for told in group}))}
            after = dict(before)
            for told in group:
                file = after.get(told.file)
                if file is not None and file.version.attempt == told.attempt:
                    after[told.file] = _with_copy(file, told)
            return Decision(facts=tuple(file for file in after.values() if file != before[file.id]), answer=None)

        problem: Exception | None = None
        try:
            await self._ledger.enter("note copies", decide)
        except (Refusal, DatabaseUnavailable, OutcomeUnknown) as error:
            problem = error
        except Exception as error:
            self._log.failure("copies cannot be noted")
            problem = error
        for told in group:
            if told.noted.called:
                # Who asked has gone.
                continue
            if problem is None:
                told.noted.callback(m.Done())
            else:
                told.noted.errback(problem)


def _with_copy(file: File, told: _Told) -> File:
    copies = tuple(attrs.evolve(copy, durable=told.durable) if copy.node == told.node else copy for copy in file.version.copies)
    return attrs.evolve(file, version=attrs.evolve(file.version, copies=copies))
