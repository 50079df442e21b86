"""A server as a real process, for those who want to hurt it: start, wait until it serves, kill, stop, pause, resume.

Everything is synchronous and needs no reactor: tests and the demo look at it from outside, as an operator would. What a
server says of itself is its `ready.json` (written when it serves, with its pid) and its log file; all else is signals.
A process is only ever ended by its own pid, and a pid that we did not start ourselves only after its command line has
shown that it is what we take it for: pids are used again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import securifile
from securifile.local.ports import HOST

T = TypeVar("T")

READY_FILE = "ready.json"
LOG_TAIL_LINES = 30
_POLL_S = 0.02
"""Between two looks at a file or a process: short against everything that is waited for here."""


class ServerDied(Exception):
    """A server process ended while somebody waited for it."""


class ServerNotReady(Exception):
    """A server process lives, but did not serve in time."""


class TimeRanOut(Exception):
    """What was waited for did not come true in time."""


def eventually(question: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Ask until the answer is true, and return that answer.

    Args:
        question: asked every 20 ms; must not block for long.
        what: the sentence that was expected to come true, for the error.

    Raises:
        TimeRanOut: with `what` and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        if time.monotonic() >= deadline:
            raise TimeRanOut(f"not within {timeout_s:g} s: {what} (the last answer was {answer!r})")
        time.sleep(_POLL_S)
    return answer


def twistd(*arguments: str) -> list[str]:
    """The command line that runs `twistd` in the foreground, from the environment of this very Python."""
    return [str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=", *arguments]


def environment() -> dict[str, str]:
    """The environment of a server: ours, and the checkout on `PYTHONPATH` when the package is not installed.

    Twisted looks for plugins in the directories of `sys.path`; in a checkout that is only run from, it would not find ours.
    """
    ours = os.environ | {"PYTHONUNBUFFERED": "1"}
    home = Path(securifile.__file__).resolve().parent.parent
    if home != Path(sysconfig.get_path("purelib")).resolve():
        ours["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    return ours


def command_line(pid: int) -> list[str]:
    """The command line of a process; empty when there is none, or it has ended and nobody has asked how."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0") if part]


def read_json(path: Path) -> Any:
    """What a JSON file says; None when it is not there. The servers write theirs atomically, so it is never half there."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file whole or not at all, readable by others only if `mode` says so."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def end_process(pid: int, is_it: Callable[[list[str]], bool], *, first: signal.Signals = signal.SIGTERM, grace_s: float = 10.0) -> bool:
    """End a process that is not our child: `first`, and SIGKILL after the grace; whether there was one.

    Args:
        is_it: judges the command line before every signal, so that a stranger with the same pid is left alone.
    """
    if not is_it(command_line(pid)):
        return False
    for number, patience_s in ((first, grace_s), (signal.SIGKILL, 5.0)):
        try:
            if is_it(command_line(pid)):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, number)
            eventually(lambda: not is_it(command_line(pid)), patience_s, f"process {pid} is gone")
            return True
        except ProcessLookupError:
            return True
        except TimeRanOut:
            continue
    return True


def _memory_bytes(pid: int | None, figure: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{figure}:"))


class Machine(Protocol):
    """Where a server runs; `network.Host` is one with a network of its own."""

    @property
    def address(self) -> str:
        """Where it listens, and is reached."""

    def entered(self) -> AbstractContextManager[None]:
        """What this thread starts within runs there."""


class ThisMachine:
    """Nothing special: the loopback address."""

    address = HOST

    def entered(self) -> AbstractContextManager[None]:
        """Already there."""
        return nullcontext()


class ServerProcess:
    """One server, and what can be done to it.

    Attributes:
        name: the server's name in the cluster.
        command: its command line, the same at each start.
        data: its data directory, where `ready.json` appears.
        log: the file that takes what it prints, appended to at each start.
        machine: where it runs.
    """

    def __init__(self, name: str, command: Sequence[str], data: Path, log: Path, machine: Machine | None = None) -> None:
        self.name = name
        self.machine = machine or ThisMachine()
        self.command = list(command)
        self.data = data
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name}: {f'process {self.pid}' if self.is_running else 'not running'}>"

    @property
    def pid(self) -> int:
        """Its process id. Raises `ServerDied` when it was never started."""
        if self._process is None:
            raise ServerDied(f"{self.name} was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def is_ready(self) -> bool:
        """Whether this very process says that it serves."""
        said = read_json(self.data / READY_FILE)
        return self.is_running and isinstance(said, dict) and said.get("pid") == self.pid

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C in our terminal is ours alone to act on."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is running already, as process {self.pid}")
        self.data.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log, self.machine.entered():
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
            )

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once it serves.

        Raises:
            ServerDied: it ended first; the message has the end of its log.
            ServerNotReady: it did not serve in time; the message has the end of its log.
        """

        def ready_or_dead() -> bool:
            return self.is_ready or not self.is_running

        try:
            eventually(ready_or_dead, timeout_s, "")
        except TimeRanOut:
            raise ServerNotReady(f"{self.name} did not serve within {timeout_s:g} s.\n{self.log_tail()}") from None
        if not self.is_running:
            raise ServerDied(f"{self.name} {self.how_it_ended()} before it served.\n{self.log_tail()}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there. A `Popen` that was not waited for keeps its pid from being used again."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        self.signal(signal.SIGKILL)
        self._wait(10.0)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait; to a paused one as well. Once: a second one is an error to a stopping reactor."""
        if self._process is not None and self._process is not self._asked:
            self._asked = self._process
            self.resume()
            self.signal(signal.SIGTERM)

    def stop(self, grace_s: float = 15.0) -> int | None:
        """End it politely, or by force after the grace; how it ended."""
        self.ask_to_stop()
        if not self._wait(grace_s):
            self.kill()
        return self.exit_status

    def pause(self) -> None:
        """Let it hang, as SIGSTOP does: connections stay open, nothing is answered."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self.signal(signal.SIGCONT)

    def restart(self, timeout_s: float = 60.0) -> None:
        """Stop it, if it runs, start it and wait until it serves. Raises as `wait_ready`."""
        self.stop()
        self.start()
        self.wait_ready(timeout_s)

    @property
    def fronts(self) -> list[int]:
        """Of a node: the processes that it has for people's connections beside its own."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()
        return [int(child) for child in children if "securifile.node.fronts" in command_line(int(child))]

    def resident_bytes(self, figure: str = "VmRSS") -> int:
        """The resident memory of its process and its fronts. Raises `ServerDied` when there is no such process.

        Args:
            figure: which of those that the system has (proc(5)): `VmRSS`, now; `VmHWM`, the most so far.
        """
        try:
            return sum(_memory_bytes(pid, figure) for pid in (self.pid, *self.fronts))
        except (OSError, StopIteration):
            raise ServerDied(f"{self.name} has no memory to measure: it {self.how_it_ended()}") from None

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of its log, under a line that says where the whole is."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 200 * lines))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            text = ""
        return "\n".join([f"--- the end of {self.log}:", *text.splitlines()[-lines:]])

    def how_it_ended(self) -> str:
        """For a sentence with its name in front."""
        status = self.exit_status
        if status is None:
            return "is running" if self.is_running else "was not started"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _wait(self, timeout_s: float) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True
