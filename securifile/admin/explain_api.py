"""The routes that explain: why a file's copies and a node are as they are, and what the system does next.

The sentences are made by `model/explanation.py`; here is gathered what they are about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from klein import Klein

from securifile.admin.composition import Admin
from securifile.admin.requests import administrator, name_in
from securifile.http.answers import path_text, time_text
from securifile.http.exchange import Access, Answer
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi
from securifile.http.targets import parse_target
from securifile.model.entries import Copy
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.explanation import NodeView, Trace, next_for_file, next_for_node, view_of, why_status
from securifile.model.facts import File
from securifile.model.ids import EntryId
from securifile.model.records import AuditRecord
from securifile.model.roles import Action
from securifile.model.servers import ServerKind
from securifile.model.serving import serving_order
from securifile.protocol import messages as m
from securifile.sql import directory

LOCK_S = 1.0
"""A running node answers at once; the rest of the explanation does not wait for one that hangs."""


class ExplainApi:
    """`GET /api/v1/explain/{owner}/{path}` and `GET /api/v1/servers/{name}/explain`."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._catalogue, self._watch, self._backend = admin.catalogue, admin.watch, admin.backend

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`."""
        api.route(app, "/api/v1/explain/", "GET", "explain", self._file, branch=True)
        api.route(app, "/api/v1/servers/<name>/explain", "GET", "explain-server", self._node)

    # --- files ---

    async def _file(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path, kind="explain")
        file = (await self._admin.lookup.find(access, target, Action.READ)).entry
        if not isinstance(file, File):
            raise Refusal(Code.IS_A_FOLDER, "This is a folder, which every server knows and none has copies of. Ask about a file.")
        roster, now, version = self._catalogue.roster, self._backend.wall(), file.version
        checked = await self._backend.checked(file.id) or {}
        serving = serving_order(version, self._watch.is_available)
        lock_known, lock = await self._lock(serving, file.id)
        room = {name: seen.available_bytes for name, seen in self._watch.seen.items() if roster.is_running(name)}
        value = {
            "path": str(target),
            "id": str(file.id),
            "version": version.number,
            "attempt": str(version.attempt),
            "size": version.size,
            "committed_at": time_text(version.committed_at),
            "wanted": roster.settings.copies_wanted,
            "copies": [await self._copy(copy, checked.get(copy.node), now) for copy in version.copies],
            "serving": serving,
            "lock_known": lock_known,
            "lock": lock,
            "next": next_for_file(
                version,
                roster.servers,
                roster.settings,
                now,
                room=room,
                failing=self._watch.failing.of(file.id, version.attempt),
                verifying=self._watch.rejoins.under_way,
            ),
        }
        return Answer(status=200, value=value)

    async def _copy(self, copy: Copy, checked_at: float | None, now: float) -> dict[str, Any]:
        server = self._catalogue.roster.servers.get(copy.node)
        view = view_of(copy, server, self._catalogue.roster.settings, now, self._watch.rejoins.under_way)
        return {
            "server": copy.node,
            "priority": copy.priority,
            "durable": copy.durable,
            "worth": view.worth.value,
            "why": view.why,
            "status": "removed" if server is None else server.status.value,
            "since": None if server is None else time_text(server.since),
            "verified_at": None if checked_at is None else time_text(checked_at),
            "observers": await self._observers(copy.node),
        }

    async def _lock(self, serving: list[str], file: EntryId) -> tuple[bool, dict[str, Any] | None]:
        """Whether it is known who is modifying a file, and who: asked of its acting origin, which every writer asks first."""
        if not serving:
            return False, None
        try:
            answer: m.LeaseAnswer = await self._admin.peers.ask(serving[0], m.LeaseLook(key=file.value), LOCK_S)
        except (PeerUnreachable, DeadlineExceeded, Refusal):
            return False, None
        if answer.granted:
            return True, None
        return True, {"person": answer.holder, "node": answer.node, "expires_in_s": round(answer.expires_in_s, 3)}

    async def _observers(self, subject: str) -> list[dict[str, Any]]:
        """What each observer holds a node for; since when, if that is written down yet."""
        written = await self._backend.asking(self._catalogue.observations.observers_of(subject))
        kept = {observer: (status, since) for observer, status, since in written}
        live = self._watch.holds(subject) if subject in self._catalogue.roster.servers else {}
        now = {**{observer: status for observer, (status, _) in kept.items()}, **live}
        return [
            {
                "observer": observer,
                "status": status.value,
                "since": time_text(kept[observer][1]) if kept.get(observer, (None, 0.0))[0] is status else None,
            }
            for observer, status in sorted(now.items())
        ]

    # --- nodes ---

    async def _node(self, request: Request, access: Access) -> Answer:
        administrator(access)
        name = name_in(request)
        server = self._catalogue.roster.servers.get(name)
        if server is None or server.kind is not ServerKind.NODE:
            raise Refusal(Code.NOT_FOUND, f"There is no node {name}.")
        access.detail = name
        records = await self._backend.asking(self._catalogue.audit_about(name, server.since))
        copies, only = await self._backend.asking(self._catalogue.members.copies_on(name))
        node = NodeView(
            server=server,
            now=self._backend.wall(),
            boot=self._watch.boot_of(name),
            ended=self._watch.endings.is_over(name, self._catalogue.ledger.position),
            answers=self._watch.heartbeats.is_answering(name),
            verifying=name in self._watch.rejoins.under_way,
            caught_up=self._watch.has_caught_up(name),
            copies=copies,
            only=only,
            holds=self._watch.holds(name),
            fruitless=self._watch.rejoins.fruitless(name),
            trail=[Trace(at=one.at, event=one.event, person=one.person, detail=one.detail or "") for one in records],
        )
        seen = self._watch.seen.get(name)
        sound = (await self._backend.asking(self._catalogue.checks.of_nodes())).get(name)
        oldest_at = None if sound is None else sound.oldest_at
        paths = await self._paths(records)
        value = {
            "name": name,
            "status": server.status.value,
            "since": time_text(server.since),
            "offline": server.offline,
            "draining": server.draining,
            "why": why_status(node),
            "boot_admitted": server.boot or None,
            "boot": node.boot,
            "answers": node.answers,
            "verifying": node.verifying,
            "caught_up": node.caught_up,
            "position": None if seen is None else str(seen.position),
            "catalogue_position": str(self._catalogue.ledger.position),
            "copies": copies,
            "only_copies": only,
            "oldest_check_at": None if oldest_at is None else time_text(oldest_at),
            "quarantined": None if sound is None else sound.quarantined,
            "observers": await self._observers(name),
            "trail": [_record_json(record, paths) for record in records],
            "next": next_for_node(node, self._catalogue.roster.settings),
        }
        return Answer(status=200, value=value)

    async def _paths(self, records: list[AuditRecord]) -> Mapping[str, str]:
        """Where the files are now that records name, by id; those that are gone are not in it."""
        ids = sorted({record.entry for record in records if record.entry is not None})

        async def ask(sql: Any) -> dict[str, str]:
            chains = {id_: await directory.ancestry(sql, EntryId.parse(id_)) for id_ in ids}
            return {id_: path_text(chain[-1].owner, tuple(entry.name for entry in chain[1:])) for id_, chain in chains.items() if chain}

        return await self._backend.read(ask)


def _record_json(record: AuditRecord, paths: Mapping[str, str]) -> dict[str, Any]:
    kept = attrs.asdict(record, filter=lambda one, value: one.name in ("event", "person", "entry", "detail"))
    return {"at": time_text(record.at), **kept, "path": paths.get(record.entry or "")}
