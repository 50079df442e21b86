"""Names, roles, accounts, settings and the roster: the small rules that everything else takes for granted."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model import facts as f
from securifile.model.digests import FIELD_NAMES, DigestAlgorithm
from securifile.model.errors import Code, Refusal
from securifile.model.ids import BEGINNING, AttemptId, EntryId, Position
from securifile.model.people import check_account
from securifile.model.roles import GRANTABLE, Action, Role, permits, strongest
from securifile.model.roster import Roster
from securifile.model.servers import HostPort, ServerKind, Status, check_server_name
from securifile.model.settings import ClusterSettings

# --- ids ---


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_read_as_it_is_written(value: bytes) -> None:
    """32 hexadecimal digits, and back; an attempt is never equal to an entry."""
    assert EntryId.parse(str(EntryId(value))) == EntryId(value)
    assert len(str(EntryId(value))) == 32
    assert len({EntryId(value), AttemptId(value)}) == 2


@pytest.mark.parametrize("text", ["", "00", "0" * 31, "0" * 33, "0" * 34, "g" * 32])
def test_what_is_no_id_is_refused(text: str) -> None:
    """Too short, too long or not hexadecimal."""
    with pytest.raises(ValueError, match=r"id is 16 bytes|hex"):
        AttemptId.parse(text)


def test_positions_are_in_order() -> None:
    """A later epoch is after every revision of an earlier one."""
    assert BEGINNING < Position(0, 1) < Position(1, 0) < Position(1, 9) < Position(1, 10) < Position(2, 0)
    assert str(Position(2, 10)) == "2.10"


# --- digests ---


@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
def test_digests_are_those_of_the_standard(algorithm: DigestAlgorithm) -> None:
    """Each algorithm computes what hashlib's of that name does, and knows how long that is."""
    hasher = algorithm.hasher()
    hasher.update(b"a")
    hasher.update(b"bc")
    assert hasher.digest() == hashlib.new(algorithm.value.replace("-", "_"), b"abc").digest()
    assert len(hasher.digest()) == algorithm.bytes_long


def test_the_required_algorithms_are_there() -> None:
    """SHA-1, the SHA-2 and the SHA-3 families; those with a name in HTTP are real ones."""
    families = {algorithm.value.split("-")[0] for algorithm in DigestAlgorithm}
    assert families == {"sha1", "sha224", "sha256", "sha384", "sha512", "sha3"}
    assert set(FIELD_NAMES) == {"sha", "sha-256", "sha-512"}


# --- roles: the table of the design ---

TABLE = """
            owner master editor reader
    read    yes   yes    yes    yes
    modify  yes   yes    yes    no
    create  yes   yes    yes    no
    share   yes   yes    no     no
    delete  yes   no     no     no
    move    yes   no     no     no
"""


def test_who_may_do_what() -> None:
    """The table of the design, every field of it."""
    first, *lines = [line.split() for line in TABLE.strip().splitlines()]
    roles = [Role(name) for name in first]
    rows = {Action(name): answers for name, *answers in lines}
    assert set(rows) == set(Action)
    for action, answers in rows.items():
        assert [permits(role, action) for role in roles] == [answer == "yes" for answer in answers], action
        assert not permits(None, action)


@given(st.lists(st.sampled_from(Role)))
def test_the_strongest_role_permits_what_any_does(roles: list[Role]) -> None:
    """Of several rights the strongest is what a person has: nothing is lost by a weaker one nearer to the file."""
    for action in Action:
        assert permits(strongest(roles), action) == any(permits(role, action) for role in roles)


def test_ownership_cannot_be_given() -> None:
    """Every role but the owner's can be given."""
    assert set(GRANTABLE) == set(Role) - {Role.OWNER}


# --- accounts ---

ANN = f.Person(
    username="ann",
    email="ann@example.org",
    administrator=False,
    valid_from=10.0,
    valid_until=20.0,
    disabled=False,
    quota_bytes=None,
    credentials=1,
)


@pytest.mark.parametrize(("now", "valid"), [(9.9, False), (10.0, True), (19.9, True), (20.0, False), (99.0, False)])
def test_an_account_is_valid_for_a_time(now: float, valid: bool) -> None:
    """From its first moment until just before its last; disabled never; without an end for ever."""
    for person, expected in [
        (ANN, valid),
        (attrs.evolve(ANN, disabled=True), False),
        (attrs.evolve(ANN, valid_until=None), now >= 10.0),
    ]:
        if expected:
            check_account(person, now)
        else:
            with pytest.raises(Refusal) as caught:
                check_account(person, now)
            assert caught.value.code is Code.ACCOUNT_CLOSED


# --- settings ---


@pytest.mark.parametrize(("replicas", "needed"), [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3)])
def test_more_than_half_of_the_copies_are_needed(replicas: int, needed: int) -> None:
    """Unless an administrator says otherwise."""
    settings = ClusterSettings(replicas=replicas)
    assert settings.copies_wanted == replicas + 1
    assert settings.copies_needed == needed
    assert settings.copies_needed * 2 > settings.copies_wanted


def test_impossible_settings_are_refused() -> None:
    """From one to all copies may be asked for; no setting may be below its least value."""
    assert ClusterSettings(replicas=2, write_copies=1).copies_needed == 1
    assert ClusterSettings(replicas=2, write_copies=3).copies_needed == 3
    for wrong in (0, 4, -1):
        with pytest.raises(ValueError, match="write_copies must be from 1 to r"):
            ClusterSettings(replicas=2, write_copies=wrong)
    for changes in (
        {"replicas": -1},
        {"heartbeat_interval_s": 0.0},
        {"heartbeats_missed_max": 0},
        {"lease_s": 0.5},
        {"ticket_s": 0},
        {"feed_kept": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            ClusterSettings(**changes)


# --- servers ---


@pytest.mark.parametrize("name", ["a", "1", "node-1", "a" * 40, "a--b"])
def test_server_names(name: str) -> None:
    """A label of the DNS."""
    assert check_server_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 41, "a\n", "é", "a/b"])
def test_what_is_no_server_name(name: str) -> None:
    """Nothing that could mean something in a path, a URI or a certificate."""
    with pytest.raises(ValueError, match="is no server name"):
        check_server_name(name)


@pytest.mark.parametrize("text", ["host:1", "127.0.0.1:65535", "[::1]:9444", "[2001:db8::1]:80"])
def test_addresses_are_read_as_they_are_written(text: str) -> None:
    """Names, IPv4 and IPv6."""
    assert str(HostPort.parse(text)) == text


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:x", "host:-1", "host:0", "host:65536", "host:²"])
def test_what_is_no_address(text: str) -> None:
    """Without a host or a port there is nowhere to connect to."""
    with pytest.raises(ValueError):
        HostPort.parse(text)


# --- the roster ---


def server(name: str, kind: ServerKind = ServerKind.NODE, status: Status = Status.RUNNING) -> f.Server:
    return f.Server(name=name, kind=kind, url=f"https://{name}", protocol_address=f"{name}:9444", public_key=name.encode(), status=status)


def test_the_roster_learns() -> None:
    """It knows who is a member, who runs and what is set, and passes over what is none of its business."""
    roster = Roster()
    facts: list[f.Fact] = [
        server("n2"),
        server("n1"),
        server("n3", status=Status.FAILED),
        server("a1", ServerKind.ADMIN),
        f.Settings(cluster="c", settings=ClusterSettings(replicas=1)),
        ANN,
        f.ServerGone(name="nobody"),
    ]
    for fact in facts:
        roster.learn(fact)
    assert roster.nodes == ["n1", "n2", "n3"]
    assert roster.running == ["n1", "n2"]
    assert [one.name for one in roster.of_kind(ServerKind.ADMIN)] == ["a1"]
    assert (roster.cluster, roster.settings.replicas) == ("c", 1)
    assert roster.is_running("a1")
    assert not roster.is_running("n3")
    assert not roster.is_running("nobody")
    assert roster.public_key("n1") == b"n1"
    roster.learn(f.ServerGone(name="n1"))
    roster.learn(server("n2", status=Status.DOWN))
    assert (roster.nodes, roster.running, roster.public_key("n1")) == (["n2", "n3"], [], None)


def test_a_snapshot_replaces_the_roster() -> None:
    """Who is not in it is no member any more; without settings the ones that were known stay."""
    roster = Roster()
    roster.learn(server("n1"))
    roster.learn(f.Settings(cluster="c", settings=ClusterSettings(replicas=1)))
    roster.replace([server("n2")], None)
    assert (roster.nodes, roster.settings.replicas, roster.cluster) == (["n2"], 1, "c")
