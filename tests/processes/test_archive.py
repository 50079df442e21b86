"""A folder as one archive: whole through any server, continued by curl, ended by a revocation."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from tests.processes.actions import BROKEN, MIB, files, noise, put, slowly

ARCHIVE = "/api/v1/archive/alice/holiday/"
CONTENTS = {
    "holiday/": b"",
    "holiday/beach.jpg": noise(3 * MIB, 1),
    "holiday/day 1/": b"",
    "holiday/day 1/straße.txt": b"cobblestones\n",
    "holiday/day 1/empty": b"",
    "holiday/day 2/": b"",
    "holiday/zebra.bin": noise(MIB + 7, 2),
}


@pytest.fixture(scope="module")
def holiday(small_cluster: LocalCluster) -> LocalCluster:
    """A folder with folders in it, its files on different nodes."""
    nodes = small_cluster.plan.nodes
    for number, (name, data) in enumerate(CONTENTS.items()):
        http = small_cluster.http(nodes[number % len(nodes)], "alice")
        path = f"alice/{quote(name)}"
        answer = http.request("PUT", files(path), follow=True) if name.endswith("/") else put(http, path, data)
        answer.must(201)
    return small_cluster


@pytest.mark.parametrize("server", [ADMIN, "node1", "node2", "node3"])
def test_every_server_gives_the_same_archive(holiday: LocalCluster, server: str) -> None:
    """Each server gives the whole folder, wherever its files are; length and bytes are the same everywhere, and known beforehand."""
    http = holiday.http(server, "alice")
    whole = http.request("GET", ARCHIVE).must(200)
    with zipfile.ZipFile(io.BytesIO(whole.body)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == CONTENTS
    head = http.request("HEAD", ARCHIVE).must(200)
    assert int(head.headers["Content-Length"]) == len(whole.body)
    first = holiday.http("node1", "alice").request("GET", ARCHIVE).must(200)
    assert (first.body, first.headers["ETag"]) == (whole.body, whole.headers["ETag"])


def test_what_was_chosen(holiday: LocalCluster) -> None:
    """Only what is named is in it; a name that is not there is refused, and so is the archive of a file."""
    http = holiday.http("node2", "alice")
    some = http.request("GET", f"{ARCHIVE}?name=zebra.bin&name=day%201").must(200)
    with zipfile.ZipFile(io.BytesIO(some.body)) as archive:
        assert archive.namelist() == ["zebra.bin", "day 1/", "day 1/empty", "day 1/straße.txt"]
    http.request("GET", f"{ARCHIVE}?name=lion.bin").must(404)
    assert http.request("GET", "/api/v1/archive/alice/holiday/beach.jpg").code == "not-a-folder"


@pytest.mark.parametrize("keep", [1, 3 * MIB // 2, 4 * MIB + 200])
def test_curl_continues(holiday: LocalCluster, tmp_path: Path, keep: int) -> None:
    """`curl -C -` goes on after the bytes that are there, on another server than the one that gave them."""
    whole = holiday.http("node1", "alice").request("GET", ARCHIVE).must(200).body
    part = tmp_path / "holiday.zip"
    part.write_bytes(whole[:keep])
    trust = ["--cacert", str(holiday.ca_file)] if holiday.ca_file else []
    identity = ["-H", f"Authorization: Bearer {holiday.token('alice')}"]
    subprocess.run(
        ["curl", "-sSf", "-C", "-", "-o", str(part), *trust, *identity, f"{holiday.plan.url('node3')}{ARCHIVE}"], check=True, timeout=60
    )
    assert part.read_bytes() == whole


def test_a_taken_right_ends_it(holiday: LocalCluster) -> None:
    """Who may not read the folder any more gets no whole archive, even when it began before."""
    http = holiday.http("node1", "alice")
    put(http, "alice/holiday/large.bin", noise(64 * MIB, 3)).must(201)
    reader = "rita"
    holiday.add_user(reader)
    http.request("PUT", "/api/v1/access/alice/holiday/", json={"user": reader, "role": "reader"}, follow=True).must(200)
    with holiday.http("node2", reader).open("GET", ARCHIVE) as slow:
        pieces = slowly(slow, http)
        assert next(pieces)
        http.request("DELETE", f"/api/v1/access/alice/holiday/?user={reader}", follow=True).must(204)
        with pytest.raises(BROKEN):
            for _ in pieces:
                pass
    holiday.http("node2", reader).request("GET", ARCHIVE).must(404)
