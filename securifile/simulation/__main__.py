"""`python -m securifile.simulation --seed 7 --nodes 5 --hours 0.1`: one run, its history and its summary.

The status is 1 when a guarantee is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from securifile.simulation.faults import CALM, Climate
from securifile.simulation.run import Scene, simulate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a run can be told."""
    parser.add_argument("--seed", type=int, default=1, help="everything random follows from it (default: 1)")
    parser.add_argument("--runs", type=int, default=1, help="so many runs, with seeds from --seed on (default: 1)")
    parser.add_argument("--nodes", type=int, default=5, help="storage nodes (default: 5)")
    parser.add_argument("--admins", type=int, default=1, help="admin servers on one database (default: 1)")
    parser.add_argument("--replicas", type=int, default=None, help="r (default: the cluster's setting)")
    parser.add_argument("--people", type=int, default=3, help="people, at most 8 (default: 3)")
    parser.add_argument("--hours", type=float, default=30 / 3600, help="virtual hours of faults (default: half a minute)")
    parser.add_argument("--calm", action="store_true", help="no faults")
    parser.add_argument("--summary", action="store_true", help="print no history")


def run(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Do it; the exit status.

    Args:
        say: takes a line of what is printed.
    """
    broken = 0
    for seed in range(options.seed, options.seed + options.runs):
        report = simulate(
            Scene(
                seed=seed,
                nodes=options.nodes,
                admins=options.admins,
                replicas=options.replicas,
                people=options.people,
                seconds=options.hours * 3600.0,
                climate=CALM if options.calm else Climate(),
            )
        )
        if not options.summary:
            for line in report.lines:
                say(line)
        say(report.summary)
        broken += bool(report.violations)
    return 1 if broken else 0


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="securifile.simulation", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments), print)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
