"""Where replicas go, which node serves, and when a commit has spread far enough."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.ids import AttemptId
from securifile.model.placement import place
from securifile.model.serving import serving_order
from securifile.model.spreading import spread_enough
from securifile.model.standing import FRESH_INTERVALS

nodes = st.sampled_from([f"n{number}" for number in range(8)])


@given(
    wanted=st.integers(0, 9),
    room=st.dictionaries(nodes, st.integers(0, 100)),
    size=st.integers(0, 100),
    preferred=st.lists(nodes),
    random=st.randoms(use_true_random=False),
)
def test_replicas_are_placed_well(wanted: int, room: dict[str, int], size: int, preferred: list[str], random: Random) -> None:
    """As many different nodes with room as are wanted or there are; those that are preferred come first, in their order."""
    chosen = place(wanted, room=room, size=size, preferred=preferred, below=random.randrange)
    fitting = {node for node, available in room.items() if available >= size}
    assert len(chosen) == len(set(chosen)) == min(wanted, len(fitting))
    assert set(chosen) <= fitting
    first = [node for node in dict.fromkeys(preferred) if node in fitting][:wanted]
    assert chosen[: len(first)] == first


def test_placement_is_even() -> None:
    """Every choice of two out of five is taken about equally often, in either order."""
    random = Random(1)
    room = dict.fromkeys(["a", "b", "c", "d", "e"], 10)
    counts = Counter(tuple(place(2, room=room, size=1, preferred=(), below=random.randrange)) for _ in range(4000))
    assert len(counts) == 20
    assert all(140 < count < 260 for count in counts.values()), counts


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.sets(st.integers(0, 4)))
def test_the_first_available_holder_serves(durable: list[bool], available: set[int]) -> None:
    """The order of priority, without those whose copy is pending or that are not available."""
    version = Version(
        number=1,
        attempt=AttemptId(b"a" * 16),
        size=0,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=tuple(Copy(node=f"n{number}", priority=number, durable=is_durable) for number, is_durable in enumerate(durable)),
    )
    expected = [f"n{number}" for number, is_durable in enumerate(durable) if is_durable and number in available]
    assert serving_order(version, lambda node: int(node[1:]) in available) == expected


@pytest.mark.parametrize("count", range(1, 6))
def test_when_a_commit_has_spread(count: int) -> None:
    """All running nodes have it, or more than half of all have it and whoever is silent has lost its standing by now; but never while
    those that have not heard of it are more than half, and could have standing from each other."""
    every = [f"n{number}" for number in range(count)]
    groups = [list(some) for size in range(count + 1) for some in combinations(every, size)]
    period = FRESH_INTERVALS * 0.5
    for acknowledged, running, waited in product(groups, groups, [0.0, period - 0.001, period, 100.0]):
        expected = set(running) <= set(acknowledged) or (2 * len(acknowledged) > count and waited >= period)
        expected = expected and 2 * (count - len(acknowledged)) <= count
        assert spread_enough(acknowledged, running, every, waited_s=waited, interval_s=0.5) == expected


@pytest.mark.parametrize("count", range(1, 5))
def test_that_a_node_has_ended_counts_as_much_as_that_it_is_down(count: int) -> None:
    """An answer that goes out because some have ended would also go out if those were held for down for long. None is held back by it."""
    every = [f"n{number}" for number in range(count)]
    groups = [list(some) for size in range(count + 1) for some in combinations(every, size)]
    for acknowledged, running, over, waited in product(groups, groups, groups, [0.0, 100.0]):
        told = spread_enough(acknowledged, running, every, waited_s=waited, interval_s=0.5, over=over)
        living = [name for name in running if name not in over]
        assert told == spread_enough(acknowledged, living, every, waited_s=waited, interval_s=0.5)
        assert told >= spread_enough(acknowledged, running, every, waited_s=waited, interval_s=0.5)


def test_servers_that_are_no_nodes_are_no_majority() -> None:
    """An admin server that acts for a person counts itself in vain."""
    assert not spread_enough(["admin1", "admin2", "n1"], ["n1", "n2"], ["n1", "n2"], waited_s=100.0, interval_s=0.5)
