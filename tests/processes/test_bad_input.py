"""What a careless or hostile client sends: a clear answer, nothing half-written left, and the next request is served."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from securifile.local.asking import Http, Response
from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import BROKEN, files, get, noise, put

NODE = "node1"


@attrs.frozen
class Bad:
    """A request that is wrong, and the statuses that say so."""

    name: str
    method: str
    target: str
    statuses: tuple[int, ...] = (400,)
    body: bytes | None = None
    headers: dict[str, str] = attrs.Factory(dict)

    def __str__(self) -> str:
        return self.name


JSON = {"Content-Type": "application/json"}
SHA = "sha-256=:" + base64.b64encode(hashlib.sha256(b"something else").digest()).decode() + ":"
BAD = [
    Bad("dots", "PUT", files("alice/../bob/x"), body=b"x"),
    Bad("encoded dots", "PUT", files("alice/%2e%2e/x"), body=b"x"),
    Bad("one dot", "PUT", files("alice/./x"), body=b"x"),
    Bad("empty name", "PUT", files("alice//x"), body=b"x"),
    Bad("NUL", "PUT", files("alice/a%00b"), body=b"x"),
    Bad("control character", "PUT", files("alice/a%07b"), body=b"x"),
    Bad("newline", "PUT", files("alice/a%0ab"), body=b"x"),
    Bad("5,000 characters", "PUT", files("alice/" + "a" * 5000), (400, 414), body=b"x"),
    Bad("5,000 characters in many names", "PUT", files("alice/" + "abcd/" * 1000 + "x"), (400, 414), body=b"x"),
    Bad("invalid UTF-8", "PUT", files("alice/%ff%fe"), body=b"x"),
    Bad("invalid percent", "PUT", files("alice/%zz"), body=b"x"),
    Bad("slash in a name", "PUT", files("alice/a%2fb"), body=b"x"),
    Bad("broken JSON", "POST", "/api/v1/move", body=b'{"from": ', headers=JSON),
    Bad("JSON that is no object", "POST", "/api/v1/move", (400, 422), body=b"[1]", headers=JSON),
    Bad(
        "JSON of wrong types",
        "POST",
        "/api/v1/move",
        (400, 422),
        body=b'{"from": 1, "to": {}}',
        headers=JSON,
    ),
    Bad("deep JSON", "POST", "/api/v1/move", (400, 413), body=b"[" * 100_000, headers=JSON),
    Bad("huge headers", "GET", files("alice/"), (431,), headers={"X-Huge": "a" * 200_000}),
    Bad("many headers", "GET", files("alice/"), (431,), headers={f"X-{number}": "a" for number in range(2000)}),
    Bad("unknown method", "BREW", files("alice/x"), (405, 501)),
    Bad("method not here", "POST", files("alice/x"), (405,), body=b"x"),
    Bad("unknown place", "GET", "/api/v1/nowhere", (404,)),
    Bad("no number as length", "PUT", files("alice/x"), headers={"Content-Length": "abc"}),
    Bad("negative length", "PUT", files("alice/x"), headers={"Content-Length": "-1"}),
    Bad("length and chunks", "PUT", files("alice/x"), headers={"Content-Length": "3", "Transfer-Encoding": "chunked"}),
    Bad("unknown coding", "PUT", files("alice/x"), (400, 501), headers={"Transfer-Encoding": "gzip, chunked"}),
    Bad("no length", "PUT", files("alice/x"), (411,)),
    Bad("a digest that does not match", "PUT", files("alice/x"), body=b"this", headers={"Repr-Digest": SHA}),
    Bad("a digest that is none", "PUT", files("alice/x"), body=b"this", headers={"Repr-Digest": "sha-256=nonsense"}),
    Bad("a bad range of a file", "GET", files("alice/good"), (416,), headers={"Range": "bytes=100-200"}),
    Bad("a precondition that does not hold", "PUT", files("alice/good"), (412,), body=b"x", headers={"If-None-Match": "*"}),
    Bad("no credentials", "GET", files("alice/good"), (401,), headers={"Authorization": ""}),
    Bad("bad credentials", "GET", files("alice/good"), (401,), headers={"Authorization": "Bearer nonsense"}),
    Bad("bad Basic", "GET", files("alice/good"), (401, 400), headers={"Authorization": "Basic !!!"}),
]


@pytest.fixture(scope="module")
def http(small_cluster: LocalCluster) -> Http:
    """Alice, at a node where she has one good file."""
    client = small_cluster.http(NODE, "alice")
    put(client, "alice/good", b"good").must(201)
    return client


def serves_on(http: Http) -> None:
    """The node is there, its good file is untouched, and no bad one has appeared."""
    assert get(http, "alice/good").must(200).body == b"good"
    listed = http.request("GET", files("alice/")).must(200).json()["entries"]
    assert [entry["name"] for entry in listed] == ["good"]


def unfinished(cluster: LocalCluster) -> list[Path]:
    """What of uploads is on the nodes' disks and is no whole blob."""
    return [file for node in cluster.nodes.values() for file in (node.data / "incoming").iterdir()]


@pytest.fixture(scope="module", autouse=True)
def nothing_half_written(small_cluster: LocalCluster, http: Http) -> Iterator[None]:
    """After all of it, no piece of an upload is left on a node's disk."""
    yield
    eventually(lambda: not unfinished(small_cluster), 10, "no piece of an upload is left")


def ask(http: Http, bad: Bad) -> Response:
    headers = {"Authorization": http.authorization or ""} | bad.headers
    if not headers["Authorization"]:
        headers.pop("Authorization")
    client = attrs.evolve(http, authorization=None, timeout_s=10)
    if bad.body is None:
        with client.begin(bad.method, bad.target, headers) as exchange:
            return exchange.whole()
    return client.request(bad.method, bad.target, bad.body, headers, follow=True)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_it_is_answered_with_a_problem(http: Http, bad: Bad) -> None:
    """The status says what is wrong, the problem has a code and a sentence; and the node serves on."""
    response = ask(http, bad).must(*bad.statuses)
    assert response.headers.get_content_type() == "application/problem+json"
    assert response.code
    assert response.json()["detail"]
    serves_on(http)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n\r\n\r\nx\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" * 1000 + b"\r\n\r\n",
        noise(5000) + b"\r\n\r\n",
        b"G" * 100_000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["empty lines", "no request", "HTTP of the future", "TLS in TLS", "noise", "endless method", "no host"],
)
def test_what_is_no_request_is_refused(http: Http, garbage: bytes) -> None:
    """Bytes that are no HTTP get a 4xx or 505 problem, or the connection is closed."""
    try:
        with attrs.evolve(http, timeout_s=10).raw(garbage) as exchange:
            assert exchange.whole().status in {400, 414, 431, 501, 505}
    except BROKEN as error:
        assert not isinstance(error, TimeoutError)
    serves_on(http)


def test_two_lengths_are_refused(http: Http) -> None:
    """Two lengths that differ are how requests are smuggled past a proxy."""
    head = f"PUT {files('alice/x')} HTTP/1.1\r\nHost: x\r\nAuthorization: {http.authorization}\r\n"
    with http.raw(head.encode() + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab") as exchange:
        assert exchange.whole().status == 400
    serves_on(http)


@pytest.mark.parametrize("sent", [0, 1, 300_000])
def test_a_body_cut_off_leaves_nothing(http: Http, sent: int) -> None:
    """A client that goes away in the middle of an upload has not changed anything."""
    with http.begin("PUT", files("alice/good"), {"Content-Length": "1000000"}) as exchange:
        exchange.send(noise(sent))
    with http.begin("PUT", files("alice/x"), {"Transfer-Encoding": "chunked"}) as exchange:
        exchange.send(b"%x\r\n%b" % (sent + 10, noise(sent)))
    eventually(lambda: put(http, "alice/other", b"x").status == 201, 15, "another file can be made")
    http.request("DELETE", files("alice/other"), follow=True).must(204)
    serves_on(http)
    # The lock that the upload held is gone, too.
    eventually(lambda: put(http, "alice/good", b"good").status == 200, 15, "the file can be modified again")


def test_broken_chunks_are_refused(http: Http) -> None:
    """A chunk whose size is no number is a bad request, and the file stays as it was."""
    with http.begin("PUT", files("alice/good"), {"Transfer-Encoding": "chunked"}) as exchange:
        exchange.send(b"5\r\nhello\r\nxyz\r\nworld\r\n0\r\n\r\n")
        assert exchange.whole().status == 400
    serves_on(http)


def test_a_full_disk_is_said(cluster_of: Callable[..., LocalCluster]) -> None:
    """A file that does not fit is refused as such, leaves nothing behind, and what is there can be read."""
    free = shutil.disk_usage("/tmp").free
    # What we pretend is the whole disk: larger than what other programs write meanwhile, smaller than the file.
    room = min(free // 2, 8 * 2**30)
    cluster = cluster_of(nodes=1, replicas=0, options=["--reserve-bytes", str(free - room)])
    http = cluster.http("node1", "alice")
    put(http, "alice/small", b"small").must(201)
    with http.begin("PUT", files("alice/big"), {"Content-Length": str(2 * room), "Expect": "100-continue"}) as exchange:
        refused = exchange.whole().must(503, 507)
    assert refused.code in {"disk-full", "not-enough-nodes-with-room"}
    assert get(http, "alice/small").must(200).body == b"small"
    get(http, "alice/big").must(404)
    eventually(lambda: not unfinished(cluster), 10, "nothing half-written is left")
