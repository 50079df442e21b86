"""What a front answers by itself: contents of files that this node gives or relays, to people whom it knows.

It has the same `Lookup`, `Authenticator`, `Downloads` and `Sources` as the node process, over a backend of its own: the index is read from
its file, and the scoreboard says until when it may serve, and when what was remembered is void. Whatever it cannot answer well (no
standing, no right, a redirect, a refusal of any kind) is `PassedOn`: the node process judges that request anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from securifile.http.authentication import Authenticator
from securifile.http.downloads import Downloads
from securifile.http.exchange import CLIENT_GONE, Access, Answer, Streamed, record_of
from securifile.http.redirects import Redirector
from securifile.http.request import Request
from securifile.http.targets import parse_target
from securifile.http.transfers import Transfer, Transfers
from securifile.model.errors import Refusal, StreamBroken
from securifile.model.facts import File
from securifile.model.ids import EntryId, Position
from securifile.model.roster import Roster
from securifile.node.fronts.scoreboard import FrontScore, Scoreboard
from securifile.protocol import messages as m
from securifile.sql import directory
from securifile.sql.sqlite import SqliteReader

T = TypeVar("T")

KNOWN_MAX = 2000
"""Answers kept, of about 2 KiB each."""
NOTICE_S = 0.25
"""How often the scoreboard is looked at while transfers are under way: a revoked right must be refused within a second."""
CLOSED_S = 1.0
"""How long a small file may be kept open after its blob has left."""


class PassedOn(Exception):
    """This request is for the node process."""


class FrontBackend:
    """The `Backend` of a front, as far as reading files needs one; everything else is `PassedOn`."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        cluster: str,
        board: Scoreboard,
        index: SqliteReader,
        audit: Any,
        look_password: Callable[[m.CheckPassword], Awaitable[m.PasswordChecked | None]],
        forget_open_files: Callable[[], None],
    ) -> None:
        """Args:
        look_password: asks the node process whether it remembers a password.
        forget_open_files: closes the files that are kept open.
        """
        self._clock = clock
        self._board = board
        self._index = index
        self._look_password = look_password
        self._forget_open_files = forget_open_files
        self._known: dict[Hashable, Any] = {}
        self._changes = self._server_changes = -1
        self._left = board.left
        self.wall: Callable[[], float] = lambda: clock.seconds() + board.wall_offset
        """See `Backend`: the cluster's time."""
        self._closed_at = clock.seconds()
        self.name = name
        self.audit = audit
        self.available: frozenset[str] = frozenset()
        """Nodes that can be asked for files."""
        self.roster = Roster()
        self.roster.cluster = cluster

    async def admit(self) -> None:
        """See `Backend`. Raises `PassedOn`: the node process may have to wait for something, or knows why not."""
        if self._clock.seconds() >= self._board.serves_until or not self.audit.has_room():
            raise PassedOn
        self.notice()

    def notice(self) -> bool:
        """Forget what was remembered before the index's last change; whether anything may be remembered now."""
        board = self._board
        if board.left != self._left and self._clock.seconds() - self._closed_at >= CLOSED_S:
            self._left, self._closed_at = board.left, self._clock.seconds()
            self._forget_open_files()
        # The counts first: what is asked then is of that state or a later one.
        changes, server_changes = board.changes, board.server_changes
        if changes != self._changes:
            self._known.clear()
            self._changes = changes
        if server_changes != self._server_changes:
            settings = self._index.ask(directory.settings)
            self.roster.replace(self._index.ask(directory.servers), settings)
            self._server_changes = server_changes
        return bool(changes % 2 == 0)

    async def reached(self, position: Position) -> None:
        """See `Backend`. Raises `PassedOn` when that is still to come."""

        async def watermark(sql: Any) -> Position:
            return Position(*(await sql.query("SELECT epoch, revision FROM watermark"))[0])

        if self._index.ask(watermark) < position:
            raise PassedOn

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """See `Backend`."""
        return self._index.ask(work)

    async def recall(self, key: Hashable, work: Callable[[Any], Awaitable[T]], *, of_files: bool = True, sql: Any = None) -> T:
        """See `Backend`: from memory until the next change of the index, of files or not."""
        may_remember = self.notice()
        if key in self._known:
            known: T = self._known[key]
            return known
        answer = self._index.ask(work) if sql is None else await work(sql)
        if answer is not None and may_remember:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = answer
        return answer

    async def check_password(self, asked: m.CheckPassword) -> m.PasswordChecked:
        """See `Backend`. Raises `PassedOn` for one that the node process has not checked lately."""
        checked = await self._look_password(asked)
        if checked is None:
            raise PassedOn
        return checked

    def is_available(self, name: str) -> bool:
        """See `Backend`: as the node process sees it, a fifth of a second ago at most."""
        return name == self.name or name in self.available

    async def shown(self, file: File) -> File | None:
        """See `Backend`. Raises `PassedOn` for what the node process has to be asked about."""
        # The mark comes before the version can be seen, and goes when it may be shown.
        if self._board.may_be_young(file.version.attempt):
            raise PassedOn
        return file

    async def act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> m.Acted:
        """See `Backend`."""
        raise PassedOn

    async def sign_in(self, asked: m.SignIn) -> m.SignedIn:
        """See `Backend`."""
        raise PassedOn

    async def sign_out(self, asked: m.SignOut) -> m.Acted:
        """See `Backend`."""
        raise PassedOn

    def new_id(self) -> bytes:
        """See `Backend`."""
        raise PassedOn

    def lock_holder(self, key: bytes) -> tuple[str, str, float] | None:
        """See `Backend`."""
        raise PassedOn

    async def checked(self, file: EntryId) -> Mapping[str, float] | None:
        """See `Backend`."""
        raise PassedOn


class PassingRedirector(Redirector):
    """Sends nobody anywhere: it is the node process that knows where to."""

    def __init__(self, name: str, backend: FrontBackend) -> None:
        super().__init__(name=name, roster=backend.roster, wall=backend.wall, position=_pass_on, sign=_pass_on)

    def to(self, *_: Any, **__: Any) -> Answer:
        """See `Redirector`. Raises `PassedOn`."""
        raise PassedOn


def _pass_on(*_: object) -> Any:
    raise PassedOn


class FrontTransfers(Transfers):
    """Transfers of a front: it is not told of changes, and looks for them while anything is under way."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        interval_s: Callable[[], float],
        serves: Callable[[], str | None],
        changes: Callable[[], int],
    ) -> None:
        """Args:
        changes: how often the index has changed.
        """
        super().__init__(clock=clock, interval_s=interval_s, serves=serves)
        self._changes = changes
        self._seen = changes()
        self._noticing: Any = None

    @contextmanager
    def watched(self, transfer: Transfer) -> Iterator[None]:
        """See `Transfers`; what has changed since the rights were judged counts as a change before this."""
        self._look_for_changes()
        with super().watched(transfer):
            if self._noticing is None:
                self._noticing = self._clock.callLater(NOTICE_S, self._look_again)
            yield

    def _look_again(self) -> None:
        self._noticing = None
        if self._under_way:
            self._look_for_changes()
            self._noticing = self._clock.callLater(NOTICE_S, self._look_again)

    def _look_for_changes(self) -> None:
        changes = self._changes()
        if changes != self._seen:
            self._seen = changes
            self.changed_at = self._clock.seconds()
            if self._under_way:
                self._check_soon()

    def stop(self) -> None:
        """See `Transfers`."""
        if self._noticing is not None:
            self._noticing.cancel()
            self._noticing = None
        super().stop()


class Answering(Resource):
    """The resource of a front: `GET` and `HEAD` of files."""

    isLeaf = True
    _log = Logger()

    def __init__(
        self, *, clock: IReactorTime, backend: FrontBackend, authenticator: Authenticator, downloads: Downloads, score: FrontScore
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._backend = backend
        self._authenticator = authenticator
        self._downloads = downloads
        self._score = score

    def render(self, request: Any) -> int:
        """See `Resource`."""
        answering = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addCallbacks(lambda done: None if done else request.channel.transport.pass_on(), self._failed)
        return NOT_DONE_YET

    def _failed(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("a front failed to answer", failure)

    async def _answer(self, request: Request) -> bool:
        """Whether it was answered here, as far as that is possible; nothing was said otherwise."""
        access = Access(event="read" if request.method == b"GET" else "look")
        began = self._clock.seconds()
        try:
            if request.has_body:
                raise PassedOn
            await self._backend.admit()
            access.caller = await self._authenticator.caller(request)
            request.user = access.caller.username
            answer = await self._downloads.get(request, access, parse_target(request.path))
        except (StreamBroken, CancelledError):
            if request.is_over:
                # Nobody is left to be answered.
                self._record(request, access, began, CLIENT_GONE, "the client went away")
                return True
            return False
        except (PassedOn, Refusal) as refused:
            return self._give_up(request, refused)
        except Exception as error:
            self._log.failure("a front could not answer {path}", path=access.path)
            return self._give_up(request, error)
        self._score.count_answered()
        self._record(request, access, began, answer.status, access.detail)
        if not isinstance(answer, Streamed):
            request.start(answer.status, answer.headers, 0).finish()
        return True

    def _record(self, request: Request, access: Access, began: float, status: int, detail: str | None) -> None:
        duration_s = self._clock.seconds() - began
        self._backend.audit.note(record_of(self._backend, request, access, status, duration_s=duration_s, detail=detail))

    def _give_up(self, request: Request, error: Exception) -> bool:
        """Let the node process answer, unless the answer has begun, which is cut off then."""
        if not request.started:
            return False
        request.processingFailed(Failure(error))
        return True
