"""The judges: whether what people were told in a run can be true, given what the catalogue became.

The catalogue's changes, in order, with the instant of each commit, are the **truth**: for each person and path they give a *timeline* of
what that person would read there. A read is right when what it gave was on its timeline at some revision between two bounds:

    not older than   the last change of that timeline that anybody had been told was done, before the server was asked
    not newer than   the last commit before the answer

That is linearizability of acknowledged changes, with the catalogue's order for the linear order, so no search is needed. Grants are
on the timeline too: to whom a right was taken, there is nothing there any more.

Who has read a version was told of it as well as who wrote it: from then on nobody may be given one before it. What was told of
something else (of a right on the file, a move of its folder) says nothing of a version that nobody has been told of: it is files that are
linearizable, each by itself (which composes: Herlihy and Wing, 1990).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import attrs

from securifile.http.ranges import version_of
from securifile.model.facts import Change, EntryGone, File, Folder, Grant, GrantGone, PersonGone
from securifile.model.ids import EntryId, Position
from securifile.simulation.history import Kind, Operation, Outcome, Reach, author_of, content_of

Seen = tuple[EntryId, int] | None
"""A version; None: nothing, or nothing that one may read."""

STANDING_S = 1.25
"""How long a node may go on serving after nobody acknowledges it any more: 2.5 heartbeat intervals."""

REVOKED_S = 1.0
"""How long after its end was answered a right may still be used by a transfer under way."""

MARGIN_S = 0.05


@attrs.frozen(kw_only=True)
class Violation:
    """A broken guarantee."""

    guarantee: str
    detail: str
    operation: Operation | None = None

    @property
    def text(self) -> str:
        """For people."""
        return f"VIOLATION {self.guarantee}: {self.detail}" + (f"\n    {self.operation.text}" if self.operation is not None else "")


@attrs.define
class Timeline:
    """What is to be seen at one place by one person, from each revision on."""

    revisions: list[int] = attrs.field(factory=lambda: [-1])
    states: list[Seen] = attrs.field(factory=lambda: [None])

    def add(self, revision: int, state: Seen) -> None:
        """From that revision on."""
        if self.states[-1] != state:
            self.revisions.append(revision)
            self.states.append(state)

    def between(self, low: int, high: int) -> list[Seen]:
        """All states from revision `low` to `high`."""
        first = bisect_right(self.revisions, low) - 1
        last = bisect_right(self.revisions, high)
        return self.states[max(0, first) : last]

    def changes_at(self, revision: int) -> bool:
        """Whether that revision made a difference here."""
        at = bisect_right(self.revisions, revision) - 1
        return at > 0 and self.revisions[at] == revision


@attrs.frozen(kw_only=True)
class Deed:
    """One thing that a revision did, in words of paths."""

    kind: Kind
    revision: int
    at: float
    path: str
    other: str | None = None
    role: str | None = None
    formerly: tuple[str, ...] = ()
    """Paths that the thing had before: who named it by one of those meant it, too."""


class Truth:
    """The catalogue's changes, replayed."""

    def __init__(
        self,
        changes: Sequence[tuple[Position, Change]],
        committed: Sequence[tuple[float, Position]],
        watched: Iterable[tuple[str, str]],
    ) -> None:
        """Args:
        watched: (person, path) whose timelines are wanted.
        """
        self._at = {position.revision: at for at, position in committed}
        self._times = [at for at, _ in committed]
        self._numbers = [position.revision for _, position in committed]
        self._entries: dict[EntryId, File | Folder] = {}
        self._children: dict[tuple[EntryId, str], EntryId] = {}
        self._roots: dict[str, EntryId] = {}
        self._grants: dict[tuple[EntryId, str], str] = {}
        self.versions: dict[tuple[EntryId, int], tuple[int, bytes]] = {}
        """(file, version) -> (revision, digest)."""
        self.digests: set[bytes] = set()
        self.deeds: list[Deed] = []
        self._paths: dict[EntryId, list[str]] = {}
        self.doubled: list[str] = []
        """Versions that the catalogue says had two contents."""
        self.timelines = {key: Timeline() for key in sorted(set(watched))}
        for position, change in changes:
            self._apply(position.revision, change)
            for (person, path), timeline in self.timelines.items():
                timeline.add(position.revision, self._seen(person, path))

    def revision_at(self, time: float) -> int:
        """The last revision committed by then."""
        at = bisect_right(self._times, time)
        return self._numbers[at - 1] if at else -1

    @property
    def files(self) -> list[tuple[str, File]]:
        """What there is at the end: path and file."""
        found = [(self._path(entry), entry) for entry in self._entries.values() if isinstance(entry, File)]
        return sorted(found, key=lambda one: one[0])

    def sees(self, person: str, path: str) -> Seen:
        """What that person would read there at the end."""
        return self._seen(person, path)

    def deed(self, kind: Kind, operation: Operation, path: str) -> int | None:
        """The revision that did what an operation was told is done; None when it changed nothing."""
        found = [
            deed.revision
            for deed in self.deeds
            if deed.kind is kind
            and path in (deed.path, *deed.formerly)
            and deed.other == operation.other
            and deed.role == operation.role
            and operation.ended is not None
            and operation.began <= deed.at <= operation.ended
        ]
        return found[-1] if found else None

    # --- replaying ---

    def _apply(self, revision: int, change: Change) -> None:
        at = self._at.get(revision, 0.0)
        for fact in change.facts:
            match fact:
                case Folder():
                    self._put(fact, revision, at)
                    if fact.parent is None:
                        self._roots[fact.owner] = fact.id
                case File():
                    known = self.versions.get((fact.id, fact.version.number))
                    if known is None:
                        self.versions[fact.id, fact.version.number] = (revision, fact.version.digest)
                        self.digests.add(fact.version.digest)
                    elif known[1] != fact.version.digest:
                        self.doubled.append(f"{fact.id} version {fact.version.number} at revisions {known[0]} and {revision}")
                    self._put(fact, revision, at)
                case EntryGone():
                    entry = self._entries.get(fact.id)
                    if entry is not None:
                        formerly = tuple(self._paths.get(fact.id, ()))
                        self.deeds.append(Deed(kind=Kind.DELETE, revision=revision, at=at, path=self._path(entry), formerly=formerly))
                        self._take(entry)
                        del self._entries[fact.id]
                case Grant():
                    self._grants[fact.entry, fact.username] = fact.role.value
                    self._note_grant(Kind.GRANT, fact.entry, fact.username, fact.role.value, revision, at)
                case GrantGone():
                    self._grants.pop((fact.entry, fact.username), None)
                    self._note_grant(Kind.REVOKE, fact.entry, fact.username, None, revision, at)
                case PersonGone():
                    self._grants = {key: role for key, role in self._grants.items() if key[1] != fact.username}
                case _:
                    pass

    def _note_grant(self, kind: Kind, entry: EntryId, username: str, role: str | None, revision: int, at: float) -> None:
        found = self._entries.get(entry)
        if found is not None:
            self.deeds.append(Deed(kind=kind, revision=revision, at=at, path=self._path(found), other=username, role=role))

    def _put(self, entry: File | Folder, revision: int, at: float) -> None:
        before = self._entries.get(entry.id)
        if before is not None:
            self._take(before)
        self._entries[entry.id] = entry
        if entry.parent is not None:
            self._children[entry.parent, entry.name] = entry.id
        self._paths.setdefault(entry.id, []).append(self._path(entry))
        if before is not None and (before.parent, before.name) != (entry.parent, entry.name):
            self.deeds.append(Deed(kind=Kind.MOVE, revision=revision, at=at, path=self._path(entry)))

    def _take(self, entry: File | Folder) -> None:
        if entry.parent is not None and self._children.get((entry.parent, entry.name)) == entry.id:
            del self._children[entry.parent, entry.name]

    def _path(self, entry: File | Folder) -> str:
        names: list[str] = []
        at: File | Folder = entry
        while at.parent is not None and at.parent in self._entries:
            names.append(at.name)
            at = self._entries[at.parent]
        return f"{at.owner}/" + "/".join(reversed(names)) + ("/" if isinstance(entry, Folder) and names else "")

    def _seen(self, person: str, path: str) -> Seen:
        owner, _, rest = path.partition("/")
        at = self._roots.get(owner)
        if at is None:
            return None
        may = person == owner or (at, person) in self._grants
        for name in rest.split("/"):
            at = self._children.get((at, name))
            if at is None:
                return None
            may = may or (at, person) in self._grants
        entry = self._entries[at]
        return (entry.id, entry.version.number) if may and isinstance(entry, File) else None


class Judge:
    """Reads one run's history."""

    def __init__(
        self,
        operations: Sequence[Operation],
        changes: Sequence[tuple[Position, Change]],
        committed: Sequence[tuple[float, Position]],
        reach: Sequence[Reach],
    ) -> None:
        self._operations = operations
        self._reach = reach
        self._by_number = {operation.number: operation for operation in operations}
        reads = [(operation.person, operation.path) for operation in operations if operation.kind is Kind.READ]
        self.truth = Truth(changes, committed, reads)
        self._violations: list[Violation] = []
        self._contents: list[tuple[float, EntryId, int]] = []
        """Which versions somebody was told of, as writer or reader, and when."""

    def judge(self) -> list[Violation]:
        """Everything that cannot be."""
        self._violations = []
        for doubled in self.truth.doubled:
            self._accuse("one content a version", doubled)
        done = self._done()
        for operation in self._operations:
            if operation.kind is Kind.READ:
                self._check_read(operation, done)
                self._check_cut(operation, done)
            elif operation.kind is Kind.WRITE and operation.outcome is Outcome.REFUSED:
                digest = hashlib.sha256(content_of(operation.number, operation.size)).digest()
                if digest in self.truth.digests:
                    self._accuse("refused is not done", "the content of a refused write was committed", operation)
            if operation.outcome is Outcome.DONE:
                self._check_standing(operation)
        return self._violations

    def _accuse(self, guarantee: str, detail: str, operation: Operation | None = None) -> None:
        self._violations.append(Violation(guarantee=guarantee, detail=detail, operation=operation))

    def _done(self) -> list[tuple[float, int]]:
        """When somebody was told that a revision is done: (instant, revision), by instant."""
        told: list[tuple[float, int]] = []
        made: dict[tuple[EntryId, int], int] = {}
        for operation in self._operations:
            if operation.outcome is not Outcome.DONE or operation.ended is None:
                continue
            match operation.kind:
                case Kind.READ:
                    # Though the writer may still wait for the answer.
                    revision = self._note_content(operation)
                case Kind.WRITE:
                    revision = self._check_write(operation, made)
                    self._note_content(operation)
                case Kind.DELETE | Kind.GRANT | Kind.REVOKE:
                    revision = self.truth.deed(operation.kind, operation, operation.path)
                    if operation.kind is Kind.DELETE and revision is None:
                        self._accuse("done is done", "a delete was answered 2xx, and the catalogue has none", operation)
                case Kind.MOVE:
                    revision = self.truth.deed(operation.kind, operation, operation.to or "")
                case _:
                    revision = None
            if revision is not None:
                told.append((operation.ended, revision))
        return sorted(told)

    def _note_content(self, operation: Operation) -> int | None:
        """Somebody was told of a version; the revision that made it, if there is one."""
        named = version_of(operation.etag or "")
        found = None if named is None else self.truth.versions.get(named)
        if named is None or found is None or operation.ended is None:
            return None
        self._contents.append((operation.ended, *named))
        return found[0]

    def _check_write(self, operation: Operation, made: dict[tuple[EntryId, int], int]) -> int | None:
        named = version_of(operation.etag or "")
        if named is None:
            self._accuse("done is done", f"a write was answered with the ETag {operation.etag}", operation)
            return None
        found = self.truth.versions.get(named)
        if found is None:
            self._accuse("done is done", f"{named[0]} version {named[1]} was answered 2xx and is not in the catalogue", operation)
            return None
        if found[1] != hashlib.sha256(content_of(operation.number, operation.size)).digest():
            self._accuse("one content a version", f"{named[0]} version {named[1]} has another content than was written", operation)
        if named in made:
            self._accuse("one history a file", f"{made[named]} and {operation.number} both made {named[0]} version {named[1]}", operation)
        made[named] = operation.number
        return found[0]

    # --- reads ---

    def _check_read(self, operation: Operation, done: list[tuple[float, int]]) -> None:
        if operation.partial:
            self._check_content(operation, operation.partial, whole=False)
        if operation.outcome is Outcome.DONE and operation.content is not None:
            named = version_of(operation.etag or "")
            self._check_content(operation, operation.content, whole=True)
            found = None if named is None else self.truth.versions.get(named)
            if named is None or found is None:
                self._accuse("no partial visibility", f"{operation.etag} was read and is not in the catalogue", operation)
                return
            if found[1] != hashlib.sha256(operation.content).digest():
                self._accuse("one content a version", f"{operation.etag} was read with a content that is not its own", operation)
                return
            self._check_state(operation, named, done)
        elif operation.code in ("forbidden", "not-found"):
            self._check_state(operation, None, done)

    def _check_content(self, operation: Operation, content: bytes, *, whole: bool) -> None:
        author = author_of(content)
        if author is None and not whole:
            return
        write = None if author is None else self._by_number.get(author[0])
        if author is None or write is None or write.kind is not Kind.WRITE or write.path is None:
            self._accuse("no wrong byte", f"{content[:60]!r} was read, which nobody wrote", operation)
            return
        expected = content_of(write.number, write.size)
        if content != expected[: len(content)] or (whole and len(content) != len(expected)):
            self._accuse("no wrong byte", f"{len(content)} bytes were read that are not those of write {write.number}", operation)

    def _check_state(self, operation: Operation, seen: Seen, done: list[tuple[float, int]]) -> None:
        asked, ended = operation.asked_last, operation.ended
        assert asked is not None and ended is not None, "it was answered"
        timeline = self.truth.timelines[operation.person, operation.path]
        told = [revision for at, revision in done if at < asked and timeline.changes_at(revision)]
        low, high = max(told, default=-1), self.truth.revision_at(ended)
        possible = timeline.between(low, high)
        if seen in possible:
            return
        # Two changes that nobody was told of yet may be known to a node in another order, when they are about different
        # things: the file's next version before the move of its folder.
        if seen is not None and len(possible) > 1 and low < self.truth.versions[seen][0] <= high:
            return
        if any(state is not None and self._was_not_told(seen, state, asked) for state in possible):
            return
        self._accuse(
            "nothing older than what was acknowledged",
            f"{_words(seen)} was read where only {', '.join(map(_words, possible))} can be (revisions {low} to {high})",
            operation,
        )

    def _was_not_told(self, seen: Seen, state: tuple[EntryId, int], asked: float) -> bool:
        """Whether what was seen is the file as it was before versions of which nobody had been told when it was asked for."""
        file, version = state
        told = max((number for at, other, number in self._contents if other == file and at < asked), default=0)
        if seen is None:
            return told == 0
        return seen[0] == file and told <= seen[1] < version

    def _check_cut(self, operation: Operation, done: list[tuple[float, int]]) -> None:
        """Of what one may not read any more nothing is given, in the middle of a transfer either."""
        if not operation.given:
            return
        timeline = self.truth.timelines[operation.person, operation.path]
        began, last = operation.given[0][0], operation.given[-1][0]
        for told_at, revision in done:
            if not began < told_at < last - REVOKED_S or not timeline.changes_at(revision):
                continue
            if any(state is not None for state in timeline.between(revision, self.truth.revision_at(last))):
                continue
            late = [given for at, given in operation.given if at > told_at + REVOKED_S + MARGIN_S]
            if late and late[-1] > late[0]:
                told = f"there was nothing to read since {told_at:.3f}, and {late[-1] - late[0]} bytes were given {REVOKED_S} s later"
                self._accuse("a right that was taken ends transfers, too", told, operation)
                return

    # --- standing ---

    def _check_standing(self, operation: Operation) -> None:
        node, asked, ended = operation.answered_by, operation.asked_last, operation.ended
        if node is None or asked is None or ended is None or operation.kind is not Kind.READ:
            return
        since = asked - STANDING_S - MARGIN_S
        before = [reach for reach in self._reach if reach.at <= since]
        during = [reach for reach in self._reach if since < reach.at <= ended]
        relevant = [*before[-1:], *during]
        if relevant and not could_be_confirmed(node, relevant):
            alone = f"{node} could be answered neither by an admin server nor by most nodes since {since:.3f}"
            self._accuse("a node without standing serves nobody", alone, operation)


def could_be_confirmed(node: str, course: Sequence[Reach]) -> bool:
    """Whether an admin server or more than half of the nodes could have answered what a node sent meanwhile.

    The way back need not be open when the way there is: what was sent waits, as with TCP.
    """
    asked: set[str] = set()
    answered: set[str] = set()
    for reach in course:
        asked.update(to for sender, to in reach.ways if sender == node)
        answered.update(sender for sender, to in reach.ways if to == node and sender in asked)
    nodes = min(len(reach.nodes) for reach in course)
    return any(answered & reach.admins for reach in course) or (1 + len(answered & course[-1].nodes)) * 2 > nodes


def _words(seen: Seen) -> str:
    return "nothing" if seen is None else f"{str(seen[0])[:8]}.{seen[1]}"
