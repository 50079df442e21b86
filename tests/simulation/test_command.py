"""`securifile simulate`: the same command line prints the same bytes, and what makes no sense is refused with the reason."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from securifile.simulation.arguments import CLIMATES as NAMES
from securifile.simulation.arguments import add_simulate
from securifile.simulation.command import CLIMATES, NotPossible, question, run
from securifile.simulation.heartbeats import measure
from securifile.simulation.people import Habits
from securifile.simulation.run import NAMES as PEOPLE

RUN = "--seed 5 --nodes 3 --hours 0.001 --people 2"
PLAN = "plan --nodes 6 --years 1 --disk-every 60d --groups 20 --rack-size 3 --rack-every 30d --rack-kills 0.2"


def parsed(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="securifile simulate")
    add_simulate(parser)
    return parser.parse_args(line.split())


def printed(line: str) -> list[str]:
    lines: list[str] = []
    clock = iter(range(10**6))
    run(parsed(line), lines.append, lambda: float(next(clock)))
    return lines


def in_a_process(line: str, hash_seed: str) -> bytes:
    """What the `securifile` command prints, from a process of its own."""
    command = [sys.executable, "-m", "securifile.client", "simulate", *line.split()]
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": hash_seed})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [RUN, PLAN], ids=["run", "plan"])
def test_the_same_seed_prints_the_same_bytes(line: str) -> None:
    """In processes that hash otherwise, too; and another seed prints others."""
    one = in_a_process(line, "1")
    assert one == in_a_process(line, "2") == ("\n".join(printed(line)) + "\n").encode()
    assert one != in_a_process(line + " --seed 6", "1")


def test_a_run_is_a_history_and_a_summary() -> None:
    """Lines with the time in front, and at the end what came of it; or only that."""
    lines = printed(RUN + " --climate crashes")
    summary = printed(RUN + " --climate crashes --summary")
    assert lines[-1:] == summary
    assert all(line.split(" ", 1)[0].replace(".", "").isdecimal() for line in lines[:-1])
    assert "seed 5: 3 nodes, 2 people" in summary[0]
    assert "violations: 0" in summary[0]


def test_several_runs_have_a_seed_each() -> None:
    """From `--seed` on; the last line counts them."""
    lines = printed(RUN + " --runs 2 --summary --climate calm")
    assert [line.split(":")[0] for line in lines] == ["seed 5", "seed 6", "2 runs, 0 of them broke a guarantee"]


def test_every_climate_has_a_name_that_can_be_said() -> None:
    """The options and the climates know each other."""
    assert set(NAMES) == set(CLIMATES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nodes 0", "0 is not from 1 to 1000"),
        ("--nodes five", "'five' is no whole number"),
        ("--hours 0", "'0' is no number above 0"),
        ("--hours nan", "'nan' is no number above 0"),
        ("--people 1", "1 is not from 2 to 8"),
        ("--climate stormy", "invalid choice: 'stormy'"),
        ("heartbeats --nodes 10,1", "1 is not from 2 to 1000"),
        ("plan --disk-every soon", "'soon' is no time; write for instance"),
        ("plan --disk-every 0s", "leaves none to forecast"),
        ("plan --outage never", "this has to end"),
        ("plan --stored 0G", "'0G' is no size above 0"),
        ("plan --rack-kills 2", "'2' is no number from 0 to 1"),
        ("forecast", "invalid choice: 'forecast'"),
    ],
)
def test_what_is_not_understood(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that makes no sense is named, with what would make some; the exit code is 2."""
    with pytest.raises(SystemExit) as exit:
        parsed(line)
    assert exit.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nodes 3 --replicas 3", "3 replicas and an origin need 4 nodes, not 3"),
        ("plan --nodes 3 --replicas 3", "3 replicas and an origin need 4 nodes, not 3"),
        ("plan --replicas 1 --write-copies 3", "write_copies must be from 1 to r+1 = 2, not 3"),
        ("plan --stored 2T --capacity 1T", "more is stored on a node than it can hold"),
    ],
)
def test_what_does_not_go_together(line: str, said: str) -> None:
    """Values that contradict each other are refused before anything is done."""
    with pytest.raises(NotPossible, match=said.replace("+", r"\+")):
        run(parsed(line), pytest.fail, lambda: 0.0)


def test_a_plan_is_asked_in_the_units_of_people() -> None:
    """Times, sizes and settings arrive as they were meant; what is not said is the cluster's setting."""
    asked = question(
        parsed("plan --nodes 2 --stored 1.5T --disk-every 5y --replaced-in 36h --outage-every never --repair-rate 8M --grace 1h")
    )
    assert (asked.nodes, asked.settings.replicas, asked.groups) == (2, 1, 100)
    assert (asked.stored_bytes, asked.disk_every_s, asked.replaced_in_s) == (1.5 * 1024**4, 5 * 365.25 * 86400, 36 * 3600)
    assert (asked.outage_every_s, asked.settings.repair_bytes_s, asked.settings.repair_after_s) == (float("inf"), 8 * 1024**2, 3600)
    assert question(parsed("plan")).settings.repair_after_s == 600


def test_heartbeats_are_counted() -> None:
    """Every node sends one to every other server twice a second, and answers as many; hardly anything else is said by an idle cluster."""
    cost = measure(6, seed=1, seconds=4.0, cpu=iter((10.0, 10.5)).__next__)
    assert cost.heartbeats_s == 12
    assert cost.messages_s == pytest.approx(24, rel=0.05)
    assert 40 < cost.bytes_s / cost.messages_s < 150
    # 6 nodes with 6 others each, and the admin server with 6, for 4 s.
    assert cost.cpu_us == pytest.approx(0.5 / (42 * 2 * 4) * 1e6)
    assert cost.core == pytest.approx(0.5 / 7 / 4)
    assert printed("heartbeats --nodes 2 --seconds 1 --seed 2")[1].split()[0] == "2"


def test_there_are_people_enough() -> None:
    """As many as may be asked for have a name and something to do."""
    assert len(PEOPLE) == 8
    assert Habits().weights
