"""Taking back what a catalogue lost: of each thing the last state counts, and nobody gets a right by it."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.facts import Claim, EntryGone, Fact, File, Folder, Grant, GrantGone, Person, PersonGone, Session, SessionGone
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.reconciliation import HandedIn, Reconciliation, differences, reconcile, thing_of
from securifile.model.roles import Role

ALICE = Person(
    username="alice",
    email="alice@example.org",
    administrator=False,
    valid_from=0.0,
    valid_until=None,
    disabled=False,
    quota_bytes=None,
    credentials=1,
)
BOB = attrs.evolve(ALICE, username="bob", email="bob@example.org")


def entry(number: int) -> EntryId:
    return EntryId(bytes([number]) * 16)


ROOT = Folder(id=entry(1), owner="alice", parent=None, name="alice", created_at=0.0)


def folder(number: int, parent: Folder = ROOT, name: str | None = None) -> Folder:
    return Folder(id=entry(number), owner="alice", parent=parent.id, name=name or f"e{number}", created_at=0.0)


def file(number: int, version: int = 1, parent: Folder = ROOT, name: str | None = None, attempt: int = 0) -> File:
    content = Version(
        number=version,
        attempt=AttemptId(bytes([number, version, attempt]) + bytes(13)),
        size=1,
        digest=b"d",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    return File(id=entry(number), owner="alice", parent=parent.id, name=name or f"e{number}", created_at=0.0, version=content)


def grant(role: Role, number: int = 2) -> Grant:
    return Grant(entry=entry(number), username="bob", role=role, granted_by="alice")


def taken_back(backup: list[Fact], index: list[Fact]) -> Reconciliation:
    """What is done when one node's index is all there is."""
    at = Position(1, 9)
    claims = tuple(Claim(fact=fact, at=at) for fact in differences(index, backup))
    return reconcile(backup, {"n1": HandedIn(position=at, claims=claims)})


BASE: list[Fact] = [ALICE, BOB, ROOT]


def test_later_versions_new_files_and_deletions_are_done_again() -> None:
    """A file may have got several versions since: its present one counts."""
    found = taken_back([*BASE, file(2), file(3)], [*BASE, file(2, 4), folder(5), file(6, parent=folder(5))])
    assert set(found.facts) == {file(2, 4), EntryGone(id=entry(3)), folder(5), file(6, parent=folder(5))}
    assert found.facts.index(folder(5)) < found.facts.index(file(6, parent=folder(5)))
    assert found.left == ()


def test_rights_are_taken_again_and_not_given() -> None:
    """A role that became weaker is weaker again; one that became stronger, or is new, is left to the administrator."""
    for before, after, role in (
        (None, Role.READER, None),
        (Role.READER, Role.EDITOR, Role.READER),
        (Role.EDITOR, Role.READER, Role.READER),
        (Role.EDITOR, None, None),
    ):
        backup = [*BASE, file(2), *([grant(before)] if before else [])]
        found = taken_back(backup, [*BASE, file(2), *([grant(after)] if after else [])])
        held = {thing_of(fact): fact for fact in backup} | {thing_of(fact): fact for fact in found.facts}
        left = [fact.role for fact in held.values() if isinstance(fact, Grant)]
        assert left == ([role] if role else [])
        assert bool(found.left) is (after is not None and after is not role)


def test_sign_ins_are_ended_again_and_not_made() -> None:
    """Who signed in since the backup signs in once more."""
    old = Session(token_hash=b"o" * 32, username="alice", expires_at=1.0)
    new = Session(token_hash=b"n" * 32, username="alice", expires_at=1.0)
    found = taken_back([*BASE, old], [*BASE, new])
    assert found.facts == (SessionGone(token_hash=old.token_hash),)


def test_accounts_only_get_narrower() -> None:
    """Disabled, limited, no longer an administrator: again. The opposite is listed. A changed password makes the old one void."""
    chief = attrs.evolve(BOB, administrator=True)
    narrow = attrs.evolve(BOB, disabled=True, valid_until=5.0, quota_bytes=7)
    assert taken_back([ALICE, chief, ROOT], [ALICE, narrow, ROOT]).facts == (narrow,)
    wide = taken_back([ALICE, narrow, ROOT], [ALICE, chief, ROOT])
    assert wide.facts == ()
    assert wide.left
    changed = taken_back(BASE, [ALICE, attrs.evolve(BOB, credentials=2), ROOT])
    assert changed.void_passwords == ("bob",)
    assert taken_back(BASE, [ALICE, ROOT]).facts == (PersonGone(username="bob"),)


def test_a_new_account_comes_back_without_power() -> None:
    """It owns what was uploaded; it has no password, and is no administrator."""
    root = Folder(id=entry(7), owner="carol", parent=None, name="carol", created_at=0.0)
    carol = attrs.evolve(ALICE, username="carol", email="carol@example.org", administrator=True)
    found = taken_back(BASE, [*BASE, carol, root])
    assert found.facts == (attrs.evolve(carol, administrator=False), root)
    assert len(found.left) == 2


def test_names_may_have_been_exchanged() -> None:
    """At no moment are there two entries of one name in a folder, nor does a deletion take along what was moved out before."""
    inner = file(4, parent=folder(3))
    backup = [*BASE, file(2, name="a"), file(5, name="b"), folder(3), inner]
    index = [*BASE, file(2, name="b"), file(5, name="a"), file(4, name="e3")]
    check_each_step(backup, list(taken_back(backup, index).facts), index)


def check_each_step(backup: list[Fact], facts: list[Fact], index: list[Fact]) -> None:
    """Apply them one after another as the catalogue does: with a unique name in each folder, and deletions that reach down."""
    held = {fact.id: fact for fact in backup if isinstance(fact, File | Folder)}
    for fact in facts:
        if isinstance(fact, EntryGone):
            going = {fact.id}
            while more := {one.id for one in held.values() if one.parent in going} - going:
                going |= more
            held = {id_: one for id_, one in held.items() if id_ not in going}
        elif isinstance(fact, File | Folder):
            held[fact.id] = fact
            assert fact.parent is None or fact.parent in held
        places = [(one.parent, one.name) for one in held.values()]
        assert len(places) == len(set(places))
    assert held == {fact.id: fact for fact in index if isinstance(fact, File | Folder)}


@st.composite
def trees(draw: st.DrawFn) -> list[Fact]:
    """A person's files and folders: any tree of a few entries with few names."""
    found: list[Fact] = [ROOT]
    taken = set()
    for number in draw(st.permutations(range(2, 8))):
        parent = draw(st.sampled_from([one for one in found if isinstance(one, Folder)]))
        name = draw(st.sampled_from("abc"))
        if (parent.id, name) in taken or draw(st.booleans()):
            continue
        taken.add((parent.id, name))
        # What is a file and what a folder never changes.
        found.append(folder(number, parent, name) if number % 2 else file(number, 1, parent, name))
    return found


@given(trees(), trees())
def test_any_tree_is_taken_back(before: list[Fact], after: list[Fact]) -> None:
    """Whatever was moved, made and deleted: in the end everything is where the index has it, and each step is possible."""
    found = taken_back([ALICE, *before], [ALICE, *after])
    assert found.left == ()
    check_each_step(before, list(found.facts), after)


def test_of_each_thing_the_last_state_counts() -> None:
    """Who knows a thing up to a higher position is right, also by handing in nothing about it."""
    early, late, latest = Position(1, 5), Position(1, 7), Position(1, 9)
    backup: list[Fact] = [*BASE, file(2), grant(Role.EDITOR)]
    gone = Claim(fact=GrantGone(entry=entry(2), username="bob"), at=late)
    second, third = (Claim(fact=file(2, number), at=at) for number, at in ((2, early), (3, late)))
    found = reconcile(backup, {"n1": HandedIn(position=early, claims=(second,)), "n2": HandedIn(position=late, claims=(third, gone))})
    assert set(found.facts) == {file(2, 3), gone.fact}
    # Granted anew after that, so that it is in the last index as it is in the backup.
    found = reconcile(backup, {"n2": HandedIn(position=late, claims=(gone,)), "n3": HandedIn(position=latest)})
    assert found.facts == ()


def test_a_version_of_another_history_is_left() -> None:
    """Two contents under one number cannot both be right; the catalogue's stays."""
    found = taken_back([*BASE, file(2, 3)], [*BASE, file(2, 3, attempt=1)])
    assert found.facts == ()
    assert len(found.left) == 1


def test_everything_is_taken_when_there_is_nothing_else() -> None:
    """A catalogue that is made anew gets rights and sign-ins, too."""
    session = Session(token_hash=b"o" * 32, username="alice", expires_at=1.0)
    index: list[Fact] = [*BASE, file(2), grant(Role.EDITOR), session]
    at = Position(1, 9)
    handed = {"n1": HandedIn(position=at, claims=tuple(Claim(fact=fact, at=at) for fact in index))}
    assert set(reconcile([], handed, everything=True).facts) == set(index)
