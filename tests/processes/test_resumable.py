"""Resumable uploads (tus 1.0) on real processes: by hand, with the clients that people use, and while anything is killed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from urllib.parse import urlsplit

from securifile.local.asking import Http, Response
from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import MIB, files, get, noise, put, sha256

UPLOADS = "/api/v1/uploads"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def tus(http: Http, method: str, url: str, body: bytes | None = None, **headers: object) -> Response:
    """A request in the words of the protocol."""
    sent = {"Tus-Resumable": "1.0.0", **{name.replace("_", "-"): str(value) for name, value in headers.items()}}
    if body is not None:
        sent.setdefault("Content-Type", "application/offset+octet-stream")
    answer = http.request(method, url, body, sent)
    assert answer.headers["Tus-Resumable"] == "1.0.0"
    return answer


def create(http: Http, path: str | None, length: int | None, body: bytes | None = None, **headers: object) -> str:
    """Create an upload; its URL."""
    said: dict[str, object] = {"Upload_Defer_Length": 1} if length is None else {"Upload_Length": length}
    if path is not None:
        said["Upload_Metadata"] = f"path {encoded(path)}"
    answer = tus(http, "POST", UPLOADS, body, **{**said, **headers}).must(201)
    return urlsplit(str(answer.headers["Location"])).path


def patch(http: Http, url: str, offset: int, data: bytes, **headers: object) -> Response:
    return tus(http, "PATCH", url, data, Upload_Offset=offset, **headers)


def offset_of(http: Http, url: str) -> int:
    return int(str(tus(http, "HEAD", url).must(200).headers["Upload-Offset"]))


def test_an_upload_goes_on_through_any_node(cluster: LocalCluster) -> None:
    """Created at one node, each chunk sent to another; complete, it is a version like any other, and every node tells so."""
    data = noise(3 * MIB, "any node")
    nodes = list(cluster.nodes)
    url = create(cluster.http(nodes[0], "alice"), "alice/any-node", len(data))
    at = 0
    while at < len(data):
        http = cluster.http(nodes[at // MIB % len(nodes) + 1], "alice")
        assert offset_of(http, url) == at
        answer = patch(http, url, at, data[at : at + MIB]).must(204)
        at += MIB
        assert int(answer.headers["Upload-Offset"]) == at
    assert answer.headers["Content-Location"] == "/api/v1/files/alice/any-node"
    for node in nodes:
        found = get(cluster.http(node, "alice"), "alice/any-node").must(200)
        assert sha256(found.body) == sha256(data) and found.headers["ETag"] == answer.headers["ETag"]
        assert offset_of(cluster.http(node, "alice"), url) == len(data)
        told = cluster.http(node, "alice").request("GET", url).must(200).json()
        assert told["file"]["digest"] == sha256(data) and told["file"]["copies"]["durable"] == 3


def test_an_admin_server_sends_uploads_to_a_node(cluster: LocalCluster) -> None:
    """With the same path, and the body not taken: whoever follows is served there."""
    for path in (UPLOADS, UPLOADS + "/" + "0" * 32):
        answer = cluster.http(ADMIN, "alice").request("POST", path, headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5"}).must(307)
        place = urlsplit(str(answer.headers["Location"]))
        assert place.path == path and f"{place.scheme}://{place.netloc}" in [cluster.plan.url(node) for node in cluster.nodes]


def test_what_the_protocol_refuses(cluster: LocalCluster) -> None:
    """Each refusal has the status that tus gives it, and changes nothing."""
    http = cluster.http("node1", "alice")
    assert http.request("OPTIONS", UPLOADS).must(204).headers["Tus-Version"] == "1.0.0"
    url = create(http, "alice/refused", 10)
    patch(http, url, 5, b"12345").must(409)
    patch(http, url, 0, b"12345678901").must(413)
    patch(http, url, 0, b"12345", Content_Type="text/plain").must(415)
    patch(http, url, 0, b"12345", Upload_Checksum="sha1 AAAA").must(400)
    tus(http, "PATCH", url, b"12345", Upload_Offset=0, Tus_Resumable="0.2.2").must(412)
    wrong = base64.b64encode(hashlib.sha1(b"another").digest()).decode()
    patch(http, url, 0, b"12345", Upload_Checksum=f"sha1 {wrong}").must(460)
    tus(cluster.http("node2", "bob"), "HEAD", url).must(404)
    tus(http, "HEAD", UPLOADS + "/" + "0" * 32).must(404)
    assert offset_of(http, url) == 0
    right = base64.b64encode(hashlib.sha1(b"12345").digest()).decode()
    patch(http, url, 0, b"12345", Upload_Checksum=f"sha1 {right}").must(204)
    assert offset_of(cluster.http("node3", "alice"), url) == 5
    tus(cluster.http("node4", "alice"), "DELETE", url).must(204)
    tus(http, "HEAD", url).must(404, 410)
    patch(http, url, 5, b"12345").must(404, 410)
    get(http, "alice/refused").must(404)


def test_length_told_later_and_everything_at_once(cluster: LocalCluster) -> None:
    """An upload whose length is told with the last chunk; one that is complete with its creation; and an empty one."""
    http = cluster.http("node1", "alice")
    url = create(http, "alice/later", None)
    patch(http, url, 0, b"12345").must(204)
    answer = tus(cluster.http("node2", "alice"), "HEAD", url).must(200)
    assert answer.headers["Upload-Defer-Length"] == "1" and "Upload-Length" not in answer.headers
    patch(cluster.http("node3", "alice"), url, 5, b"678", Upload_Length=8).must(204)
    assert get(http, "alice/later").must(200).body == b"12345678"
    create(http, "alice/at-once", 5, b"12345")
    assert get(http, "alice/at-once").must(200).body == b"12345"
    create(http, "alice/empty", 0)
    assert get(http, "alice/empty").must(200).body == b""


def test_the_precondition_of_the_creation_holds_at_the_end(cluster: LocalCluster) -> None:
    """What was to be new and was made by another meanwhile is refused at the end, and stays as the other made it."""
    http = cluster.http("node1", "alice")
    url = create(http, "alice/once", 4, If_None_Match="*")
    patch(http, url, 0, b"12").must(204)
    create(cluster.http("node2", "alice"), "alice/once", 5, b"other")
    patch(http, url, 2, b"34").must(412)
    assert get(http, "alice/once").must(200).body == b"other"
    tus(http, "POST", UPLOADS, Upload_Length=4, Upload_Metadata=f"path {encoded('alice/once')}", If_None_Match="*").must(412)


def test_an_upload_that_rests_locks_nothing(cluster: LocalCluster) -> None:
    """While it rests, others may write to its path; finished, it is the next version, as a `PUT` would be."""
    http = cluster.http("node1", "alice")
    url = create(http, "alice/resting", 4)
    patch(http, url, 0, b"12").must(204)
    assert put(cluster.http("node2", "alice"), "alice/resting", b"meanwhile").must(201).json()["version"] == 1
    patch(cluster.http("node3", "alice"), url, 2, b"34").must(204)
    assert get(http, "alice/resting").must(200).body == b"1234"
    assert cluster.details("alice/resting", "alice")["version"] == 2


def test_rights_and_quota_are_judged_again(cluster: LocalCluster) -> None:
    """A right that was taken while the upload rested is missing at the next chunk; a quota is heeded before the first byte."""
    http, bob = cluster.http("node1", "alice"), cluster.http("node2", "bob")
    http.request("PUT", files("alice/shared/")).must(201)
    http.request("PUT", "/api/v1/access/alice/shared/", json={"user": "bob", "role": "editor"}).must(200)
    url = create(bob, "alice/shared/x", 4)
    patch(bob, url, 0, b"12").must(204)
    http.request("DELETE", "/api/v1/access/alice/shared/?user=bob").must(204)
    patch(bob, url, 2, b"34").must(404)
    get(http, "alice/shared/x").must(404)
    cluster.add_user("carol", quota_bytes=10)
    said = {"Upload_Metadata": f"path {encoded('carol/x')}"}
    tus(cluster.http("node3", "carol"), "POST", UPLOADS, Upload_Length=11, **said).must(413)
    create(cluster.http("node3", "carol"), "carol/x", 10)


def staged_at(cluster: LocalCluster, url: str) -> dict[str, Path]:
    """The file of an upload's bytes on each holder."""
    paths = {name: node.data / "uploads" / url.rpartition("/")[2] for name, node in cluster.nodes.items()}
    return {name: path for name, path in paths.items() if path.exists()}


def test_what_was_acknowledged_is_soon_on_two_disks_again(small_cluster: LocalCluster) -> None:
    """One of two holders dies; before the next answer names the offset, another node has fetched everything up to there."""
    data = noise(2 * MIB, "two disks")
    url = create(small_cluster.http("node1", "alice"), "alice/two-disks", len(data))
    patch(small_cluster.http("node1", "alice"), url, 0, data[: MIB + 5]).must(204)
    holders = staged_at(small_cluster, url)
    assert len(holders) == 2 and "node1" in holders
    small_cluster.nodes["node1"].kill()
    [left] = set(holders) - {"node1"}
    [fresh] = set(small_cluster.nodes) - set(holders)

    def told() -> bool:
        answer = tus(small_cluster.http(left, "alice"), "HEAD", url).must(200, 503)
        return answer.status == 200 and int(str(answer.headers["Upload-Offset"])) == MIB + 5

    eventually(told, 20, "the offset is told again")
    assert staged_at(small_cluster, url)[fresh].read_bytes() == data[: MIB + 5]
    patch(small_cluster.http(fresh, "alice"), url, MIB + 5, data[MIB + 5 :]).must(204)
    assert sha256(get(small_cluster.http(left, "alice"), "alice/two-disks").must(200).body) == sha256(data)
    small_cluster.nodes["node1"].start()
    small_cluster.nodes["node1"].wait_ready()
    small_cluster.wait_running("node1")


def test_bytes_that_rot_while_they_rest_become_no_version(cluster: LocalCluster) -> None:
    """A holder whose bytes have changed on the disk gives them up; the others, and what it fetches from them, make the right file."""
    data = noise(2 * MIB, "rests")
    url = create(cluster.http("node1", "alice"), "alice/rests", len(data))
    patch(cluster.http("node1", "alice"), url, 0, data[:MIB]).must(204)
    victim, path = next((name, path) for name, path in staged_at(cluster, url).items() if name != "node1")
    cluster.nodes[victim].kill()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(bytes([data[1000] ^ 1]))
    cluster.nodes[victim].start()
    cluster.nodes[victim].wait_ready()
    cluster.wait_running(victim)
    patch(cluster.http(victim, "alice"), url, MIB, data[MIB:]).must(204)
    found = get(cluster.http(victim, "alice"), "alice/rests").must(200)
    assert sha256(found.body) == sha256(data)
    assert cluster.details("alice/rests", "alice")["digest"] == sha256(data)


def test_parts_become_one(cluster: LocalCluster) -> None:
    """Partial uploads sent to several nodes become one file in the order asked for; asking twice makes one version."""
    pieces = [noise(size, size) for size in (300_000, 0, 1_000_001)]
    urls = []
    for number, piece in enumerate(pieces):
        http = cluster.http(f"node{number + 1}", "alice")
        url = create(http, None, len(piece), Upload_Concat="partial")
        if piece:
            patch(http, url, 0, piece).must(204)
        urls.append(url)
    http = cluster.http("node4", "alice")
    said = {"Upload_Concat": "final;" + " ".join(urls), "Upload_Metadata": f"path {encoded('alice/joined')}"}
    first = tus(http, "POST", UPLOADS, **said).must(201)
    again = tus(cluster.http("node5", "alice"), "POST", UPLOADS, **said).must(201)
    assert first.headers["Location"] == again.headers["Location"] and first.headers["ETag"] == again.headers["ETag"]
    found = tus(http, "HEAD", str(first.headers["Location"])).must(200)
    assert found.headers["Upload-Concat"] == said["Upload_Concat"] and int(found.headers["Upload-Length"]) == 1_300_001
    assert sha256(get(http, "alice/joined").must(200).body) == sha256(b"".join(pieces))
    patch(http, str(first.headers["Location"]), 0, b"x").must(403)
