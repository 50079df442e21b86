"""A node goes by the admin servers' clock when its own is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from securifile.node.cluster_time import TOLERANCE_S, VOICE_S, ClusterTime

NOW = 1_000_000.0


class Clocks:
    """This machine's clocks, and those of the admin servers."""

    def __init__(self, *servers: str) -> None:
        self.monotonic = 17.0
        self.own = NOW
        self.theirs = dict.fromkeys(servers or ("admin1",), NOW)
        self.true = NOW
        self.time = ClusterTime(lambda: self.own, lambda: self.monotonic)

    def pass_(self, seconds: float, *silent: str) -> None:
        """Let time pass, and then every admin server answer, but for those that are silent."""
        self.own += seconds
        self.true += seconds
        self.monotonic += seconds
        for server in self.theirs:
            self.theirs[server] += seconds
            if server not in silent:
                self.time.heard(server, self.theirs[server] - 0.01, 0.02)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged meanwhile, by level."""
    levels: list[str] = []

    def keep(event: Any) -> None:
        if event["log_namespace"].startswith("securifile.node.cluster_time"):
            levels.append(event["log_level"].name)

    globalLogPublisher.addObserver(keep)
    yield levels
    globalLogPublisher.removeObserver(keep)


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 5.0, -86_400.0])
def test_setting_the_clock_does_nothing_but_warn(jump: float, said: list[str]) -> None:
    """Forward or back, at no moment is another time shown than the admin server's; there is one warning, and one word when it is right."""
    clocks = Clocks()
    clocks.pass_(1.0)
    for by in (jump, -jump):
        clocks.own += by
        assert clocks.time() == pytest.approx(clocks.true, abs=0.1)
        for _ in range(5):
            clocks.pass_(0.5)
            assert clocks.time() == pytest.approx(clocks.true, abs=0.1)
    assert clocks.time() == pytest.approx(clocks.own)
    assert said == ["warn", "info"]


def test_a_machine_that_starts_with_a_wrong_clock_is_corrected() -> None:
    """From the first answer on."""
    clocks = Clocks()
    clocks.own -= 3600.0
    clocks.time = ClusterTime(lambda: clocks.own, lambda: clocks.monotonic)
    clocks.pass_(0.5)
    assert clocks.time() == pytest.approx(clocks.true, abs=0.1)


def test_small_differences_change_nothing() -> None:
    """What NTP leaves, and what a slow answer makes of it, is not followed."""
    clocks = Clocks()
    clocks.own += TOLERANCE_S * 0.9
    for _ in range(10):
        clocks.pass_(0.5)
        assert clocks.time() == pytest.approx(clocks.own)


@pytest.mark.parametrize("servers", [("a", "b"), ("a", "b", "c")])
def test_one_wrong_admin_server_of_several_is_outvoted(servers: tuple[str, ...], said: list[str]) -> None:
    """Of two, the own clock agrees with one; of three, two agree. Nothing is shown twice, and nobody is warned of a clock that is right."""
    clocks = Clocks(*servers)
    clocks.pass_(0.5)
    clocks.theirs["b"] += 3600.0
    for _ in range(5):
        clocks.pass_(0.5)
        assert clocks.time() == pytest.approx(clocks.true, abs=0.1)
    assert said == []


def test_who_is_silent_has_no_say() -> None:
    """An admin server with a wrong clock that is gone for a while does not count, and who is left is followed."""
    clocks = Clocks("a", "b")
    clocks.theirs["b"] += 3600.0
    clocks.own += 3600.0
    clocks.pass_(0.5)
    assert clocks.time() == pytest.approx(clocks.own)
    for _ in range(int(VOICE_S) + 1):
        clocks.pass_(1.0, "b")
    assert clocks.time() == pytest.approx(clocks.true, abs=0.1)
