"""Planning: what comes out is what closed formulas say where there are any, and follows from the question alone."""

from __future__ import annotations

import math

import attrs
import pytest

from securifile.model.settings import ClusterSettings
from securifile.simulation.planning import DAY_S, YEAR_S, Estimate, Planning, Question, estimate, forecast

NEVER = math.inf

QUIET = Question(
    nodes=2,
    settings=ClusterSettings(replicas=1, write_copies=1, repair_bytes_s=0, heartbeat_interval_s=0.05),
    groups=1,
    stored_bytes=1.0,
    file_bytes=1.0,
    disk_every_s=NEVER,
    outage_every_s=NEVER,
)
"""Two nodes to which nothing happens; what does is fetched and verified at once."""


def near(found: Estimate, expected: float, part: float = 0.1) -> None:
    """The estimate is near what is right, and knows how near: one interval in twenty may miss, by a little."""
    width = found.most - found.least
    assert abs(found.value - expected) < width, (found, expected)
    assert found.value == pytest.approx(expected, rel=part)


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_outages_of_independent_nodes(replicas: int) -> None:
    """A file cannot be read while all r+1 holders are away, and nodes are away for a known part of the time each."""
    settings = attrs.evolve(QUIET.settings, replicas=replicas, repair_after_s=1e12)
    question = attrs.evolve(
        QUIET, nodes=replicas + 1, settings=settings, outage_every_s=10 * DAY_S, outage_s=5 * DAY_S, years=500.0 * (1 + replicas)
    )
    found = forecast(question)
    near(found.unreadable, (5 / 15) ** (replicas + 1), 0.15)
    assert (found.disks, found.copies_destroyed, found.copies_made, found.lost.most) == (0, 0, 0, 0.0)


def test_writing_needs_more_nodes_than_reading() -> None:
    """With two durable copies wanted of two nodes, nobody can write while either is away."""
    settings = attrs.evolve(QUIET.settings, write_copies=2, repair_after_s=1e12)
    found = forecast(attrs.evolve(QUIET, settings=settings, outage_every_s=10 * DAY_S, outage_s=1 * DAY_S, years=1000.0))
    near(found.unreadable, (1 / 11) ** 2, 0.2)
    near(found.unwritable, 1 - (10 / 11) ** 2)


def test_two_disks_that_die_and_are_replaced() -> None:
    """Against the Markov chain of two disks with exponential lives and replacements.

    With failures at rate a and replacements at rate b one disk is up for 2ab/(a+b)^2 of the time, and the file is lost when that one dies;
    none is up, and nothing can be read, for a^2/(a+b)^2.
    """
    a, b = 1.0, 10.0
    found = forecast(attrs.evolve(QUIET, disk_every_s=YEAR_S / a, replaced_in_s=YEAR_S / b, years=2000.0))
    near(found.lost, 2 * a * a * b / (a + b) ** 2)
    near(found.unreadable, a * a / (a + b) ** 2, 0.2)
    assert found.incidents == pytest.approx(2000 * found.lost.value)


def test_three_disks_that_die_and_are_replaced() -> None:
    """Likewise for r = 2: the last of three disks dies at the rate a while it is the only one."""
    a, b = 1.0, 4.0
    settings = attrs.evolve(QUIET.settings, replicas=2)
    found = forecast(attrs.evolve(QUIET, nodes=3, settings=settings, disk_every_s=YEAR_S / a, replaced_in_s=YEAR_S / b, years=2000.0))
    near(found.lost, 3 * a * a**2 * b / (a + b) ** 3, 0.2)
    near(found.unreadable, (a / (a + b)) ** 3, 0.25)


def test_the_grace_time_is_the_window_in_which_a_file_is_in_danger() -> None:
    """Copies on other nodes are made when the grace time has run out, or on the replacement, whichever comes first.

    Of two copies either may be destroyed (2a); the file is lost if the other one is, too (a), within that window.
    """
    grace_s, replaced_s = 3 * DAY_S, 30 * DAY_S
    settings = attrs.evolve(QUIET.settings, repair_after_s=grace_s)
    question = attrs.evolve(
        QUIET, nodes=10, settings=settings, groups=10, stored_bytes=2.0, disk_every_s=YEAR_S, replaced_in_s=replaced_s, years=1000.0
    )
    window_s = replaced_s * (1 - math.exp(-grace_s / replaced_s))
    near(forecast(question).lost, 2 * window_s / YEAR_S, 0.25)


@pytest.mark.parametrize(("per_node", "planned", "expected_s"), [(1000.0, 10**6, 1000.0), (10**9, 4, 2500.0)])
def test_copies_are_made_as_fast_as_the_budgets_allow(per_node: float, planned: int, expected_s: float) -> None:
    """What one node had is fetched by the five others, each within its budget; or as fast as the planner plans files."""
    settings = attrs.evolve(QUIET.settings, repair_bytes_s=per_node, repair_after_s=0.0)
    question = attrs.evolve(
        QUIET,
        seed=3,
        nodes=6,
        settings=settings,
        groups=1000,
        stored_bytes=5e6,
        file_bytes=1000.0,
        disk_every_s=6 * YEAR_S,
        replaced_in_s=YEAR_S,
        years=1.0,
        coming_max=planned,
    )
    found = forecast(question)
    assert found.disks == 1, "the next one would have more to be fetched: take another seed"
    # The last copies come at the end of that time, the first at its beginning; random placement is not even.
    assert sum(found.restored_s) / len(found.restored_s) == pytest.approx(expected_s / 2, rel=0.2)
    assert max(found.restored_s) < 1.5 * expected_s


BUSY = Question(
    seed=3,
    nodes=12,
    settings=ClusterSettings(replicas=2),
    years=0.5,
    groups=60,
    stored_bytes=100 * 1024.0**3,
    capacity_bytes=140 * 1024.0**3,
    disk_every_s=YEAR_S / 24,
    replaced_in_s=3 * DAY_S,
    outage_every_s=15 * DAY_S,
    outage_s=1200.0,
    rack_nodes=4,
    rack_every_s=YEAR_S / 24,
    rack_kills=0.3,
)
"""Everything happens, often, and there is little room."""


@pytest.mark.parametrize("seed", range(2))
def test_what_is_counted_is_what_the_rules_say(seed: int) -> None:
    """After years of all kinds of trouble the counters agree with the copies, and no node holds more than it can."""
    planning = Planning(attrs.evolve(BUSY, seed=seed))
    found = planning.run()
    planning.check()
    assert min(found.disks, found.outages, found.racks, found.copies_made) > 10
    assert found.copies_made <= len(found.restored_s) + found.events


def test_the_same_question_has_the_same_answer() -> None:
    """A forecast follows from the question; another seed gives another history."""
    found = forecast(BUSY)
    assert found == forecast(BUSY)
    assert found.restored_s != forecast(attrs.evolve(BUSY, seed=4)).restored_s


def test_racks_that_fail_as_one_are_worse() -> None:
    """The same number of disks that die, but together: more is lost."""
    alone = attrs.evolve(BUSY, years=3.0, groups=40, outage_every_s=NEVER, rack_nodes=1, rack_every_s=NEVER, disk_every_s=YEAR_S / 2)
    together = attrs.evolve(alone, disk_every_s=NEVER, rack_nodes=4, rack_every_s=YEAR_S / 2, rack_kills=1.0)
    assert forecast(together).lost.least > 3 * forecast(alone).lost.most


def test_estimate() -> None:
    """The mean with Student's interval; what never differs is certain."""
    assert estimate([2.0] * 20) == Estimate(value=2.0, least=2.0, most=2.0)
    found = estimate([1.0, 3.0] * 10)
    assert found.value == 2.0
    assert found.most - found.value == pytest.approx(2.093 * math.sqrt(20 / 19 / 20))
    assert estimate([0.0] * 19 + [1.0]).least == 0.0


def test_what_cannot_be_asked() -> None:
    """More copies than nodes, and more bytes than room, are refused with the reason."""
    with pytest.raises(ValueError, match="2 replicas and an origin need 3 nodes, not 2"):
        Question(nodes=2)
    with pytest.raises(ValueError, match="can hold"):
        Question(stored_bytes=2.0, capacity_bytes=1.0)
