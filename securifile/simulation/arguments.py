"""What may be said to `securifile simulate`: one run of a simulated cluster, many of them, what heartbeats cost, or a plan for years."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

PEOPLE_MAX = 8
"""The people of a run have names."""

NODES_MAX = 1000
"""Heartbeats grow with the square of the nodes; a run of more would not end."""

CLIMATES = ("mixed", "calm", "crashes", "pauses", "network", "database", "disks")
"""Which faults there are; `simulation/command.py` says what they mean."""

RUN = """\
Runs the real node and admin servers of a whole cluster in this one process, on a virtual clock, network and disk, under faults and with
people who read, write and share; prints what happened and then judges whether a guarantee was broken. Everything random follows
from the seed: the same command prints the same bytes. The exit code is 1 when a guarantee was broken.

    securifile simulate --seed 7 --nodes 5 --hours 0.1
    securifile simulate --seed 1 --runs 100 --climate network --summary
    securifile simulate heartbeats --nodes 10,50
    securifile simulate plan --nodes 100 --years 100 --disk-every 10y
"""

HEARTBEATS = """\
Lets idle clusters of several sizes run in simulation and prints what heartbeats cost each node: messages and bytes are counted and
always the same, CPU time is measured on this machine. It is that of the servers' logic and of the simulated network; TLS and the kernel
are not in it.
"""

PLAN = """\
Forecasts what a cluster can promise over many years, by the rules by which it decides about copies. Machines fail at random times, from
one seed: an outage ends with the node's return and verification; when a disk dies, all that the node had is gone, an empty node takes its
place later, and the others have copied by then what their budgets allow. Times are means, of exponential distributions.

A size is written 500M or 10G (powers of 1024), a time 90s, 15m, 12h, 30d or 10y, or never.

    securifile simulate plan --nodes 5 --stored 500G --disk-every 5y --replaced-in 3d
    securifile simulate plan --nodes 100 --years 100 --rack-size 10 --rack-every 2y --rack-kills 0.01
"""

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d|y)")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGTP]?)i?B?", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "y": 365.25 * 86400.0}


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A parser of integers within bounds; it raises `ArgumentTypeError`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{value} is not {bounds}")
        return value

    return parse


def several(text: str) -> list[int]:
    """Numbers of nodes, with commas between them. Raises `ArgumentTypeError`."""
    return [whole(2, NODES_MAX)(part) for part in text.split(",")]


def positive(text: str) -> float:
    """A number above 0. Raises `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def part(text: str) -> float:
    """A number from 0 to 1. Raises `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def seconds(text: str) -> float:
    """A time in seconds; infinity for `never`. Raises `ArgumentTypeError`."""
    if text == "never":
        return math.inf
    matched = _TIME.fullmatch(text)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write for instance 90s, 15m, 12h, 30d, 10y or never")
    return float(matched[1]) * _SECONDS[matched[2]]


def mean(text: str) -> float:
    """A mean time between events: longer than nothing. Raises `ArgumentTypeError`."""
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("what happens all the time leaves none to forecast; write a time above 0")
    return value


def finite(text: str) -> float:
    """A time that ends. Raises `ArgumentTypeError`."""
    value = seconds(text)
    if value == math.inf:
        raise argparse.ArgumentTypeError("this has to end; write for instance 90s, 15m, 12h, 30d or 10y")
    return value


def size(text: str) -> float:
    """A number of bytes above 0. Raises `ArgumentTypeError`."""
    matched = _SIZE.fullmatch(text)
    value = float(matched[1]) * 1024.0 ** " KMGTP".index(matched[2].upper() or " ") if matched is not None else 0.0
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no size above 0; write for instance 4M or 10G")
    return value


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """The options of `simulate` and of its two subcommands; `simulation` says which was chosen."""
    parser.description = RUN
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(simulation="run")
    add = parser.add_argument
    add("--seed", type=whole(0), default=1, metavar="N", help="everything random follows from it (default: 1)")
    add("--runs", type=whole(1), default=1, metavar="N", help="so many runs, with seeds from --seed on (default: 1)")
    add("--nodes", type=whole(1, NODES_MAX), default=5, metavar="N", help="storage nodes (default: 5)")
    add("--admins", type=whole(1, 9), default=1, metavar="N", help="admin servers on one database (default: 1)")
    add("--replicas", type=whole(0), default=None, metavar="R", help="copies beside the origin's (default: 2, or one less than nodes)")
    add("--people", type=whole(2, PEOPLE_MAX), default=3, metavar="N", help=f"from 2 to {PEOPLE_MAX} (default: 3)")
    add("--hours", type=positive, default=30 / 3600, metavar="H", help="virtual hours of faults (default: half a minute)")
    add("--climate", choices=CLIMATES, default=CLIMATES[0], help="which faults there are (default: mixed)")
    add("--summary", action="store_true", help="print the summary of each run only, not its history")
    kinds = parser.add_subparsers(dest="simulation_kind", metavar="heartbeats|plan", title="other simulations")
    beats = kinds.add_parser(
        "heartbeats",
        help="what heartbeats cost in clusters of several sizes",
        description=HEARTBEATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    beats.set_defaults(simulation="heartbeats")
    beats.add_argument("--nodes", type=several, default=[10, 50], metavar="N,N", help="sizes of the clusters (default: 10,50)")
    beats.add_argument("--seconds", type=positive, default=5.0, metavar="S", help="virtual seconds that are measured (default: 5)")
    beats.add_argument("--seed", type=whole(0), default=1, metavar="N", help="of the network's delays (default: 1)")
    planning = kinds.add_parser(
        "plan",
        help="availability and losses over many years, given how often machines fail",
        description=PLAN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    planning.set_defaults(simulation="plan")
    _add_plan(planning)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("the cluster").add_argument
    cluster("--nodes", type=whole(1, NODES_MAX), default=5, metavar="N", help="storage nodes (default: 5)")
    cluster("--replicas", type=whole(0), default=None, metavar="R", help="copies beside the origin's (default: 2, or one less than nodes)")
    cluster("--write-copies", type=whole(1), default=None, metavar="N", help="durable copies that a write needs (default: more than half)")
    cluster("--stored", type=size, default=100 * 1024.0**3, metavar="SIZE", help="on each node, on average (default: 100G)")
    cluster("--capacity", type=size, default=math.inf, metavar="SIZE", help="of each node (default: enough)")
    cluster("--file-size", type=size, default=4 * 1024.0**2, metavar="SIZE", help="of a file, on average (default: 4M)")
    cluster("--grace", type=finite, default=None, metavar="TIME", help="until lost copies are made anew (setting repair_after_s; 10m)")
    cluster("--repair-rate", type=size, default=None, metavar="SIZE", help="a second and node (setting repair_bytes_s; 32M)")
    cluster("--read-rate", type=size, default=200 * 1024.0**2, metavar="SIZE", help="a second, to verify a node's disk (default: 200M)")
    fails = parser.add_argument_group("what befalls it").add_argument
    fails("--disk-every", type=mean, default=10 * _SECONDS["y"], metavar="TIME", help="between losses of one node's disk (default: 10y)")
    fails("--replaced-in", type=finite, default=_SECONDS["d"], metavar="TIME", help="until an empty node takes its place (default: 1d)")
    fails("--outage-every", type=mean, default=90 * _SECONDS["d"], metavar="TIME", help="between outages of one node (default: 90d)")
    fails("--outage", type=finite, default=300.0, metavar="TIME", help="how long one lasts, without the verification (default: 5m)")
    fails("--rack-size", type=whole(1), default=1, metavar="N", help="nodes with a common power supply or switch (default: 1)")
    fails("--rack-every", type=mean, default=math.inf, metavar="TIME", help="between outages of one rack (default: never)")
    fails("--rack-outage", type=finite, default=_SECONDS["h"], metavar="TIME", help="how long one lasts (default: 1h)")
    fails("--rack-kills", type=part, default=0.0, metavar="P", help="part of its nodes whose disks do not survive it (default: 0)")
    how = parser.add_argument_group("the simulation").add_argument
    how("--years", type=positive, default=100.0, metavar="Y", help="simulated (default: 100)")
    how(
        "--groups",
        type=whole(1),
        default=None,
        metavar="N",
        help="groups of files that share their nodes (default: 5 a node, at least 100)",
    )
    how("--seed", type=whole(0), default=1, metavar="N", help="everything random follows from it (default: 1)")
