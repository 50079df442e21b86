"""A catalogue that went back in time under running nodes: nothing that was acknowledged is lost, and no right comes back."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from securifile.admin.composition import Admin
from securifile.protocol import messages as m
from securifile.simulation.cluster import Parts
from securifile.simulation.invariants import Violation
from securifile.simulation.restoring import TAKEN, Restoration
from securifile.simulation.run import DURABLE, Report, simulate
from securifile.simulation.scenes import any_scene

RUNS = 8


@pytest.mark.parametrize("seed", range(4000, 4000 + RUNS))
def test_what_a_catalogue_lost_comes_back(seed: int) -> None:
    """A backup is restored, or a standby promoted, after any weather, while some nodes are away: the nodes have what it lost."""
    report = simulate(any_scene(seed), Restoration)
    assert not report.violations, report.summary
    assert any("the epoch is reconciled" in line for line in report.lines)


class LastMoment(Restoration):
    """The backup is made just before it is restored."""

    def _restore(self) -> None:
        self._back_up()
        super()._restore()


@pytest.mark.parametrize("seed", range(4000, 4004))
def test_a_backup_after_which_nothing_was_committed_loses_nothing(seed: int) -> None:
    """Restored, it is the same catalogue as before: whether an epoch begins or not, everything goes on, and nothing is missing."""
    report = simulate(any_scene(seed), LastMoment)
    assert not report.violations, report.summary
    assert any("the epoch is reconciled" in line for line in report.lines)


class Deaf(Admin):
    """Takes nothing back from the nodes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        reconciling: Any = self.reconciling
        take = reconciling.take

        async def deaf(node: str, handed: m.HandIn) -> m.Done:
            done: m.Done = await take(node, attrs.evolve(handed, claims=()))
            return done

        reconciling.take = deaf


def test_without_what_nodes_hand_in_it_is_lost() -> None:
    """Where the nodes are not heard, acknowledged files are gone, and what was deleted or taken is there again."""
    found: set[str] = set()
    for seed in range(4000, 4000 + RUNS):
        report: Report = simulate(attrs.evolve(any_scene(seed), parts=Parts(admin=Deaf)), Restoration)
        violations: tuple[Violation, ...] = report.violations
        found |= {violation.guarantee for violation in violations}
        if {DURABLE, TAKEN} <= found:
            return
    pytest.fail(f"only {sorted(found)} was noticed")
