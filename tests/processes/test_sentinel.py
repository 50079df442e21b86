"""The sentinels of real nodes: that a node has ended is known to all others at once, and that it has not, is never said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import command_line, eventually
from securifile.node.sentinel import program
from tests.processes.actions import metric, put

SOON_S = 10.0
"""For what comes within a tenth of a second on a machine with nothing else to do."""
SENTINEL = str(Path(program.__file__).resolve())
RESIDENT_MAX = 15 * 1024 * 1024

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd_open")


def children_of(pid: int, what: str) -> list[int]:
    """The processes that one has started, by a word of their command lines."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [int(child) for child in children if what in command_line(int(child))]


def sentinel_of(cluster: LocalCluster, name: str) -> int:
    """The sentinel of a node, as soon as it is there."""
    pid = cluster.nodes[name].pid
    eventually(lambda: len(children_of(pid, SENTINEL)) == 1, SOON_S, f"{name} has a sentinel")
    return children_of(pid, SENTINEL)[0]


def is_there(pid: int) -> bool:
    """Whether a process has not ended; one that its parent has yet to hear of (proc(5): state Z) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Logs:
    """What the other servers say from now on of a node's end."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self._words = f"the process of {name} has ended"
        self._others = {server: cluster.servers[server] for server in cluster.servers if server != name}
        self._before = {server: other.log.stat().st_size for server, other in self._others.items()}

    @property
    def telling(self) -> list[str]:
        """Who has heard of it."""
        return [server for server, other in self._others.items() if self._words.encode() in other.log.read_bytes()[self._before[server] :]]

    def wait(self) -> None:
        """Until all have."""
        eventually(lambda: len(self.telling) == len(self._others), SOON_S, f"all say that {self._words}")


def test_a_sentinel_is_light_and_holds_nothing(small_cluster: LocalCluster) -> None:
    """A few MiB, a session of its own, no port, and nothing open in the node's folder."""
    node = small_cluster.nodes["node1"]
    pid = sentinel_of(small_cluster, "node1")
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(f"a sentinel has {resident / 1024 / 1024:.1f} MiB resident")
    assert resident < RESIDENT_MAX
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    held = [os.readlink(place) for place in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [name for name in held if name.startswith("socket:")], held
    assert not [name for name in held if name.startswith(str(node.data))], held


def test_all_others_know_when_a_node_is_killed(small_cluster: LocalCluster) -> None:
    """Nodes and admin server, within a moment, before anybody holds it for down; its sentinel ends; it comes back as ever."""
    cluster = small_cluster
    pid = sentinel_of(cluster, "node3")
    logs = Logs(cluster, "node3")
    cluster.nodes["node3"].kill()
    logs.wait()
    put(cluster.http("node1", "alice"), "alice/file", b"some").must(201)
    eventually(lambda: not is_there(pid), SOON_S, "its sentinel has ended")
    cluster.wait_status("down", "node3")
    cluster.nodes["node3"].start()
    cluster.wait_running("node3")
    assert sentinel_of(cluster, "node3") != pid


def test_an_orderly_end_is_told_as_well(small_cluster: LocalCluster) -> None:
    """A restart is no reason to keep writers waiting."""
    cluster = small_cluster
    pid = sentinel_of(cluster, "node3")
    logs = Logs(cluster, "node3")
    cluster.nodes["node3"].stop()
    logs.wait()
    eventually(lambda: not is_there(pid), SOON_S, "its sentinel has ended")
    cluster.nodes["node3"].start()
    cluster.wait_running("node3")


def test_of_a_node_that_hangs_nothing_is_said(small_cluster: LocalCluster) -> None:
    """Not even when it is down; and it is running again after it has gone on."""
    cluster = small_cluster
    pid = sentinel_of(cluster, "node3")
    logs = Logs(cluster, "node3")
    cluster.nodes["node3"].pause()
    try:
        cluster.wait_status("down", "node3")
        assert logs.telling == []
        assert is_there(pid)
    finally:
        cluster.nodes["node3"].resume()
    cluster.wait_running("node3")
    assert logs.telling == []
    assert sentinel_of(cluster, "node3") == pid


def test_a_sentinel_that_ends_is_replaced(small_cluster: LocalCluster) -> None:
    """The node goes on, nobody hears anything wrong, and the next one does what the first would have done."""
    cluster = small_cluster
    first = sentinel_of(cluster, "node3")
    logs = Logs(cluster, "node3")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not is_there(first), SOON_S, "the first has ended")
    second = sentinel_of(cluster, "node3")
    assert second != first
    # A sentinel has heard what it is to say a moment after it was started.
    time.sleep(0.5)
    assert logs.telling == []
    assert cluster.statuses()["node3"] == "running"
    cluster.nodes["node3"].kill()
    logs.wait()
    cluster.nodes["node3"].start()
    cluster.wait_running("node3")


def test_fronts_have_ended_before_anybody_is_told(cluster_of: Callable[..., LocalCluster]) -> None:
    """Those as well that are stopped when their node is killed: they may not serve people any more who ask them later."""
    cluster = cluster_of(nodes=2, replicas=1, https_processes=2, tls=False)
    cluster.add_user("watcher", administrator=True)
    # From then on the system ends them with their node.
    ready = partial(metric, cluster.http("node2", "watcher"), "securifile_https_processes")
    eventually(lambda: ready() == 2, SOON_S, "the fronts take connections")
    fronts = children_of(cluster.nodes["node2"].pid, "securifile.node.fronts")
    assert len(fronts) == 2
    sentinel_of(cluster, "node2")
    os.kill(fronts[0], signal.SIGSTOP)
    logs = Logs(cluster, "node2")
    cluster.nodes["node2"].kill()
    logs.wait()
    assert not any(map(is_there, fronts))
