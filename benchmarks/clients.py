"""curl and wrk: what asks the servers. Each transfer is a process of its own, as each person is."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

CURL = ("curl", "--silent", "--show-error", "--fail-with-body", "--http1.1")
TRANSFER_S_MAX = 180
"""A transfer of the largest file at a tenth of what is usual; one that hangs is told as such, and does not hold up the rest."""
IN_TURN = 16
"""Uploads at a time, when there are many."""
ABOUT_THE_TRANSFER = '{"status": %{http_code}, "seconds": %{time_total}, "down": %{size_download}, "up": %{size_upload}}\n'

_WRK_SUMMARY = """
done = function(summary, latency, requests)
  io.write(string.format('{"requests": %d, "micros": %d, "bad": %d, "p50": %d, "p99": %d}\\n', summary.requests, summary.duration,
    summary.errors.status + summary.errors.read + summary.errors.write + summary.errors.timeout + summary.errors.connect,
    latency:percentile(50), latency:percentile(99)))
end
"""
_WRK_UPLOADS = """
local threads = 0
function setup(thread) thread:set("number", threads); threads = threads + 1 end
function init(arguments) count = 0; body = string.rep("0123456789abcdef", 256) end
function request()
  count = count + 1
  return wrk.format("PUT", wrk.path .. "/" .. number .. "-" .. count, nil, body)
end
"""
"""4 KiB at a time, each to a path of its own below the one given."""


class ClientFailed(Exception):
    """A client did not get what it asked for; the text has what it printed."""


@attrs.frozen(kw_only=True)
class Requests:
    """What wrk counted."""

    count: int
    seconds: float
    p50_s: float
    p99_s: float


def download(urls: Sequence[str], ca: Path, headers: Mapping[str, str], size: int) -> None:
    """Get all of these at once and throw them away. Raises `ClientFailed` unless each is of that size."""
    commands = [[*CURL, *_told(ca, headers), "--output", "/dev/null", url] for url in urls]
    for about in _all(commands):
        if about["down"] != size:
            raise ClientFailed(f"{about['down']} bytes came instead of {size}: {about}")


def upload(urls: Sequence[str], ca: Path, headers: Mapping[str, str], file: Path) -> None:
    """Put a file to all of these at once. Raises `ClientFailed`."""
    _all([[*CURL, *_told(ca, headers), "--output", "/dev/null", "--upload-file", str(file), url] for url in urls])


def upload_in_turn(urls: Sequence[str], ca: Path, headers: Mapping[str, str], file: Path) -> None:
    """Put a file to all of these, some at a time over connections that are kept. Raises `ClientFailed`."""
    with tempfile.NamedTemporaryFile("w", suffix=".curl", encoding="ascii") as told:
        told.writelines(f'url = "{url}"\nupload-file = "{file}"\noutput = "/dev/null"\n' for url in urls)
        told.flush()
        parallel = ["--parallel", "--parallel-max", str(IN_TURN), "--fail-early", "--config", told.name]
        ran = subprocess.run([*CURL, *_told(ca, headers), *parallel], capture_output=True, text=True, check=False, timeout=3600)
    if ran.returncode or len(ran.stdout.splitlines()) != len(urls):
        raise ClientFailed(f"curl ended with {ran.returncode}: {ran.stderr[-2000:]}")


def one_by_one(urls: Sequence[str], ca: Path, headers: Mapping[str, str], file: Path | None = None) -> list[float]:
    """Get all of these, or put a file to them, one after another over one connection; how many seconds each took. Raises `ClientFailed`."""
    with tempfile.NamedTemporaryFile("w", suffix=".curl", encoding="ascii") as told:
        put = "" if file is None else f'upload-file = "{file}"\n'
        told.writelines(f'url = "{url}"\n{put}output = "/dev/null"\n' for url in urls)
        told.flush()
        command = [*CURL, *_told(ca, headers), "--fail-early", "--config", told.name]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TRANSFER_S_MAX)
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    if ran.returncode or len(answers) != len(urls):
        raise ClientFailed(f"curl ended with {ran.returncode}: {ran.stderr[-2000:]}")
    # The first has the connection and the sign-in to make.
    return [float(answer["seconds"]) for answer in answers[1:]]


def ask(method: str, url: str, ca: Path, headers: Mapping[str, str]) -> None:
    """One request without a body, for what has to be prepared. Raises `ClientFailed`."""
    _all([[*CURL, *_told(ca, headers), "--output", "/dev/null", "--request", method, url]])


def many(url: str, ca: Path, headers: Mapping[str, str], *, seconds: float, connections: int, uploads: bool) -> Requests:
    """Ask as fast as answers come, over connections that are kept. Raises `ClientFailed` when not all are answered well.

    Args:
        url: what to get; with `uploads`, the folder to put into.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua", encoding="ascii") as script:
        script.write((_WRK_UPLOADS if uploads else "") + _WRK_SUMMARY)
        script.flush()
        fields = [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:g}s", "--timeout", "30s"]
        ran = subprocess.run([*command, *fields, "--script", script.name, url], capture_output=True, text=True, check=False, timeout=600)
    last = ran.stdout.strip().rpartition("\n")[2]
    if ran.returncode or not last.startswith("{"):
        raise ClientFailed(f"wrk: {ran.stdout}{ran.stderr}")
    told = json.loads(last)
    if told["bad"] or not told["requests"]:
        raise ClientFailed(f"wrk: {ran.stdout}")
    return Requests(count=told["requests"], seconds=told["micros"] / 1e6, p50_s=told["p50"] / 1e6, p99_s=told["p99"] / 1e6)


def _told(ca: Path, headers: Mapping[str, str]) -> list[str]:
    told = ["--cacert", str(ca), "--max-time", str(TRANSFER_S_MAX), "--write-out", ABOUT_THE_TRANSFER]
    return told + [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]


def _all(commands: Sequence[Sequence[str]]) -> list[dict[str, int]]:
    """Run all at once; what each says about its transfer."""
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    ended = [(process, *process.communicate()) for process in running]
    for process, out, error in ended:
        if process.returncode:
            raise ClientFailed(f"{process.args!r}: {out}{error}")
    return [json.loads(out.strip().rpartition("\n")[2]) for _, out, _ in ended]
