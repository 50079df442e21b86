"""Leases: at most one holder at any time, whoever asks when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from securifile.model.ids import AttemptId, EntryId
from securifile.model.leases import Lease, LeaseTable, first_granter, new_path_key

KEYS = [b"k" * 16, b"l" * 16]
ATTEMPTS = [AttemptId(bytes([number]) * 16) for number in range(3)]

keys = st.sampled_from(KEYS)
attempts = st.sampled_from(ATTEMPTS)


def lease(attempt: AttemptId, expires_at: float) -> Lease:
    return Lease(attempt=attempt, person="ann", node="n1", expires_at=expires_at)


class Granting(RuleBasedStateMachine):
    """A table beside a dictionary in which who was granted what until when is written down."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.table = LeaseTable()
        self.granted: dict[bytes, dict[AttemptId, float]] = {key: {} for key in KEYS}

    def holders(self, key: bytes) -> list[AttemptId]:
        return [attempt for attempt, until in self.granted[key].items() if until > self.now]

    @rule(key=keys, attempt=attempts, duration=st.integers(1, 10))
    def ask(self, key: bytes, attempt: AttemptId, duration: int) -> None:
        before = self.holders(key)
        wanted = lease(attempt, self.now + duration)
        held = self.table.ask(key, wanted, self.now)
        if before in ([], [attempt]):
            assert held == wanted, "free, or renewed"
            self.granted[key][attempt] = wanted.expires_at
        else:
            assert held.attempt == before[0]
            assert held.expires_at == self.granted[key][before[0]]

    @rule(key=keys, attempt=attempts)
    def release(self, key: bytes, attempt: AttemptId) -> None:
        self.table.release(key, attempt)
        self.granted[key].pop(attempt, None)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.table.expire(self.now)
        assert len(self.table._leases) == sum(bool(self.holders(key)) for key in KEYS)

    @invariant()
    def at_most_one(self) -> None:
        for key in KEYS:
            holders = self.holders(key)
            assert len(holders) <= 1
            held = self.table.holder(key, self.now)
            assert (held.attempt if held else None) == (holders[0] if holders else None)


TestGranting = Granting.TestCase
TestGranting.settings = settings(max_examples=60, deadline=None)


def test_a_lease_ends_at_its_expiry() -> None:
    """At the moment it expires somebody else may have it, and the first holder cannot renew it any more."""
    table = LeaseTable()
    first, second = ATTEMPTS[:2]
    table.ask(KEYS[0], lease(first, 10.0), 0.0)
    assert table.ask(KEYS[0], lease(second, 19.9), 9.9).attempt == first
    assert table.ask(KEYS[0], lease(second, 20.0), 10.0).attempt == second
    assert table.ask(KEYS[0], lease(first, 21.0), 11.0).attempt == second


@given(st.lists(st.sampled_from([f"n{number}" for number in range(8)]), min_size=1, unique=True), st.binary(), st.data())
def test_everybody_asks_the_same_server_first(servers: list[str], key: bytes, data: st.DataObject) -> None:
    """The first server depends on the key and not on the order of the list, and stays when another one goes."""
    first = first_granter(key, servers)
    assert first in servers
    assert first_granter(key, data.draw(st.permutations(servers))) == first
    gone = data.draw(st.sampled_from(servers))
    if gone != first:
        assert first_granter(key, [server for server in servers if server != gone]) == first


def test_first_servers_are_spread() -> None:
    """No server is the first for most paths."""
    servers = ["n1", "n2", "n3", "n4"]
    counts = dict.fromkeys(servers, 0)
    for number in range(400):
        counts[first_granter(number.to_bytes(16), servers)] += 1
    assert all(60 < count < 140 for count in counts.values())


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.text(), st.text())
def test_different_places_have_different_keys(parent: bytes, other: bytes, name: str, another: str) -> None:
    """A new path's key is that of its parent and name and of nothing else, as long as an id."""
    assume_text = all(not 0xD800 <= ord(letter) <= 0xDFFF for letter in name + another)
    if assume_text:
        same = (parent, name) == (other, another)
        assert (new_path_key(EntryId(parent), name) == new_path_key(EntryId(other), another)) == same
        assert len(new_path_key(EntryId(parent), name)) == 16
