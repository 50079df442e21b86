"""Machines in namespaces of their own: what TCP sees when a wire between them is cut, and that nobody else sees anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from securifile.local.network import Network, missing

PORT = 5000
NOTHING_S = 0.3
"""How long nothing comes where something would within a millisecond."""
AGAIN_S = 5.0
"""TCP tries again after 0.2 s, 0.4 s, 0.8 s, …"""

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no network of one's own: {missing()}")


@pytest.fixture
def network() -> Iterator[Network]:
    """Three machines."""
    with Network(["one", "two", "three"]) as made:
        yield made


@pytest.fixture
def echo(network: Network) -> Iterator[str]:
    """The address of machine one, where what is sent to `PORT` comes back."""
    with network.hosts["one"].entered():
        listening = socket.create_server((network.hosts["one"].address, PORT))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    yield network.hosts["one"].address
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    accepting.join()


def connected(network: Network, name: str, address: str, timeout_s: float = AGAIN_S) -> socket.socket:
    """A connection from a machine."""
    with network.hosts[name].entered():
        return socket.create_connection((address, PORT), timeout_s)


def answers(connection: socket.socket, within_s: float) -> bool:
    """Whether one byte comes back in time."""
    connection.settimeout(within_s)
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    except TimeoutError:
        return False


def test_machines_reach_each_other_and_nobody_else(network: Network, echo: str) -> None:
    """By their addresses; from outside there is no way in."""
    with connected(network, "two", echo) as connection:
        assert connection.getsockname()[0] == network.hosts["two"].address
        assert answers(connection, AGAIN_S)
    with network.hosts["one"].entered(), connected(network, "one", echo) as connection:
        assert answers(connection, AGAIN_S)
    names = {name for _, name in socket.if_nameindex()}
    with network.hosts["two"].entered():
        assert {name for _, name in socket.if_nameindex()} == {"lo", "wire"}
    assert {name for _, name in socket.if_nameindex()} == names


def test_a_process_that_is_started_there_is_there(network: Network) -> None:
    """Also when it is looked for after we have left; and so is a thread."""
    look = "import socket; print(sorted(name for _, name in socket.if_nameindex()))"
    with network.hosts["three"].entered():
        child = subprocess.Popen([sys.executable, "-c", look], stdout=subprocess.PIPE, text=True)
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.extend(name for _, name in socket.if_nameindex()))
        thread.start()
    assert child.communicate(timeout=20)[0].strip() == "['lo', 'wire']"
    thread.join()
    assert sorted(seen) == ["lo", "wire"]


def test_a_cut_says_nothing_to_anybody_and_ends(network: Network, echo: str) -> None:
    """What is sent vanishes, others are not touched, and afterwards the connection goes on by itself with what was sent."""
    with connected(network, "two", echo) as cut, connected(network, "three", echo) as whole:
        network.cut(["one"], ["two"])
        assert not answers(cut, NOTHING_S)
        assert answers(whole, AGAIN_S)
        with pytest.raises(TimeoutError):
            connected(network, "two", echo, NOTHING_S)
        network.mend()
        cut.settimeout(AGAIN_S)
        assert cut.recv(1) == b"x"


def test_a_cut_in_one_direction(network: Network, echo: str) -> None:
    """What the one sends arrives, and what comes back does not."""
    with connected(network, "two", echo) as connection:
        network.cut(["one"], ["two"], one_way=True)
        assert not answers(connection, NOTHING_S)
    with network.hosts["one"].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((echo, PORT))
        here.settimeout(AGAIN_S)
        with network.hosts["two"].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
            there.settimeout(NOTHING_S)
            there.sendto(b"to one", (echo, PORT))
            data, address = here.recvfrom(100)
            assert data == b"to one"
            here.sendto(b"to two", address)
            with pytest.raises(TimeoutError):
                there.recv(100)


def test_a_slow_wire(network: Network, echo: str) -> None:
    """A round trip takes twice the delay, and as many bytes a second get through as are set."""
    with connected(network, "two", echo) as connection:
        network.slow(["one"], ["two"], delay_s=0.05, bytes_s=1e6)
        begun = time.monotonic()
        assert answers(connection, AGAIN_S)
        assert time.monotonic() - begun >= 0.1
        begun = time.monotonic()
        threading.Thread(target=connection.sendall, args=(bytes(500_000),), daemon=True).start()
        connection.settimeout(AGAIN_S)
        left = 500_000
        while left:
            left -= len(connection.recv(left))
        assert 0.4 < time.monotonic() - begun < AGAIN_S


def test_nothing_is_left_behind() -> None:
    """No descriptor stays open, and the switch has ended."""
    before = len(os.listdir("/proc/self/fd"))
    with Network(["one", "two"]) as network:
        network.cut(["one"], ["two"])
        switch = network.switch_pid
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(f"/proc/{switch}")
