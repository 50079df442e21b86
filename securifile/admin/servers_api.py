"""The routes about the cluster: its servers, who observes what, storage over time, settings; invitations and how nodes join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import attrs
from klein import Klein

from securifile.admin.addresses import check_addresses, check_hosts, check_own
from securifile.admin.backend import AdminBackend, NodeHandlers
from securifile.admin.catalogue import Catalogue
from securifile.admin.checks import Soundness
from securifile.admin.observations import Seen
from securifile.admin.requests import administrator, name_in
from securifile.admin.watch import ADMIN_SILENT_S, Watch
from securifile.certificates.authority import Authority
from securifile.certificates.identity import leaf_key
from securifile.certificates.join import JoinToken
from securifile.http.answers import parse_time, settings_json, time_text
from securifile.http.exchange import Access, Answer
from securifile.http.json_body import Fields, read_json
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi
from securifile.model.digests import DigestAlgorithm
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Server
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.settings import ClusterSettings

NO_TLS = "TLS IS OFF: everything, passwords too, goes readable over the network. This is for debugging only."

HOSTS_MAX = 32
"""Names in a node's certificate."""

STORAGE_POINTS = 200
STORAGE_POINTS_MAX = 5000
STORAGE_SINCE_S = 24 * 3600.0
"""A day, unless asked for something else."""


class ServersApi:
    """`/api/v1/servers`, `/settings`, `/enrolment` and `/trust`."""

    def __init__(
        self,
        *,
        backend: AdminBackend,
        catalogue: Catalogue,
        watch: Watch,
        nodes: NodeHandlers,
        authority: Authority,
        tls: bool,
    ) -> None:
        self._backend = backend
        self._catalogue = catalogue
        self._members = catalogue.members
        self._watch = watch
        self._nodes = nodes
        self._authority = authority
        self._tls = tls

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`, authenticated (but for joining) and recorded as `api` does."""
        one = "/api/v1/servers/<name>"
        api.route(app, "/api/v1/servers", "GET", "list-servers", self._list)
        api.route(app, "/api/v1/servers/invites", "GET", "list-invites", self._invites)
        api.route(app, "/api/v1/servers/invites", "POST", "invite", self._invite)
        api.route(app, one, "GET", "show-server", self._show)
        api.route(app, f"{one}/storage", "GET", "show-storage", self._storage)
        api.route(app, "/api/v1/settings", "GET", "show-settings", self._settings)
        api.route(app, "/api/v1/settings", "PATCH", "change-settings", self._change_settings)
        api.route(app, "/api/v1/trust", "GET", "show-trust", self._trust, anonymous=True)
        api.route(app, "/api/v1/enrolment", "POST", "enrol", self._enrol, anonymous=True)

    # --- looking ---

    async def _list(self, request: Request, access: Access) -> Answer:
        written = await self._catalogue.observations.last_heartbeats()
        roster = self._catalogue.roster
        sound = await self._catalogue.checks.of_nodes()
        servers = [self._server_json(server, written, sound) for _, server in sorted(roster.servers.items())]
        value = {
            "cluster": roster.cluster,
            "servers": servers,
            "settings": settings_json(roster.settings),
            "warnings": self.warnings(),
        }
        return Answer(status=200, value=value)

    def warnings(self) -> list[str]:
        """What an administrator should know."""
        roster = self._catalogue.roster
        found = [] if self._tls else [NO_TLS]
        waits = self._watch.waits_for_nodes()
        if waits is not None:
            found.append(
                f"Nobody can change anything yet: {waits}. Nodes that are lost for good can be removed: securifile node remove NAME."
            )
        if not self._catalogue.ledger.reconciled:
            found.append(
                "The catalogue lost something, and waits for the nodes to hand it in: securifile admin epoch shows who is missing."
            )
        running, wanted = len(roster.running), roster.settings.copies_wanted
        if running < roster.settings.copies_needed:
            found.append(f"Only {running} nodes are running, and a write needs {roster.settings.copies_needed}: nobody can upload.")
        elif running < wanted:
            found.append(f"Only {running} nodes are running: new versions get fewer than the {wanted} copies wanted.")
        found += [f"Two processes run as {name}: was its data folder copied? Stop one of them." for name in self._watch.doubled]
        return found

    def _server_json(self, server: Server, written: Mapping[str, Seen], sound: Mapping[str, Soundness]) -> dict[str, Any]:
        own = server.name == self._backend.name
        is_node = server.kind is ServerKind.NODE
        seen = self._watch.seen.get(server.name) or written.get(server.name)
        age_s = 0.0 if own else self._watch.age_of(server.name) if is_node else self._watch.admin_age_of(server.name)
        status, since = server.status, server.since
        if not is_node and not own and seen is not None and age_s is not None and age_s >= ADMIN_SILENT_S:
            # Nobody judges admin servers: they meet in the database.
            status, since = Status.DOWN, seen.at
        if age_s is None and is_node and seen is not None:
            age_s = max(0.0, self._backend.wall() - seen.at)
        position = self._catalogue.ledger.position if own else None if seen is None else seen.position
        return {
            "name": server.name,
            "kind": server.kind.value,
            "status": status.value,
            "since": time_text(since),
            "offline": server.offline,
            "draining": server.draining,
            "verifying": server.name in self._watch.rejoins.under_way,
            "url": server.url,
            "protocol_address": server.protocol_address,
            "used_bytes": seen.used_bytes if seen is not None and is_node else None,
            "available_bytes": seen.available_bytes if seen is not None and is_node else None,
            "heartbeat_age_s": None if age_s is None else round(age_s, 3),
            "position": None if position is None else str(position),
            **self._soundness_json(sound.get(server.name)),
        }

    def _soundness_json(self, sound: Soundness | None) -> dict[str, Any]:
        """How long ago the copy was verified that has waited longest, and how many blobs lie in the quarantine; null: not known."""
        oldest_at = None if sound is None else sound.oldest_at
        return {
            "oldest_check_age_s": None if oldest_at is None else round(max(0.0, self._backend.wall() - oldest_at), 3),
            "quarantined": None if sound is None else sound.quarantined,
        }

    def _server(self, name: str) -> Server:
        server = self._catalogue.roster.servers.get(name)
        if server is None:
            raise Refusal(Code.NOT_FOUND, f"There is no server {name}.")
        return server

    async def _show(self, request: Request, access: Access) -> Answer:
        server = self._server(name_in(request))
        observers = await self._catalogue.observations.observers_of(server.name)
        value = self._server_json(server, await self._catalogue.observations.last_heartbeats(), await self._catalogue.checks.of_nodes())
        value["observers"] = [
            {"observer": observer, "status": status.value, "since": time_text(since)} for observer, status, since in observers
        ]
        return Answer(status=200, value=value)

    async def _storage(self, request: Request, access: Access) -> Answer:
        server = self._server(name_in(request))
        now = self._backend.wall()
        until = _time(request, "until", now)
        since = _time(request, "since", until - STORAGE_SINCE_S)
        text = request.query("points") or str(STORAGE_POINTS)
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= STORAGE_POINTS_MAX):
            raise Refusal(Code.BAD_REQUEST, f"points is a number from 1 to {STORAGE_POINTS_MAX}.")
        if until <= since:
            raise Refusal(Code.BAD_REQUEST, "since must be before until.")
        samples = await self._catalogue.observations.storage(server.name, since, until, int(text))
        shown = [{"at": time_text(at), "used_bytes": used, "available_bytes": available} for at, used, available in samples]
        return Answer(status=200, value={"server": server.name, "samples": shown})

    # --- settings ---

    async def _settings(self, request: Request, access: Access) -> Answer:
        return Answer(status=200, value=settings_json(self._catalogue.roster.settings))

    async def _change_settings(self, request: Request, access: Access) -> Answer:
        administrator(access)
        settings = changed_settings(self._catalogue.roster.settings, Fields(await read_json(request)))
        before = self._catalogue.roster.settings
        access.detail = ", ".join(
            f"{one.name}={getattr(settings, one.name)}"
            for one in attrs.fields(ClusterSettings)
            if getattr(settings, one.name) != getattr(before, one.name)
        )
        await self._backend.enter(self._members.set_settings(settings))
        return Answer(status=200, value=settings_json(settings))

    # --- members ---

    async def _invites(self, request: Request, access: Access) -> Answer:
        administrator(access)
        invites = await self._members.invites()
        return Answer(status=200, value={"invites": [{"name": name, "expires_at": time_text(at)} for name, at in invites]})

    async def _invite(self, request: Request, access: Access) -> Answer:
        administrator(access)
        fields = Fields(await read_json(request))
        name = access.detail = fields.text("name", max=64)
        fields.finish()
        secret, expires_at = await self._members.invite(name)
        token = JoinToken(
            admins=[server.url for server in self._catalogue.roster.of_kind(ServerKind.ADMIN)],
            fingerprint=self._authority.anchors.fingerprint,
            cluster=self._authority.cluster,
            name=name,
            secret=secret,
        )
        return Answer(status=201, value={"name": name, "token": token.encode(), "expires_at": time_text(expires_at)})

    async def _trust(self, request: Request, access: Access) -> Answer:
        return Answer(status=200, value=self._anchors())

    def _anchors(self) -> dict[str, str]:
        anchors = self._authority.anchors
        return {
            "cluster": self._authority.cluster,
            "root": anchors.root.decode("ascii"),
            "servers": anchors.servers.decode("ascii"),
            "people": anchors.people.decode("ascii"),
        }

    async def _enrol(self, request: Request, access: Access) -> Answer:
        body = await read_json(request)
        hosts = body.pop("hosts", [])
        if not isinstance(hosts, list) or len(hosts) > HOSTS_MAX or not all(isinstance(host, str) for host in hosts):
            raise Refusal(Code.BAD_JSON, f"The field 'hosts' must be a list of at most {HOSTS_MAX} names and addresses.", field="hosts")
        fields = Fields(body)
        secret, name = fields.text("secret", max=256), fields.text("name", max=64)
        csr = fields.text("csr", max=16384)
        url = fields.text("url", max=1024)
        protocol_address = fields.convert("protocol_address", HostPort.parse, "host:port")
        fields.finish()
        access.detail = name
        if not url.startswith("https://" if self._tls else "http://"):
            raise Refusal(
                Code.BAD_REQUEST,
                "Either this admin server or the node runs with --no-tls, and the other does not. Start both the same way.",
            )
        # Looked at again when the node is entered: other members may come meanwhile.
        members = self._catalogue.roster.servers.values()
        asked = Server(name=name, kind=ServerKind.NODE, url=url, protocol_address=str(protocol_address), public_key=b"", status=Status.DOWN)
        check_addresses(asked, members)
        check_own(asked, members)
        check_hosts(asked, hosts, members)
        chain = self._nodes.sign(name, csr.encode("ascii", "replace"), hosts)
        await self._backend.enter(self._members.enrol(secret, attrs.evolve(asked, public_key=leaf_key(chain)), hosts))
        admins = [
            {
                "name": server.name,
                "url": server.url,
                "protocol_address": server.protocol_address,
                "syslog_address": server.syslog_address,
                "public_key": server.public_key.hex(),
            }
            for server in self._catalogue.roster.of_kind(ServerKind.ADMIN)
        ]
        return Answer(status=201, value={**self._anchors(), "chain": chain.decode("ascii"), "admins": admins})


def _time(request: Request, name: str, default: float) -> float:
    text = request.query(name)
    if text is None:
        return default
    try:
        return parse_time(text)
    except ValueError:
        raise Refusal(Code.BAD_REQUEST, f"{name} is a time like 2026-12-31T23:59:59Z.") from None


_READERS: dict[Any, Callable[[Fields, str], Any]] = {
    int: lambda fields, name: fields.integer(name),
    int | None: lambda fields, name: fields.optional_integer(name, minimum=1),
    float: lambda fields, name: fields.number(name),
    bool: lambda fields, name: fields.boolean(name),
    DigestAlgorithm: lambda fields, name: fields.choice(name, DigestAlgorithm),
}
"""How a setting is read, by its type: a setting added to `ClusterSettings` can be changed without a word here."""


def changed_settings(before: ClusterSettings, fields: Fields) -> ClusterSettings:
    """The settings with what `fields` gives in its place. Raises `Refusal` BAD_JSON."""
    types = get_type_hints(ClusterSettings)
    changes = {one.name: _READERS[types[one.name]](fields, one.name) for one in attrs.fields(ClusterSettings) if fields.has(one.name)}
    fields.finish()
    try:
        return attrs.evolve(before, **changes)
    except ValueError as error:
        raise Refusal(Code.BAD_JSON, f"These settings cannot be: {error}") from error
