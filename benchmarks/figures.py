"""What a measurement is, what it must come to, and what many of them say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import StrEnum

import attrs

GIB = 1024**3
MIB = 1024**2


@attrs.frozen(kw_only=True)
class Sample:
    """One piece of work, done once."""

    seconds: float
    amount: float
    """Bytes, or requests."""
    cpu_s: float
    """Of all processes of the server."""
    p50_s: float | None = None
    """The time that half of the requests stayed below."""
    p99_s: float | None = None
    """The time that all but one in a hundred of the requests stayed below."""

    @property
    def rate(self) -> float:
        """Amount a second."""
        return self.amount / self.seconds


class Measure(StrEnum):
    """What a goal is about."""

    RATIO = "ratio"
    """Our rate, as a multiple of another server's in the same round."""
    RATE = "rate"
    """Requests a second."""
    P50 = "p50"
    """Milliseconds."""
    P99 = "p99"
    """Milliseconds."""
    CPU = "cpu"
    """Seconds of all the server's processes for each GiB."""
    PEAK = "peak"
    """Resident MiB at most, of the largest process."""


AT_LEAST = frozenset({Measure.RATIO, Measure.RATE})


@attrs.frozen(kw_only=True)
class Goal:
    """What a row must come to."""

    measure: Measure
    must: float
    aim: float
    against: str | None = None
    """For a ratio: to whom."""

    def reached(self, value: float) -> str:
        """In a word: `aim`, `must`, or `missed`."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if value >= bound if self.measure in AT_LEAST else value <= bound:
                return name
        return "missed"


@attrs.frozen(kw_only=True)
class Spread:
    """The middle of several values, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Spread:
    """Our rate to theirs, round by round: what a machine does to both in one round it does not do to their ratio."""
    return Spread.of([one.rate / other.rate for one, other in zip(ours, theirs, strict=True)])


def cpu_per_gib(samples: Sequence[Sample]) -> Spread:
    """CPU seconds for each GiB."""
    return Spread.of([sample.cpu_s / (sample.amount / GIB) for sample in samples])


def judge(goal: Goal, us: str, samples: dict[str, list[Sample]]) -> Spread | None:
    """The value that a goal is about; None when we did not do it, or the server to compare with was not there."""
    ours = samples.get(us)
    if ours is None:
        return None
    match goal.measure:
        case Measure.RATIO:
            theirs = samples.get(goal.against or "")
            return None if theirs is None else ratios(ours, theirs)
        case Measure.CPU:
            return cpu_per_gib(ours)
        case Measure.P50:
            return Spread.of([1000 * (sample.p50_s or 0.0) for sample in ours])
        case Measure.P99:
            return Spread.of([1000 * (sample.p99_s or 0.0) for sample in ours])
        case _:
            return Spread.of([sample.rate for sample in ours])
