"""Any scene: what a run is about, drawn from its seed.

Not every run has every fault. Where all are there at once, some keep others from doing harm: a cluster whose nodes lose their power
every few seconds never gets as far as a repair. So half of the runs have some of the kinds only, often more of each; likewise the size of
the cluster, what people do and the settings are drawn. (Groce and others, "Swarm testing", ISSTA 2012.)
"""

from __future__ import annotations

import attrs

from securifile.model.settings import ClusterSettings
from securifile.simulation.chance import Chance
from securifile.simulation.faults import Climate
from securifile.simulation.history import Kind
from securifile.simulation.people import Habits
from securifile.simulation.run import Scene

NODES = (5, 5, 5, 5, 6, 6, 7, 8, 9)
"""Heartbeats grow with the square: a run of nine nodes costs as much as three of five, and finds little more."""


def any_scene(seed: int) -> Scene:
    """The scene of that seed: five to nine nodes in any weather."""
    chance = Chance(seed).stream("scene")
    nodes = chance.pick(NODES)
    return Scene(
        seed=seed,
        nodes=nodes,
        admins=1 + chance.below(2),
        people=2 + chance.below(3),
        devices=chance.pick((1, 1, 2)),
        seconds=chance.between(4.0, 10.0),
        climate=any_climate(chance.stream("climate")),
        habits=any_habits(chance.stream("habits")),
        settings=any_settings(chance.stream("settings")),
    )


def any_climate(chance: Chance) -> Climate:
    """All kinds of faults, or some."""
    weights = Climate().weights
    if chance.happens(0.5):
        some = tuple((kind, 1 + chance.below(6)) for kind, _ in weights if chance.happens(0.4))
        weights = some or weights
    return attrs.evolve(Climate(), weights=weights, pause_s=chance.between(0.3, 3.0), lasts_s=chance.between(0.5, 6.0))


def any_habits(chance: Chance) -> Habits:
    """Many files or one, more reading or more writing, often large or never."""
    habits = Habits(large=chance.pick((0.0, 0.05, 0.05, 0.3)), think_s=chance.pick((0.2, 0.4, 0.8)))
    if chance.happens(0.25):
        habits = attrs.evolve(habits, folders=("",), names=("one",))
    if chance.happens(0.25):
        habits = attrs.evolve(habits, weights=((Kind.READ, 3), (Kind.WRITE, 3), (Kind.GRANT, 2), (Kind.REVOKE, 2), (Kind.DELETE, 1)))
    return habits


def any_settings(chance: Chance) -> ClusterSettings:
    """The usual ones, or some that are so short that a run of seconds gets to what takes minutes or hours."""
    return ClusterSettings(
        replicas=chance.pick((1, 2, 2, 2, 3)),
        lease_s=chance.pick((1.0, 3.0, 10.0)),
        keep_superseded_s=chance.pick((1.0, 600.0)),
        repair_after_s=chance.pick((2.0, 5.0, 600.0)),
        verification_budget_s=chance.pick((0.0, 600.0, 600.0)),
        scrub_every_s=chance.pick((1.0, 5.0, 86400.0)),
        feed_kept=chance.pick((100, 100_000)),
    )
