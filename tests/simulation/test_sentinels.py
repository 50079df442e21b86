"""Stories of nodes that end, and of what is said of it: what a writer waits for, and what comes of a word that is wrong."""

from __future__ import annotations

import pytest

from securifile.model.settings import ClusterSettings
from securifile.model.standing import FRESH_INTERVALS
from securifile.simulation.cluster import Parts
from securifile.simulation.run import Report, Run, Scene
from tests.simulation.mutants import Hearsay

INTERVAL_S = 2.0
"""Between heartbeats: so long that much can happen before a node that is cut off has lost its standing."""
STANDING_S = FRESH_INTERVALS * INTERVAL_S
FILE = "ann/one"


class Story:
    """A file on three of five nodes, and two devices of its owner."""

    def __init__(self, parts: Parts | None = None) -> None:
        settings = ClusterSettings(heartbeat_interval_s=INTERVAL_S)
        self.run = Run(Scene(seed=0, nodes=5, people=1, devices=2, parts=parts or Parts(), settings=settings))
        self.run.begin()
        self.cluster = self.run.cluster
        self.writer, self.reader = self.run.people
        self.origin: str = self.cluster.wait(self.writer.write(FILE, "n1", 100)).answered_by
        self.other = next(name for name in self.cluster.nodes if name != self.origin)

    def write(self) -> float:
        """Write the file through another node; how long that took."""
        began = self.cluster.time.now
        assert self.cluster.wait(self.writer.write(FILE, self.other, 100)).outcome == "done"
        took_s = self.cluster.time.now - began
        # What begins in the same instant could be taken for earlier.
        self.cluster.run(0.01)
        return took_s

    def cut_off(self) -> None:
        """The origin has people still, and no other server: what it was connected to is reset, as a firewall does that rejects."""
        for name in self.cluster.machines:
            if name != self.origin:
                while self.cluster.network.break_one(self.origin, name):
                    pass
                self.cluster.network.cut(self.origin, name)
        self.run.storm.note_reach()
        self.cluster.run(0.1)

    def finish(self) -> Report:
        """The origin is reached again; how it ends."""
        for name in self.cluster.machines:
            if name != self.origin:
                self.cluster.network.heal(self.origin, name)
        if self.cluster.machines[self.origin].life is None:
            self.cluster.start(self.origin)
        return self.run.finish()


@pytest.mark.parametrize("told", [True, False])
def test_a_writer_waits_for_the_standing_of_who_may_live(told: bool) -> None:
    """After the origin was killed, only if nobody says that it has ended."""
    story = Story()
    if told:
        story.cluster.tell_end(story.origin, 0.02)
    story.cluster.crash(story.origin)
    story.cluster.run(0.1)
    took_s = story.write()
    assert took_s < 0.5 if told else took_s > STANDING_S - 0.1
    assert not story.finish().violations


def superseded(parts: Parts) -> Report:
    """The origin is killed and comes back; then it is cut off, and serves people for as long as its standing lasts."""
    story = Story(parts)
    story.cluster.tell_end(story.origin, 0.02)
    story.cluster.crash(story.origin)
    story.cluster.run(0.1)
    story.cluster.start(story.origin)
    story.cluster.run(2 * INTERVAL_S)
    assert story.cluster.run(30.0, lambda: story.cluster.all_run)
    story.cut_off()
    story.write()
    story.cluster.wait(story.reader.read(FILE, story.origin))
    return story.finish()


def test_that_a_process_has_ended_says_nothing_of_the_next_one() -> None:
    """Who does not ask which of them the catalogue has admitted lets the old version be read after the new one was answered."""
    assert not superseded(Parts()).violations
    report = superseded(Parts(node=Hearsay))
    assert any(violation.guarantee != "no surprises" for violation in report.violations), report.summary


def test_a_word_that_is_wrong_does_harm() -> None:
    """A sentinel that speaks of a process that lives would break the promise: the runs would notice it."""
    story = Story()
    story.cluster.tell_end(story.origin, 0.0)
    story.cluster.run(0.01)
    story.cut_off()
    story.write()
    story.cluster.wait(story.reader.read(FILE, story.origin))
    report = story.finish()
    assert any(violation.guarantee != "no surprises" for violation in report.violations), report.summary


def test_a_word_that_is_wrong_is_found_out() -> None:
    """When the process is heard that was said to have ended: then it is waited for again."""
    story = Story()
    story.cluster.tell_end(story.origin, 0.0)
    story.cluster.run(3 * INTERVAL_S)
    story.cut_off()
    assert story.write() > STANDING_S - 0.1
    story.cluster.wait(story.reader.read(FILE, story.origin))
    report = story.finish()
    assert not report.violations, report.summary
