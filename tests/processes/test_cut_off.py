"""Rights that end in the middle of a transfer, seen by the client."""

from __future__ import annotations

import base64
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from secrets import token_hex

import attrs
import pytest

from securifile.local.asking import BodyCutShort, Http
from securifile.local.cluster import LocalCluster
from tests.processes.actions import BROKEN, MIB, blocks, files, get, put, slowly

NODE = "node1"
SIZE = 96 * MIB


def person(cluster: LocalCluster) -> tuple[str, str]:
    """A fresh account, with its password."""
    username, password = f"p{token_hex(4)}", token_hex(8)
    new = {"username": username, "email": f"{username}@example.org", "password": password}
    cluster.operator().request("POST", "/api/v1/users", json=new).must(201)
    return username, password


def change(cluster: LocalCluster, username: str, **fields: object) -> None:
    cluster.operator().request("PATCH", f"/api/v1/users/{username}", json=fields).must(200)


def with_password(http: Http, username: str, password: str) -> Http:
    return attrs.evolve(http, authorization="Basic " + base64.b64encode(f"{username}:{password}".encode()).decode())


def with_session(http: Http, username: str, password: str) -> Http:
    answer = attrs.evolve(http, authorization=None).request("POST", "/api/v1/sessions", json={"username": username, "password": password})
    return attrs.evolve(http, authorization=f"Bearer {answer.must(201).json()['token']}")


def test_a_new_password_ends_a_download_that_began_with_the_old_one(small_cluster: LocalCluster) -> None:
    """`curl -u` with a password that is not right any more does not get the rest of the file."""
    username, password = person(small_cluster)
    http = with_password(small_cluster.http(NODE, "alice"), username, password)
    http.request("PUT", files(f"{username}/f"), blocks(SIZE), length=SIZE).must(201)
    with http.open("GET", files(f"{username}/f?relay=1")) as download:
        received = len(download.response().read(MIB))
        change(small_cluster, username, password=token_hex(8))
        with pytest.raises((BodyCutShort, *BROKEN)):
            for data in slowly(download, http):
                received += len(data)
    assert received < SIZE


def test_an_account_that_runs_out_ends_its_downloads(small_cluster: LocalCluster) -> None:
    """The rest of a file is not given to somebody whose account has expired meanwhile."""
    username, password = person(small_cluster)
    http = with_session(small_cluster.http(NODE, "alice"), username, password)
    http.request("PUT", files(f"{username}/f"), blocks(SIZE), length=SIZE).must(201)
    with http.open("GET", files(f"{username}/f?relay=1")) as download:
        received = len(download.response().read(MIB))
        change(small_cluster, username, valid_until=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
        until = time.monotonic() + 5.0
        while http.request("HEAD", files(f"{username}/f")).status == 200:
            assert time.monotonic() < until, "the account goes on"
        with pytest.raises((BodyCutShort, *BROKEN)):
            for data in slowly(download, http):
                received += len(data)
    assert received < SIZE


def test_who_signs_out_ends_an_upload(small_cluster: LocalCluster) -> None:
    """What was sent of a file under a session that has ended is no file, and the path is not locked any more."""
    username, password = person(small_cluster)
    http = with_session(small_cluster.http(NODE, "alice"), username, password)
    path = files(f"{username}/f")
    with http.begin("PUT", path, {"Content-Length": str(2 * MIB)}) as upload:
        upload.send(bytes(MIB))
        http.request("DELETE", "/api/v1/sessions/current").must(204)
        assert upload.answer_begins(1.0), "the upload goes on"
        assert upload.whole().status in {401, 403}
    again = with_password(http, username, password)
    get(again, f"{username}/f").must(404)
    put(again, f"{username}/f", b"again").must(201)


def test_a_taken_right_ends_an_upload_and_frees_the_lock(small_cluster: LocalCluster) -> None:
    """An editor whose right is taken in mid-upload is refused at once, not at the end of the body, and the owner can write."""
    alice = small_cluster.http(NODE, "alice")
    username, password = person(small_cluster)
    put(alice, "alice/shared", b"first").must(201)
    origin = str(small_cluster.details("alice/shared", "alice")["origin"])
    alice.request("PUT", "/api/v1/access/alice/shared", json={"user": username, "role": "editor"}).must(200)
    http = with_password(small_cluster.http(origin, "alice"), username, password)
    with http.begin("PUT", files("alice/shared"), {"Content-Length": str(2 * MIB)}) as upload:
        upload.send(bytes(MIB))
        wait_for_lock(small_cluster.http(origin, "alice"))
        alice.request("DELETE", f"/api/v1/access/alice/shared?user={username}").must(204)
        assert upload.answer_begins(1.0), "the upload goes on"
        assert upload.whole().status in {403, 404}
    put(alice, "alice/shared", b"second").must(200)


def wait_for_lock(http: Http) -> None:
    until = time.monotonic() + 5.0
    while http.request("GET", "/api/v1/details/alice/shared").must(200).json()["lock"] is None:
        assert time.monotonic() < until, "the upload has not begun"


def test_a_body_of_unknown_length_ends_at_the_quota(small_cluster: LocalCluster) -> None:
    """An endless body is refused when the quota is used up, not when the disks are full."""
    username, password = person(small_cluster)
    change(small_cluster, username, quota_bytes=MIB)
    http = with_password(small_cluster.http(NODE, "alice"), username, password)
    with http.begin("PUT", files(f"{username}/f"), {"Transfer-Encoding": "chunked"}) as upload:
        with suppress(*BROKEN):
            for _ in range(32):
                upload.send(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
        assert upload.whole().code == "quota-exceeded"
