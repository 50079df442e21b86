"""Resumable uploads as the IETF drafts them, by curl and by a small client that breaks off; off until an administrator wants them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from securifile.local.asking import Http
from securifile.local.cluster import LocalCluster
from tests.processes.actions import MIB, files, get, noise

DATA = noise(3 * MIB + 11, "draft")
PARTIAL = {"Content-Type": "application/partial-upload"}


@pytest.fixture(scope="module")
def drafting(small_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """A cluster that takes them."""
    assert small_cluster.http("node1", "alice").request("POST", "/api/v1/uploads", headers={"Upload-Complete": "?0"}).status == 412
    small_cluster.operator().request("PATCH", "/api/v1/settings", json={"resumable_draft": True}).must(200)
    yield small_cluster


def put_all_but(http: Http, path: str, missing: int) -> tuple[str, bytes]:
    """Begin to send everything, and break off before the end: the upload's URL as the interim answer told it, and that answer."""
    said = {"Upload-Complete": "?1", "Content-Length": str(len(DATA)), "Expect": "100-continue"}
    with http.begin("PUT", files(path), said) as exchange:
        interim = b""
        while b"\r\n\r\n" not in interim.partition(b"HTTP/1.1 100")[2]:
            interim += exchange.receive()
        exchange.send(DATA[: len(DATA) - missing])
    lines = dict(line.split(": ", 1) for line in interim.decode().split("\r\n") if ": " in line)
    return urlsplit(lines["Location"]).path, interim


def test_a_put_that_breaks_off_goes_on_at_another_node(drafting: LocalCluster) -> None:
    """A PUT with Upload-Complete hears its URL before a byte is taken; what has arrived is kept; the rest goes to another node."""
    path = "alice/broken"
    url, interim = put_all_but(drafting.http("node1", "alice"), path, MIB)
    assert interim.startswith(b"HTTP/1.1 104 Upload Resumption Supported\r\n")
    other = drafting.http("node2", "alice")
    told = other.request("HEAD", url).must(204)
    offset = int(told.headers["Upload-Offset"])
    assert told.headers["Upload-Complete"] == "?0"
    assert told.headers["Upload-Length"] == str(len(DATA))
    assert 0 <= offset <= len(DATA) - MIB

    wrong = other.request("PATCH", url, b"x", {"Upload-Offset": str(offset + 1), "Upload-Complete": "?0", **PARTIAL}).must(409)
    assert wrong.headers["Upload-Offset"] == str(offset)

    done = other.request("PATCH", url, DATA[offset:], {"Upload-Offset": str(offset), "Upload-Complete": "?1", **PARTIAL}).must(201)
    assert done.headers["Upload-Complete"] == "?1"
    assert done.json()["size"] == len(DATA)
    assert get(drafting.http("node3", "alice"), path).must(200).body == DATA
    assert other.request("HEAD", url).must(204).headers["Upload-Complete"] == "?1"


def test_parts_of_unknown_number_become_a_file(drafting: LocalCluster) -> None:
    """Created empty, appended to without a length, and ended by an empty last part; the precondition is judged at the end, too."""
    http, path = drafting.http("node3", "alice"), "alice/parts"
    created = http.request("PUT", files(path), b"", {"Upload-Complete": "?0", "If-None-Match": "*"}).must(201)
    url = urlsplit(created.headers["Location"]).path
    at = 0
    for size in (5, MIB, 70_000):
        answer = http.request("PATCH", url, DATA[at : at + size], {"Upload-Offset": str(at), "Upload-Complete": "?0", **PARTIAL}).must(204)
        at += size
        assert (answer.headers["Upload-Offset"], answer.headers["Upload-Complete"]) == (str(at), "?0")
    http.request("HEAD", files(path)).must(404)
    http.request("PATCH", url, b"", {"Upload-Offset": str(at), "Upload-Complete": "?1"}).must(201)
    assert get(http, path).must(200).body == DATA[:at]
    again = http.request("PUT", files(path), b"new", {"Upload-Complete": "?1", "If-None-Match": "*"})
    assert again.status == 412


def test_an_upload_that_was_ended_is_gone(drafting: LocalCluster) -> None:
    """After DELETE neither its state is told nor bytes are taken; and what a server can do is told by OPTIONS."""
    http = drafting.http("node2", "alice")
    url = urlsplit(http.request("PUT", files("alice/ended"), b"some", {"Upload-Complete": "?0"}).must(201).headers["Location"]).path
    http.request("DELETE", url).must(204)
    assert http.request("HEAD", url).status in (404, 410)
    told = http.request("OPTIONS", "/api/v1/uploads").must(204)
    assert told.headers["Accept-Patch"] == "application/partial-upload"
    assert "max-size=" in told.headers["Upload-Limit"]


def test_all_at_once_is_a_put(drafting: LocalCluster) -> None:
    """With all bytes in one request the answer is that of a PUT, and a later one makes the next version."""
    http = drafting.http("node1", "alice")
    first = http.request("PUT", files("alice/whole"), DATA, {"Upload-Complete": "?1"}).must(201)
    assert first.json()["version"] == 1
    second = http.request("PUT", files("alice/whole"), b"short", {"Upload-Complete": "?1", "If-Match": first.headers["ETag"]}).must(200)
    assert second.json()["version"] == 2
    assert get(drafting.http("node2", "alice"), "alice/whole").must(200).body == b"short"
