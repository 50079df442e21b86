"""People of a run: each signs in, and then reads, writes, deletes, moves and shares at random, one thing at a time, through HTTP.

They follow redirects as curl does (the request again, without credentials on another host), give up on an answer that
does not come, and write down what they asked for and what they were told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from securifile.model.servers import HostPort, ServerKind
from securifile.protocol.connection import PeerIdentity
from securifile.simulation.chance import Chance
from securifile.simulation.cluster import CLUSTER, HTTP_PORT, SimulatedCluster, password_of
from securifile.simulation.history import Kind, Operation, Outcome, content_of

PATIENCE_S = 40.0
"""How long a person waits for an answer: longer than any server takes to say that it does not know."""

HOPS_MAX = 5

SLOW_S = 0.4
"""A slow reader takes a piece so often."""

CERTAIN = frozenset({503, 507})
"""Statuses of a 5xx that promise that nothing was done."""


@attrs.frozen(kw_only=True)
class HttpAnswer:
    """An answer, or what came of it."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    whole: bool


class _Exchange(Protocol):
    """One request and its answer on a connection of their own."""

    def __init__(
        self,
        head: bytes,
        pieces: list[bytes],
        pause_s: float,
        clock: IReactorTime,
        done: Deferred[HttpAnswer | None],
        given: list[tuple[float, int]] | None = None,
    ) -> None:
        """Args:
        given: where it is noted how much the server has given, if this is to read slowly.
        """
        self._given = given
        self._head = head
        self._pieces = pieces
        self._pause_s = pause_s
        self._clock = clock
        self._done = done
        self._received = b""
        self._over = False

    def connectionMade(self) -> None:
        """Ask."""
        self._send(self._head)
        self._go_on()
        if self._given is not None:
            self._look()

    def _look(self) -> None:
        """Take the next piece, and note what the server has given by now."""
        if self._over:
            return
        transport: Any = self.transport
        assert self._given is not None
        self._given.append((self._clock.seconds(), transport.other.sent_bytes))
        transport.resumeProducing()
        self._clock.callLater(SLOW_S, self._look)

    def _go_on(self) -> None:
        if self._over:
            return
        if self._pieces:
            self._send(self._pieces.pop(0))
            if self._pieces:
                self._clock.callLater(self._pause_s, self._go_on)

    def _send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        """Part of the answer."""
        self._received += data
        if self._given is not None:
            transport: Any = self.transport
            transport.pauseProducing()
        answer = _parse(self._received)
        if answer is not None and answer.whole:
            self._end(answer)
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """The end, in time or too early."""
        self._end(_parse(self._received))

    def _end(self, answer: HttpAnswer | None) -> None:
        if not self._over:
            self._over = True
            if not self._done.called:
                self._done.callback(answer)


def _parse(data: bytes) -> HttpAnswer | None:
    """The answer as far as it has come; None without a complete head."""
    while True:
        head, end, content = data.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if status != 100:
            break
        data = content
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    if status in (204, 304):
        return HttpAnswer(status=status, headers=headers, content=b"", whole=True)
    if headers.get("transfer-encoding") == "chunked":
        return _parse_chunks(status, headers, content)
    length = int(headers.get("content-length", "0"))
    return HttpAnswer(status=status, headers=headers, content=content[:length], whole=len(content) >= length)


def _parse_chunks(status: int, headers: Mapping[str, str], data: bytes) -> HttpAnswer:
    content = b""
    while True:
        size, end, rest = data.partition(b"\r\n")
        if not end or len(rest) < int(size, 16) + 2:
            return HttpAnswer(status=status, headers=headers, content=content, whole=False)
        length = int(size, 16)
        if not length:
            return HttpAnswer(status=status, headers=headers, content=content, whole=True)
        content, data = content + rest[:length], rest[length + 2 :]


@attrs.frozen(kw_only=True)
class Habits:
    """How people of a run behave."""

    folders: tuple[str, ...] = ("", "notes/")
    names: tuple[str, ...] = ("one", "two", "three")
    think_s: float = 0.4
    """At most between two wishes."""
    large: float = 0.05
    """Part of the writes that are large, and slow to send."""
    slow: float = 0.1
    """Part of the reads that are slow to take what comes."""
    weights: tuple[tuple[Kind, int], ...] = (
        (Kind.READ, 50),
        (Kind.WRITE, 30),
        (Kind.DELETE, 4),
        (Kind.MOVE, 4),
        (Kind.GRANT, 6),
        (Kind.REVOKE, 6),
    )


class Person:
    """One person at one of their computers."""

    def __init__(
        self,
        name: str,
        host: str,
        everybody: tuple[str, ...],
        cluster: SimulatedCluster,
        chance: Chance,
        habits: Habits,
        note: Callable[[Operation], int],
    ) -> None:
        """Args:
        host: the computer's name on the network.
        note: takes a new operation into the history; its number.
        """
        self.name = name
        self._host = host
        self.stopped = False
        self._everybody = everybody
        self._cluster = cluster
        self._clock = cluster.time
        self._chance = chance
        self._habits = habits
        self._note = note
        self._token: str | None = None
        self._given: list[tuple[str, str]] = []
        """(path, person) of rights that were given, and perhaps not taken since."""
        self._wishes = [kind for kind, weight in habits.weights for _ in range(weight)]

    async def live(self) -> None:
        """Go about it until `stopped`."""
        while not self.stopped:
            await deferLater(self._clock, self._chance.between(0.01, self._habits.think_s))
            if self.stopped:
                return
            if self._token is None:
                await self._sign_in()
            else:
                await self._wish(self._chance.pick(self._wishes))

    # --- wishes ---

    def _path(self, owner: str | None = None) -> str:
        pick = self._chance.pick
        return f"{owner or pick(self._everybody)}/{pick(self._habits.folders)}{pick(self._habits.names)}"

    def _server(self) -> str:
        # Mostly nodes; an admin server sends people on.
        return self._chance.pick([*self._cluster.nodes * 3, *self._cluster.admins])

    async def _sign_in(self) -> None:
        operation = self._operation(Kind.SIGN_IN, "")
        body = json.dumps({"username": self.name, "password": password_of(self.name)}).encode()
        answer = await self._do(operation, "POST", "/api/v1/sessions", body, json_body=True)
        if answer is not None and answer.status == 201:
            self._token = str(json.loads(answer.content)["token"])

    async def _wish(self, kind: Kind) -> None:
        match kind:
            case Kind.READ:
                await self.read(self._path(), self._server())
            case Kind.WRITE:
                await self.write(self._path(), self._server(), self._size())
            case Kind.DELETE:
                operation = self._operation(Kind.DELETE, self._path(self.name))
                await self._do(operation, "DELETE", f"/api/v1/files/{operation.path}")
            case Kind.MOVE:
                operation = self._operation(Kind.MOVE, self._path(self.name))
                operation.to = self._path(self.name)
                body = json.dumps({"from": operation.path, "to": operation.to}).encode()
                await self._do(operation, "POST", "/api/v1/move", body, json_body=True)
            case Kind.GRANT | Kind.REVOKE:
                await self._share(kind)
            case _:
                raise AssertionError(kind)

    async def _share(self, kind: Kind) -> None:
        others = [other for other in self._everybody if other != self.name]
        other = self._chance.pick(others)
        # Mostly a file; sometimes everything.
        path = f"{self.name}/" if self._chance.happens(0.3) else self._path(self.name)
        if kind is Kind.REVOKE and self._given:
            path, other = self._given.pop(self._chance.below(len(self._given)))
        operation = self._operation(kind, path)
        operation.other = other
        if kind is Kind.GRANT:
            operation.role = self._chance.pick(("reader", "editor", "master"))
            body = json.dumps({"user": other, "role": operation.role}).encode()
            await self._do(operation, "PUT", f"/api/v1/access/{path}", body, json_body=True)
            if operation.outcome is not Outcome.REFUSED:
                self._given.append((path, other))
        else:
            await self._do(operation, "DELETE", f"/api/v1/access/{path}?user={other}")

    async def wish(self, kind: Kind) -> None:
        """One thing of that kind, after signing in, if need be."""
        if await self.sign_in():
            await self._wish(kind)

    async def make_folder(self, path: str, server: str) -> Operation:
        """Make a folder."""
        operation = self._operation(Kind.FOLDER, path, server)
        await self._do(operation, "PUT", f"/api/v1/files/{path}", b"")
        return operation

    async def read(self, path: str, server: str, *, relay: bool | None = None) -> Operation:
        """Read a file; through that server if `relay`, and if not said by chance."""
        operation = self._operation(Kind.READ, path, server)
        query = "?relay=1" if (self._chance.happens(0.3) if relay is None else relay) else ""
        slow = self._chance.happens(self._habits.slow)
        answer = await self._do(operation, "GET", f"/api/v1/files/{path}{query}", slow=slow)
        if answer is not None and answer.status == 200:
            if answer.whole:
                operation.content = answer.content
            else:
                operation.outcome, operation.partial = Outcome.UNKNOWN, answer.content
        return operation

    async def write(self, path: str, server: str, size: int) -> Operation:
        """Write a file."""
        operation = self._operation(Kind.WRITE, path, server)
        operation.size = size
        await self._do(operation, "PUT", f"/api/v1/files/{path}", content_of(operation.number, size))
        return operation

    async def sign_in(self) -> bool:
        """Sign in, if need be; whether it worked."""
        if self._token is None:
            await self._sign_in()
        return self._token is not None

    def _size(self) -> int:
        if self._chance.happens(self._habits.large):
            return 100_000 + self._chance.below(400_000)
        return 40 + self._chance.below(3000)

    # --- asking ---

    def _operation(self, kind: Kind, path: str, server: str | None = None) -> Operation:
        operation = Operation(
            number=0, person=self.name, kind=kind, path=path, server=server or self._server(), began=self._clock.seconds()
        )
        operation.number = self._note(operation)
        return operation

    async def _do(
        self, operation: Operation, method: str, target: str, body: bytes | None = None, *, json_body: bool = False, slow: bool = False
    ) -> HttpAnswer | None:
        answer: HttpAnswer | None = None
        host = operation.server
        signed_in_at = host
        for hops in range(HOPS_MAX):
            operation.hops, operation.answered_by, operation.asked_last = hops, host, self._clock.seconds()
            operation.given.clear()
            given = operation.given if slow else None
            answer = await self._ask(host, method, target, body, json_body, with_token=host == signed_in_at, given=given)
            if answer is None or answer.status != 307:
                break
            location = urlsplit(answer.headers["location"])
            host = location.hostname or host
            target = location.path + (f"?{location.query}" if location.query else "")
        operation.ended = self._clock.seconds()
        if answer is not None:
            operation.status = answer.status
            operation.etag = answer.headers.get("etag")
            if answer.headers.get("content-type", "").startswith("application/problem+json") and answer.whole:
                problem = json.loads(answer.content)
                operation.code, operation.detail = str(problem.get("code")), str(problem.get("detail"))
            if answer.status == 401 and operation.kind is not Kind.SIGN_IN:
                self._token = None
        operation.outcome = self._outcome(answer)
        return answer

    def _outcome(self, answer: HttpAnswer | None) -> Outcome:
        if answer is None or answer.status == 307:
            return Outcome.UNKNOWN
        if 200 <= answer.status < 300:
            return Outcome.DONE
        if 400 <= answer.status < 500 or answer.status in CERTAIN:
            return Outcome.REFUSED
        return Outcome.UNKNOWN

    def _ask(
        self,
        host: str,
        method: str,
        target: str,
        body: bytes | None,
        json_body: bool,
        *,
        with_token: bool,
        given: list[tuple[float, int]] | None,
    ) -> Deferred[HttpAnswer | None]:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}:{HTTP_PORT}", "Connection: close"]
        if with_token and self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        if json_body:
            lines.append("Content-Type: application/json")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        pieces, pause_s = self._pieces(body or b"")
        done: Deferred[HttpAnswer | None] = Deferred()
        factory: Any = Factory.forProtocol(lambda: _Exchange(head, pieces, pause_s, self._clock, done, given))
        nobody = PeerIdentity(cluster=CLUSTER, kind=ServerKind.NODE, name=host)
        connecting = self._cluster.network.connector_of(self._host, self._clock)(HostPort(host, HTTP_PORT), nobody).connect(factory)
        wires: list[Any] = []
        connecting.addCallback(wires.append)
        connecting.addErrback(lambda failure: None if done.called else done.callback(None))

        def give_up() -> None:
            if not done.called:
                done.callback(None)
            connecting.cancel()
            for wire in wires:
                if wire.transport is not None:
                    wire.transport.abortConnection()

        timer = self._clock.callLater(PATIENCE_S, give_up)

        def ended(answer: HttpAnswer | None) -> HttpAnswer | None:
            if timer.active():
                timer.cancel()
            return answer

        done.addCallback(ended)
        return done

    def _pieces(self, body: bytes) -> tuple[list[bytes], float]:
        """The body as it is sent: a large one in pieces, with pauses."""
        if len(body) < 20_000:
            return [body] if body else [], 0.0
        count = 2 + self._chance.below(6)
        length = len(body) // count + 1
        return [body[at : at + length] for at in range(0, len(body), length)], self._chance.between(0.0, 1.5)
