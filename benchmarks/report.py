"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from benchmarks.cluster import US
from benchmarks.figures import MIB, Goal, Measure, Sample, Spread, cpu_per_gib, judge


@attrs.frozen(kw_only=True)
class Result:
    """A row, measured."""

    name: str
    title: str
    unit: str
    goals: tuple[Goal, ...]
    samples: dict[str, list[Sample]]
    """By server, round by round."""


def lines(result: Result) -> Sequence[str]:
    """A row of the table: a line for each server, and one for each goal."""
    shown = [f"{result.title}  [{result.name}]"]
    for server, samples in result.samples.items():
        shown.append(f"    {server:<12}{_rate(result.unit, samples)}  {_cost(result.unit, samples)}")
    for goal in result.goals:
        value = judge(goal, US, result.samples)
        wanted = f"must {goal.must:g}, aim {goal.aim:g}"
        if value is None:
            missing = goal.against if US in result.samples else US
            shown.append(f"    {_about(goal):<28}not measured: {missing} was not there ({wanted})")
        else:
            shown.append(f"    {_about(goal):<28}{_spread(value)}  {wanted}: {goal.reached(value.median)}")
    return shown


def figures(result: Result) -> dict[str, object]:
    """The same for the history."""
    goals = []
    for goal in result.goals:
        value = judge(goal, US, result.samples)
        if value is not None:
            goals.append({"about": _about(goal), **attrs.asdict(value), "must": goal.must, "aim": goal.aim})
    servers = {
        server: {"rate": attrs.asdict(Spread.of([sample.rate for sample in samples])), "cpu_s": [sample.cpu_s for sample in samples]}
        for server, samples in result.samples.items()
    }
    return {"row": result.name, "unit": result.unit, "servers": servers, "goals": goals}


def _about(goal: Goal) -> str:
    match goal.measure:
        case Measure.RATIO:
            return f"× {goal.against}"
        case Measure.RATE:
            return "requests a second"
        case Measure.P50:
            return "half of them within, ms"
        case Measure.P99:
            return "99 of 100 within, ms"
        case Measure.CPU:
            return "CPU seconds for a GiB"
        case Measure.PEAK:
            return "MiB resident at most"


def _rate(unit: str, samples: Sequence[Sample]) -> str:
    scale = MIB if unit == "MiB/s" else 1
    return f"{_spread(Spread.of([sample.rate / scale for sample in samples]))} {unit:<6}"


def _cost(unit: str, samples: Sequence[Sample]) -> str:
    if unit == "MiB/s":
        return f"{cpu_per_gib(samples).median:.2f} CPU s for a GiB"
    micros = Spread.of([1e6 * sample.cpu_s / sample.amount for sample in samples]).median
    late = Spread.of([1000 * (sample.p99_s or 0) for sample in samples]).median
    return f"{micros:.0f} CPU µs each, 99 of 100 within {late:.1f} ms"


def _spread(value: Spread) -> str:
    digits = 0 if value.median >= 100 else 2
    return f"{value.median:8.{digits}f} ({value.least:.{digits}f} to {value.most:.{digits}f})"
