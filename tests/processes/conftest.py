"""Clusters of real processes for the tests in this folder, each in a temporary directory and on ports of its own.

A cluster lasts for a module. When one of the module's tests failed, its directory is kept, and the ends of its servers'
logs are shown; else the directory is removed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from securifile.local.cluster import ADMIN, LocalCluster
from securifile.local.network import Network, missing

HERE = Path(__file__).parent
HTTPS_PROCESSES = "SECURIFILE_HTTPS_PROCESSES"
"""An environment variable: how many processes each node has for people's connections beside its own, where a test does not say."""
NODES = [f"node{number}" for number in range(1, 6)]
PEOPLE = "people"
_failed = pytest.StashKey[bool]()
_clusters = pytest.StashKey[list[LocalCluster]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder, and give it the time that real processes need."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs with the failure, and remember that the module had one."""
    report = yield
    if report.failed and HERE in item.path.parents:
        module = item.getparent(pytest.Module)
        assert module is not None
        module.stash[_failed] = True
        for cluster in module.stash.get(_clusters, []):
            tails = "\n\n".join(server.log_tail(20) for server in cluster.servers.values())
            report.sections.append((f"cluster in {cluster.directory}", tails))
    return report


@contextmanager
def running(
    request: pytest.FixtureRequest, *, prepare: Callable[[LocalCluster], AbstractContextManager[object]] = nullcontext, **options: object
) -> Iterator[LocalCluster]:
    """A cluster for the module that asks; its directory stays when a test there failed.

    Args:
        prepare: entered before the cluster is started, and left after it was stopped.
    """
    module = request.node.getparent(pytest.Module)
    if HTTPS_PROCESSES in os.environ:
        options = {"https_processes": int(os.environ[HTTPS_PROCESSES]), **options}
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="securifile-")), **options)  # type: ignore[arg-type]
    cluster.directory.chmod(0o755)
    module.stash.setdefault(_clusters, []).append(cluster)
    started = False
    try:
        with prepare(cluster), cluster:
            started = True
            yield cluster
    finally:
        if not started or module.stash.get(_failed, False):
            print(f"\nkept: {cluster.directory}")
        else:
            cluster.remove()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Five nodes, two replicas, TLS."""
    with running(request) as made:
        yield made


@pytest.fixture(scope="module")
def small_cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three nodes, one replica, TLS."""
    with running(request, nodes=3, replicas=1) as made:
        yield made


@pytest.fixture(scope="module")
def cluster_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., LocalCluster]]:
    """Makes clusters of other kinds, with the arguments of `LocalCluster`; they last for the module."""
    open_ones = []

    def make(**options: object) -> LocalCluster:
        context = running(request, **options)
        made = context.__enter__()
        open_ones.append(context)
        return made

    yield make
    for context in reversed(open_ones):
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """A machine of its own for each of five nodes, the admin server, and people; the tests are on theirs meanwhile."""
    lack = missing()
    if lack is not None:
        pytest.skip(f"the network cannot be cut: {lack}")
    with Network([ADMIN, *NODES, PEOPLE]) as made, made.hosts[PEOPLE].entered():
        yield made


@pytest.fixture(scope="module")
def networked_cluster(request: pytest.FixtureRequest, network: Network) -> Iterator[LocalCluster]:
    """Five nodes, two replicas, TLS, on that network."""
    with running(request, machines={name: network.hosts[name] for name in (ADMIN, *NODES)}) as made:
        yield made


@pytest.fixture(scope="module")
def cuttable_cluster(request: pytest.FixtureRequest) -> LocalCluster:
    """The networked one, or where there cannot be one `cluster`: for tests of which only a part needs cuts."""
    made: LocalCluster = request.getfixturevalue("cluster" if missing() else "networked_cluster")
    return made
