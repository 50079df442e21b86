"""Server processes as the harness holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from securifile.local.ports import anywhere, first_free
from securifile.local.processes import (
    ServerDied,
    ServerNotReady,
    ServerProcess,
    TimeRanOut,
    command_line,
    end_process,
    eventually,
    write_atomically,
)

STUB = [sys.executable, str(Path(__file__).with_name("stub_server.py"))]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A stub that was not started yet."""
    port = first_free(anywhere("node", 1), set())["https"]
    data = tmp_path / "node1"
    data.mkdir()
    made = ServerProcess(
        "node1", [*STUB, "securifile-node", "--data", str(data), "--https-port", str(port)], data, tmp_path / "logs" / "node1.log"
    )
    yield made
    made.kill()


def behave(server: ServerProcess, how: str) -> None:
    (server.data / "BEHAVIOUR").write_text(how)


def test_a_server_is_ready_when_it_says_so_with_its_own_pid(server: ServerProcess) -> None:
    """What a killed process left behind does not make the next one ready."""
    server.start()
    server.wait_ready(20)
    first = server.pid
    server.kill()
    assert server.exit_status == -9
    assert (server.data / "ready.json").exists()
    server.start()
    assert server.is_ready is False
    server.wait_ready(20)
    assert server.pid != first


def test_last_words_are_shown(server: ServerProcess) -> None:
    """Who waits for a server that ends is told at once, with the end of its log."""
    behave(server, "die")
    server.start()
    with pytest.raises(ServerDied, match=r"(?s)node1 ended with status 1 before it served.*these are my last words"):
        server.wait_ready(20)


def test_a_server_that_never_serves_is_not_waited_for_forever(server: ServerProcess) -> None:
    """The deadline counts for a process that lives but does not serve."""
    behave(server, "hang")
    server.start()
    with pytest.raises(ServerNotReady, match=r"within 0\.3 s"):
        server.wait_ready(0.3)


def test_stop_is_polite_first(server: ServerProcess) -> None:
    """SIGTERM lets a server end as it wants; one that does not is killed after the grace."""
    server.start()
    server.wait_ready(20)
    assert server.stop() == 0
    behave(server, "stubborn")
    server.start()
    server.wait_ready(20)
    assert server.stop(grace_s=0.2) == -9


def test_a_paused_server_can_be_resumed_and_stopped(server: ServerProcess) -> None:
    """SIGSTOP leaves the process there but silent; stopping it wakes it first, so that it can end well."""
    server.start()
    server.wait_ready(20)
    server.pause()
    state = Path(f"/proc/{server.pid}/stat")
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", 5, "it stands still")
    assert server.is_running
    assert server.resident_bytes() > 1_000_000
    assert server.stop() == 0


def test_only_what_is_known_is_ended() -> None:
    """A pid whose command line is not the expected one is left alone."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert not end_process(child.pid, lambda line: "--data" in line)
        assert child.poll() is None
        eventually(lambda: command_line(child.pid) == ["sleep", "60"], 5, "it has begun")
        assert end_process(child.pid, lambda line: line == ["sleep", "60"])
        assert child.wait(5) == -15
    finally:
        child.kill()
        child.wait()


def test_eventually_says_what_did_not_come_true() -> None:
    """The error is the sentence that was hoped for, and the last answer."""
    with pytest.raises(TimeRanOut, match="pigs fly"):
        eventually(list, 0.05, "pigs fly")


def test_secrets_are_never_readable_by_others(tmp_path: Path) -> None:
    """A file that is rewritten with mode 0600 has it from its first byte, whatever was there before."""
    file = tmp_path / "secret"
    file.write_text("old")
    write_atomically(file, "new", 0o600)
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["secret"]
