"""People in the catalogue: accounts, passwords and sign-ins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import argon2
import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore

from securifile.admin.ledger import Decision, Entered, Ledger
from securifile.http.identity import new_token, token_hash
from securifile.model.errors import Code, Refusal
from securifile.model.facts import EntryGone, Fact, Folder, Person, PersonGone, Session, SessionGone
from securifile.model.ids import EntryId, Position
from securifile.model.paths import check_username
from securifile.model.people import check_account
from securifile.protocol import messages as m
from securifile.sql import directory

PASSWORD_LENGTH_MIN = 8
"""NIST SP 800-63B 3.1.1: at least 8 characters, and no rules about which."""
PASSWORD_BYTES_MAX = 1024
"""Enough for any passphrase; argon2 should not be fed megabytes."""

FAILURES_MAX = 10
FAILURES_WINDOW_S = 60.0
"""Ten wrong passwords a minute for one name from one address: far above fingers, far below guessing."""

VERIFYING_MAX = 2
"""Passwords verified at once: each takes a thread and 64 MiB, and the other threads are for fsync."""
WAITING_MAX = 256
"""Passwords that wait for it: seconds of work. More are refused before they cost anything."""
WAITING_PER_PEER_MAX = 64
"""Of these from one address, so that one client cannot take the whole queue."""

_WRONG = "The user name (or e-mail address) and the password do not fit together."


@attrs.frozen(kw_only=True)
class NewPerson:
    """What an account starts with."""

    username: str
    email: str
    password: str = attrs.field(repr=False)
    administrator: bool = False
    valid_from: float | None = None
    valid_until: float | None = None
    quota_bytes: int | None = None


class Throttle:
    """Counts wrong passwords, so that guessing is slow. Bounded: the oldest names are forgotten first."""

    _NAMES_MAX = 10_000

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], list[float]] = {}

    def check(self, username: str, peer: str, now: float) -> None:
        """Raise `Refusal` if there were too many failures lately."""
        recent = [at for at in self._failures.get((username, peer), []) if at > now - FAILURES_WINDOW_S]
        if len(recent) >= FAILURES_MAX:
            raise Refusal(
                Code.TOO_MANY_REQUESTS,
                "Too many wrong passwords. Wait a minute, then try again.",
                retry_after_s=recent[0] + FAILURES_WINDOW_S - now,
            )

    def failed(self, username: str, peer: str, now: float) -> None:
        """Count a failure."""
        recent = [at for at in self._failures.pop((username, peer), []) if at > now - FAILURES_WINDOW_S]
        self._failures[(username, peer)] = [*recent[-FAILURES_MAX:], now]
        if len(self._failures) > self._NAMES_MAX:
            del self._failures[next(iter(self._failures))]


class People:
    """Accounts: made, changed and removed by administrators; signed in to by their owners."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        worker: Any,
        hasher: argon2.PasswordHasher,
    ) -> None:
        self._ledger = ledger
        self._wall = wall
        self._random = random
        self._worker = worker
        self._hasher = hasher
        self._throttle = Throttle()
        self._verifying = DeferredSemaphore(VERIFYING_MAX)
        self._waiting: Counter[str] = Counter()
        # Verified when there is no such person, so that the time an answer takes does not tell who exists.
        self._nobody = hasher.hash(random(16).hex())

    # --- accounts ---

    def add(self, new: NewPerson) -> Deferred[Entered[Person]]:
        """Create an account and its root folder. Raises `Refusal` when name or e-mail address is taken."""
        return Deferred.fromCoroutine(self._add(new))

    async def _add(self, new: NewPerson) -> Entered[Person]:
        check_username(new.username)
        _check_email(new.email)
        hashed = await self._hash(new.password)
        now = self._wall()
        person = Person(
            username=new.username,
            email=new.email,
            administrator=new.administrator,
            valid_from=now if new.valid_from is None else new.valid_from,
            valid_until=new.valid_until,
            disabled=False,
            quota_bytes=new.quota_bytes,
            # Never again the number of an account of the same name that was removed: caches may still know that.
            credentials=int.from_bytes(self._random(6)),
        )
        folder = Folder(id=EntryId(self._random(16)), owner=new.username, parent=None, name=new.username, created_at=now)

        async def decide(sql: Any, position: Position) -> Decision[Person]:
            taken = await sql.query(
                "SELECT username FROM people WHERE username = :username OR email = :email", {"username": new.username, "email": new.email}
            )
            if taken:
                what = "user name" if taken[0][0] == new.username else "e-mail address"
                raise Refusal(Code.EXISTS, f"There is an account with this {what} already.")
            await sql.execute(
                "INSERT INTO passwords (username, hash) VALUES (:username, :hash)", {"username": new.username, "hash": hashed}
            )
            return Decision(facts=(person, folder), answer=person)

        entered: Entered[Person] = await self._ledger.enter("add person", decide)
        return entered

    def change(self, username: str, **changes: Any) -> Deferred[Entered[Person]]:
        """Change fields of an account (those of `Person`, or `password`). Raises `Refusal` when there is no such person."""
        return Deferred.fromCoroutine(self._change(username, changes))

    async def _change(self, username: str, changes: dict[str, Any]) -> Entered[Person]:
        password = changes.pop("password", None)
        hashed = await self._hash(password) if password is not None else None
        if "email" in changes:
            _check_email(changes["email"])

        async def decide(sql: Any, position: Position) -> Decision[Person]:
            before = await self._known(sql, username)
            after = attrs.evolve(before, **changes)
            if after.email != before.email and await sql.query("SELECT 1 FROM people WHERE email = :email", {"email": after.email}):
                raise Refusal(Code.EXISTS, "There is an account with this e-mail address already.")
            if before.administrator and not (after.administrator and not after.disabled):
                await self._not_the_last_administrator(sql, username)
            if hashed is not None:
                # There is none after a catalogue was taken back from the nodes, who know no passwords.
                await sql.execute(
                    "INSERT INTO passwords (username, hash) VALUES (:username, :hash)"
                    " ON CONFLICT (username) DO UPDATE SET hash = excluded.hash",
                    {"username": username, "hash": hashed},
                )
                after = attrs.evolve(after, credentials=before.credentials + 1)
            return Decision(facts=() if after == before else (after,), answer=after)

        entered: Entered[Person] = await self._ledger.enter("change person", decide)
        return entered

    def remove(self, username: str, *, with_files: bool) -> Deferred[Entered[None]]:
        """Remove an account with its root folder; `Refusal` while it owns files, unless they are to go too."""
        return Deferred.fromCoroutine(self._remove(username, with_files))

    async def _remove(self, username: str, with_files: bool) -> Entered[None]:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            person = await self._known(sql, username)
            if person.administrator:
                await self._not_the_last_administrator(sql, username)
            owned = await directory.usage(sql, username)
            if owned.files and not with_files:
                raise Refusal(Code.CONFLICT, f"{username} owns {owned.files} files. Add ?files=1 to delete them too.", files=owned.files)
            root = await directory.root(sql, username)
            await sql.execute("DELETE FROM passwords WHERE username = :username", {"username": username})
            gone: tuple[Fact, ...] = () if root is None else (EntryGone(id=root.id),)
            return Decision(facts=(*gone, PersonGone(username=username)), answer=None)

        entered: Entered[None] = await self._ledger.enter("remove person", decide)
        return entered

    async def _not_the_last_administrator(self, sql: Any, username: str) -> None:
        others = await sql.query(
            "SELECT username FROM people WHERE administrator AND NOT disabled AND username <> :username", {"username": username}
        )
        if not others:
            raise Refusal(Code.CONFLICT, f"{username} is the last administrator. Make another one first.")

    async def _known(self, sql: Any, username: str) -> Person:
        person = await directory.person(sql, username)
        if person is None:
            raise Refusal(Code.NOT_FOUND, f"There is no person {username}.")
        return person

    # --- passwords and sessions ---

    def check_password(self, username: str, password: str, peer: str) -> Deferred[Person]:
        """The person, if name (or e-mail address) and password fit and the account is open. Raises `Refusal`."""
        return Deferred.fromCoroutine(self._check_password(username, password, peer))

    async def _check_password(self, username: str, password: str, peer: str) -> Person:
        self._throttle.check(username, peer, self._wall())

        async def ask(sql: Any) -> tuple[Person, str] | None:
            rows = await sql.query(
                "SELECT passwords.username, hash FROM passwords JOIN people ON people.username = passwords.username"
                " WHERE passwords.username = :name OR email = :name",
                {"name": username},
            )
            if not rows:
                return None
            person = await directory.person(sql, rows[0][0])
            return None if person is None else (person, rows[0][1])

        self._make_room(peer)
        self._waiting[peer] += 1
        try:
            await self._verifying.acquire()
            try:
                # Once more: of a hundred guesses that came at once the first ten may have failed by now.
                self._throttle.check(username, peer, self._wall())
                found = await self._ledger.database.read(ask)
                fits = len(password.encode()) <= PASSWORD_BYTES_MAX and await self._worker.do(
                    self._verify, self._nobody if found is None else found[1], password
                )
                if found is None or not fits:
                    self._throttle.failed(username, peer, self._wall())
                    raise Refusal(Code.BAD_CREDENTIALS, _WRONG)
            finally:
                self._verifying.release()
        finally:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]
        person: Person = found[0]
        check_account(person, self._wall())
        return person

    def _make_room(self, peer: str) -> None:
        """Raise `Refusal` if too many passwords are being verified: they are slow on purpose, and cheap to send."""
        if self._waiting.total() >= WAITING_MAX or self._waiting[peer] >= WAITING_PER_PEER_MAX:
            raise Refusal(Code.TOO_MANY_REQUESTS, "Too many passwords are being checked just now. Try again.", retry_after_s=2.0)

    def sign_in(self, username: str, password: str, peer: str) -> Deferred[m.SignedIn]:
        """Begin a session. Raises `Refusal`."""
        return Deferred.fromCoroutine(self._sign_in(username, password, peer))

    async def _sign_in(self, username: str, password: str, peer: str) -> m.SignedIn:
        person = await self._check_password(username, password, peer)
        token = new_token(self._random)

        async def decide(sql: Any, position: Position) -> Decision[Session]:
            settings = await directory.settings(sql)
            now_known = await directory.person(sql, person.username)
            if settings is None or now_known is None or now_known.credentials != person.credentials:
                raise Refusal(Code.BAD_CREDENTIALS, _WRONG)
            expires_at = self._wall() + settings.settings.session_s
            if person.valid_until is not None:
                expires_at = min(expires_at, person.valid_until)
            session = Session(token_hash=token_hash(token), username=person.username, expires_at=expires_at)
            return Decision(facts=(session,), answer=session)

        entered: Entered[Session] = await self._ledger.enter("sign in", decide)
        return m.SignedIn(
            token=token,
            username=person.username,
            expires_at=entered.answer.expires_at,
            position=entered.position,
            facts=entered.facts,
        )

    def sign_out(self, hashed: bytes) -> Deferred[m.Acted]:
        """End a session; ending one that is not there does no harm."""
        return Deferred.fromCoroutine(self._sign_out(hashed))

    async def _sign_out(self, hashed: bytes) -> m.Acted:
        async def decide(sql: Any, position: Position) -> Decision[None]:
            known = await directory.session(sql, hashed)
            return Decision(facts=() if known is None else (SessionGone(token_hash=hashed),), answer=None)

        entered: Entered[None] = await self._ledger.enter("sign out", decide)
        return m.Acted(position=entered.position, facts=entered.facts)

    async def forget_expired_sessions(self) -> None:
        """Remove sessions that ended by themselves, a bounded number at a time."""
        now = self._wall()

        async def decide(sql: Any, position: Position) -> Decision[None]:
            rows = await sql.query("SELECT token_hash FROM sessions WHERE expires_at <= :now ORDER BY expires_at LIMIT 500", {"now": now})
            return Decision(facts=tuple(SessionGone(token_hash=bytes(row[0])) for row in rows), answer=None)

        await self._ledger.enter("forget expired sessions", decide)

    async def _hash(self, password: str) -> str:
        if len(password) < PASSWORD_LENGTH_MIN or len(password.encode()) > PASSWORD_BYTES_MAX:
            raise Refusal(
                Code.BAD_REQUEST, f"A password has at least {PASSWORD_LENGTH_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes."
            )
        hashed: str = await self._worker.do(self._hasher.hash, password)
        return hashed

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except argon2.exceptions.VerificationError:
            return False


def _check_email(email: str) -> None:
    before, at, after = email.partition("@")
    if not (before and at and after) or len(email) > 254 or any(ord(c) <= 32 or ord(c) == 127 for c in email):
        raise Refusal(Code.BAD_REQUEST, f"{email!r} is no e-mail address.")
