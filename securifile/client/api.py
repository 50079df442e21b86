"""The SDK: a cluster as one object, whichever of its servers answers.

A `Client` draws one server at random when it is made (so the load spreads over all) and keeps to it until it fails; then the next
is tried. It follows redirects with their tickets, sends an upload so that repeating it is safe, and takes no byte of a
download for good before its digest is checked.

What happens when a request fails depends on what is then known:

| failure | known | so |
|---|---|---|
| no connection; 503; a ticket that came too late | certainly not done | try another server |
| broken on the way; 500, 502, 504 | unknown | try another if repeating does no harm, else say `Uncertain` |
| any other refusal | certainly not done, and would not be elsewhere | `Problem` |
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urljoin

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from securifile.client.errors import Damaged, Problem, Uncertain, Unreachable, UntrustedServer
from securifile.client.exchange import Answer, Broken, Content, Http, NotSent, Untrusted
from securifile.client.local_files import FileSource, Output, Progress, WholeFile, open_regular
from securifile.client.resumable import ResumableUpload
from securifile.client.wire import split_url
from securifile.http.digest_fields import format_digest, parse_digests
from securifile.http.targets import Target
from securifile.model.digests import DigestAlgorithm, Hasher
from securifile.model.errors import Code, Refusal
from securifile.model.interfaces import IByteSource, IWorker

HOPS_MAX = 3
"""Redirects that are followed for one request (section 4 of the design)."""
ROUNDS = 4
"""Times each server is asked before a request is given up. With the pauses between: longer than a fail-over takes (1.5 s)."""
PAUSE_S = 0.25
"""Before the servers are asked a second time; doubled from then on."""
PAUSE_MAX_S = 4.0
"""No pause is longer, whatever `Retry-After` says: a person waits."""
RESUMES_MAX = 8
"""Times a download is taken up again without anything having come in between."""
PAGE = 1000
_NO_SUCH_UPLOAD = frozenset({404, 405, 410})
"""The server's release knows none, or has given this one up: a `PUT` will do, or say what is wrong."""

Json = dict[str, Any]

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


@attrs.frozen(kw_only=True)
class KnownServer:
    """A server of the cluster, as the sign-in told of it."""

    name: str
    url: str
    kind: str = "node"
    status: str = "running"


@attrs.frozen(kw_only=True)
class Downloaded:
    """What came of a download."""

    size: int
    digest: str
    """`algorithm:hexadecimal`; what the bytes were checked against."""
    server: str
    """The URL that delivered the last of it, without its ticket."""


class Client:
    """A person's way into a cluster.

    Args:
        http: makes single requests; decides about trust.
        servers: at least one; replaced by what a sign-in tells.
        clock: for pauses between tries.
        random: for the choice of server and for idempotency keys.
        worker: where files are read, written and hashed.
        token: of an earlier sign-in.
    """

    def __init__(
        self,
        http: Http,
        servers: Sequence[KnownServer],
        *,
        clock: IReactorTime,
        random: Callable[[int], bytes],
        worker: IWorker,
        token: str | None = None,
    ) -> None:
        self._http = http
        self._clock = clock
        self._random = random
        self._worker = worker
        self._token = token
        self._servers: list[KnownServer] = []
        self._know(servers)

    @property
    def servers(self) -> tuple[KnownServer, ...]:
        """The servers that are known, the one that is asked first at the front."""
        return tuple(self._servers)

    @property
    def token(self) -> str | None:
        """The bearer token of the sign-in; a secret."""
        return self._token

    async def close(self) -> None:
        """Break off every connection."""
        await self._http.close()

    # Sign-in.

    async def sign_in(self, username: str, password: str) -> Json:
        """Sign in; the token and the list of servers are used from now on.

        Raises:
            Problem: wrong name or password (`bad-credentials`), or the account is closed.
        """
        # Repeating it does no harm: a session more.
        answer = await self._json(
            "POST", "/api/v1/sessions", {"username": username, "password": password}, kind="admin", repeatable=True, anonymous=True
        )
        self._token = str(answer["token"])
        told = [server_of(one) for one in answer.get("servers", ()) if one.get("url")]
        if told:
            self._know(told)
        return answer

    async def sign_out(self) -> None:
        """End the session; the token is void."""
        await self._json("DELETE", "/api/v1/sessions/current", kind="admin", repeatable=True)
        self._token = None

    # Files.

    async def upload(
        self,
        target: Target,
        source: str | BinaryIO,
        *,
        if_match: str | None = None,
        only_new: bool = False,
        digest: tuple[DigestAlgorithm, bytes] | None = None,
        resumable_from: int | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Json:
        """Store a file; the server's answer says where the copies are.

        Memory is constant whatever the size. It is safe to be repeated after a failure: the key it carries makes
        one version of it, at whichever servers it arrives.

        Args:
            target: where it goes; must not be written as a folder.
            source: path of a file, or an open one (seekable; read from its beginning, and not closed).
            if_match: only if the file has this ETag.
            only_new: only if there is nothing at that path.
            digest: what the content's digest is, if that is known already; the server refuses other content.
            resumable_from: of a file of so many bytes or more, only what has not arrived is sent again after a failure
                (`client/resumable.py`); None: of no file.
            progress: told of the bytes that went; starts anew when the upload is repeated.

        Raises:
            Problem, Unreachable: it is not stored.
            FileChanged: the file was changed while it was read; it is not stored.
            Damaged: something else is stored than what the file held.
            OSError: the file cannot be read.
        """
        if isinstance(source, str):
            with open_regular(source) as file:
                return await self._upload(target, file, if_match, only_new, digest, resumable_from, progress)
        return await self._upload(target, source, if_match, only_new, digest, resumable_from, progress)

    async def _upload(
        self,
        target: Target,
        file: BinaryIO,
        if_match: str | None,
        only_new: bool,
        digest: tuple[DigestAlgorithm, bytes] | None,
        resumable_from: int | None,
        progress: Progress,
    ) -> Json:
        length = os.fstat(file.fileno()).st_size
        fields = {}
        if if_match is not None:
            fields["If-Match"] = if_match
        if only_new:
            fields["If-None-Match"] = "*"
        if digest is not None and (stated := format_digest(*digest)) is not None:
            fields["Repr-Digest"] = stated
        if resumable_from is not None and length >= resumable_from:
            upload = ResumableUpload(
                ask=self._request,
                pause=self._pause,
                target=target,
                file=file,
                length=length,
                fields=fields,
                worker=self._worker,
                progress=progress,
            )
            try:
                stored = await upload.run()
            except Problem as problem:
                if problem.status not in _NO_SUCH_UPLOAD:
                    raise
            else:
                await self._compare(upload.source, stored)
                return stored
        fields |= {"Content-Type": "application/octet-stream", "Idempotency-Key": f'"{self._random(16).hex()}"'}
        sources: list[FileSource] = []

        def content() -> Content:
            # SHA-256 is what clusters use unless told otherwise, and is wanted once the answer is there.
            sources.append(FileSource(file, length, self._worker, DigestAlgorithm.SHA256, progress))
            return Content(source=sources[-1], length=length)

        answer = await self._request("PUT", target.url(), kind="node", fields=fields, content=content, repeatable=True)
        stored = _parsed(await answer.content(), answer)
        await self._compare(sources[-1], stored)
        return stored

    async def _compare(self, sent: FileSource, stored: Json) -> None:
        """Whether what is stored is what the file holds: the digest is computed at both ends."""
        try:
            algorithm, recorded = DigestAlgorithm(stored["algorithm"]), bytes.fromhex(stored["digest"])
        except (KeyError, ValueError):
            return  # a newer server with an algorithm that we have not
        # A repeated upload may be answered before its content was taken, because the first one had been carried out.
        whole = sent if sent.algorithm is algorithm and sent.complete else sent.again(algorithm)
        while await whole.read():
            pass
        if whole.digest() != recorded:
            raise Damaged(
                f"What is stored as {stored.get('path', 'that file')} is not what the file holds: {algorithm} {recorded.hex()} there, "
                f"{whole.digest().hex()} here. The file was changed meanwhile, or damaged on its way; upload it again."
            )

    async def download(self, target: Target, destination: str, *, progress: Progress = lambda done, total: None) -> Downloaded:
        """Fetch a file; it appears at `destination` whole and checked, or not at all.

        Raises:
            Problem, Unreachable, Damaged: and nothing is left behind.
            OSError: it cannot be written.
        """
        async with WholeFile(destination, self._worker, self._random) as file:
            result = await self.download_to(target, file, progress=progress)
            await file.finish()
            return result

    async def download_to(self, target: Target, output: Output, *, progress: Progress = lambda done, total: None) -> Downloaded:
        """Fetch a file into an output as it comes; a broken connection is taken up again where it broke, at another server.

        Raises:
            Damaged: the bytes are not the file's. What was written must not be used.
        """
        return await _Download(self, target, output, self._worker, progress).run()

    async def delete(self, target: Target, *, recursive: bool = False) -> None:
        """Delete a file, or a folder (with all in it if `recursive`)."""
        await self._delete(target.url() + ("?recursive=1" if recursive else ""), kind="node")

    async def move(self, source: Target, destination: Target) -> Json:
        """Give a file or folder another path, with whatever is in it."""
        return await self._json("POST", "/api/v1/move", {"from": str(source).rstrip("/"), "to": str(destination).rstrip("/")}, kind="node")

    async def details(self, target: Target) -> Json:
        """All that is known of a file or folder: version, digest, origin, replicas, lock."""
        return await self._json("GET", target.url("details"), kind="node")

    # Folders.

    def entries(self, folder: Target) -> AsyncIterator[Json]:
        """What is in a folder, in order, page by page."""
        return self._pages(attrs.evolve(folder, folder=True).url(), "entries", kind="node")

    async def make_folder(self, folder: Target) -> Json:
        """Make a folder; the one that it is in must be there."""
        return await self._json("PUT", attrs.evolve(folder, folder=True).url(), kind="node", repeatable=True, done_code=Code.EXISTS)

    # Rights.

    async def access(self, target: Target) -> Json:
        """Who may do what with it: `role` is the asker's own."""
        return await self._json("GET", target.url("access"), kind="node")

    async def grant(self, target: Target, username: str, role: str) -> Json:
        """Give a person a role on a file, or on a folder and all beneath it."""
        return await self._json("PUT", target.url("access"), {"user": username, "role": role}, kind="node", repeatable=True)

    async def revoke(self, target: Target, username: str) -> None:
        """Take a person's role away."""
        await self._delete(target.url("access") + "?" + urlencode({"user": username}), kind="node")

    def shared(self) -> AsyncIterator[Json]:
        """What others have shared with me."""
        return self._pages("/api/v1/shared", "shared", kind="node")

    # People.

    def users(self) -> AsyncIterator[Json]:
        """Everybody (administrators only)."""
        return self._pages("/api/v1/users", "users", kind="admin")

    async def user(self, username: str) -> Json:
        """One person."""
        return await self._json("GET", _user(username), kind="admin")

    async def add_user(self, **fields: Any) -> Json:
        """Create a person: `username`, `email`, and what else the API takes. Without `password` the answer holds a generated one."""
        return await self._json("POST", "/api/v1/users", fields, kind="admin")

    async def change_user(self, username: str, **changes: Any) -> Json:
        """Change some of a person's fields."""
        return await self._json("PATCH", _user(username), changes, kind="admin", repeatable=True)

    async def remove_user(self, username: str, *, files: bool = False) -> None:
        """Remove a person; refused while they own files, unless `files` are to go too."""
        await self._delete(_user(username) + ("?files=1" if files else ""), kind="admin")

    async def usage(self, username: str) -> Json:
        """Number of files and bytes a person owns, and how many they may."""
        return await self._json("GET", _user(username) + "/usage", kind="admin")

    def owned(self, username: str) -> AsyncIterator[Json]:
        """Every file a person owns."""
        return self._pages(_user(username) + "/files", "files", kind="admin")

    # Servers.

    async def cluster(self) -> Json:
        """The servers with their status and storage, and warnings about the cluster."""
        return await self._json("GET", "/api/v1/servers", kind="admin")

    async def server(self, name: str) -> Json:
        """One server, and who holds it for what."""
        return await self._json("GET", _server(name), kind="admin")

    async def command_server(self, name: str, command: str) -> Json:
        """`offline`, `online` or `repair`. A repair may take hours: `under_way` in the answer says that it does; ask again."""
        return await self._json("POST", f"{_server(name)}/{quote(command, safe='')}", {}, kind="admin", repeatable=True)

    async def drain_server(self, name: str, draining: bool, *, dry_run: bool = False) -> Json:
        """Have a node's files kept elsewhere, or no longer; the answer tells how many copies it has. `dry_run`: change nothing."""
        method = "POST" if draining else "DELETE"
        return await self._json(method, f"{_server(name)}/drain{_dry(dry_run)}", {} if draining else None, kind="admin", repeatable=True)

    async def remove_server(self, name: str, *, dry_run: bool = False, force: bool = False) -> Json:
        """Remove a node from the cluster: its certificate opens nothing any more.

        Args:
            dry_run: only tell whether it would be refused.
            force: even if files are left with one copy.
        """
        query = "&".join(f"{option}=1" for option, wanted in (("dry_run", dry_run), ("force", force)) if wanted)
        path = _server(name) + (f"?{query}" if query else "")
        return await self._json("DELETE", path, kind="admin", repeatable=True, done_code=None if dry_run else Code.NOT_FOUND)

    async def explain_server(self, name: str) -> Json:
        """Why a node is as it is, and what happens next (administrators only)."""
        return await self._json("GET", f"{_server(name)}/explain", kind="admin")

    async def explain(self, target: Target) -> Json:
        """Why the copies of a file are as they are, and what happens next."""
        return await self._json("GET", target.url("explain"), kind="admin")

    async def invite(self, name: str) -> Json:
        """Let a new node of that name join: the answer holds the token for its first start."""
        return await self._json("POST", "/api/v1/servers/invites", {"name": name}, kind="admin")

    async def invites(self) -> Json:
        """Invitations that were not used yet."""
        return await self._json("GET", "/api/v1/servers/invites", kind="admin")

    async def settings(self) -> Json:
        """The cluster's settings."""
        return await self._json("GET", "/api/v1/settings", kind="admin")

    async def change_settings(self, changes: Json) -> Json:
        """Change some of the cluster's settings."""
        return await self._json("PATCH", "/api/v1/settings", changes, kind="admin", repeatable=True)

    # Asking.

    async def epoch(self) -> Json:
        """The present epoch of the catalogue, and what was left to administrators (administrators only)."""
        return await self._json("GET", "/api/v1/epoch", kind="admin")

    async def accept_epoch(self, *, without: Sequence[str] = (), trust: Sequence[str] = (), dry_run: bool = False) -> Json:
        """Go on without nodes that have not handed in what the catalogue lost (administrators only)."""
        asked = {"without": ",".join(without), "trust": ",".join(trust), "dry_run": "1" if dry_run else "0"}
        return await self._json("POST", f"/api/v1/epoch/accept?{urlencode(asked)}", {}, kind="admin")

    async def dismiss_left(self) -> Json:
        """Forget what was left to administrators (administrators only)."""
        return await self._json("POST", "/api/v1/epoch/dismiss", {}, kind="admin")

    def _know(self, servers: Sequence[KnownServer]) -> None:
        """Take over a list of servers, in an order drawn at random: the first is the one that this client talks to."""
        self._servers = sorted(servers, key=lambda _: self._random(8))

    def _in_order(self, kind: str) -> list[KnownServer]:
        """The servers to ask, one after the other: those of the right kind and running first."""
        return sorted(self._servers, key=lambda server: (server.kind != kind, server.status != "running"))

    def avoid(self, url: str) -> None:
        """Ask the server at this URL last from now on, because it failed."""
        self._servers.sort(key=lambda server: _same_origin(server.url, url))

    async def _delete(self, path: str, *, kind: str) -> None:
        await self._json("DELETE", path, kind=kind, repeatable=True, done_code=Code.NOT_FOUND)

    async def _json(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        kind: str,
        repeatable: bool = False,
        anonymous: bool = False,
        done_code: str | None = None,
    ) -> Json:
        fields = {"Accept": "application/json"}
        content: Callable[[], Content] | None = None
        if body is not None:
            fields["Content-Type"] = "application/json"
            text = json.dumps(body).encode()

            def content() -> Content:
                return Content(source=_Bytes(text), length=len(text))

        answer = await self._request(
            method,
            path,
            kind=kind,
            fields=fields,
            content=content,
            repeatable=repeatable or method == "GET",
            anonymous=anonymous,
            done_code=done_code,
        )
        try:
            return _parsed(await answer.content(), answer)
        except Broken as error:
            raise Uncertain(f"{method} {path}", str(error)) from error

    async def _pages(self, path: str, member: str, *, kind: str) -> AsyncIterator[Json]:
        after: str | None = None
        while True:
            query = {"limit": PAGE, **({"after": after} if after is not None else {})}
            page = await self._json("GET", f"{path}?{urlencode(query)}", kind=kind)
            for one in page.get(member, ()):
                yield one
            following = page.get("next")
            if following is None or following == after:
                return
            after = str(following)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        kind: str,
        fields: Mapping[str, str],
        content: Callable[[], Content] | None = None,
        repeatable: bool = False,
        anonymous: bool = False,
        done_code: str | None = None,
    ) -> Answer:
        """An answer below 400 from some server.

        Args:
            method: of HTTP.
            path: with its query, percent-encoded.
            kind: of the servers that are asked first.
            fields: beside those that every request has.
            content: makes the content anew for each try.
            repeatable: whether it does no harm to carry it out twice.
            anonymous: without credentials.
            done_code: the refusal that, after a try whose outcome is unknown, says that this try had done it.

        Raises:
            Problem, Unreachable, UntrustedServer, Uncertain: see the table above.
        """
        what = f"{method} {path.partition('?')[0]}"
        reasons: list[tuple[str, str]] = []
        last: Problem | Uncertain | None = None
        for turn in range(ROUNDS):
            if turn:
                wished_s = last.retry_after_s if isinstance(last, Problem) else None
                await self._pause(max(PAUSE_S * 2 ** (turn - 1), wished_s or 0.0))
            for server in self._in_order(kind):
                try:
                    answer = await self._follow(server, method, path, fields, content, anonymous)
                except Untrusted as error:
                    if len(self._servers) == 1:
                        raise UntrustedServer(server.url, str(error)) from error
                    reasons.append((server.url, str(error)))
                except NotSent as error:
                    reasons.append((server.url, str(error)))
                except Broken as error:
                    reasons.append((server.url, str(error)))
                    last = Uncertain(what, str(error))
                    if not repeatable:
                        raise last from error
                else:
                    if answer.status < 400:
                        return answer
                    problem = await self._problem(answer)
                    if isinstance(last, Uncertain) and problem.code == done_code:
                        return answer
                    if not _worth_another(problem, repeatable):
                        raise problem
                    reasons.append((server.url, problem.detail))
                    last = Uncertain(what, problem.detail) if problem.status in _UNKNOWN and method not in ("GET", "HEAD") else problem
                self.avoid(server.url)
        if last is None or (isinstance(last, Uncertain) and method in ("GET", "HEAD")):
            raise Unreachable(reasons)
        raise last

    async def _pause(self, seconds: float) -> None:
        await deferLater(self._clock, min(seconds, PAUSE_MAX_S))

    async def _follow(
        self,
        server: KnownServer,
        method: str,
        path: str,
        fields: Mapping[str, str],
        content: Callable[[], Content] | None,
        anonymous: bool,
    ) -> Answer:
        """Ask one server, and where it sends us. Raises `NotSent`, `Broken`."""
        url = server.url.rstrip("/") + path
        for _ in range(HOPS_MAX + 1):
            answer = await self._http.request(
                method, url, {**fields, **({} if anonymous else self._credentials(url))}, content() if content else None
            )
            if answer.status not in (307, 308):
                return answer
            location = answer.fields.get("Location")
            # Read to its end, so that the connection can be used again; a long one is not worth it.
            await _drain(answer)
            if location is None:
                raise Problem(answer.status, "bad-answer", f"{server.url} redirects without saying where to.")
            following = urljoin(url, location)
            self._check_redirect(url, following)
            url = following
        raise Problem(503, Code.TOO_MANY_REDIRECTS, f"The servers redirected this request more than {HOPS_MAX} times. Try again soon.")

    def _credentials(self, url: str) -> dict[str, str]:
        """The token, for the servers of this cluster and nobody else.

        A redirect to a node carries a ticket, and needs nothing more. One to an admin server (for what nodes do not answer)
        carries none; there the token goes along if the sign-in named that server, since it would have been given it anyway.
        """
        if self._token is None or "ticket=" in url.partition("?")[2]:
            return {}
        return {"Authorization": f"Bearer {self._token}"} if any(_same_origin(known.url, url) for known in self._servers) else {}

    def _check_redirect(self, source: str, destination: str) -> None:
        try:
            old, new = split_url(source)[0], split_url(destination)[0]
        except ValueError:
            raise Problem(502, "bad-answer", "A server redirects to something that is no URL.") from None
        if old.scheme == "https" and new.scheme != "https":
            raise Problem(502, "bad-answer", f"A server redirects from TLS to plain HTTP at {new}; that is not followed.")

    async def _problem(self, answer: Answer) -> Problem:
        """The refusal that an answer is."""
        try:
            text = await answer.content(1 << 20)
            members = json.loads(text) if "json" in (answer.fields.get("Content-Type") or "") else {}
        except (Broken, ValueError):
            members = {}
        if not isinstance(members, dict):
            members = {}
        known = {"type", "title", "status", "code", "detail", "instance"}
        detail = members.get("detail") or members.get("title") or f"{_origin(answer.url)} answered with status {answer.status}."
        after = answer.fields.get("Retry-After") or ""
        return Problem(
            answer.status,
            str(members.get("code", f"http-{answer.status}")),
            str(detail),
            {name: value for name, value in members.items() if name not in known},
            float(after) if after.isdecimal() else None,
        )


class _Download:
    """One download, over as many connections as it takes."""

    def __init__(self, client: Client, target: Target, output: Output, worker: IWorker, progress: Progress) -> None:
        self._client = client
        self._target = target
        self._output = output
        self._worker = worker
        self._progress = progress
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._size: int | None = None
        self._etag: str | None = None
        self._hasher: Hasher | None = None
        self._algorithm: DigestAlgorithm | None = None
        self._recorded = b""

    async def run(self) -> Downloaded:
        """See `Client.download_to`."""
        in_vain, damaged = 0, False
        while True:
            before = self._offset
            answer = await self._ask()
            url = _origin(answer.url)
            try:
                await self._take(answer)
            except Broken as error:
                in_vain = 0 if self._offset > before else in_vain + 1
                if in_vain > RESUMES_MAX:
                    raise Unreachable([(url, str(error))]) from error
                self._client.avoid(url)
                continue
            assert self._hasher is not None and self._algorithm is not None
            found = self._hasher.digest()
            if found == self._recorded:
                return Downloaded(size=self._offset, digest=f"{self._algorithm}:{found.hex()}", server=url)
            # Once more from the beginning, elsewhere: where the digest came from another answer than the bytes, the file may
            # have been modified in between.
            if damaged or not await self._output.restart():
                raise Damaged(
                    f"What {url} delivered as {self._target} is damaged: its {self._algorithm} is {found.hex()}, "
                    f"but {self._recorded.hex()} is recorded. Do not use what was written; tell an administrator."
                )
            damaged = True
            self._client.avoid(url)
            self._forget()

    async def _ask(self) -> Answer:
        """An answer that goes on where we are; where that cannot be had, one from the beginning."""
        fields: dict[str, str] = {}
        if self._offset and self._etag is not None:
            fields = {"Range": f"bytes={self._offset}-", "If-Range": self._etag}
        answer = await self._client._request("GET", self._target.url(), kind="node", fields=fields, repeatable=True)
        if answer.status == 206 and fields:
            matched = _CONTENT_RANGE.fullmatch(answer.fields.get("Content-Range") or "")
            ours = matched is not None and (int(matched[1]), int(matched[3])) == (self._offset, self._size)
            if ours and answer.fields.get("ETag") == self._etag:
                return answer
        elif answer.status == 200:
            if self._offset and not await self._output.restart():
                answer.close()
                raise Damaged(f"{self._target} was modified while it was being read, and what was written cannot be undone. Read it again.")
            self._forget()
            try:
                await self._learn(answer)
            except BaseException:
                answer.close()
                raise
            return answer
        answer.close()
        raise Problem(502, "bad-answer", f"{_origin(answer.url)} answered a request for {self._target} with something else.")

    async def _learn(self, answer: Answer) -> None:
        """Size, version and digest, from the answer's fields; the digest from the details where HTTP has no name for it."""
        length = answer.fields.get("Content-Length") or ""
        self._size = int(length) if length.isdecimal() else None
        etag = answer.fields.get("ETag")
        self._etag = etag if etag is not None and etag.startswith('"') else None
        stated = _digests_of(answer)
        if stated:
            self._algorithm, self._recorded = max(stated.items(), key=lambda one: one[0].bytes_long)
        else:
            details = await self._client.details(self._target)
            try:
                self._algorithm, self._recorded = DigestAlgorithm(details["algorithm"]), bytes.fromhex(details["digest"])
            except (KeyError, TypeError, ValueError):
                raise Damaged(f"No digest is known of {self._target} that could be checked, so it was not taken.") from None
        self._hasher = self._algorithm.hasher()

    async def _take(self, answer: Answer) -> None:
        """Write what comes. Raises `Broken` when it ends too early."""
        assert self._hasher is not None
        try:
            while data := await answer.read():
                await self._worker.do(self._hasher.update, data)
                await self._output.write(data)
                self._offset += len(data)
                self._progress(self._offset, self._size if self._size is not None else self._offset)
        finally:
            answer.close()
        if self._size is not None and self._offset != self._size:
            raise Broken("the content ended early")


@implementer(IByteSource)
class _Bytes:
    """Some bytes as a source."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> Deferred[bytes]:
        """All of it, then nothing."""
        data, self._data = self._data, b""
        return succeed(data)

    def close(self) -> None:
        """Nothing is held."""


_UNKNOWN = (500, 502, 504)
"""Statuses after which nobody knows whether the request was carried out (guarantee 1)."""


def _worth_another(problem: Problem, repeatable: bool) -> bool:
    """Whether another server, or the same one later, may answer better."""
    if problem.status == 503 or problem.code == Code.TICKET_INVALID:
        return True
    return repeatable and problem.status in _UNKNOWN


def server_of(member: Mapping[str, Any]) -> KnownServer:
    """A server as the API tells of it."""
    return KnownServer(
        name=str(member.get("name", "")),
        url=str(member["url"]),
        kind=str(member.get("kind", "node")),
        status=str(member.get("status", "running")),
    )


def _user(username: str) -> str:
    return f"/api/v1/users/{quote(username, safe='@')}"


def _server(name: str) -> str:
    return f"/api/v1/servers/{quote(name, safe='')}"


def _dry(dry_run: bool) -> str:
    return "?dry_run=1" if dry_run else ""


def _origin(url: str) -> str:
    return str(split_url(url)[0])


def _same_origin(one: str, other: str) -> bool:
    try:
        return split_url(one)[0] == split_url(other)[0]
    except ValueError:
        return False


async def _drain(answer: Answer) -> None:
    try:
        await answer.content(65536)
    except Broken:
        answer.close()


def _parsed(text: bytes, answer: Answer) -> Json:
    """The object that an answer holds; an empty one where there is no content."""
    if not text or answer.status >= 400:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Problem(502, "bad-answer", f"{_origin(answer.url)} answered with something other than JSON. Is it a server of SecuriFile?")
    return value


def _digests_of(answer: Answer) -> dict[DigestAlgorithm, bytes]:
    """What the answer's `Repr-Digest` says; nothing if it cannot be read."""
    try:
        return parse_digests(answer.fields.get("Repr-Digest") or "")
    except Refusal:
        return {}
