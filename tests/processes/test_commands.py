"""The commands, against real servers: `securifile` for people, `status` for the operator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import environment, twistd
from tests.processes.actions import noise, sha256


class Person:
    """Somebody with a home of their own who types commands."""

    def __init__(self, home: Path, files: Path) -> None:
        self.home = home
        self.files = files

    def __call__(self, *words: str, stdin: str = "", status: int = 0) -> str:
        """Run `securifile` with these words; what it prints."""
        command = [sys.executable, "-m", "securifile.client", *words]
        run = subprocess.run(
            command,
            cwd=self.files,
            env=environment() | {"SECURIFILE_HOME": str(self.home), "COLUMNS": "200"},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == status, f"securifile {' '.join(words)}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run.stdout


@pytest.fixture
def alice(small_cluster: LocalCluster, tmp_path: Path) -> Person:
    """Alice, signed in at node2."""
    (tmp_path / "files").mkdir()
    person = Person(tmp_path / "home", tmp_path / "files")
    url, password = small_cluster.plan.url("node2"), small_cluster.plan.accounts["alice"]
    person("login", url, "alice", "--ca", str(small_cluster.ca_file), "--password-stdin", stdin=password + "\n")
    return person


def test_a_file_goes_up_and_down(alice: Person) -> None:
    """put, ls, info, get, share, mv, rm: what a person does on a day."""
    content = noise(1_500_000, "command")
    (alice.files / "report.bin").write_bytes(content)
    alice("mkdir", "/docs/")
    alice("put", "report.bin", "/docs/")
    assert "report.bin" in alice("ls", "/docs/")
    assert sha256(content) in alice("info", "/docs/report.bin")
    alice("get", "alice/docs/report.bin", "copy.bin")
    assert (alice.files / "copy.bin").read_bytes() == content
    alice("share", "/docs/report.bin", "bob", "reader")
    assert re.search(r"bob\s+reader", alice("access", "/docs/report.bin"))
    alice("mv", "/docs/report.bin", "/docs/final.bin")
    assert "final.bin" in alice("ls", "/docs/")
    alice("rm", "/docs/final.bin")
    alice("rm", "-r", "/docs/")
    assert "docs" not in alice("ls")


def test_status_shows_every_server(small_cluster: LocalCluster, tmp_path: Path) -> None:
    """`twistd securifile-admin status` on the admin server's machine needs no password, and names every server with its status."""
    command = twistd("securifile-admin", "status", "--data", str(small_cluster.admin.data))
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in [ADMIN, *small_cluster.nodes]:
        assert re.search(rf"^{name}\b.*\brunning\b", run.stdout, re.MULTILINE), run.stdout


def test_the_operator_needs_no_password_either(small_cluster: LocalCluster, tmp_path: Path) -> None:
    """The operator's key in the admin server's data folder is enough to make an account."""
    operator = Person(tmp_path / "nobody", tmp_path)
    data = os.fspath(small_cluster.admin.data)
    operator("user", "add", "carol", "carol@example.org", "--operator", data)
    assert "carol" in operator("user", "list", "--operator", data)
