"""Runs of a simulated cluster: the same seed is the same run, and no guarantee is broken; where one's code is taken out, a run notices."""

from __future__ import annotations

import os
import subprocess
import sys

import attrs
import pytest

from securifile.model.settings import ClusterSettings
from securifile.simulation.cluster import Parts
from securifile.simulation.faults import CALM, Climate
from securifile.simulation.history import Kind
from securifile.simulation.run import Report, Run, Scene, simulate, wishes_done
from securifile.simulation.scenes import any_scene
from tests.simulation.mutants import CONTENTION, MUTANTS, Careless, Unlocked

RUNS = int(os.environ.get("SECURIFILE_SIMULATED_RUNS", "30"))
"""How many seeds; the long run sets more."""

FIRST = int(os.environ.get("SECURIFILE_SIMULATED_FIRST", "1000"))
"""The first seed of any scene."""

ONLY: dict[str, Climate] = {
    "crashes": Climate(weights=(("crash", 1), ("power", 1), ("power-all", 1), ("admin-crash", 1))),
    "pauses": Climate(weights=(("stop", 3), ("admin-stop", 1), ("isolate", 1))),
    "network": Climate(weights=(("isolate", 1), ("cut", 1), ("one-way", 1), ("slow-link", 1), ("break", 2))),
    "database": Climate(weights=(("database-away", 1), ("lost-answers", 3), ("admin-crash", 1))),
}
"""Weather of one kind."""


def check(report: Report) -> None:
    assert not report.violations, f"{report.scene}\n{report.summary}"


def test_without_faults_people_get_what_they_want() -> None:
    """In calm weather nothing is unknown, and many wishes of each kind are granted."""
    report = simulate(Scene(seed=1, climate=CALM, seconds=60))
    check(report)
    assert not any(one.outcome == "unknown" for one in report.operations)
    for kind in (Kind.READ, Kind.WRITE, Kind.DELETE, Kind.MOVE, Kind.GRANT, Kind.REVOKE):
        assert wishes_done(report, kind) > 2, report.summary


@pytest.mark.parametrize("seed", range(RUNS))
def test_three_nodes_in_any_weather(seed: int) -> None:
    """No guarantee is broken by any faults."""
    check(simulate(Scene(seed=seed, climate=Climate(), seconds=10)))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 4 * RUNS))
def test_any_scene(seed: int) -> None:
    """Nor in larger clusters, whatever the weather, the settings and the people are."""
    check(simulate(any_scene(seed)))


@pytest.mark.parametrize("seed", range(2000, 2005))
def test_writers_of_the_same_files(seed: int) -> None:
    """Nor when all write the same files, and servers are stopped for longer than their leases last."""
    check(simulate(attrs.evolve(CONTENTION, seed=seed)))


@pytest.mark.parametrize("seed", range(2000, 2003))
def test_the_compare_and_swap_is_enough(seed: int) -> None:
    """Locks are for early refusal: without them, too, no two writers win."""
    check(simulate(attrs.evolve(CONTENTION, seed=seed, parts=Parts(node=Unlocked))))


@pytest.mark.parametrize("kind", sorted(ONLY))
@pytest.mark.parametrize("seed", range(3000, 3003))
def test_weather_of_one_kind(kind: str, seed: int) -> None:
    """Nor by many faults of one kind."""
    check(simulate(Scene(seed=seed, climate=attrs.evolve(ONLY[kind], pause_s=2.0), seconds=20)))


# --- determinism ---


def test_a_seed_is_a_run() -> None:
    """The same seed gives the same history, byte for byte; another seed another one."""
    first, second, other = (simulate(Scene(seed=seed, climate=Climate(), seconds=15)) for seed in (5, 5, 6))
    assert first.lines == second.lines
    assert first.lines != other.lines


def test_a_run_does_not_depend_on_the_process() -> None:
    """The printed run is the same in other processes, whatever order their sets of strings have."""
    command = [sys.executable, "-m", "securifile.simulation", "--seed", "4", "--nodes", "4", "--hours", "0.004"]
    runs = [
        subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed}, timeout=120)
        for seed in ("1", "2")
    ]
    assert b"violations:" in runs[0].stdout, runs[0].stderr.decode()
    assert runs[0].stdout == runs[1].stdout, runs[1].stderr.decode()


# --- a guarantee's code is taken out ---


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_what_is_taken_out_is_missed(name: str) -> None:
    """Without it, some run of the size that is tested always breaks a guarantee."""
    found = None
    for seed in range(RUNS):
        report = simulate(attrs.evolve(MUTANTS[name], seed=seed))
        found = next((violation for violation in report.violations if violation.guarantee != "no surprises"), None)
        if found is not None:
            break
    assert found is not None, "no run noticed"


def overslept(parts: Parts) -> Report:
    """A writer's node is stopped for longer than its lease lasts, another one writes, then the first goes on."""
    # So many heartbeats may be missed that nobody is held for down.
    run = Run(Scene(seed=0, people=1, devices=2, parts=parts, settings=ClusterSettings(lease_s=1.0, heartbeats_missed_max=12)))
    run.begin()
    cluster, (first, second) = run.cluster, run.people
    origin = cluster.wait(first.write("ann/one", "n1", 100)).answered_by
    run.start(lambda: first.write("ann/one", origin, 200_000))
    cluster.run(0.05)
    cluster.pause(origin)
    cluster.run(2.0)
    other = next(name for name in cluster.nodes if name != origin)
    run.start(lambda: second.write("ann/one", other, 100))
    cluster.run(3.0)
    cluster.resume(origin)
    cluster.run(10.0)
    return run.finish()


def test_the_compare_and_swap_fences_who_overslept() -> None:
    """The lease of the first ran out, so that the second gets it; only the compare-and-swap refuses the first, and it is missed."""
    whole, careless = overslept(Parts()), overslept(Parts(catalogue=Careless))
    check(whole)
    assert refusals(whole, "conflict") == 1 and wishes_done(whole, Kind.WRITE) == 2
    assert any(violation.guarantee == "one content a version" for violation in careless.violations), careless.summary


def test_locks_refuse_early() -> None:
    """With them nobody's upload is refused after its body was taken; without them many are."""
    calm = attrs.evolve(CONTENTION, climate=CALM, seconds=10)
    locked, unlocked = simulate(calm), simulate(attrs.evolve(calm, parts=Parts(node=Unlocked)))
    check(locked)
    check(unlocked)
    assert late_conflicts(locked) == 0 and refusals(locked, "locked") > 10
    assert late_conflicts(unlocked) > 5 and refusals(unlocked, "locked") == 0


def refusals(report: Report, code: str) -> int:
    return sum(one.kind is Kind.WRITE and one.code == code for one in report.operations)


def late_conflicts(report: Report) -> int:
    """Conflicts but for those that a server finds in the ticket of a redirect, before the body: somebody wrote while it was followed."""
    early = sum("since the redirect" in (one.detail or "") for one in report.operations if one.kind is Kind.WRITE)
    return refusals(report, "conflict") - early
