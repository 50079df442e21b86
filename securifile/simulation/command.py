"""`securifile simulate`: what was asked for, done and printed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import attrs

from securifile.admin import repair
from securifile.model.settings import ClusterSettings
from securifile.simulation.faults import CALM, Climate
from securifile.simulation.heartbeats import measure
from securifile.simulation.planning import NONE_SEEN_95, YEAR_S, Estimate, Forecast, Question, forecast
from securifile.simulation.run import Scene, simulate

Say = Callable[[str], None]
"""Takes a line of what is printed."""

CLIMATES: dict[str, Climate] = {
    "mixed": Climate(),
    "calm": CALM,
    "crashes": Climate(weights=(("crash", 1), ("power", 1), ("power-all", 1), ("admin-crash", 1))),
    "pauses": Climate(weights=(("stop", 3), ("admin-stop", 1), ("isolate", 1))),
    "network": Climate(weights=(("isolate", 1), ("cut", 1), ("one-way", 1), ("slow-link", 1), ("break", 2))),
    "database": Climate(weights=(("database-away", 1), ("lost-answers", 3), ("admin-crash", 1))),
    "disks": Climate(weights=(("slow-disk", 1), ("full-disk", 1), ("rot", 2), ("power", 2))),
}
"""What `--climate` means."""


class NotPossible(Exception):
    """The options do not go together; the text says why."""


def run(options: argparse.Namespace, say: Say, cpu: Callable[[], float]) -> int:
    """Do what was asked for; the exit code.

    Args:
        cpu: seconds of CPU that this process has used.

    Raises:
        NotPossible: before anything is done.
    """
    if options.simulation == "plan":
        say(report(forecast(question(options))))
        return 0
    if options.simulation == "heartbeats":
        return _heartbeats(options, say, cpu)
    return _runs(options, say)


def _runs(options: argparse.Namespace, say: Say) -> int:
    if options.replicas is not None and options.replicas >= options.nodes:
        raise NotPossible(f"{options.replicas} replicas and an origin need {options.replicas + 1} nodes, not {options.nodes}")
    broken = 0
    for seed in range(options.seed, options.seed + options.runs):
        found = simulate(
            Scene(
                seed=seed,
                nodes=options.nodes,
                admins=options.admins,
                replicas=options.replicas,
                people=options.people,
                seconds=options.hours * 3600.0,
                climate=CLIMATES[options.climate],
            )
        )
        if not options.summary:
            for line in found.lines:
                say(line)
        say(found.summary)
        broken += bool(found.violations)
    if options.runs > 1:
        say(f"{options.runs} runs, {broken} of them broke a guarantee")
    return 1 if broken else 0


def _heartbeats(options: argparse.Namespace, say: Say, cpu: Callable[[], float]) -> int:
    say("nodes  heartbeats/s  messages/s     bytes/s  CPU of one  of a core")
    for nodes in options.nodes:
        cost = measure(nodes, seed=options.seed, seconds=options.seconds, cpu=cpu)
        say(
            f"{cost.nodes:5}  {cost.heartbeats_s:12.0f}  {cost.messages_s:10.1f}  {cost.bytes_s:10.0f}"
            f"  {cost.cpu_us:7.0f} us  {cost.core:9.2%}"
        )
    say("for each node: heartbeats it sends, and as many it answers; messages and bytes it sends; see `securifile simulate heartbeats -h`")
    return 0


# --- plans ---


def question(options: argparse.Namespace) -> Question:
    """What the options ask. Raises `NotPossible`."""
    usual = ClusterSettings()
    try:
        return Question(
            seed=options.seed,
            nodes=options.nodes,
            settings=attrs.evolve(
                usual,
                replicas=min(usual.replicas, options.nodes - 1) if options.replicas is None else options.replicas,
                write_copies=options.write_copies,
                repair_after_s=usual.repair_after_s if options.grace is None else options.grace,
                repair_bytes_s=usual.repair_bytes_s if options.repair_rate is None else options.repair_rate,
            ),
            years=options.years,
            groups=max(100, 5 * options.nodes) if options.groups is None else options.groups,
            stored_bytes=options.stored,
            capacity_bytes=options.capacity,
            file_bytes=options.file_size,
            disk_every_s=options.disk_every,
            replaced_in_s=options.replaced_in,
            outage_every_s=options.outage_every,
            outage_s=options.outage,
            rack_nodes=options.rack_size,
            rack_every_s=options.rack_every,
            rack_outage_s=options.rack_outage,
            rack_kills=options.rack_kills,
            read_bytes_s=options.read_rate,
            coming_max=repair.AtOnce().copies,
            round_s=repair.ROUND_S,
        )
    except ValueError as error:
        raise NotPossible(str(error)) from error


def report(found: Forecast) -> str:
    """A forecast in words."""
    asked = found.question
    settings, years = asked.settings, asked.years
    lines = [
        f"{asked.nodes} nodes, r = {settings.replicas}, {_count(asked.files)} files of {_size(asked.file_bytes)},"
        f" {_size(asked.stored_bytes)} on each node; {years:g} years simulated with seed {asked.seed}",
        f"a node that returns is verified for {_time(asked.verified_in_s)};"
        f" copies that are lost are made anew after {_time(settings.repair_after_s)}",
        "",
        f"a file can be read       {_available(found.unreadable, found.outages + found.disks)}",
        f"a file can be modified   {_available(found.unwritable, found.outages + found.disks)}",
        f"files lost in a year     {_lost(found)}",
        "",
        f"in a year: {found.outages / years:.4g} outages of nodes, {found.disks / years:.4g} disks die,"
        f" {found.racks / years:.4g} outages of racks",
        f"copies destroyed in a year: {_count(found.copies_destroyed * asked.group_bytes / asked.file_bytes / years)};"
        f" made by repair: {_count(found.copies_made * asked.group_bytes / asked.file_bytes / years)}"
        f" ({_size(found.copies_made * asked.group_bytes / years)})",
    ]
    if found.restored_s:
        mean_s = sum(found.restored_s) / len(found.restored_s)
        lines.append(f"a destroyed copy is made anew within {_time(mean_s)} on average, {_time(max(found.restored_s))} at most")
    if asked.outage_s > settings.repair_after_s and math.isfinite(asked.outage_every_s):
        lines.append("an outage of the usual length takes longer than the grace time: repair begins to copy what is about to return")
    return "\n".join(lines)


def _available(missing: Estimate, trouble: int) -> str:
    if not missing.most:
        return f"100 % of the time, in spite of {trouble} failures"
    return (
        f"{100 * (1 - missing.value):.9f} % of the time ({100 * (1 - missing.most):.9f} to {100 * (1 - missing.least):.9f} %):"
        f" not for {_time(missing.value * YEAR_S)} a year"
    )


def _lost(found: Forecast) -> str:
    years = found.question.years
    if not found.incidents:
        return f"none; with 95 % confidence something is lost less often than every {years / NONE_SEEN_95:.3g} years"
    files = found.question.files
    return (
        f"{_count(found.lost.value * files)} of {_count(files)} ({_count(found.lost.least * files)} to {_count(found.lost.most * files)}),"
        f" in {found.incidents} incidents, one every {years / found.incidents:.3g} years"
    )


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} PiB"


def _time(seconds: float) -> str:
    for unit, length_s in (("years", YEAR_S), ("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"
