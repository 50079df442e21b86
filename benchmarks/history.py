"""What was measured when, on what: a line of JSON for each run, outside git. What is worth telling others goes to `docs/performance.md`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = next((int(line.split()[1]) // 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), 0)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_mib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("twisted", "pyopenssl", "cryptography")},
    }


def commit() -> str:
    """What is measured: the commit, with a plus when the checkout differs from it."""
    ran = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"


def append(path: Path, began: float, rows: Sequence[dict[str, object]], **more: object) -> None:
    """Add a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"at": round(began), "commit": commit(), "machine": machine(), **more, "rows": list(rows)}) + "\n")


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
