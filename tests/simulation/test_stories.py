"""Stories that Hypothesis makes up: operations and faults in any order, shrunk to a short one when a guarantee is broken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from securifile.model.settings import ClusterSettings
from securifile.simulation.cluster import Parts
from securifile.simulation.history import Kind
from securifile.simulation.people import Person
from securifile.simulation.run import Report, Run, Scene
from tests.simulation.mutants import Credulous

NODES = ("n1", "n2", "n3")
PATHS = ("ann/one", "bob/one")

FAULTS = ("crash", "power", "stop", "isolate", "slow-disk", "full-disk", "rot", "lost-disk", "offline")
"""Those that befall one node."""

OTHERS = ("power-all", "cut", "one-way", "slow-link", "lossy-link", "break", "admin-crash", "database-away", "lost-answers", "wall")


class Story(RuleBasedStateMachine):
    """Two people, three nodes and an admin server; what is begun goes on while the next thing happens."""

    parts = Parts()

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None

    @initialize(seed=st.integers(0, 3), lease_s=st.sampled_from((1.0, 10.0)))
    def begin(self, seed: int, lease_s: float) -> None:
        """The cluster runs."""
        self.run = Run(Scene(seed=seed, people=2, parts=self.parts, settings=ClusterSettings(lease_s=lease_s, scrub_every_s=2.0)))
        self.run.begin()

    def somebody(self, name: str) -> tuple[Run, Person]:
        assert self.run is not None
        return self.run, next(person for person in self.run.people if person.name == name)

    @rule(
        name=st.sampled_from(("ann", "bob")), path=st.sampled_from(PATHS), node=st.sampled_from(NODES), size=st.sampled_from((50, 150_000))
    )
    def write(self, name: str, path: str, node: str, size: int) -> None:
        """An upload begins."""
        run, person = self.somebody(name)
        run.start(lambda: person.write(path, node, size))
        run.cluster.run(0.05)

    @rule(name=st.sampled_from(("ann", "bob")), path=st.sampled_from(PATHS), node=st.sampled_from(NODES))
    def read(self, name: str, path: str, node: str) -> None:
        """A download begins."""
        run, person = self.somebody(name)
        run.start(lambda: person.read(path, node))
        run.cluster.run(0.05)

    @rule(name=st.sampled_from(("ann", "bob")), kind=st.sampled_from((Kind.DELETE, Kind.MOVE, Kind.GRANT, Kind.REVOKE)))
    def change(self, name: str, kind: Kind) -> None:
        """Something else is changed."""
        run, person = self.somebody(name)
        run.start(lambda: person.wish(kind))
        run.cluster.run(0.05)

    @rule(kind=st.sampled_from(FAULTS), node=st.sampled_from(NODES), lasts_s=st.sampled_from((0.3, 1.0, 3.0)))
    def befall(self, kind: str, node: str, lasts_s: float) -> None:
        """A node is in trouble."""
        assert self.run is not None
        self.run.storm.begin(kind, lasts_s, node)

    @rule(kind=st.sampled_from(OTHERS), lasts_s=st.sampled_from((0.3, 1.0, 3.0)))
    def storm(self, kind: str, lasts_s: float) -> None:
        """Something is in trouble."""
        assert self.run is not None
        self.run.storm.begin(kind, lasts_s)

    @rule(seconds=st.sampled_from((0.2, 1.0, 3.0)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        assert self.run is not None
        self.run.cluster.run(seconds)

    def teardown(self) -> None:
        """All is well again, and no guarantee was broken."""
        if self.run is not None:
            report: Report = self.run.finish()
            assert not report.violations, "\n".join([*report.lines, report.summary])


class UnverifiedStory(Story):
    """The same, of nodes that find everything good in those that return."""

    parts = Parts(node=Credulous)


def tell(machine: Any, examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """Stories of a dozen steps, the same ones in each run."""
    bounds = settings(
        max_examples=examples, stateful_step_count=12, deadline=None, derandomize=True, database=None, phases=phases,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=bounds)


def test_no_story_breaks_a_guarantee() -> None:
    """Whatever is done and whatever befalls the servers, in any order."""
    tell(Story, 25)


def test_a_story_misses_verification() -> None:
    """Among sixty stories there is one that tells when nobody is verified."""
    with pytest.raises(AssertionError, match="who is admitted has what it should have"):
        tell(UnverifiedStory, 60, (Phase.generate,))
