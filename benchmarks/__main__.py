"""`python -m benchmarks`: measure, print, keep."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import history
from benchmarks.clients import ClientFailed
from benchmarks.cluster import US, SecuriFile
from benchmarks.figures import Goal, Measure, Sample
from benchmarks.memory import peaks
from benchmarks.nginx import Nginx
from benchmarks.plot import plot
from benchmarks.report import Result, figures, lines
from benchmarks.returning import OneThread
from benchmarks.rows import NGINX, ONE_THREAD, SWIFT, Row, rows
from benchmarks.scale import COUNTS, COUNTS_QUICK, Cost, Scale, table
from benchmarks.swift import Swift
from benchmarks.targets import CannotMeasure, Target
from benchmarks.work import FULL, QUICK, Files

OTHERS: dict[str, Callable[[Path], Target]] = {NGINX: Nginx, SWIFT: Swift, ONE_THREAD: OneThread}
MEMORY = "memory"
SCALE = "scale"
"""Only when it is named: it fills a catalogue with a million files."""
BEFORE = "before"
"""The name of a second cluster of ours, which runs the code of another checkout."""


def main(arguments: Sequence[str]) -> int:
    """Run it; the status for the shell."""
    options = _options(arguments)
    # So that being told to end is an end like any other, with every server stopped.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    began = time.time()
    sizes = QUICK if options.quick else FULL
    rounds = options.rounds or (3 if options.quick else 5)
    folder = Path(tempfile.mkdtemp(prefix="securifile-bench-", dir=options.folder))
    # PostgreSQL has a user of its own when root starts it, and must get through.
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        files = Files(folder / "files")
        wanted = [row for row in rows(sizes, files) if not options.rows or row.name in options.rows]
        targets: dict[str, Any] = {}
        for name in sorted({name for row in wanted for name in row.others} - set(options.without), reverse=True):
            try:
                targets[name] = OTHERS[name](folder / name)
            except CannotMeasure as problem:
                _say(f"{name} is not measured: {problem}")
            else:
                stack.callback(targets[name].stop)
        if options.before:
            targets[BEFORE] = SecuriFile(folder / BEFORE, BEFORE, options.before)
            stack.callback(targets[BEFORE].stop)
        if SCALE in options.rows:
            us = SecuriFile(folder / SCALE, checkout=options.now)
            stack.callback(us.stop)
            costs = _scale(us, files, COUNTS_QUICK if options.quick else COUNTS, options.plot)
            history.append(options.history, began, [attrs.asdict(cost) for cost in costs], quick=options.quick)
            return 0
        us = targets[US] = SecuriFile(folder / "cluster", checkout=options.now, https_processes=options.https_processes)
        stack.callback(us.stop)
        kept = []
        replicas, failed = 0, 0
        for row in wanted:
            if row.replicas != replicas:
                for target in targets.values():
                    if isinstance(target, SecuriFile):
                        target.set_replicas(row.replicas)
                replicas = row.replicas
            result = measure(row, targets, rounds)
            _say(*lines(result), "")
            kept.append(figures(result))
            failed += US not in result.samples
        if not options.rows or MEMORY in options.rows:
            us.clear()
            us.set_replicas(2)
            try:
                for line, figure in peaks(us, files, sizes):
                    _say(line)
                    kept.append(figure)
            except ClientFailed as problem:
                failed += 1
                _say(f"the memory of a node was not measured to the end: {problem}")
        history.append(options.history, began, kept, quick=options.quick, rounds=rounds)
        _say(f"kept in {options.history}; {time.time() - began:.0f} s")
    return 1 if failed else 0


def _scale(us: SecuriFile, files: Files, counts: Sequence[int], to: Path | None) -> list[Cost]:
    """Measure at each of these sizes; the table, and the plot if it is wanted."""
    scale = Scale(us, files)
    costs: list[Cost] = []
    for count in counts:
        for cost in scale.at(count):
            _say(f"{cost.files:>9,} files  {cost.millis:9.3f} ms  {cost.operation}")
            costs.append(cost)
    _say("", *table(costs))
    if to is not None:
        lines_ = {one.operation: {cost.files: cost.millis for cost in costs if cost.operation == one.operation} for one in costs}
        to.write_text(plot(lines_, "files in the catalogue and in the index", "milliseconds"), encoding="utf-8")
    return costs


def measure(row: Row, targets: dict[str, Any], rounds: int) -> Result:
    """Each server once a round, in turn, so that what happens to the machine happens to all; another one begins each round, since a machine
    may become slower within one.

    Who fails is out of this row, not of the next.
    """
    doing = {name: targets[name] for name in (*row.others, BEFORE, US) if name in targets}
    samples: dict[str, list[Sample]] = {name: [] for name in doing}
    for name, target in doing.items():
        with _counted_out(samples, name, row):
            row.work.prepare(target)
    for number in range(rounds):
        for name in in_turn(list(samples), number):
            os.sync()
            with _counted_out(samples, name, row):
                samples[name].append(row.work.run(doing[name], number))
    for name, target in doing.items():
        # What was measured stands.
        with _counted_out({}, name, row):
            target.clear()
    goals = row.goals
    if BEFORE in targets:
        goals += (Goal(measure=Measure.RATIO, against=BEFORE, must=1.0, aim=1.1),)
    return Result(name=row.name, title=row.title, unit=row.unit, goals=goals, samples=samples)


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The same ones, in the order of round `number`."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


@contextlib.contextmanager
def _counted_out(samples: dict[str, list[Sample]], name: str, row: Row) -> Iterator[None]:
    """Whatever goes wrong with one server in one row, the others' figures are good, and the next rows may be."""
    try:
        yield
    except Exception as problem:
        samples.pop(name, None)
        _say(f"{name} does not do {row.name}: {type(problem).__name__}: {problem}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure SecuriFile against what is found on this machine.")
    parser.add_argument(
        "rows", nargs="*", help="names of rows, in square brackets in the table, memory or scale; all but scale when none is named"
    )
    parser.add_argument("--quick", action="store_true", help="smaller and shorter, for a change under way")
    parser.add_argument("--rounds", type=int, help="how often each server does each row")
    parser.add_argument("--without", nargs="*", default=[], metavar="SERVER", help="leave one out")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure this checkout's servers as well, beside those of --now")
    parser.add_argument("--now", type=Path, metavar="CHECKOUT", help="whose servers are measured; this checkout's if not said")
    parser.add_argument(
        "--https-processes", type=int, metavar="N", help="how many each of our nodes has for people; its default if not said"
    )
    parser.add_argument("--plot", type=Path, metavar="SVG", help="where to draw what the row scale has found")
    parser.add_argument("--folder", type=Path, help="where the servers keep their data meanwhile: on the disk that is to be measured")
    parser.add_argument("--history", type=Path, default=Path("bench-data/history.jsonl"), help="where to add a line for this run")
    return parser.parse_args(arguments)


def _say(*shown: str) -> None:
    print(*shown, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
