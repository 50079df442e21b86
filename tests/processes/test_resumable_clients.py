"""Resumable uploads and downloads with the clients that people use: tuspy, tus-js-client, curl."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tusclient.client import TusClient

from securifile.local.cluster import LocalCluster
from securifile.local.processes import environment, eventually
from tests.processes.actions import MIB, files, get, noise, put, sha256

SCRIPT = Path(__file__).parent / "tus_js"
DATA = noise(5 * MIB + 17, "clients")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some megabytes."""
    path = tmp_path_factory.mktemp("content") / "content"
    path.write_bytes(DATA)
    return path


@pytest.fixture(scope="module")
def tus_js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tus-js-client and the script that uses it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("tus-js-client needs node and npm, and they are not installed here")
    folder = tmp_path_factory.mktemp("tus_js")
    shutil.copytree(SCRIPT, folder, dirs_exist_ok=True)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"tus-js-client could not be installed: {installed.stderr[-300:]}")
    yield folder


def run_js(folder: Path, cluster: LocalCluster, node: str, **said: Any) -> str:
    """Run the script; the upload's URL."""
    said |= {"endpoint": cluster.http(node).url + "/api/v1/uploads", "token": cluster.token("alice")}
    environment = {"PATH": "/usr/bin:/bin", "NODE_EXTRA_CA_CERTS": str(cluster.ca_file)}
    node_program = shutil.which("node") or "node"
    done = subprocess.run(
        [node_program, "upload.js", json.dumps(said)], cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def assert_stored(cluster: LocalCluster, path: str) -> None:
    assert sha256(get(cluster.http("node3", "alice"), path).must(200).body) == sha256(DATA)
    assert cluster.details(path, "alice")["version"] == 1


def tuspy(cluster: LocalCluster, node: str) -> Any:
    return TusClient(cluster.http(node).url + "/api/v1/uploads", headers={"Authorization": f"Bearer {cluster.token('alice')}"})


def test_tuspy_goes_on_at_another_node(cluster: LocalCluster, content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half through one node, with checksums; the rest through another, whose URL differs only in host and port."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cluster.ca_file))
    said: dict[str, Any] = {"chunk_size": MIB, "metadata": {"path": "alice/tuspy"}}
    with content.open("rb") as stream:
        first = tuspy(cluster, "node1").uploader(file_stream=stream, upload_checksum=True, **said)
        first.upload(stop_at=2 * MIB)
        url = cluster.http("node2").url + urlsplit(first.url).path
        second = tuspy(cluster, "node2").uploader(file_stream=stream, url=url, **said)
        assert second.offset == 2 * MIB
        second.upload()
    assert_stored(cluster, "alice/tuspy")


def test_tus_js_client_goes_on_at_another_node(cluster: LocalCluster, content: Path, tus_js: Path) -> None:
    """Given up in the middle, gone on with at another node; and all in one request."""
    url = run_js(tus_js, cluster, "node1", file=str(content), path="alice/js", chunkSize=MIB, stopAt=2 * MIB)
    there = cluster.http("node4").url + urlsplit(url).path
    assert urlsplit(run_js(tus_js, cluster, "node4", file=str(content), path="alice/js", uploadUrl=there)).path == urlsplit(url).path
    assert_stored(cluster, "alice/js")
    run_js(tus_js, cluster, "node2", file=str(content), path="alice/js-at-once")
    assert_stored(cluster, "alice/js-at-once")


def test_tus_js_client_sends_parts_at_the_same_time(cluster: LocalCluster, content: Path, tus_js: Path) -> None:
    """With parallel uploads, which become one by concatenation."""
    run_js(tus_js, cluster, "node1", file=str(content), path="alice/js-parallel", parallelUploads=3, chunkSize=MIB)
    assert_stored(cluster, "alice/js-parallel")


def test_tus_js_client_speaks_the_draft_of_the_ietf(cluster: LocalCluster, content: Path, tus_js: Path) -> None:
    """With `resumable_draft` set: given up in the middle, and gone on with at another node."""
    cluster.operator().request("PATCH", "/api/v1/settings", json={"resumable_draft": True}).must(200)
    said: dict[str, Any] = {"file": str(content), "path": "alice/js-draft", "chunkSize": MIB, "protocol": "ietf-draft-05"}
    url = run_js(tus_js, cluster, "node2", stopAt=2 * MIB, **said)
    run_js(tus_js, cluster, "node5", uploadUrl=cluster.http("node5").url + urlsplit(url).path, **said)
    assert_stored(cluster, "alice/js-draft")


def test_the_command_goes_on_when_a_node_is_killed(cluster: LocalCluster, tmp_path: Path) -> None:
    """`securifile put` of a large file: a holder dies in the middle, and the command ends well; the file is whole."""
    home = {"SECURIFILE_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "securifile.client"]
    login = [*command, "login", cluster.plan.url("node2"), "alice", "--ca", str(cluster.ca_file), "--password-stdin"]
    password = cluster.plan.accounts["alice"] + "\n"
    subprocess.run(login, env=environment() | home, input=password, text=True, timeout=60, check=True, stdout=subprocess.DEVNULL)
    block = noise(MIB, "large")
    hasher = hashlib.sha256()
    with (tmp_path / "large").open("wb") as file:
        for number in range(128):
            data = number.to_bytes(8, "big") + block[8:]
            hasher.update(data)
            file.write(data)

    def arrived(node: str) -> int:
        return sum(path.stat().st_size for path in (cluster.nodes[node].data / "uploads").glob("*") if not path.suffix)

    putting = subprocess.Popen([*command, "put", str(tmp_path / "large"), "/large"], env=environment() | home)
    try:
        eventually(lambda: any(arrived(node) > 16 * MIB for node in cluster.nodes), 60, "something arrives")
        victim = max(cluster.nodes, key=arrived)
        cluster.nodes[victim].kill()
        assert putting.wait(120) == 0
    finally:
        putting.kill()
    cluster.nodes[victim].start()
    cluster.nodes[victim].wait_ready()
    cluster.wait_running(*cluster.nodes)
    details = cluster.details("alice/large", "alice")
    assert (details["version"], details["digest"]) == (1, hasher.hexdigest())


def test_curl_goes_on_with_a_download(cluster: LocalCluster, tmp_path: Path) -> None:
    """`curl -C -` fetches the rest, also from a node that redirects; of a file that has changed, `If-Range` keeps it from mixing two."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed here")
    made = put(cluster.http("node1", "alice"), "alice/curl", DATA).must(201)
    for number, node in enumerate(cluster.nodes):
        target = tmp_path / node
        target.write_bytes(DATA[: 1_000_003 * number])
        url = cluster.http(node).url + files("alice/curl")
        command = [curl, "-sSL", "--fail", "--cacert", str(cluster.ca_file), "-C", "-", "-o", str(target), "-w", "%{http_code}"]
        command += ["-H", f"Authorization: Bearer {cluster.token('alice')}", "-H", f"If-Range: {made.headers['ETag']}", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "206" if number else "200"), done.stderr
        assert target.read_bytes() == DATA
    put(cluster.http("node1", "alice"), "alice/curl", b"another").must(200)
    target.write_bytes(DATA[:3])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 33 and target.read_bytes() == DATA[:3], (done.returncode, done.stderr)
