"""A local cluster, on stubs: how it is planned, started, found again and stopped."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from securifile.local import demo
from securifile.local.cluster import ADMIN, ClusterError, LocalCluster
from securifile.local.ports import anywhere, first_free, is_free, usual
from securifile.local.processes import command_line

STUB = Path(__file__).with_name("stub_server.py")


def stub(*arguments: str) -> list[str]:
    return [sys.executable, str(STUB), *arguments]


stubs: Callable[..., LocalCluster] = partial(LocalCluster, nodes=3, replicas=1, tls=False, run=stub)


def test_a_cluster_starts_and_stops_whole(tmp_path: Path) -> None:
    """Every server runs between start and stop, none after; settings and accounts are there."""
    with stubs(tmp_path) as cluster:
        pids = [server.pid for server in cluster.servers.values()]
        assert len(pids) == 4
        assert cluster.statuses() == dict.fromkeys([ADMIN, "node1", "node2", "node3"], "running")
        assert cluster.operator().request("GET", "/api/v1/settings").json() == {"replicas": 1}
        assert cluster.token("alice") == "token-alice"
        assert (tmp_path / "node2" / "identity.pem").read_text() == "join-node2\n"
        assert cluster.server_at(cluster.plan.url("node2") + "/api/v1/files/alice/x") == "node2"
    assert [pid for pid in pids if command_line(pid)] == []


def test_a_second_run_is_the_same_cluster(tmp_path: Path) -> None:
    """Ports, names and passwords are those of the first run, whatever is asked for; nobody joins twice."""
    with stubs(tmp_path) as first:
        plan = first.plan
        (tmp_path / "node1" / "identity.pem").write_text("joined before")
    with stubs(tmp_path, nodes=5) as second:
        assert second.plan == plan
        assert (tmp_path / "node1" / "identity.pem").read_text() == "joined before"
    assert (tmp_path / "cluster.json").stat().st_mode & 0o777 == 0o600


def test_two_cannot_run_the_same_cluster(tmp_path: Path) -> None:
    """Who comes second is told, and harms nothing; afterwards the directory is free again."""
    with stubs(tmp_path, nodes=1) as first:
        with pytest.raises(ClusterError, match=r"running in .* already"):
            stubs(tmp_path)
        assert all(server.is_running for server in first.servers.values())
    stubs(tmp_path).stop()


def test_leftovers_are_stopped_first(tmp_path: Path) -> None:
    """Servers that outlived a killed demo are ended before the next one starts its own."""
    said: list[str] = []
    first = stubs(tmp_path, nodes=1)
    first.start()
    first.forget()  # as if we had been killed
    with stubs(tmp_path, say=said.append) as second:
        assert not any(server.is_running for server in first.servers.values())
        assert all(server.is_running for server in second.servers.values())
    assert any(line.startswith("stopped node1, which was left from before") for line in said)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A first run takes other ports; a later one cannot, and says which port and whose."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", first_free(anywhere("node", 1), set())["https"]))
        other.listen()
        port = other.getsockname()[1]
        assert not is_free(port)
        proposals = [{"https": port, "protocol": port + 1}, *[next(anywhere("node", 1))]]
        assert first_free(proposals, set()) == proposals[1]
        cluster = stubs(tmp_path, nodes=1)
        cluster.stop()
        kept = (tmp_path / "cluster.json").read_text()
        (tmp_path / "cluster.json").write_text(kept.replace(str(cluster.plan.servers["node1"]["https"]), str(port)))
        with pytest.raises(ClusterError, match=f"port {port} of node1"):
            stubs(tmp_path)


def test_the_usual_ports_are_those_of_the_design() -> None:
    """Admin server 8443, 8444, 6514; nodes from 9443 in steps of ten; 2000 higher when taken, so that kinds do not mix."""
    assert next(usual("admin", 1)) == {"https": 8443, "protocol": 8444, "syslog": 6514}
    assert next(usual("node", 2)) == {"https": 9453, "protocol": 9454}
    later = usual("node", 1)
    next(later)
    assert next(later) == {"https": 11443, "protocol": 11444}


def test_a_failed_start_leaves_nothing_running(tmp_path: Path) -> None:
    """When one server dies at the start, the others are stopped, and the error shows its last words."""
    (tmp_path / "node2").mkdir()
    (tmp_path / "node2" / "BEHAVIOUR").write_text("die")
    cluster = stubs(tmp_path)
    with pytest.raises(Exception, match="these are my last words"), cluster:
        pass
    assert not any(server.is_running for server in cluster.servers.values())


def test_the_overview_says_where_everything_is(tmp_path: Path) -> None:
    """The demo names every server with address and process, both accounts, and lines to paste."""
    with stubs(tmp_path) as cluster:
        text = demo.overview(cluster)
    for name, password in cluster.plan.accounts.items():
        assert f"{name} / {password}" in text
    for name in cluster.plan.servers:
        assert cluster.plan.url(name) in text
    assert "NO TLS" in text
    assert "--cacert" not in text
    assert max(map(len, text.splitlines())) <= 160
