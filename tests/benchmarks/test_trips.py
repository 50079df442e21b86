"""Reading a histogram."""

from __future__ import annotations

from collections import Counter

from benchmarks.trips import buckets, within
from securifile.model.trips import Trips


def told(**trips: list[float]) -> str:
    known = Trips()
    for server, durations in trips.items():
        for seconds in durations:
            known.note(server, seconds)
    return "".join(f"securifile_{key} {value:.15g}\n" for key, value in known.metrics("heartbeat_trip_seconds").items())


def test_only_the_trips_to_these_servers_count() -> None:
    """What a node tells of others is left out, and each trip is in one bucket."""
    found = buckets(told(node1=[0.0004, 0.0004, 9.0], node2=[0.0004]), ["node1"])
    assert +found == Counter({0.0005: 2, float("inf"): 1})


def test_a_share_lies_within_its_bucket() -> None:
    """As far into it as trips are still wanted, and not from the last bucket that anything fell into."""
    found = buckets(told(node1=[0.004] * 99 + [0.02]), ["node1"])
    assert 0.003 < within(found, 0.50) < 0.005
    assert round(within(found, 0.99), 6) == 0.005
    assert 0.015 < within(found, 0.995) < 0.025


def test_longer_than_all_bounds_is_told_as_the_last_of_them() -> None:
    """It is more than that; how much more, the histogram does not know."""
    assert within(buckets(told(node1=[5.0]), ["node1"]), 0.99) == 1.0
