"""Making a catalogue anew: what the indexes say, checked against what is on the disks."""

from __future__ import annotations

import attrs
import pytest

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Sidecar
from securifile.model.facts import Claim, Fact, File, Grant, GrantGone, Server, Session
from securifile.model.ids import AttemptId, Position
from securifile.model.rebuilding import counted, knows_most, lost_blobs, on_disks, strangers
from securifile.model.reconciliation import HandedIn, gone_thing, reconcile, thing_of
from securifile.model.roles import Role
from securifile.model.servers import ServerKind, Status
from tests.model.test_reconciliation import ALICE, BOB, ROOT, file, folder, grant

KNOWN = Position(1, 20)


def node(name: str) -> Server:
    return Server(
        name=name,
        kind=ServerKind.NODE,
        url=f"https://{name}:9443",
        protocol_address=f"{name}:9444",
        public_key=b"k",
        status=Status.RUNNING,
        boot="b",
    )


def sidecar(of: File, at: tuple[int, int] | None = (1, 5), **more: object) -> Sidecar:
    version = of.version
    made = Sidecar(
        attempt=version.attempt,
        file=of.id.value,
        version=version.number,
        size=version.size,
        digest=version.digest,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=at,
    )
    return attrs.evolve(made, **more)  # type: ignore[arg-type]


def disk(*sidecars: Sidecar) -> dict[AttemptId, Sidecar]:
    return {one.attempt: one for one in sidecars}


def on(*nodes: str) -> File:
    """A file that the catalogue believed on these nodes."""
    copies = tuple(Copy(node=name, priority=number, durable=True) for number, name in enumerate(nodes))
    return attrs.evolve(file(2), version=attrs.evolve(file(2).version, copies=copies))


def handed(revision: int, *facts: Fact, ahead: tuple[Fact, ...] = ()) -> HandedIn:
    """An index at that revision, with facts that were announced to it before their turn, five revisions later."""
    at, later = Position(1, revision), Position(1, revision + 5)
    return HandedIn(position=at, claims=(*(Claim(fact=fact, at=at) for fact in facts), *(Claim(fact=fact, at=later) for fact in ahead)))


def rebuilt(handed_in: dict[str, HandedIn]) -> tuple[Fact, ...]:
    return reconcile([], handed_in, everything=True).facts


def test_the_index_that_knows_most_says_what_there_is() -> None:
    """What an older one has beside is what was deleted since, or taken away, or replaced."""
    older = handed(10, ALICE, BOB, ROOT, file(2, 1), file(3), grant(Role.READER))
    newest = handed(20, ALICE, BOB, ROOT, file(2, 4))
    assert set(rebuilt({"n1": older, "n2": newest})) == {ALICE, BOB, ROOT, file(2, 4)}


def test_rights_and_sign_ins_are_as_that_index_has_them() -> None:
    """Nodes go on as they were, too: it is known of each whether it runs."""
    facts = (node("n1"), ALICE, BOB, ROOT, folder(2), grant(Role.EDITOR), Session(token_hash=b"t", username="bob", expires_at=9.0))
    assert set(rebuilt({"n1": handed(20, *facts)})) == set(facts)


def test_a_version_that_was_announced_to_an_older_index_is_made_again_and_a_right_is_not() -> None:
    """It was committed and perhaps acknowledged; who was given something by it has to be given it again."""
    newest = handed(20, ALICE, BOB, ROOT, file(2))
    ahead = handed(18, ALICE, BOB, ROOT, file(2), ahead=(file(2, 2), grant(Role.READER)))
    found = reconcile([], {"n1": newest, "n2": ahead}, everything=True)
    assert set(found.facts) == {ALICE, BOB, ROOT, file(2, 2)}
    assert grant(Role.READER) in [one.fact for one in found.left]


def test_a_right_whose_end_was_announced_does_not_come_back() -> None:
    """Though the index that has come furthest by the feed still has it."""
    newest = handed(20, ALICE, BOB, ROOT, folder(2), grant(Role.READER))
    gone = GrantGone(entry=folder(2).id, username="bob")
    told = handed(18, ALICE, BOB, ROOT, folder(2), ahead=(gone,))
    assert not [fact for fact in rebuilt({"n1": newest, "n2": told}) if isinstance(fact, Grant)]


@pytest.mark.parametrize("fact", [grant(Role.READER), Session(token_hash=b"t", username="bob", expires_at=9.0)])
def test_the_end_of_a_thing_is_known_by_its_name(fact: Fact) -> None:
    """It is about the same thing."""
    gone = gone_thing(thing_of(fact))
    assert gone is not None
    assert thing_of(gone) == thing_of(fact)
    assert gone_thing(thing_of(file(2))) is None


def test_only_copies_that_are_there_count() -> None:
    """A copy is pending when its node has come without it, or with other bytes; of a node that did not tell the index is believed."""
    wanted = on("n1", "n2", "n3", "n4")
    disks = {"n1": disk(sidecar(wanted)), "n2": disk(), "n3": disk(sidecar(wanted, digest=b"other"))}
    (found, person), left = on_disks([wanted, ALICE], disks, set(disks))
    assert isinstance(found, File)
    assert found.version.holders == ("n1", "n4")
    assert len(found.version.copies) == 4
    assert person is ALICE
    assert left == []


def test_files_whose_content_has_not_come_are_listed() -> None:
    """They are there all the same: their names, rights and versions are known, and their holders may come."""
    for holders, why in ((("n1",), "no node that has come"), (("n1", "n9"), "on n9 only")):
        wanted = on(*holders)
        (found,), (left,) = on_disks([wanted], {"n1": disk()}, {"n1"})
        assert found == left.fact
        assert why in left.why


def test_blobs_that_no_index_names_are_listed_unless_they_are_old() -> None:
    """Superseded and deleted versions are no news; later versions, and uploads whose end is not known, are."""
    current = file(2, 3)
    old = sidecar(file(2, 2), (1, 19))
    deleted = sidecar(file(3), (1, 20))
    later = sidecar(file(4), (1, 21))
    newer = sidecar(file(2, 4), (2, 1))
    superseded_later = sidecar(file(2, 1), (1, 30))
    staged, lost_race = sidecar(file(5), None), sidecar(file(2, 3, attempt=7), None)
    sidecars = disk(sidecar(current), old, deleted, later, newer, superseded_later, staged, lost_race)
    found = lost_blobs([current], {"n1": sidecars, "n2": disk(later)}, KNOWN)
    assert {(one.node, one.sidecar) for one in found} == {("n1", later), ("n1", newer), ("n1", staged), ("n2", later)}


def test_who_knows_most_has_something_to_say() -> None:
    """An index that is empty knows nothing, wherever it says that it is."""
    assert knows_most({"n1": handed(30), "n2": handed(20, ALICE), "n3": handed(10, ALICE)}) == "n2"
    assert knows_most({"n1": handed(30)}) is None


def test_a_node_that_others_do_not_know_is_a_stranger() -> None:
    """A removed one, by those who know of it; by an older index one that has joined since."""
    two = handed(20, node("n1"), node("n2"))
    assert strangers({"n1": two, "n2": two}) == {}
    removed = handed(10, node("n1"), node("n2"), node("n3"))
    assert strangers({"n1": two, "n2": two, "n3": removed}) == {"n3": ("n1", "n2")}
    assert strangers({"n1": handed(5, node("n1")), "n2": two}) == {"n2": ("n1",)}
    assert strangers({"n1": two, "n2": handed(0)}) == {}


def test_what_is_written_is_counted_by_kind() -> None:
    """For the administrator, who compares it with what they remember."""
    assert counted([ALICE, BOB, ROOT, file(2), grant(Role.READER), node("n1")]) == {
        "people": 2,
        "files": 1,
        "folders": 1,
        "rights": 1,
        "sign_ins": 0,
        "servers": 1,
    }
