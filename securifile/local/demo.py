"""`make demo`: a cluster to play with on this machine, until Ctrl-C.

One admin server and five nodes as real processes; what it prints is all that one needs to know. It watches the
processes, and says when one ends and how to start it again, but does not do so itself: whoever tries `kill -9` wants to see
what the cluster makes of it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from securifile.local.cluster import PLAN_FILE, ClusterError, LocalCluster
from securifile.local.curl_lines import curl_lines
from securifile.local.ports import usual
from securifile.local.processes import READY_FILE, ServerDied, ServerNotReady, TimeRanOut, command_line, read_json

_LOOK_S = 0.3
"""Between two looks at the processes: at once, to a person."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status of the command."""
    options = _options(arguments)
    # Ctrl-C too: a shell without job control starts what runs in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_ctrl_c)
    cluster: LocalCluster | None = None
    try:
        cluster = LocalCluster(
            options.directory, nodes=options.nodes, replicas=options.replicas, tls=not options.no_tls, ports=usual, say=_say
        )
        begun = time.monotonic()
        cluster.start()
        _say(f"ready after {time.monotonic() - begun:.0f} s\n")
        print(overview(cluster), flush=True)
        watch(cluster)
    except KeyboardInterrupt:
        print(flush=True)
        return 0
    except (ClusterError, ServerDied, ServerNotReady, TimeRanOut, LookupError) as error:
        print(f"\nThe demo cannot run: {error}", file=sys.stderr)
        return 1
    finally:
        if cluster is not None:
            _stop(cluster)


def overview(cluster: LocalCluster) -> str:
    """Where everything is, and what to try: the text of the demo."""
    plan = cluster.plan
    width = max(map(len, plan.servers))
    encrypted = "" if plan.tls else ", NO TLS: for debugging only"
    lines = [
        f"SecuriFile, {len(plan.nodes)} nodes, {cluster.replicas} replicas of each file{encrypted}",
        "",
    ]
    for name, server in cluster.servers.items():
        role = "people, rights, status, logs" if server is cluster.admin else "files"
        lines.append(f"  {name:{width}}  {plan.url(name)}  process {server.pid:<7}  {role}")
    accounts = "      ".join(f"{username} / {password}" for username, password in plan.accounts.items())
    lines += [
        "",
        f"  accounts  {accounts}",
        f"  data      {_near(cluster.directory)}   (kept: the next run finds the same files)",
        f"  logs      {_near(cluster.directory / 'logs')}",
    ]
    if cluster.ca_file is not None:
        lines.append(f"  CA        {_near(cluster.ca_file)}")
    lines += ["", "Paste into another terminal, in this directory:", ""]
    ca_file = None if cluster.ca_file is None else _near(cluster.ca_file)
    for step in curl_lines(ca_file=ca_file, urls=[plan.url(name) for name in plan.nodes], password=plan.accounts["alice"]):
        lines += [f"  {line}" for line in str(step).splitlines()] + [""]
    lines.append("Ctrl-C stops everything.")
    return "\n".join(lines)


def watch(cluster: LocalCluster) -> NoReturn:
    """Say which process ends, and when somebody has started it again. Ends with `KeyboardInterrupt`."""
    alive = dict.fromkeys(cluster.servers, True)
    while True:
        time.sleep(_LOOK_S)
        for name, server in cluster.servers.items():
            elsewhere = None if server.is_running else _started_elsewhere(server.data)
            if alive[name] and not server.is_running and elsewhere is None:
                _say(f"{name} {server.how_it_ended()}. To start it again:\n    {shlex.join(server.command)}")
            elif not alive[name] and elsewhere is not None:
                _say(f"{name} is back, as process {elsewhere}.")
            alive[name] = server.is_running or elsewhere is not None


def _started_elsewhere(data: Path) -> int | None:
    """The process that serves from this data directory now, whoever started it."""
    said = read_json(data / READY_FILE)
    return int(said["pid"]) if said is not None and str(data) in command_line(int(said["pid"])) else None


def _stop(cluster: LocalCluster) -> None:
    _say("stopping (Ctrl-C again: at once)")
    try:
        cluster.stop()
    except KeyboardInterrupt:
        for server in cluster.servers.values():
            server.kill()
        cluster.stop()
    _say("stopped; the data stays in " + _near(cluster.directory))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m securifile.local.demo", description="Run a SecuriFile cluster on this machine.")
    parser.add_argument("--directory", type=Path, default=Path("demo-data"), help="where it keeps everything (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=5, help="how many nodes, at the first run (default: %(default)s)")
    parser.add_argument("--replicas", type=int, help="copies of each file beside the first (default: 2, or as it was set)")
    parser.add_argument("--no-tls", action="store_true", help="turn all encryption off, for debugging")
    options = parser.parse_args(arguments)
    if options.replicas is None and not (options.directory / PLAN_FILE).exists():
        options.replicas = min(2, options.nodes - 1)
    if options.nodes < 1 or (options.replicas is not None and not 0 <= options.replicas < options.nodes):
        parser.error("there must be at least one node, and fewer replicas than nodes")
    return options


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _near(path: Path) -> str:
    """The path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(line: str) -> None:
    print(f"demo: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
