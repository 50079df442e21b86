"""Conducting the return of nodes: who challenges whom, and what is committed of it.

    a node is down, not offline, answers, and has caught up
      -> a nonce is drawn; every other node that answers is asked to verify it (`Verify`)
      -> it verifies itself what none of those holds: files without a replica, or whose other holders are away
      -> all verdicts good: admitted (running, with the boot that was verified); else: failed

See `docs/decisions/0010-returning-nodes.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.admin.catalogue import Catalogue
from securifile.admin.duties import May, anybody
from securifile.model.errors import DatabaseUnavailable, DeadlineExceeded, OutcomeUnknown, PeerUnreachable, Refusal, SpoolFull
from securifile.model.proofs import Report
from securifile.model.records import AuditRecord
from securifile.model.servers import Status
from securifile.model.verification import NONCE_BYTES, TRIES, again_s, failure_of, settled, unheard
from securifile.protocol import messages as m
from securifile.protocol.heartbeats import Ask, Heartbeats

REPORT_S = 6 * 3600.0
"""How long a challenger may take in all; that its prover makes progress, it sees to itself."""


@attrs.frozen(kw_only=True)
class Fruitless:
    """Verifications of a node, one after another, that came to no verdict while nothing changed."""

    boot: str
    challengers: tuple[str, ...]
    count: int
    not_before: float
    """Monotonic seconds: the next one begins then, or when something has changed."""
    reason: str


class Rejoins:
    """Verifications under way, one a node at most."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        catalogue: Catalogue,
        ask: Ask,
        heartbeats: Heartbeats,
        boot_of: Callable[[str], str | None],
        has_caught_up: Callable[[str], bool],
        random: Callable[[int], bytes],
        audit: Any,
        may: May = anybody,
    ) -> None:
        """Args:
        boot_of: the life of a node's process, by its last heartbeat.
        has_caught_up: whether a node's index is as far as could be asked.
        may: asked within the transaction of an admission.
        """
        self._clock = clock
        self._wall = wall
        self._name = name
        self._catalogue = catalogue
        self._ask = ask
        self._heartbeats = heartbeats
        self._boot_of = boot_of
        self._has_caught_up = has_caught_up
        self._random = random
        self._audit = audit
        self._may = may
        self._under_way: dict[str, Deferred[None]] = {}
        self._fruitless: dict[str, Fruitless] = {}

    def look(self) -> None:
        """Begin what can begin; called each heartbeat interval."""
        for name in [name for name in self._fruitless if not self._is_down(name)]:
            del self._fruitless[name]
        for name in self._catalogue.roster.nodes:
            server = self._catalogue.roster.servers[name]
            boot = self._boot_of(name)
            if server.status is not Status.DOWN or server.offline or boot is None or name in self._under_way:
                continue
            if self._heartbeats.is_answering(name) and self._has_caught_up(name) and self._is_time(name, boot):
                running = self._under_way[name] = Deferred.fromCoroutine(self._rejoin(name, boot))
                running.addErrback(self._interrupted, name)
                running.addBoth(self._ended, name)

    def _is_down(self, name: str) -> bool:
        server = self._catalogue.roster.servers.get(name)
        return server is not None and server.status is Status.DOWN and not server.offline

    def _is_time(self, name: str, boot: str) -> bool:
        before = self._before(name, boot, self._challengers(name))
        return before is None or self._clock.seconds() >= before.not_before

    def _before(self, name: str, boot: str, challengers: Sequence[str]) -> Fruitless | None:
        """What came of it before, if nothing has changed since."""
        before = self._fruitless.get(name)
        return before if before is not None and (before.boot, before.challengers) == (boot, tuple(challengers)) else None

    def _challengers(self, subject: str) -> list[str]:
        return [name for name in self._catalogue.roster.nodes if name != subject and self._heartbeats.is_answering(name)]

    def fruitless(self, name: str) -> tuple[str, float] | None:
        """Why the verification of a node came to no verdict, and in how many seconds the next one begins; None: it did not."""
        known = self._fruitless.get(name)
        return None if known is None else (known.reason, max(0.0, known.not_before - self._clock.seconds()))

    def stop(self) -> None:
        """Give up what is under way; the next admin server, or this one's next start, begins anew."""
        for running in list(self._under_way.values()):
            running.cancel()

    @property
    def under_way(self) -> list[str]:
        """Nodes that are being verified now."""
        return sorted(self._under_way)

    async def _rejoin(self, subject: str, boot: str) -> None:
        challengers = self._challengers(subject)
        before = self._before(subject, boot, challengers)
        try:
            reason = await self._verify(subject, boot, challengers, is_new=before is None)
        except (DatabaseUnavailable, OutcomeUnknown, PeerUnreachable, DeadlineExceeded, Refusal) as error:
            reason = str(error)
        if reason is None:
            self._fruitless.pop(subject, None)
            return
        count = 1 if before is None else before.count + 1
        self._log.warn("verifying {subject} came to no verdict, and begins anew: {problem}", subject=subject, problem=reason)
        if before is None or before.reason != reason:
            self._note("verification", subject, f"no verdict: {reason}")
        self._fruitless[subject] = Fruitless(
            boot=boot,
            challengers=tuple(challengers),
            count=count,
            not_before=self._clock.seconds() + again_s(count),
            reason=reason,
        )

    async def _verify(self, subject: str, boot: str, challengers: Sequence[str], *, is_new: bool) -> str | None:
        """Verify a node and commit what came of it; why there was no verdict, or None."""
        asked = m.Verify(subject=subject, nonce=self._random(NONCE_BYTES), position=self._catalogue.ledger.position)
        self._log.info("{subject} returns; it is verified by {challengers}", subject=subject, challengers=challengers or "itself")
        if is_new:
            self._note("verification", subject, f"by {', '.join(challengers) or 'itself'}")
        problems: dict[str, str] = {}
        told = {report.challenger: report for report in await self._reports(asked, challengers, problems)}
        for _ in range(TRIES - 1):
            again = unheard(told.values())
            if not again or not self._is_still(subject, boot):
                break
            self._log.info("{challengers} heard nothing from {subject}, and are asked again", challengers=again, subject=subject)
            told |= {report.challenger: report for report in await self._reports(asked, again, problems)}
        if challengers and not told:
            # All challengers are gone: no verdict at all.
            return _said(problems)
        reports = settled(told.values())
        for name in sorted(set(told) - {report.challenger for report in reports}):
            self._note(
                "verdict", subject, f"by {name}: none, it was cut off from {subject} ({told[name].interrupted}), and others were not"
            )
        if failure_of(reports) is None:
            # What none of them holds, or none of them came to, is left for itself.
            alone = attrs.evolve(asked, challengers=tuple(report.challenger for report in reports))
            own = await self._reports(alone, [subject], problems)
            if not own and self._is_still(subject, boot):
                return _said(problems)
            reports += own
        for report in reports:
            self._note_report(subject, report)
        reason = failure_of(reports) if self._is_still(subject, boot) else "it stopped answering while it was verified"
        change = await self._catalogue.members.rejoined(subject, boot, reason is None, self._may)
        for one in change.answer:
            self._log.info("{subject} is {after}{why}", subject=subject, after=one.after, why="" if reason is None else f": {reason}")
            self._note("status", subject, f"{one.before} -> {one.after}" + ("" if reason is None else f": {reason}"))
        return None

    def _is_still(self, subject: str, boot: str) -> bool:
        return self._boot_of(subject) == boot and self._heartbeats.is_answering(subject)

    async def _reports(self, asked: m.Verify, challengers: Sequence[str], problems: dict[str, str]) -> list[Report]:
        """What they found; of those that gave no report, why not, into `problems`."""
        asking = [self._ask(name, asked, REPORT_S) for name in challengers]
        # Cancelling a `DeferredList` cancels what it waits for and makes it fire as usual.
        results = await DeferredList(asking, consumeErrors=True)
        reports = []
        for name, (succeeded, answer) in zip(challengers, results, strict=True):
            if succeeded:
                reports.append(answer.report)
            elif answer.check(CancelledError):
                # This server stops. What is known by then is not enough to admit anybody.
                raise CancelledError
            else:
                problems[name] = answer.getErrorMessage()
                self._log.warn("{name} cannot challenge: {problem}", name=name, problem=problems[name])
        return reports

    def _note_report(self, subject: str, report: Report) -> None:
        if report.challenger == subject and not report.files:
            return
        detail = f"by {report.challenger}: {report.files} files, {report.bytes} bytes{'' if report.whole else ' (blocks picked by chance)'}"
        detail += f", {report.bad_count} bad" if report.bad_count else ", all good"
        if report.interrupted is not None:
            detail += f", interrupted: {report.interrupted}"
        self._note("verdict", subject, detail)
        for bad in report.bad:
            why = f": {bad.reason}" if bad.reason else ""
            self._note("bad-copy", subject, f"{bad.verdict}: attempt {bad.attempt}, by {report.challenger}{why}", entry=str(bad.file))

    def _note(self, event: str, subject: str, detail: str, entry: str | None = None) -> None:
        try:
            self._audit.note(AuditRecord(at=self._wall(), server=self._name, event=event, peer=subject, entry=entry, detail=detail))
        except SpoolFull:
            self._log.warn("no room to record {event} of {subject}: {detail}", event=event, subject=subject, detail=detail)

    def _interrupted(self, failure: Any, subject: str) -> None:
        if not failure.check(CancelledError):
            self._log.failure("verifying {subject} failed", failure, subject=subject)

    def _ended(self, _: object, subject: str) -> None:
        del self._under_way[subject]


def _said(problems: dict[str, str]) -> str:
    return "; ".join(f"{name}: {problem}" for name, problem in sorted(problems.items()))
