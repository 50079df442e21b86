"""`securifile admin …`: what is shown of an epoch, and what is done on the admin server's own machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from securifile.process import REBUILD
from tests.client.fake_cluster import TOKEN, FakeCluster
from tests.client.test_command import Shell

LEFT = {"node": "node3", "what": "Grant(username=bob)", "why": "the node came when the epoch had been reconciled"}
STATE: dict[str, Any] = {
    "epoch": 4,
    "reconciled": False,
    "rebuilding": False,
    "handed_in": {"node1": "3.17"},
    "missing": ["node2"],
    "left": [],
}
PLAN: dict[str, Any] = {
    "written": {"people": 2, "files": 7, "folders": 1, "rights": 3, "sign_ins": 4, "servers": 5},
    "knows_most": "node1",
    "strangers": {},
    "would_be_left": [],
    "dry_run": False,
}


@pytest.fixture
def data(tmp_path: Path, cluster: FakeCluster) -> Path:
    """The data folder of the admin server."""
    (tmp_path / "ca").mkdir()
    key = {"url": cluster.servers[0].url, "token": TOKEN, "ca_file": None}
    (tmp_path / "operator.json").write_text(json.dumps(key))
    return tmp_path


@pytest.fixture
def shell(data: Path) -> Shell:
    """The operator's."""
    made = Shell(data)
    made.environment["SECURIFILE_ADMIN_DATA"] = str(data)
    return made


@pytest_twisted.ensureDeferred
async def test_an_epoch_that_waits_is_shown_with_who_is_missing(shell: Shell, cluster: FakeCluster) -> None:
    """And with the way on."""
    cluster.epoch = STATE
    ran = await shell("admin epoch")
    assert (ran.code, ran.err) == (0, "")
    assert "went back in time" in ran.out
    assert [line.split() for line in ran.out.splitlines() if line.startswith("node")] == [
        ["node1", "3.17"],
        ["node2", "has", "not", "come"],
    ]
    assert "accept-epoch" in ran.out
    assert json.loads((await shell("--json admin epoch")).out) == STATE


@pytest_twisted.ensureDeferred
async def test_what_is_left_is_listed_until_it_is_dismissed(shell: Shell, cluster: FakeCluster) -> None:
    """One line each: who says so, what it is, and why it was not done."""
    cluster.epoch = {**STATE, "reconciled": True, "missing": [], "left": [LEFT]}
    ran = await shell("admin epoch")
    assert "Epoch 4, reconciled." in ran.out
    assert "accept-epoch" not in ran.out
    assert ran.out.splitlines()[-1].startswith("node3  Grant(username=bob)")
    assert (await shell("admin dismiss-left")).out == "Forgotten: 1.\n"
    assert cluster.asked("POST", "/api/v1/epoch/dismiss")


@pytest_twisted.ensureDeferred
async def test_accepting_says_what_was_written(shell: Shell, cluster: FakeCluster) -> None:
    """Or, for a dry run, what would be, what would be left, and whom to speak about."""
    cluster.epoch = {**STATE, **PLAN, "reconciled": True}
    cluster.accepting = 2
    ran = await shell("admin accept-epoch --without node5 --without node6 --trust node7")
    assert "Written, as node1 knows them: 2 people, 7 files, 1 folders, 3 rights, 4 sign-ins, 5 servers." in ran.out
    assert len(cluster.asked("POST", "/api/v1/epoch/accept")) == 3, "until it was done"
    assert cluster.asked("POST", "/api/v1/epoch/accept")[-1].query == "without=node5%2Cnode6&trust=node7&dry_run=0"
    cluster.epoch = {**STATE, **PLAN, "dry_run": True, "strangers": {"node9": ["node1"]}, "would_be_left": [LEFT]}
    ran = await shell("admin accept-epoch --dry-run")
    assert "Would be written" in ran.out and "Nothing was done" in ran.out
    assert "Not come yet: node2." in ran.out
    assert "--without node9 or --trust node9" in ran.out
    assert "Grant(username=bob)" in ran.out
    assert cluster.asked("POST", "/api/v1/epoch/accept")[-1].query.endswith("dry_run=1")


@pytest_twisted.ensureDeferred
async def test_the_consent_to_a_rebuild_is_left_in_the_data_folder(shell: Shell, data: Path) -> None:
    """The admin server does not run, because its database is empty; without the authority it could not help."""
    (data / "operator.json").unlink()
    ran = await shell("admin rebuild-catalogue")
    assert ran.code == 0
    assert "start the admin server" in ran.out
    assert (data / REBUILD).exists()
    (data / REBUILD).unlink()
    (data / "ca").rmdir()
    ran = await shell("admin rebuild-catalogue")
    assert ran.code == 1
    assert "certificate authority" in ran.err
    assert not (data / REBUILD).exists()


@pytest_twisted.ensureDeferred
async def test_a_running_admin_server_with_a_catalogue_is_not_rebuilt(shell: Shell, cluster: FakeCluster, data: Path) -> None:
    """One that is being made anew is shown."""
    cluster.epoch = {**STATE, "reconciled": True}
    ran = await shell("admin rebuild-catalogue")
    assert ran.code == 1
    assert "has a catalogue" in ran.err
    cluster.epoch = {**STATE, "rebuilding": True}
    ran = await shell("admin rebuild-catalogue")
    assert ran.code == 0
    assert "made anew" in ran.out
    assert not (data / REBUILD).exists()


@pytest_twisted.ensureDeferred
async def test_a_backup_needs_the_data_folder_and_a_new_place(shell: Shell, data: Path, tmp_path: Path) -> None:
    """Of a server with a database elsewhere, all else is copied, and that is said."""
    (data / "ca" / "root.pem").write_text("pem")
    (data / "audit").mkdir()
    (data / "audit" / "audit.log").write_text("a line\n")
    target = tmp_path / "backup"
    ran = await shell("admin backup", str(target))
    assert (ran.code, ran.err) == (0, "")
    assert "not embedded" in ran.out
    assert (target / "ca" / "root.pem").read_text() == "pem"
    assert (target / "audit" / "audit.log").read_text() == "a line\n"
    assert not (target / "operator.json").exists()
    assert target.stat().st_mode & 0o777 == 0o700
    ran = await shell("admin backup", str(target))
    assert (ran.code, "is there already" in ran.err) == (1, True)
    shell.environment.pop("SECURIFILE_ADMIN_DATA")
    ran = await shell("admin backup", str(tmp_path / "other"))
    assert (ran.code, "--operator" in ran.err) == (1, True)
    ran = await shell("--operator", str(tmp_path / "nobody"), "admin", "backup", str(tmp_path / "other"))
    assert (ran.code, "not the data folder" in ran.err) == (1, True)
    assert not (tmp_path / "other").exists()
