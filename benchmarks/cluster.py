"""SecuriFile: an admin server with its PostgreSQL, and three nodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from benchmarks.targets import CannotMeasure
from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.processes import twistd

US = "SecuriFile"
PERSON = "alice"
WATCHER = "watcher"
"""An administrator, who may see metrics."""
NODES = 3
"""As many as there are copies, and a node without one when there is one copy only."""
PLACE = f"/api/v1/files/{PERSON}/bench"


class SecuriFile:
    """A cluster, started."""

    def __init__(self, folder: Path, name: str = US, checkout: Path | None = None, https_processes: int | None = None) -> None:
        """Start it, without replicas.

        Args:
            checkout: whose code the servers run; None: this one's.
            https_processes: what each node has for people's connections beside its own; None: the default.
        """
        self.name = name
        run = twistd if checkout is None else partial(_of, checkout.resolve())
        self.cluster = LocalCluster(folder, nodes=NODES, replicas=0, accounts=(PERSON,), run=run, https_processes=https_processes)
        self.cluster.start()
        ca = self.cluster.ca_file
        if ca is None:
            raise CannotMeasure("the cluster was made without TLS")
        self.ca = ca
        self.headers: Mapping[str, str] = {"Authorization": f"Bearer {self.cluster.token(PERSON)}"}
        self.node = self.cluster.plan.nodes[0]
        """Which one is asked."""
        self._make_place()

    def url(self, path: str) -> str:
        """See `Target`: at the node that takes uploads."""
        return f"{self.cluster.plan.url(self.node)}{PLACE}/{path}"

    def url_without_copy(self, path: str) -> str:
        """At a node that has no copy, and is told to relay."""
        holders = self.cluster.holders(f"{PERSON}/bench/{path}", PERSON)
        other = next((name for name in self.cluster.plan.nodes if name not in holders), None)
        if other is None:
            raise CannotMeasure("every node has a copy")
        return f"{self.cluster.plan.url(other)}{PLACE}/{path}?relay=1"

    def set_replicas(self, replicas: int) -> None:
        """Make so many copies beside the origin's from now on."""
        self.set(replicas=replicas)

    def set(self, **settings: object) -> None:
        """Change settings of the cluster."""
        self.cluster.operator().request("PATCH", "/api/v1/settings", json=settings).must(200)

    def metrics(self, name: str) -> str:
        """What a node tells of itself."""
        if WATCHER not in self.cluster.plan.accounts:
            self.cluster.add_user(WATCHER, administrator=True)
        return self.cluster.http(name, WATCHER).request("GET", "/metrics").must(200).body.decode("ascii")

    def roots(self) -> list[int]:
        """See `Target`."""
        return [server.pid for server in self.cluster.servers.values()]

    def nodes(self) -> Mapping[str, int]:
        """The processes of the nodes."""
        return {name: node.pid for name, node in self.cluster.nodes.items()}

    def clear(self) -> None:
        """See `Target`."""
        http = self.cluster.http(ADMIN, PERSON, timeout_s=120)
        http.request("DELETE", f"{PLACE}/?recursive=1").must(204)
        self._make_place()

    def stop(self) -> None:
        """See `Target`."""
        self.cluster.stop()

    def make_folder(self, name: str) -> None:
        """See `Target`."""
        self.cluster.http(self.node, PERSON).request("PUT", f"{PLACE}/{name}/").must(201)

    def _make_place(self) -> None:
        self.cluster.http(self.node, PERSON).request("PUT", f"{PLACE}/").must(201)


def _of(checkout: Path, *arguments: str) -> list[str]:
    """The command line of a server that runs another checkout's code."""
    return ["env", f"--chdir={checkout}", f"PYTHONPATH={checkout}", *twistd(*arguments)]
