"""Work on a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from securifile.model.pacing import TICK_S, Pace

counts = st.integers(1, 10_000_000)


@given(st.lists(st.tuples(counts, st.floats(0, 100)), min_size=1), st.floats(1, 1e9))
def test_the_rate_is_kept_whatever_the_pieces(pieces: list[tuple[int, float]], rate: float) -> None:
    """Who rests as told has used no more than the time allows and a tick's worth, also after long pauses of its own."""
    pace, now, used = Pace(), 0.0, 0
    for count, busy_s in pieces:
        rest_s = pace.take(now, count, rate)
        assert rest_s >= 0
        now += rest_s
        used += count
        assert used <= rate * (now + TICK_S) * (1 + 1e-9)
        now += busy_s


@given(st.lists(counts, min_size=1), st.floats(1, 1e9))
def test_nobody_rests_longer_than_the_rate_asks(pieces: list[int], rate: float) -> None:
    """Work that takes no time of its own goes on at the full rate."""
    pace, now = Pace(), 0.0
    for count in pieces:
        now += pace.take(now, count, rate)
    assert now <= sum(pieces) / rate * (1 + 1e-9)


def test_a_rest_earns_no_burst() -> None:
    """After an hour without work the next piece has to be rested for as the first one was."""
    pace = Pace()
    assert pace.take(0.0, 1000, 1000.0) == 1.0
    assert pace.take(3600.0, 1000, 1000.0) == 1.0
