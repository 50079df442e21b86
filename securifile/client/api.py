"""The SDK: a cluster as one object, whichever of its servers answers.

A `Client` asks as `asking.py` says, sends an upload so that repeating it is safe, and takes no byte of a download for good before
its digest is checked (`downloads.py`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import attrs
from twisted.internet.interfaces import IReactorTime

from securifile.client.asking import Asking, Json, KnownServer, parsed, server_of
from securifile.client.downloads import Download, Downloaded
from securifile.client.errors import Damaged, Problem
from securifile.client.exchange import Content, Http
from securifile.client.local_files import FileSource, Output, Progress, WholeFile, open_regular
from securifile.client.resumable import ResumableUpload
from securifile.http.digest_fields import format_digest
from securifile.http.targets import Target
from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import Code
from securifile.model.interfaces import IWorker

_NO_SUCH_UPLOAD = frozenset({404, 405, 410})
"""The server's release knows none, or has given this one up: a `PUT` will do, or say what is wrong."""


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
        self._asking = Asking(http, servers, clock=clock, random=random, token=token)
        self._random = random
        self._worker = worker

    @property
    def servers(self) -> tuple[KnownServer, ...]:
        """The servers that are known, the one that is asked first at the front."""
        return self._asking.servers

    @property
    def token(self) -> str | None:
        """The bearer token of the sign-in; a secret."""
        return self._asking.token

    def avoid(self, url: str) -> None:
        """Ask the server at this URL last from now on."""
        self._asking.avoid(url)

    async def close(self) -> None:
        """Break off every connection."""
        await self._asking.close()

    # Sign-in.

    async def sign_in(self, username: str, password: str) -> Json:
        """Sign in; the token and the list of servers are used from now on.

        Raises:
            Problem: wrong name or password (`bad-credentials`), or the account is closed.
        """
        # Repeating it does no harm: a session more.
        answer = await self._asking.json(
            "POST", "/api/v1/sessions", {"username": username, "password": password}, kind="admin", repeatable=True, anonymous=True
        )
        self._asking.token = str(answer["token"])
        told = [server_of(one) for one in answer.get("servers", ()) if one.get("url")]
        if told:
            self._asking.know(told)
        return answer

    async def sign_out(self) -> None:
        """End the session; the token is void."""
        await self._asking.json("DELETE", "/api/v1/sessions/current", kind="admin", repeatable=True)
        self._asking.token = None

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
                ask=self._asking.request,
                pause=self._asking.pause,
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

        answer = await self._asking.request("PUT", target.url(), kind="node", fields=fields, content=content, repeatable=True)
        stored = parsed(await answer.content(), answer)
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
        return await Download(self._asking, self.details, target, output, self._worker, progress).run()

    async def delete(self, target: Target, *, recursive: bool = False) -> None:
        """Delete a file, or a folder (with all in it if `recursive`)."""
        await self._asking.delete(target.url() + ("?recursive=1" if recursive else ""), kind="node")

    async def move(self, source: Target, destination: Target) -> Json:
        """Give a file or folder another path, with whatever is in it."""
        return await self._asking.json(
            "POST", "/api/v1/move", {"from": str(source).rstrip("/"), "to": str(destination).rstrip("/")}, kind="node"
        )

    async def details(self, target: Target) -> Json:
        """All that is known of a file or folder: version, digest, origin, replicas, lock."""
        return await self._asking.json("GET", target.url("details"), kind="node")

    # Folders.

    def entries(self, folder: Target) -> AsyncIterator[Json]:
        """What is in a folder, in order, page by page."""
        return self._asking.pages(attrs.evolve(folder, folder=True).url(), "entries", kind="node")

    async def make_folder(self, folder: Target) -> Json:
        """Make a folder; the one that it is in must be there."""
        return await self._asking.json("PUT", attrs.evolve(folder, folder=True).url(), kind="node", repeatable=True, done_code=Code.EXISTS)

    # Rights.

    async def access(self, target: Target) -> Json:
        """Who may do what with it: `role` is the asker's own."""
        return await self._asking.json("GET", target.url("access"), kind="node")

    async def grant(self, target: Target, username: str, role: str) -> Json:
        """Give a person a role on a file, or on a folder and all beneath it."""
        return await self._asking.json("PUT", target.url("access"), {"user": username, "role": role}, kind="node", repeatable=True)

    async def revoke(self, target: Target, username: str) -> None:
        """Take a person's role away."""
        await self._asking.delete(target.url("access") + "?" + urlencode({"user": username}), kind="node")

    def shared(self) -> AsyncIterator[Json]:
        """What others have shared with me."""
        return self._asking.pages("/api/v1/shared", "shared", kind="node")

    # People.

    def users(self) -> AsyncIterator[Json]:
        """Everybody (administrators only)."""
        return self._asking.pages("/api/v1/users", "users", kind="admin")

    async def user(self, username: str) -> Json:
        """One person."""
        return await self._asking.json("GET", _user(username), kind="admin")

    async def add_user(self, **fields: Any) -> Json:
        """Create a person: `username`, `email`, and what else the API takes. Without `password` the answer holds a generated one."""
        return await self._asking.json("POST", "/api/v1/users", fields, kind="admin")

    async def change_user(self, username: str, **changes: Any) -> Json:
        """Change some of a person's fields."""
        return await self._asking.json("PATCH", _user(username), changes, kind="admin", repeatable=True)

    async def remove_user(self, username: str, *, files: bool = False) -> None:
        """Remove a person; refused while they own files, unless `files` are to go too."""
        await self._asking.delete(_user(username) + ("?files=1" if files else ""), kind="admin")

    async def usage(self, username: str) -> Json:
        """Number of files and bytes a person owns, and how many they may."""
        return await self._asking.json("GET", _user(username) + "/usage", kind="admin")

    def owned(self, username: str) -> AsyncIterator[Json]:
        """Every file a person owns."""
        return self._asking.pages(_user(username) + "/files", "files", kind="admin")

    # Servers.

    async def cluster(self) -> Json:
        """The servers with their status and storage, and warnings about the cluster."""
        return await self._asking.json("GET", "/api/v1/servers", kind="admin")

    async def server(self, name: str) -> Json:
        """One server, and who holds it for what."""
        return await self._asking.json("GET", _server(name), kind="admin")

    async def command_server(self, name: str, command: str) -> Json:
        """`offline`, `online` or `repair`. A repair may take hours: `under_way` in the answer says that it does; ask again."""
        return await self._asking.json("POST", f"{_server(name)}/{quote(command, safe='')}", {}, kind="admin", repeatable=True)

    async def drain_server(self, name: str, draining: bool, *, dry_run: bool = False) -> Json:
        """Have a node's files kept elsewhere, or no longer; the answer tells how many copies it has. `dry_run`: change nothing."""
        method = "POST" if draining else "DELETE"
        return await self._asking.json(
            method, f"{_server(name)}/drain{_dry(dry_run)}", {} if draining else None, kind="admin", repeatable=True
        )

    async def remove_server(self, name: str, *, dry_run: bool = False, force: bool = False) -> Json:
        """Remove a node from the cluster: its certificate opens nothing any more.

        Args:
            dry_run: only tell whether it would be refused.
            force: even if files are left with one copy.
        """
        query = "&".join(f"{option}=1" for option, wanted in (("dry_run", dry_run), ("force", force)) if wanted)
        path = _server(name) + (f"?{query}" if query else "")
        return await self._asking.json("DELETE", path, kind="admin", repeatable=True, done_code=None if dry_run else Code.NOT_FOUND)

    async def explain_server(self, name: str) -> Json:
        """Why a node is as it is, and what happens next (administrators only)."""
        return await self._asking.json("GET", f"{_server(name)}/explain", kind="admin")

    async def explain(self, target: Target) -> Json:
        """Why the copies of a file are as they are, and what happens next."""
        return await self._asking.json("GET", target.url("explain"), kind="admin")

    async def invite(self, name: str) -> Json:
        """Let a new node of that name join: the answer holds the token for its first start."""
        return await self._asking.json("POST", "/api/v1/servers/invites", {"name": name}, kind="admin")

    async def invites(self) -> Json:
        """Invitations that were not used yet."""
        return await self._asking.json("GET", "/api/v1/servers/invites", kind="admin")

    async def settings(self) -> Json:
        """The cluster's settings."""
        return await self._asking.json("GET", "/api/v1/settings", kind="admin")

    async def change_settings(self, changes: Json) -> Json:
        """Change some of the cluster's settings."""
        return await self._asking.json("PATCH", "/api/v1/settings", changes, kind="admin", repeatable=True)

    # The catalogue.

    async def epoch(self) -> Json:
        """The present epoch of the catalogue, and what was left to administrators (administrators only)."""
        return await self._asking.json("GET", "/api/v1/epoch", kind="admin")

    async def accept_epoch(self, *, without: Sequence[str] = (), trust: Sequence[str] = (), dry_run: bool = False) -> Json:
        """Go on without nodes that have not handed in what the catalogue lost (administrators only)."""
        asked = {"without": ",".join(without), "trust": ",".join(trust), "dry_run": "1" if dry_run else "0"}
        return await self._asking.json("POST", f"/api/v1/epoch/accept?{urlencode(asked)}", {}, kind="admin")

    async def dismiss_left(self) -> Json:
        """Forget what was left to administrators (administrators only)."""
        return await self._asking.json("POST", "/api/v1/epoch/dismiss", {}, kind="admin")


def _user(username: str) -> str:
    return f"/api/v1/users/{quote(username, safe='@')}"


def _server(name: str) -> str:
    return f"/api/v1/servers/{quote(name, safe='')}"


def _dry(dry_run: bool) -> str:
    return "?dry_run=1" if dry_run else ""
