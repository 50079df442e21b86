"""A node goes by the admin servers' clock when its own is wrong."""

from __future__ import annotations

import pytest

from securifile.node.cluster_time import TOLERANCE_S, ClusterTime


class Clocks:
    """This machine's clock, and the admin server's."""

    def __init__(self) -> None:
        self.own = self.theirs = 1_000_000.0
        self.time = ClusterTime(lambda: self.own)

    def pass_(self, seconds: float) -> None:
        self.own += seconds
        self.theirs += seconds
        self.time.heard(self.theirs - 0.01, 0.02)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 5.0, -86_400.0])
def test_a_clock_that_was_set_is_corrected(jump: float) -> None:
    """From the next answer on it shows the admin server's time, and its own again when it is right again."""
    clocks = Clocks()
    clocks.pass_(1.0)
    clocks.own += jump
    clocks.pass_(0.5)
    assert clocks.time() == pytest.approx(clocks.theirs, abs=0.1)
    clocks.own -= jump
    clocks.pass_(0.5)
    assert clocks.time() == clocks.own


def test_small_differences_change_nothing() -> None:
    """What NTP leaves, and what a slow answer makes of it, is not followed."""
    clocks = Clocks()
    clocks.own += TOLERANCE_S * 0.9
    for _ in range(10):
        clocks.pass_(0.5)
        assert clocks.time() == clocks.own
