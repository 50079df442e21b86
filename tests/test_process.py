"""Starting a server, and what it says when it cannot: one sentence with what to do, and a status that a supervisor sees."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from twisted.internet.error import CannotListenError
from twisted.python import usage
from twisted.python.failure import Failure

from securifile.admin.plugin import Options as AdminOptions
from securifile.local.processes import environment
from securifile.node.enrolment import MEMBERSHIP
from securifile.node.plugin import Options as NodeOptions
from securifile.process import (
    GARBAGE_THRESHOLDS,
    CannotStart,
    FolderTaken,
    check_public,
    run_on_monotonic_time,
    settle,
    take_folder,
    why_not,
)


def test_the_garbage_collector_passes_over_a_started_server() -> None:
    """What is there when a server is ready is never looked at again; what comes later is, though less often."""
    thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        settle()
        assert gc.get_freeze_count() > frozen
        assert gc.isenabled()
        assert gc.get_threshold() == GARBAGE_THRESHOLDS
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def test_a_taken_folder(tmp_path: Path) -> None:
    """A folder belongs to one process at a time, and who comes second is told so."""
    lock = take_folder(tmp_path / "data")
    with pytest.raises(FolderTaken, match="used by another process"):
        take_folder(tmp_path / "data")
    os.close(lock)
    os.close(take_folder(tmp_path / "data"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A folder that cannot be made is named, with the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match=r"file/data cannot be used: Not a directory"):
        take_folder(tmp_path / "file" / "data")


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EADDRINUSE, "another process"), (errno.EACCES, "below 1024"), (errno.EADDRNOTAVAIL, "--listen")]
)
def test_a_port_that_cannot_be_had(number: int, advice: str) -> None:
    """A port that cannot be listened on is named, with what to do about it."""
    error = CannotListenError("192.0.2.1", 9443, OSError(number, os.strerror(number)))
    sentence = why_not(Failure(error))
    assert sentence is not None
    assert "9443 of 192.0.2.1" in sentence
    assert advice in sentence


def test_our_own_errors() -> None:
    """What nobody but a programmer can put right has no sentence; it gets its traceback."""
    assert why_not(Failure(KeyError("roster"))) is None
    assert why_not(Failure(CannotStart("no database"))) == "no database"


def test_a_token_is_for_the_first_start(tmp_path: Path) -> None:
    """A node that has joined starts with the same command line when the file with its token has gone, or is empty after a power cut."""
    words = ["--data", str(tmp_path), "--listen", "127.0.0.1", "--join-file", str(tmp_path / "token")]
    with pytest.raises(usage.UsageError, match="No such file"):
        NodeOptions().parseOptions(words)
    (tmp_path / "token").touch()
    with pytest.raises(usage.UsageError, match="no join token"):
        NodeOptions().parseOptions(words)
    (tmp_path / MEMBERSHIP).write_text("{}")
    for change in ((tmp_path / "token").touch, (tmp_path / "token").unlink):
        change()
        options = NodeOptions()
        options.parseOptions(words)
        assert options["token"] is None


@pytest.mark.parametrize("host", ["node1", "node1.example.org", "192.0.2.7", "2001:db8::7", "Store-3"])
def test_hosts(host: str) -> None:
    """Others reach a server by a DNS name or an IP address."""
    check_public(host)


@pytest.mark.parametrize("host", ["", "a b", "node1:9443", "https://node1", "-a", "a..b", "x" * 64])
def test_no_hosts(host: str) -> None:
    """Anything else is refused before it gets into a certificate."""
    with pytest.raises(usage.UsageError, match="--public"):
        check_public(host)


@pytest.mark.parametrize("options", [AdminOptions, NodeOptions])
@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "1e3"])
def test_ports(options: type[usage.Options], port: str) -> None:
    """A port is a number from 1 to 65535."""
    with pytest.raises(usage.UsageError, match="is no port"):
        options().parseOptions(["--public", "a", "--https-port", port])


@pytest.mark.parametrize("options", [AdminOptions, NodeOptions])
def test_one_port_for_two_uses(options: type[usage.Options]) -> None:
    """Two listeners do not share a port, and that is said before anything is started."""
    with pytest.raises(usage.UsageError, match="different ports"):
        options().parseOptions(["--public", "a", "--https-port", "9000", "--protocol-port", "9000"])


@pytest.mark.processes
@pytest.mark.parametrize("logging", [[], ["--logfile", "log"]])
@pytest.mark.parametrize("kind", ["admin", "node"])
def test_a_start_that_fails(tmp_path: Path, kind: str, logging: list[str]) -> None:
    """A server that cannot start says why in one line, without a traceback, wherever it logs, and ends with status 1."""
    (tmp_path / "file").touch()
    command = [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *logging]
    ended = subprocess.run(
        [*command, f"securifile-{kind}", "--listen", "127.0.0.1", "--data", "file/data"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = (tmp_path / "log").read_text() if logging else ended.stdout
    assert ended.returncode == 1
    assert [line for line in said.splitlines() if "cannot start: the data folder" in line]
    assert "Traceback" not in said + ended.stderr
    assert ended.stderr == ""


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_time_passes_while_the_machine_sleeps() -> None:
    """The reactor's clock is the one that goes on while the machine is suspended: old standing must not look fresh afterwards."""
    reactor = SimpleNamespace(seconds=time.time)
    run_on_monotonic_time(reactor)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= reactor.seconds() <= time.clock_gettime(time.CLOCK_BOOTTIME)
