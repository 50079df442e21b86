"""Machines that share this kernel but no network: a namespace for each, and a switch whose wires can be cut.

    node1 ── TUN ──┐                ┌── TUN ── admin1
    node2 ── TUN ──┤  switch (one   ├── TUN ── people: whoever asks, in this process
    node3 ── TUN ──┘    process)    ┘

Inside its namespace a server has one address, of a network that exists nowhere else, so that any number of these networks
can be there at the same time, and nothing of the machine's own network is touched. A namespace and its device are gone when
nobody has them open.

Linux only, for root, with `/dev/net/tun`: `missing` says what is not there.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Self

import attrs

from securifile.local.processes import Machine, environment
from securifile.local.switch import PACKET_BYTES_MAX, Wire

_TUN = Path("/dev/net/tun")
_ADDRESS = "10.77.0.{}"
_NETMASK = "255.255.255.0"
_DEVICE = b"wire"
_GRACE_S = 5.0

# From linux/sched.h, linux/if_tun.h, linux/if.h and linux/sockios.h.
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI, _IFF_UP = 0x0001, 0x1000, 0x0001
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """What this machine lacks for a network of its own, for a sentence; None when it has all."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if not _TUN.exists():
        return f"there is no {_TUN}"
    try:
        for kept in _machine(_ADDRESS.format(1)):
            os.close(kept)
    except OSError as error:
        return f"a network namespace with a TUN device cannot be made: {error.strerror}"
    return None


@attrs.frozen
class Host(Machine):
    """A machine of the network: what is started while it is entered, and what is connected then, is there.

    Attributes:
        name: of the machine.
        address: its only one.
    """

    name: str
    address: str
    _namespace: int = attrs.field(repr=False)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is on that machine, as are the processes and threads that it starts meanwhile."""
        with _back_afterwards():
            _checked(_libc.setns(self._namespace, _CLONE_NEWNET))
            yield


class Network:
    """The machines and the wires between them. A context manager: made on entering, gone on leaving, after what runs in it.

    Attributes:
        hosts: the machines by name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.hosts: dict[str, Host] = {}
        self._names = list(names)
        self._wires: dict[tuple[str, str], Wire] = {}
        self._switch: subprocess.Popen[bytes] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            devices = {}
            for number, name in enumerate(self._names, 1):
                namespace, device = _machine(_ADDRESS.format(number))
                self._open.callback(os.close, namespace)
                self._open.callback(os.close, device)
                self.hosts[name] = Host(name, _ADDRESS.format(number), namespace)
                devices[name] = device
            arguments = [f"{self.hosts[name].address}={device}" for name, device in devices.items()]
            self._switch = subprocess.Popen(
                [sys.executable, "-m", "securifile.local.switch", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=list(devices.values()),
                env=environment(),
                start_new_session=True,
            )
            self.mend()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        if self._switch is not None:
            assert self._switch.stdin is not None and self._switch.stdout is not None
            self._switch.stdin.close()
            self._switch.wait(_GRACE_S)
            self._switch.stdout.close()
        self._open.close()

    @property
    def switch_pid(self) -> int:
        """The process through which all packets pass."""
        return self._running.pid

    def cut(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        """Let vanish what each of some sends to each of the others, and back unless it is cut one way only."""
        self._set(some, others, Wire(cut=True), one_way=one_way)

    def slow(self, some: Iterable[str], others: Iterable[str], *, delay_s: float, bytes_s: float) -> None:
        """Make the wires between some and others long and narrow, in both directions."""
        self._set(some, others, Wire(delay_s=delay_s, bytes_s=bytes_s), one_way=False)

    def mend(self) -> None:
        """All wires are without a fault again."""
        self._wires.clear()
        self._apply()

    def _set(self, some: Iterable[str], others: Iterable[str], wire: Wire, *, one_way: bool) -> None:
        for source, destination in product(list(some), list(others)):
            self._wires[source, destination] = wire
            if not one_way:
                self._wires[destination, source] = wire
        self._apply()

    def _apply(self) -> None:
        """Tell the switch, and return when it is so."""
        switch = self._running
        assert switch.stdin is not None and switch.stdout is not None
        table = [
            [self.hosts[source].address, self.hosts[destination].address, attrs.asdict(wire)]
            for (source, destination), wire in self._wires.items()
        ]
        switch.stdin.write(json.dumps(table).encode() + b"\n")
        switch.stdin.flush()
        if not switch.stdout.readline():
            raise OSError(f"the switch ended with status {switch.wait(_GRACE_S)}")

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._switch is not None, "enter the network first"
        return self._switch


# --- namespaces and devices ---


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _own_namespace() -> int:
    """The network namespace of this thread, to come back to."""
    return os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def _back_afterwards() -> Iterator[None]:
    """Whatever namespace this thread enters meanwhile, it is in its own again at the end."""
    before = _own_namespace()
    try:
        yield
    finally:
        _checked(_libc.setns(before, _CLONE_NEWNET))
        os.close(before)


def _machine(address: str) -> tuple[int, int]:
    """A new namespace with that address on a TUN device: both, as file descriptors. Raises `OSError`."""
    with _back_afterwards():
        _checked(_libc.unshare(_CLONE_NEWNET))
        namespace = _own_namespace()
        try:
            return namespace, _device(address)
        except BaseException:
            os.close(namespace)
            raise


def _device(address: str) -> int:
    """A TUN device of this namespace that is up and has that address, and the loopback one up, too."""
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, _NETMASK)):
                fcntl.ioctl(control, request, struct.pack("16sHH4s8x", _DEVICE, socket.AF_INET, 0, socket.inet_aton(value)))
            fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16sI20x", _DEVICE, PACKET_BYTES_MAX))
            for name in (_DEVICE, b"lo"):
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP))
        return device
    except BaseException:
        os.close(device)
        raise
