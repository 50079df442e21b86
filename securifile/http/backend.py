"""What the routes that both kinds of server have need from the server they run on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Protocol, TypeVar

from securifile.model.facts import File
from securifile.model.ids import EntryId
from securifile.model.roster import Roster
from securifile.protocol import messages as m

T = TypeVar("T")


class Backend(Protocol):
    """A server as the routes see it: a node answers from its index and acts through an admin server; an admin server does both itself."""

    name: str
    roster: Roster
    wall: Callable[[], float]
    audit: Any
    """An `IAuditLog`."""

    async def admit(self) -> None:
        """Return when this server may serve people now. Raises `Refusal` NOT_RUNNING."""

    async def reached(self, position: Any) -> None:
        """Return when questions are answered at or after `position`; at once where that is always so."""

    async def read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Ask questions (`securifile.sql.directory`): runs `work(sql)`."""

    async def recall(self, key: Hashable, work: Callable[[Any], Awaitable[T]], *, of_files: bool = True, sql: Any = None) -> T:
        """As `read`; the answer may be remembered under `key` for as long as nothing changes. `work` must depend on nothing else.

        Args:
            of_files: False: no file's new version, place or name has to do with it; it may be remembered over those, which are
                most of all changes.
            sql: where to ask, for work that is asking already: questions are not nested.
        """

    async def shown(self, file: File) -> File | None:
        """The file as it may be shown to people: of a version that is only just being made, the one before; None if there was none.

        Once somebody was shown a version, nobody is shown an earlier one: `model/settling.py`. Rights are judged by what `file` says.

        Raises:
            Refusal: NOT_RUNNING: it cannot be told in time.
        """

    async def act(self, asked: m.MakeFolder | m.Delete | m.Move | m.SetGrant) -> m.Acted:
        """Do something for a person; returns when no node serves the state before any more. Raises `Refusal`."""

    async def sign_in(self, asked: m.SignIn) -> m.SignedIn:
        """Begin a session, known everywhere when this returns. Raises `Refusal`."""

    async def sign_out(self, asked: m.SignOut) -> m.Acted:
        """End a session, everywhere when this returns."""

    async def check_password(self, asked: m.CheckPassword) -> m.PasswordChecked:
        """Raises `Refusal` unless name and password fit."""

    def new_id(self) -> bytes:
        """16 random bytes."""

    def is_available(self, name: str) -> bool:
        """Whether people can be sent to that node now."""

    def lock_holder(self, key: bytes) -> tuple[str, str, float] | None:
        """(person, node, seconds left) of whoever is modifying the file, as far as this server knows."""

    async def checked(self, file: EntryId) -> Mapping[str, float] | None:
        """When the copies of the file's current version were last read whole and found sound: wall clock by node.

        A copy that is not named never was. None: this server does not know; admin servers do.
        """
