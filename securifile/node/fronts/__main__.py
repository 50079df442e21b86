"""`python -m securifile.node.fronts`: a front, as a node process starts it."""

from __future__ import annotations

import sys

from securifile.node.fronts.service import run

if __name__ == "__main__":
    run(sys.argv[1:])
