"""Clients that stop in the middle of a transfer: each costs a node a bounded piece of memory, whatever the size of the file, and delays
nobody else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from securifile.local.cluster import LocalCluster
from securifile.local.processes import eventually
from tests.processes.actions import MIB, files, get, noise, put

KIB = 1024
CLIENTS = 200
LARGE = noise(12 * MIB)
"""More than a system keeps for a connection: the node is left with the rest."""
SENT = 300 * KIB
"""Of an upload that stops: more than the node puts into one write."""
AT_EACH_STALLED_MAX = {"download": 1024 * KIB, "upload": 640 * KIB}
"""What was seen is 440 to 560 and 280 to 410: what the system did not take of a last piece, and heap that is free and not given back. The
bounds are for what grows with the file, or with what was read ahead.
"""
RESTS_WITHIN_S = 20.0
"""After a second a connection's buffers shrink; on a machine that others use, too, later."""


def stalled_request(cluster: LocalCluster, head: str, body: bytes = b"") -> ssl.SSLSocket:
    """A client that has said this, takes no byte of the answer that it does not need to, and says no more."""
    assert cluster.ca_file is not None
    address = urlsplit(cluster.plan.url("node1"))
    below = socket.create_connection((address.hostname, address.port), timeout=30)
    # As on a long way: the system takes little on the client's behalf.
    below.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
    context = ssl.create_default_context(cafile=str(cluster.ca_file))
    client = context.wrap_socket(below, server_hostname=address.hostname)
    client.sendall(f"{head}\r\nHost: {address.netloc}\r\nAuthorization: Bearer {cluster.token('alice')}\r\n\r\n".encode() + body)
    return client


def download(cluster: LocalCluster, number: int) -> ssl.SSLSocket:
    """One that stops at the status line."""
    client = stalled_request(cluster, f"GET {files('alice/large')} HTTP/1.1")
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def upload(cluster: LocalCluster, number: int) -> ssl.SSLSocket:
    """One that stops when the node has begun to take it."""
    head = f"PUT {files(f'alice/stalled-{number}')} HTTP/1.1\r\nContent-Length: {100 * MIB}"
    return stalled_request(cluster, head, LARGE[:SENT])


@contextmanager
def stalled(cluster: LocalCluster, kind: Callable[[LocalCluster, int], ssl.SSLSocket]) -> Iterator[None]:
    """So many of them, until the end."""
    with ExitStack() as stack:
        for number in range(CLIENTS):
            stack.enter_context(kind(cluster, number))
        yield


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [download, upload])
def test_stalled_clients_cost_little_memory(
    cluster_of: Callable[..., LocalCluster], kind: Callable[[LocalCluster, int], ssl.SSLSocket]
) -> None:
    """Of 200 clients that stop in mid-transfer each costs a node less than a mebibyte, and others are served meanwhile."""
    cluster = cluster_of(nodes=1, replicas=0)
    node, alice = cluster.nodes["node1"], cluster.http("node1", "alice")
    put(alice, "alice/large", LARGE).must(201)
    assert get(alice, "alice/large").must(200).body == LARGE
    with kind(cluster, CLIENTS):  # what is allocated once
        before = node.resident_bytes()
    with stalled(cluster, kind):
        try:
            eventually(
                lambda: node.resident_bytes() - before <= CLIENTS * AT_EACH_STALLED_MAX[kind.__name__],
                RESTS_WITHIN_S,
                "the stalled clients cost no more than they may",
            )
        finally:
            each = (node.resident_bytes() - before) / CLIENTS / KIB
            print(f"a stalled {kind.__name__} costs {each:.0f} KiB")
        put(alice, "alice/meanwhile", LARGE).must(201)
        assert get(alice, "alice/meanwhile").must(200).body == LARGE
