"""What many samples say together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.figures import GIB, MIB, Goal, Measure, Sample, Spread, cpu_per_gib, judge, ratios
from benchmarks.processes import cpu_seconds, forget_peaks, peak_bytes, tree
from benchmarks.report import Result, figures, lines


def sample(seconds: float, amount: float = GIB, cpu_s: float = 1.0, p99_s: float | None = None) -> Sample:
    return Sample(seconds=seconds, amount=amount, cpu_s=cpu_s, p99_s=p99_s)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that is slow in one round is slow for both: the ratio of that round is as good as the others."""
    assert ratios([sample(1), sample(10), sample(2)], [sample(2), sample(20), sample(4)]) == Spread(median=2, least=2, most=2)


def test_the_middle_counts_and_the_ends_are_told() -> None:
    """One round in which something else went on moves the spread, not the median."""
    assert Spread.of([1.0, 9.0, 2.0]) == Spread(median=2, least=1, most=9)


def test_cpu_time_is_told_for_a_gib() -> None:
    """Whatever the size of the sample."""
    assert cpu_per_gib([sample(1, amount=256 * MIB, cpu_s=0.5)]).median == 2


@pytest.mark.parametrize(
    ("measure", "must", "aim", "value", "word"),
    [
        (Measure.RATIO, 0.85, 1.0, 1.01, "aim"),
        (Measure.RATIO, 0.85, 1.0, 0.9, "must"),
        (Measure.RATIO, 0.85, 1.0, 0.84, "missed"),
        (Measure.CPU, 1.0, 0.6, 0.6, "aim"),
        (Measure.CPU, 1.0, 0.6, 0.7, "must"),
        (Measure.P99, 20, 10, 21, "missed"),
    ],
)
def test_a_goal_is_reached_from_its_side(measure: Measure, must: float, aim: float, value: float, word: str) -> None:
    """Rates and ratios must be at least so much, costs and delays at most."""
    assert Goal(measure=measure, must=must, aim=aim).reached(value) == word


def test_a_goal_against_who_was_not_there_is_not_judged() -> None:
    """Neither reached nor missed; the table says so."""
    goal = Goal(measure=Measure.RATIO, against="Swift", must=1.5, aim=2.5)
    samples = {"SecuriFile": [sample(1)]}
    assert judge(goal, "SecuriFile", samples) is None
    result = Result(name="put", title="PUT", unit="MiB/s", goals=(goal,), samples=samples)
    assert any("not measured: Swift was not there" in line for line in lines(result))
    assert figures(result)["goals"] == []


def test_the_table_says_what_was_reached() -> None:
    """A line for each server, and one for each goal with its verdict."""
    goals = (Goal(measure=Measure.RATE, must=2500, aim=5000), Goal(measure=Measure.P99, must=20, aim=20))
    result = Result(name="get-small", title="GET of 4 KiB", unit="/s", goals=goals, samples={"SecuriFile": [sample(1, 3000, 0.6, 0.015)]})
    shown = "\n".join(lines(result))
    assert "3000 (3000 to 3000) /s" in shown
    assert "200 CPU µs each" in shown
    assert "must 2500, aim 5000: must" in shown
    assert "must 20, aim 20: aim" in shown


def test_the_time_of_a_tree_counts_its_children() -> None:
    """Those that live, and those that have ended and were waited for."""
    busy = "sum(range(3_000_000))"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in tree([os.getpid()])
        assert cpu_seconds([process.pid]) > 0.02
        process.stdin.close()


def test_a_peak_can_be_forgotten() -> None:
    """What was resident once and is not any more does not count for the next work."""
    block = bytearray(64 * MIB)
    before = peak_bytes(os.getpid())
    del block
    forget_peaks([os.getpid()])
    assert peak_bytes(os.getpid()) < before


def test_a_row_that_we_did_not_do_is_told_all_the_same() -> None:
    """The others' figures stand, and no goal is judged by them."""
    goal = Goal(measure=Measure.RATE, must=2500, aim=5000)
    result = Result(name="get-small", title="GET of 4 KiB", unit="/s", goals=(goal,), samples={"nginx": [sample(1, 3000, 0.6, 0.015)]})
    shown = "\n".join(lines(result))
    assert "nginx" in shown
    assert "not measured: SecuriFile was not there" in shown
    assert figures(result)["goals"] == []
