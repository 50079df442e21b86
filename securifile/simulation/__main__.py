"""`python -m securifile.simulation`: what `securifile simulate` is."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from securifile.simulation.arguments import add_simulate
from securifile.simulation.command import NotPossible, run


def carry_out(options: argparse.Namespace) -> int:
    """Do it on this terminal; the exit code."""
    try:
        code = run(options, print, time.process_time)
        sys.stdout.flush()
        return code
    except NotPossible as problem:
        print(f"securifile simulate: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read our output wants no more of it; nor shall Python try to write the rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code."""
    parser = argparse.ArgumentParser(prog="securifile simulate")
    add_simulate(parser)
    return carry_out(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
