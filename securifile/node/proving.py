"""The prover: a returning node answers its challengers from its disk, and reads each blob once a rejoin however many of them ask.

The plain digest is compared with the recorded one here, too, before the challenger does so: if they differ, the blob is read again with its
blocks checked, so that the answer can name the one that is bad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from securifile.model.facts import File
from securifile.model.ids import AttemptId
from securifile.model.proofs import Proof, Reading
from securifile.node.index import Index
from securifile.node.readings import JOB_BYTES, Question, Readings
from securifile.protocol import messages as m
from securifile.sql import directory

_Key = tuple[AttemptId, bool]


class Prover:
    """Answers for one node's copies."""

    def __init__(self, *, index: Index, readings: Readings, checked: Callable[[AttemptId], None]) -> None:
        """Args:
        checked: told of each blob that was read whole and has the recorded digest.
        """
        self._index = index
        self._readings = readings
        self._checked = checked
        self._nonce = b""
        self._known: dict[_Key, _Part] = {}

    async def answer(self, asked: m.Challenge) -> m.Proofs:
        """The proofs of what is asked for, in order."""
        if asked.nonce != self._nonce:
            self._nonce, self._known = asked.nonce, {}
        known = self._known
        if new := [item for item in asked.items if (item.attempt, asked.whole) not in known]:
            files = {file.version.attempt: file for file in await directory.files(self._index.sql, [item.file.value for item in new])}
            # Others may have asked meanwhile, or have been told to ask again.
            new = [item for item in asked.items if (item.attempt, asked.whole) not in known]
            reading: Deferred[Any] = Deferred.fromCoroutine(self._read(asked, new, files))
            # Whoever waits for it must be told, and not wait for ever.
            reading.addErrback(_Broken)
            for at, item in enumerate(new):
                known[item.attempt, asked.whole] = _Part(reading, at)
        # What is asked for again while this is under way may be another part.
        parts = [known[item.attempt, asked.whole] for item in asked.items]
        return m.Proofs(
            proofs=tuple([await self._proof(known, asked.whole, item, part) for item, part in zip(asked.items, parts, strict=True)])
        )

    async def _proof(self, known: dict[_Key, _Part], whole: bool, item: m.ChallengeItem, part: _Part) -> Proof:
        found = await part.reading()
        if found.passing:
            # Nothing was read: whoever asks again has it tried again.
            known.pop((item.attempt, whole), None)
        if not found.present:
            current = await directory.entry_by_id(self._index.sql, item.file)
            knows = current.version.number if isinstance(current, File) else None
            return Proof(attempt=item.attempt, present=False, knows=knows)
        return Proof(attempt=item.attempt, present=True, plain=found.plain, keyed=found.keyed, problem=found.problem, passing=found.passing)

    async def _read(self, asked: m.Challenge, items: Sequence[m.ChallengeItem], files: dict[AttemptId, File]) -> list[Reading]:
        questions = [
            Question(
                attempt=item.attempt,
                size=files[item.attempt].version.size if item.attempt in files else JOB_BYTES,
                algorithm=item.algorithm if asked.whole else None,
                picked=not asked.whole,
                checked=not asked.whole,
            )
            for item in items
        ]
        found = await self._readings.read(asked.nonce, questions)
        if not asked.whole:
            return found
        wrong = []
        for at, (item, reading) in enumerate(zip(items, found, strict=True)):
            recorded = files[item.attempt].version.digest if item.attempt in files else None
            if reading.plain and reading.plain == recorded:
                self._checked(item.attempt)
            elif reading.plain:
                wrong.append(at)
        again = await self._readings.read(asked.nonce, [attrs.evolve(questions[at], checked=True) for at in wrong])
        for at, reading in zip(wrong, again, strict=True):
            found[at] = reading
        return found


@attrs.frozen
class _Part:
    """One blob's part of a reading that is under way, or over."""

    whole: Deferred[Any]
    at: int

    async def reading(self) -> Reading:
        """What was read. Who gives up waiting does not take it from the others."""
        waiting: Deferred[Any] = Deferred()
        self.whole.addCallback(_passing_on(waiting))
        readings: list[Reading] = await waiting
        return readings[self.at]


@attrs.frozen
class _Broken:
    """A reading that failed in a way nobody foresaw, kept for all who ask."""

    failure: Failure


def _passing_on(waiting: Deferred[Any]) -> Callable[[Any], Any]:
    def pass_on(result: Any) -> Any:
        if not waiting.called:
            waiting.callback(result.failure if isinstance(result, _Broken) else result)
        return result

    return pass_on
