"""A few small servers that speak the API on loopback and share one memory: enough of a cluster for the client's tests.

A test may give a server one `Misbehaviour` for each of its next requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

PASSWORD = "correct horse"
TOKEN = "token-of-alice"

Misbehaviour = Callable[["FakeServer", http.Request], Any]
"""Handles a request in its own way: returns what `render` returns, or None to let the request be handled as usual."""


@attrs.define
class Stored:
    """A file."""

    data: bytes
    version: int
    algorithm: str = "sha256"

    @property
    def digest(self) -> bytes:
        return hashlib.new(self.algorithm.replace("sha3-", "sha3_"), self.data).digest()


@attrs.define
class Seen:
    """A request as it came."""

    server: str
    method: str
    path: str
    query: str
    fields: dict[str, str]
    body: bytes


class Refused(Exception):
    def __init__(self, status: int, code: str, detail: str = "No.") -> None:
        self.status, self.code, self.detail = status, code, detail


class FakeCluster:
    """The memory that the servers share, and what they were asked."""

    def __init__(self) -> None:
        self.files: dict[str, Stored] = {}
        self.folders: set[str] = {"alice", "bob"}
        self.keys: dict[str, dict[str, Any]] = {}
        self.grants: dict[str, dict[str, str]] = {}
        self.users: dict[str, dict[str, Any]] = {
            name: {
                "username": name,
                "email": f"{name}@example.org",
                "administrator": name == "alice",
                "disabled": False,
                "quota_bytes": None,
            }
            for name in ("alice", "bob")
        }
        self.settings: dict[str, Any] = {"replicas": 2, "digest": "sha256", "write_copies": None}
        self.invites: list[dict[str, Any]] = []
        self.repaired: list[dict[str, Any]] = []
        """What a repair answers, each time it is asked for."""
        self.explained: dict[str, Any] = {}
        self.epoch: dict[str, Any] = {}
        self.accepting = 0
        """How often it is still under way."""
        self.servers: list[FakeServer] = []
        self.seen: list[Seen] = []
        self.page = 100
        self.with_repr_digest = True
        self.sessions = {TOKEN}

    def listen(self, reactor: Any, names: str, tls: Any = None) -> Iterator[FakeServer]:
        for name in names.split():
            yield FakeServer(self, name, reactor, tls)

    def asked(self, method: str, beginning: str = "/") -> list[Seen]:
        return [one for one in self.seen if one.method == method and one.path.startswith(beginning)]


class FakeServer(Resource):
    """One server; its name begins with `admin` or `node`."""

    isLeaf = True

    def __init__(self, cluster: FakeCluster, name: str, reactor: Any, tls: Any = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cluster = cluster
        self.name = name
        self.kind = "admin" if name.startswith("admin") else "node"
        self.status = "running"
        self.misbehave: list[Misbehaviour] = []
        site = Site(self, reactor=Clock())
        self.port: IListeningPort | None = (
            reactor.listenTCP(0, site, interface="127.0.0.1") if tls is None else reactor.listenSSL(0, site, tls, interface="127.0.0.1")
        )
        assert self.port is not None
        address: Any = self.port.getHost()
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{address.port}"
        cluster.servers.append(self)

    async def stop(self) -> None:
        port, self.port = self.port, None
        if port is not None:
            stopping = port.stopListening()
            if stopping is not None:
                await stopping

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "url": self.url, "kind": self.kind, "status": self.status}

    def render(self, request: Any) -> Any:
        url = urlsplit(request.uri.decode())
        fields = {name.decode().lower(): values[-1].decode("latin-1") for name, values in request.requestHeaders.getAllRawHeaders()}
        seen = Seen(self.name, request.method.decode(), url.path, url.query, fields, request.content.read())
        self.cluster.seen.append(seen)
        if self.misbehave:
            answer = self.misbehave.pop(0)(self, request)
            if answer is not None:
                return answer
        try:
            return self._answer(request, seen)
        except Refused as refused:
            return problem(request, refused.status, refused.code, refused.detail)

    def _answer(self, request: Any, seen: Seen) -> bytes:
        method, path, query = (
            seen.method,
            seen.path.removeprefix("/api/v1"),
            dict(part.split("=") for part in seen.query.split("&") if part),
        )
        if (method, path) == ("POST", "/sessions"):
            given = json.loads(seen.body)
            if given["password"] != PASSWORD:
                raise Refused(401, "bad-credentials", "The name or the password is wrong.")
            servers = [server.told() for server in self.cluster.servers]
            user = self.cluster.users[given["username"]]
            return answer(request, 201, {"token": TOKEN, "expires_at": "2026-11-22T10:00:00Z", "user": user, "servers": servers})
        if seen.fields.get("authorization") != f"Bearer {next(iter(self.cluster.sessions), None)}" and "ticket" not in query:
            raise Refused(401, "invalid-token", "This session has ended.")
        kind, _, rest = path.removeprefix("/").partition("/")
        place = unquote(rest)
        if kind == "sessions":
            self.cluster.sessions.clear()
            return answer(request, 204)
        if kind in ("files", "details", "access"):
            handler = getattr(self, f"_{kind}_{method.lower()}" if not place.endswith("/") else f"_folders_{method.lower()}")
            return handler(request, seen, place.rstrip("/"), query)  # type: ignore[no-any-return]
        if kind == "move":
            given = json.loads(seen.body)
            self.cluster.files[given["to"]] = self.cluster.files.pop(given["from"])
            return answer(request, 200, {"path": given["to"], "id": "1"})
        if kind == "shared":
            return answer(request, 200, {"shared": [{"path": "bob/a.txt", "kind": "file", "owner": "bob", "role": "reader", "size": 3}]})
        if self.kind != "admin":
            admin = next(server for server in self.cluster.servers if server.kind == "admin")
            request.setHeader("Location", admin.url + request.uri.decode())
            return answer(request, 307)
        return getattr(self, f"_{kind}")(request, seen, rest, query)  # type: ignore[no-any-return]

    # Files and folders.

    def _stored(self, place: str) -> Stored:
        if place in self.cluster.folders:
            raise Refused(409, "is-a-folder", "This is a folder.")
        if place not in self.cluster.files:
            raise Refused(404, "not-found", "There is nothing here, or nothing that you may see.")
        return self.cluster.files[place]

    def _files_get(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        stored = self._stored(place)
        etag = f'"{place}.{stored.version}"'
        request.setHeader("ETag", etag)
        if self.cluster.with_repr_digest:
            request.setHeader("Repr-Digest", f"sha-256=:{base64.b64encode(stored.digest).decode()}:")
        wanted = seen.fields.get("range")
        if wanted and seen.fields.get("if-range") == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            request.setResponseCode(206)
            request.setHeader("Content-Range", f"bytes {start}-{len(stored.data) - 1}/{len(stored.data)}")
            return stored.data[start:]
        return stored.data

    def _files_put(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        key = seen.fields["idempotency-key"]
        if key in self.cluster.keys:
            return answer(request, 201, self.cluster.keys[key])
        if place in self.cluster.folders:
            raise Refused(409, "is-a-folder", "This is a folder.")
        if place.rpartition("/")[0] not in self.cluster.folders:
            raise Refused(404, "not-found", "The folder does not exist.")
        before = self.cluster.files.get(place)
        if before and "if-none-match" in seen.fields:
            raise Refused(412, "precondition-failed", "There is something already.")
        stored = Stored(seen.body, before.version + 1 if before else 1)
        self.cluster.files[place] = stored
        told = {
            "path": place,
            "version": stored.version,
            "size": len(stored.data),
            "digest": stored.digest.hex(),
            "algorithm": stored.algorithm,
            "origin": self.name,
            "copies": {"wanted": 3, "durable": 2},
        }
        self.cluster.keys[key] = told
        return answer(request, 200 if before else 201, told)

    def _files_delete(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        self._stored(place)
        del self.cluster.files[place]
        return answer(request, 204)

    def _folders_get(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        if place in self.cluster.files:
            raise Refused(409, "not-a-folder", "This is a file.")
        if place not in self.cluster.folders:
            raise Refused(404, "not-found", "There is nothing here.")
        entries: list[dict[str, Any]] = [
            {"name": name.rpartition("/")[2], "kind": "folder"} for name in self.cluster.folders if name.rpartition("/")[0] == place
        ] + [
            {"name": name.rpartition("/")[2], "kind": "file", "size": len(one.data), "version": one.version, "modified_by": "alice"}
            for name, one in self.cluster.files.items()
            if name.rpartition("/")[0] == place
        ]
        entries = sorted((entry for entry in entries if entry["name"] > unquote(query.get("after", ""))), key=lambda entry: entry["name"])
        page = entries[: self.cluster.page]
        return answer(request, 200, {"entries": page, **({"next": page[-1]["name"]} if len(page) < len(entries) else {})})

    def _folders_put(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        if place in self.cluster.folders or place in self.cluster.files:
            raise Refused(409, "exists", "There is something at this path already.")
        if place.rpartition("/")[0] not in self.cluster.folders:
            raise Refused(404, "not-found", "The folder does not exist.")
        self.cluster.folders.add(place)
        return answer(request, 201, {"path": place + "/", "kind": "folder"})

    def _folders_delete(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        beneath = [name for name in (*self.cluster.files, *self.cluster.folders) if name.startswith(place + "/")]
        if beneath and query.get("recursive") != "1":
            raise Refused(409, "folder-not-empty", "The folder is not empty.")
        for name in (*beneath, place):
            self.cluster.files.pop(name, None)
            self.cluster.folders.discard(name)
        return answer(request, 204)

    def _details_get(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        if place in self.cluster.folders:
            return answer(request, 200, {"path": place, "kind": "folder", "owner": "alice", "role": "owner"})
        stored = self._stored(place)
        replicas = [{"server": "node2", "priority": 1, "durable": True, "status": "running"}]
        told = {"path": place, "kind": "file", "owner": "alice", "role": "owner", "version": stored.version, "size": len(stored.data)}
        told |= {
            "digest": stored.digest.hex(),
            "algorithm": stored.algorithm,
            "origin": "node1",
            "origin_status": "down",
            "replicas": replicas,
        }
        return answer(request, 200, {**told, "lock": {"person": "bob", "node": "node1", "expires_in_s": 4.5}})

    def _access_get(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        grants = [
            {"user": user, "role": role, "granted_by": "alice", "path": place} for user, role in self.cluster.grants.get(place, {}).items()
        ]
        return answer(request, 200, {"path": place, "role": "owner", "grants": grants})

    def _access_put(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        given = json.loads(seen.body)
        self.cluster.grants.setdefault(place, {})[given["user"]] = given["role"]
        return answer(request, 200, {"path": place, **given})

    def _access_delete(self, request: Any, seen: Seen, place: str, query: dict[str, str]) -> bytes:
        if self.cluster.grants.get(place, {}).pop(query["user"], None) is None:
            raise Refused(404, "not-found", "They have no role.")
        return answer(request, 204)

    # People and servers.

    def _users(self, request: Any, seen: Seen, rest: str, query: dict[str, str]) -> bytes:
        users = self.cluster.users
        name, _, what = rest.partition("/")
        if seen.method == "POST":
            given = json.loads(seen.body)
            users[given["username"]] = {"administrator": False, "disabled": False, "quota_bytes": None, **given}
            return answer(request, 201, {**users[given["username"]], **({} if "password" in given else {"password": "made-for-you"})})
        if not name:
            return answer(request, 200, {"users": list(users.values())})
        if name not in users:
            raise Refused(404, "not-found", "There is no such person.")
        owned = {path: one for path, one in self.cluster.files.items() if path.startswith(name + "/")}
        if what == "usage":
            total = sum(len(one.data) for one in owned.values())
            return answer(request, 200, {"username": name, "files": len(owned), "bytes": total, "quota_bytes": users[name]["quota_bytes"]})
        if what == "files":
            return answer(
                request, 200, {"files": [{"path": path, "version": one.version, "size": len(one.data)} for path, one in owned.items()]}
            )
        if seen.method == "PATCH":
            users[name] |= json.loads(seen.body)
        if seen.method == "DELETE":
            if owned and query.get("files") != "1":
                raise Refused(409, "conflict", "They own files.")
            del users[name]
            return answer(request, 204)
        return answer(request, 200, users[name])

    def _servers(self, request: Any, seen: Seen, rest: str, query: dict[str, str]) -> bytes:
        if rest == "invites":
            if seen.method == "GET":
                return answer(request, 200, {"invites": self.cluster.invites})
            self.cluster.invites.append({"name": json.loads(seen.body)["name"], "expires_at": "2026-11-22T10:00:00Z"})
            return answer(request, 201, {**json.loads(seen.body), "token": "join-me", "expires_at": "2026-11-22T10:00:00Z"})
        name, _, what = rest.partition("/")
        if what == "repair":
            return answer(request, 200, self.cluster.repaired.pop(0))
        if what in ("offline", "online"):
            return answer(request, 200, {"name": name, "offline": what == "offline", "status": "down"})
        if what == "explain":
            return answer(request, 200, self.cluster.explained)
        if what == "drain" or seen.method == "DELETE":
            dry_run = query.get("dry_run") == "1"
            told = {"name": name, "draining": seen.method == "POST", "dry_run": dry_run, "copies": 12, "only_copies": 3}
            return answer(request, 200, told) if what == "drain" or dry_run else answer(request, 204)
        told = [
            {**server.told(), "used_bytes": 5 << 30, "available_bytes": 1536, "heartbeat_age_s": 0.31} for server in self.cluster.servers
        ]
        if rest:
            return answer(
                request, 200, {**told[0], "observers": [{"observer": "node1", "status": "running", "since": "2026-11-21T10:00:00Z"}]}
            )
        return answer(request, 200, {"cluster": "test", "servers": told, "warnings": []})

    def _explain(self, request: Any, seen: Seen, rest: str, query: dict[str, str]) -> bytes:
        return answer(request, 200, {"path": unquote(rest), **self.cluster.explained})

    def _epoch(self, request: Any, seen: Seen, rest: str, query: dict[str, str]) -> bytes:
        if rest == "dismiss":
            return answer(request, 200, {"dismissed": len(self.cluster.epoch["left"])})
        if rest == "accept" and self.cluster.accepting:
            self.cluster.accepting -= 1
            return answer(request, 202, {"under_way": True})
        return answer(request, 200, self.cluster.epoch)

    def _settings(self, request: Any, seen: Seen, rest: str, query: dict[str, str]) -> bytes:
        if seen.method == "PATCH":
            self.cluster.settings |= json.loads(seen.body)
        return answer(request, 200, self.cluster.settings)


def answer(request: Any, status: int, value: Any = None) -> bytes:
    request.setResponseCode(status)
    if value is None:
        return b""
    request.setHeader("Content-Type", "application/json")
    return json.dumps(value).encode()


def problem(request: Any, status: int, code: str, detail: str = "No.", retry_after: str | None = None) -> bytes:
    request.setHeader("Content-Type", "application/problem+json")
    if retry_after:
        request.setHeader("Retry-After", retry_after)
    request.setResponseCode(status)
    return json.dumps({"type": "x", "title": "No", "status": status, "code": code, "detail": detail}).encode()


def refusing(status: int, code: str) -> Misbehaviour:
    """Refuse this request."""
    return lambda server, request: problem(request, status, code, f"{server.name} says {code}.")


def deaf(server: FakeServer, request: Any) -> Any:
    """Break the connection off without an answer; the request is not carried out."""
    request.transport.abortConnection()
    return NOT_DONE_YET


def mute(server: FakeServer, request: Any) -> Any:
    """Carry the request out, and break the connection off without an answer."""
    request.content.seek(0)
    seen = server.cluster.seen[-1]
    server._answer(request, seen)
    request.transport.abortConnection()
    return NOT_DONE_YET


def breaking_after(count: int) -> Misbehaviour:
    """Break the connection off when so many bytes of the file have gone."""

    def misbehave(server: FakeServer, request: Any) -> Any:
        data = server._answer(request, server.cluster.seen[-1])
        request.setHeader("Content-Length", str(len(data)))
        request.write(data[:count])
        # A transport whose producer is paused does not close before it goes on.
        request.channel.transport.unregisterProducer()
        request.channel.transport.loseConnection()
        return NOT_DONE_YET

    return misbehave


def redirecting(destination: Callable[[], str]) -> Misbehaviour:
    """Send the request elsewhere, with a ticket."""

    def misbehave(server: FakeServer, request: Any) -> Any:
        request.setHeader("Location", destination() + request.path.decode() + "?ticket=t1")
        request.setResponseCode(307)
        return b"elsewhere"

    return misbehave


def corrupting(server: FakeServer, request: Any) -> Any:
    """Deliver the file with one byte changed."""
    data = server._answer(request, server.cluster.seen[-1])
    return data[:-1] + bytes([data[-1] ^ 1])
