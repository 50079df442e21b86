"""A fake `ask`: what was asked lies here until the test answers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.model.errors import DeadlineExceeded, PeerUnreachable
from securifile.model.facts import Server, Settings
from securifile.model.roster import Roster
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings


@attrs.define(eq=False)
class Question:
    """One question under way."""

    name: str
    message: Any
    asked_at: float
    answer: Deferred[Any]

    def lose(self) -> None:
        """The connection is gone."""
        self.answer.errback(PeerUnreachable(f"{self.name} is gone"))


@attrs.define
class FakeAsk:
    """Keeps questions, lets them run out of time as a real connection does, and answers those that a rule is known for."""

    clock: Clock
    waiting: list[Question] = attrs.field(factory=list)
    asked: list[Question] = attrs.field(factory=list)
    rules: dict[str, Callable[[Any], Any]] = attrs.field(factory=dict)
    """server -> what it answers at once: a value, or an exception."""

    def __call__(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        question = Question(name, message, self.clock.seconds(), Deferred())
        self.asked.append(question)
        if name in self.rules:
            found = self.rules[name](message)
            (question.answer.errback if isinstance(found, Exception) else question.answer.callback)(found)
            return question.answer
        self.waiting.append(question)
        late = self.clock.callLater(timeout_s, lambda: question.answer.errback(DeadlineExceeded(f"{name} is silent")))

        def ended(result: Any) -> Any:
            if late.active():
                late.cancel()
            if question in self.waiting:
                self.waiting.remove(question)
            return result

        return question.answer.addBoth(ended)

    def to(self, name: str) -> list[Question]:
        """What waits for an answer of that server, the oldest first."""
        return [question for question in self.waiting if question.name == name]

    def answer(self, name: str, message: Any) -> None:
        """The server answers the oldest question."""
        self.to(name)[0].answer.callback(message)


def server(name: str, status: Status = Status.RUNNING, kind: ServerKind = ServerKind.NODE) -> Server:
    """A member."""
    return Server(
        name=name, kind=kind, url=f"https://{name}:9443", protocol_address=f"{name}:9444", public_key=b"", status=status, boot="b"
    )


def roster_of(*servers: Server, **settings: Any) -> Roster:
    """A roster of these; heartbeats go out once a second unless said otherwise."""
    roster = Roster()
    roster.replace(list(servers), Settings(cluster="c", settings=ClusterSettings(**({"heartbeat_interval_s": 1.0} | settings))))
    return roster
