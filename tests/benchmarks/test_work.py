"""What the clients are told to do, on a server that answers at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.clients import ClientFailed
from benchmarks.nginx import Nginx
from benchmarks.returning import verified
from benchmarks.rows import rows
from benchmarks.targets import CannotMeasure
from benchmarks.work import QUICK, Download, Files, Upload


def test_every_row_has_a_goal_and_a_name_of_its_own(tmp_path: Path) -> None:
    """The table of the issue, each line once."""
    table = rows(QUICK, Files(tmp_path))
    assert len({row.name for row in table}) == len(table)
    assert all(row.goals for row in table)
    # Files from the rows without replicas would be given some, and be in the way.
    assert [row.replicas for row in table] == sorted(row.replicas for row in table)


@pytest.mark.processes
def test_what_goes_up_comes_down(tmp_path: Path) -> None:
    """Sizes are checked: a server that gives something else is not measured but found out."""
    if not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")) or not shutil.which("curl"):
        pytest.skip("nginx or curl is not installed")
    files = Files(tmp_path / "files")
    try:
        nginx = Nginx(tmp_path / "nginx")
    except CannotMeasure as problem:
        pytest.skip(str(problem))
    try:
        down, up = Download(files=files, size=300_000, count=3), Upload(files=files, size=300_000, count=2)
        down.prepare(nginx)
        assert down.run(nginx, 0).amount == 900_000
        with pytest.raises(ClientFailed):
            Download(files=files, size=300_000, count=4).run(nginx, 0)
        assert up.run(nginx, 0).amount == 600_000
    finally:
        nginx.stop()


def test_a_verification_takes_from_the_first_challenge_until_the_node_is_running() -> None:
    """By the audit trail, in which there may be an earlier one; one that is still under way is waited for."""

    def record(second: int, event: str, detail: str) -> dict[str, str]:
        return {"at": f"2026-11-21T12:00:{second:02}.500Z", "event": event, "detail": detail}

    before = [record(1, "verification", "by node2"), record(3, "status", "down -> running"), record(5, "status", "running -> down")]
    now = [record(10, "verification", "by node2"), record(12, "verdict", "by node2: all good")]
    assert verified([]) is None
    assert verified([*before, *now]) is None
    times = verified([*before, *now, record(13, "status", "down -> running")])
    assert times is not None
    assert (times[1] - times[0]).total_seconds() == 3
