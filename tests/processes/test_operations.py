"""What an administrator types when a node is to be looked after, against real servers: explain, offline, repair, online, drain, replace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import environment, eventually
from tests.processes.actions import noise, put

SETTLED_S = 20.0
FILES = 20


class Shell:
    """Somebody at a terminal of the admin server's machine: the operator, or a person who signed in with a home of their own."""

    def __init__(self, home: Path, words: tuple[str, ...]) -> None:
        self.home = home
        self.words = words

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `securifile` with these words."""
        command = [sys.executable, "-m", "securifile.client", *self.words, *words]
        own = {"SECURIFILE_HOME": str(self.home), "COLUMNS": "200"}
        return subprocess.run(command, env=environment() | own, input=stdin, capture_output=True, text=True, timeout=60)

    def __call__(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """What a command prints, which must end with that exit code."""
        run = self.run(*words, stdin=stdin)
        assert run.returncode == status, f"securifile {' '.join(words)}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run.stdout + run.stderr

    def json(self, *words: str) -> Any:
        """The answer of a command."""
        run = self.run("--json", *words)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)


@pytest.fixture(scope="module")
def operator(cluster: LocalCluster) -> Shell:
    """The operator of the admin server."""
    return Shell(Path(cluster.directory), ("--operator", str(cluster.admin.data)))


@pytest.fixture(scope="module")
def alice(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Alice, signed in; with some files."""
    shell = Shell(tmp_path_factory.mktemp("alice"), ())
    url, password = cluster.plan.url("node2"), cluster.plan.accounts["alice"]
    shell("login", url, "alice", "--ca", str(cluster.ca_file), "--password-stdin", stdin=password + "\n")
    for number in range(FILES):
        put(cluster.http(f"node{number % 5 + 1}", "alice"), f"alice/{number:02}", noise(3000, f"{number}")).must(201)
    return shell


def test_a_file_is_explained_to_who_may_read_it(cluster: LocalCluster, alice: Shell, operator: Shell) -> None:
    """Three good copies, asked through whichever server; and to nobody else."""
    told = alice.json("explain", "/00")
    assert told["next"] == ["nothing: 3 of 3 copies are good"]
    assert (told["lock_known"], told["lock"], told["serving"][0]) == (True, None, told["copies"][0]["server"])
    observers = {one["observer"] for one in told["copies"][0]["observers"]}
    assert len(observers) == 5 and "admin1" in observers
    page = alice("explain", "alice/00")
    assert "modified by: nobody now" in page and "nothing: 3 of 3 copies are good" in page
    operator("explain", "alice/00", status=1)
    alice("explain", "node1", status=1)
    assert "nothing: it is running" in operator("explain", "node1")


def test_a_rotten_byte_from_the_alarm_to_the_repair(cluster: LocalCluster, alice: Shell, operator: Shell) -> None:
    """Explain names the file and what to do; offline, repair and online, as it says, make the node run again."""
    victim = cluster.nodes["node3"]
    victim.kill()
    cluster.wait_status("down", "node3")
    assert "it is verified as soon as it answers again" in operator("explain", "node3")
    every = [f"alice/{number:02}" for number in range(FILES)]
    rotten = next(name for name in every if "node3" in [copy["server"] for copy in alice.json("explain", name)["copies"]])
    assert any("is down for" in line and "made anew" in line for line in alice("explain", rotten).splitlines())
    attempt = alice.json("explain", rotten)["attempt"]
    blob = Path(victim.data, "blobs", attempt[:2], attempt)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    victim.start()
    cluster.wait_status("failed", "node3", timeout_s=SETTLED_S)

    def explained() -> bool:
        told = operator.json("explain", "node3")
        named = {one["path"] for one in told["trail"] if one["event"] == "bad-copy"}
        return "failed: " in told["why"] and named == {rotten}

    eventually(explained, SETTLED_S, "the verdict is in the explanation")
    assert "node repair node3" in operator("explain", "node3")
    assert "node3" in operator("status") and "FAILED" in operator("status")

    assert "node3 is offline" in operator("node", "offline", "node3")
    assert "DOWN (offline)" in operator("status")
    assert "by @operator" in operator.json("explain", "node3")["why"]
    repaired = operator("node", "repair", "node3")
    assert "1 fetched again, 0 could not be had" in repaired
    operator("node", "online", "node3")
    cluster.wait_status("running", "node3", timeout_s=SETTLED_S)
    assert "running already" in operator("node", "online", "node3")
    assert "is running, and mends itself" in operator("node", "repair", "node3", status=1)


def test_draining_and_replacing(cluster: LocalCluster, alice: Shell, operator: Shell) -> None:
    """Dry runs change nothing; draining is seen in the list, moves all copies, and then the node can go; a new one is invited."""
    held = operator.json("explain", "node4")["copies"]
    assert f"{held} copies would be made" in operator("node", "drain", "node4", "--dry-run")
    assert "draining" not in operator("status")
    assert "can be removed" in operator("node", "remove", "node4", "--dry-run")
    assert "node4" in operator("status")
    assert "would be invited" in operator("node", "replace", "node4", "node6", "--dry-run")
    invited = operator("node", "replace", "node4", "node6")
    assert "--join-file" in invited and "securifile node replace node4 node6" in invited
    assert "has not joined yet" in operator("node", "replace", "node4", "node6", status=1)

    operator("node", "drain", "node4")
    assert "running (draining)" in operator("status")
    assert "Files are kept on node4 again" in operator("node", "undrain", "node4")
    assert f"{FILES}" not in operator("node", "drain", "node4")
    eventually(lambda: "nothing is left on it" in operator("explain", "node4"), SETTLED_S, "node4 is drained")
    assert "no member of the cluster" in operator("node", "remove", "node4")
    assert "node4" not in operator("status")
    assert alice.json("explain", "/00")["next"] == ["nothing: 3 of 3 copies are good"]
    assert "4 nodes would stay" not in operator("node", "drain", "node5", "--dry-run")
