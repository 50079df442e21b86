"""The roster: the servers and settings of the cluster as one server knows them now, kept at hand in memory."""

from __future__ import annotations

from securifile.model.facts import Fact, Server, ServerGone, Settings
from securifile.model.servers import ServerKind, Status
from securifile.model.settings import ClusterSettings


class Roster:
    """Learns from facts; asked on every request, so it never waits."""

    def __init__(self) -> None:
        self.cluster: str | None = None
        self.settings = ClusterSettings()
        self.interval_before_s = self.settings.heartbeat_interval_s
        """The heartbeat interval before it was last changed: who is cut off goes by it still."""
        self.servers: dict[str, Server] = {}
        """To be read; it changes by `learn` and `replace` only."""
        self._by_name: list[Server] | None = None
        """In order; None when it has to be put in order again. With hundreds of nodes it is asked far more often than it changes."""

    def learn(self, fact: Fact) -> None:
        """Take a fact; those about other things are passed over."""
        match fact:
            case Server():
                self.servers[fact.name] = fact
                self._by_name = None
            case ServerGone():
                self.servers.pop(fact.name, None)
                self._by_name = None
            case Settings():
                self.cluster = fact.cluster
                if fact.settings.heartbeat_interval_s != self.settings.heartbeat_interval_s:
                    self.interval_before_s = self.settings.heartbeat_interval_s
                self.settings = fact.settings

    def replace(self, servers: list[Server], settings: Settings | None) -> None:
        """Forget what was known and take this."""
        self.servers = {server.name: server for server in servers}
        self._by_name = None
        if settings is not None:
            self.learn(settings)

    def of_kind(self, kind: ServerKind) -> list[Server]:
        """The servers of a kind, by name."""
        if self._by_name is None:
            self._by_name = [server for _, server in sorted(self.servers.items())]
        return [server for server in self._by_name if server.kind is kind]

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return [server.name for server in self.of_kind(ServerKind.NODE)]

    @property
    def admitted(self) -> list[str]:
        """Names of the nodes that were ever running: those that could believe they still are."""
        return [server.name for server in self.of_kind(ServerKind.NODE) if server.boot]

    @property
    def running(self) -> list[str]:
        """Names of the nodes that the cluster holds for running."""
        return [server.name for server in self.of_kind(ServerKind.NODE) if server.status is Status.RUNNING]

    def is_running(self, name: str) -> bool:
        """Whether the cluster holds `name` for running."""
        server = self.servers.get(name)
        return server is not None and server.status is Status.RUNNING

    def public_key(self, name: str) -> bytes | None:
        """The key (DER SubjectPublicKeyInfo) a member signs tickets with."""
        server = self.servers.get(name)
        return server.public_key if server is not None else None
