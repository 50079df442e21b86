"""Round trips as Prometheus takes them."""

from __future__ import annotations

from securifile.model.trips import BOUNDS_S, Trips


def test_each_bucket_has_what_was_as_fast_or_faster() -> None:
    """Cumulative, for each server by itself; a trip that takes just as long as a bound is within it."""
    trips = Trips()
    for seconds in (0.0001, 0.002, 0.0021, 7.0):
        trips.note("node2", seconds)
    trips.note("node3", 0.004)
    told = trips.metrics("trip_seconds")
    assert told['trip_seconds_bucket{server="node2",le="0.00025"}'] == 1
    assert told['trip_seconds_bucket{server="node2",le="0.002"}'] == 2
    assert told['trip_seconds_bucket{server="node2",le="0.003"}'] == told['trip_seconds_bucket{server="node2",le="1.0"}'] == 3
    assert told['trip_seconds_bucket{server="node2",le="+Inf"}'] == told['trip_seconds_count{server="node2"}'] == 4
    assert told['trip_seconds_count{server="node3"}'] == 1
    assert round(told['trip_seconds_sum{server="node2"}'], 4) == 7.0042


def test_buckets_come_in_ascending_order() -> None:
    """As the text format wants them, infinity last."""
    trips = Trips()
    trips.note("node2", 1.0)
    buckets = [name for name in trips.metrics("trip_seconds") if "_bucket" in name]
    assert [name.partition('le="')[2].rstrip('"}') for name in buckets] == [*map(str, BOUNDS_S), "+Inf"]
