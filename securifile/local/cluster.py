"""A whole cluster on this machine: an admin server with its embedded PostgreSQL, and nodes, each a real `twistd` process.

All that it is lies in one directory, so that a second start finds the same cluster again:

    cluster.json      plan: names, kinds, ports, TLS or not; accounts with their passwords (mode 0600)
    ca.pem            what clients trust
    admin1/ node1/ …  data directories of the servers
    logs/             what each printed

The first start invites the nodes as an operator would: with a one-time token each, by file. The order of a start is admin
server, nodes all at once, settings, accounts; of a stop: nodes, admin server, and then PostgreSQL, should it still be there
because its admin server was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from securifile.local.asking import Http, Response
from securifile.local.ports import HOST, anywhere, first_free, is_free
from securifile.local.processes import (
    READY_FILE,
    Machine,
    ServerProcess,
    ThisMachine,
    TimeRanOut,
    command_line,
    end_process,
    eventually,
    read_json,
    twistd,
    write_atomically,
)

PLAN_FILE = "cluster.json"
PLAN_FORMAT = 1
CA_FILE = "ca.pem"
ADMIN = "admin1"
_ADMIN_GRACE_S = 40.0
"""An admin server stops its PostgreSQL first, and gives that half a minute on a slow disk."""
_BUSY_S = 1.0
_RUNNING_WITHIN_S = 60.0
"""A loaded machine starts six interpreters and a database in this time."""


class ClusterError(Exception):
    """The cluster cannot be started as it is; the text says what to do."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a cluster is made of: the content of `cluster.json`."""

    tls: bool
    servers: Mapping[str, Mapping[str, int]]
    """Ports by use, by name; the admin server first."""
    accounts: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Passwords by username."""
    addresses: Mapping[str, str] = attrs.field(factory=dict)
    """By name, of servers that are on a machine of their own."""

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, in order."""
        return [name for name in self.servers if name != ADMIN]

    def url(self, name: str) -> str:
        """Where people reach a server."""
        return f"{'https' if self.tls else 'http'}://{self.addresses.get(name, HOST)}:{self.servers[name]['https']}"

    def write(self, path: Path) -> None:
        """Keep it for the next start."""
        write_atomically(path, json.dumps({"format": PLAN_FORMAT, **attrs.asdict(self)}, indent=2) + "\n", 0o600)

    @classmethod
    def read(cls, path: Path) -> Plan | None:
        """What was kept; None when nothing was. Raises `ClusterError` when it is of another format."""
        kept = read_json(path)
        if kept is None:
            return None
        if kept.pop("format", None) != PLAN_FORMAT:
            raise ClusterError(f"{path} was written by another release of SecuriFile. Move its directory away to start anew.")
        return cls(**kept)


class LocalCluster:
    """A cluster in a directory. A context manager: started on entering, stopped on leaving.

    Attributes:
        directory: where it lives; made if needed.
        plan: names, ports, accounts.
        admin: the admin server's process.
        nodes: the nodes' processes by name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 5,
        replicas: int | None = 2,
        tls: bool = True,
        accounts: Sequence[str] = ("alice", "bob"),
        ports: Callable[[str, int], Iterator[dict[str, int]]] = anywhere,
        options: Sequence[str] = (),
        https_processes: int | None = None,
        admin_options: Sequence[str] = (),
        run: Callable[..., list[str]] = twistd,
        machines: Mapping[str, Machine] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Plan it, or read the plan that was kept; nothing is started yet.

        Args:
            nodes: how many; when there is a plan already it says so instead, as it does for `tls`.
            replicas: the setting; None leaves it as it is.
            ports: proposals for a first start, by kind and number: `ports.usual` or `ports.anywhere`.
            options: more arguments for every node's command line.
            https_processes: what every node has for people's connections beside its own process; None: the default.
            admin_options: the same for the admin server's.
            run: makes the command line of `securifile-admin` or `securifile-node` and its arguments.
            machines: where servers run, by name, that do not run on this machine's own network.
            say: told what is under way, a line at a time.

        Raises:
            ClusterError: another process has this cluster in its hands, or its ports are taken.
        """
        self.directory = directory.resolve()
        # Not 0700 (as `mkdtemp` makes): embedded PostgreSQL has a uid of its own when root starts it, and must get through.
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.replicas = replicas
        self._say = say
        self._options = list(options)
        self._https_processes = https_processes
        if https_processes is not None:
            self._options += ["--https-processes", str(https_processes)]
        self._admin_options = list(admin_options)
        self._run = run
        self._machines = dict(machines or {})
        self._tokens: dict[str, str] = {}
        self._hold = self._take_hold()
        try:
            self._stop_leftovers()
            self.plan = self._planned(nodes, tls, accounts, ports)
        except BaseException:
            self.forget()
            raise
        self.admin = self._process(ADMIN, "admin")
        self.nodes = {name: self._process(name, "node") for name in self.plan.nodes}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        self.stop()

    # What it is

    @property
    def servers(self) -> dict[str, ServerProcess]:
        """All processes by name, the admin server first."""
        return {ADMIN: self.admin, **self.nodes}

    @property
    def ca_file(self) -> Path | None:
        """What clients trust; None without TLS."""
        return self.directory / CA_FILE if self.plan.tls else None

    def server_at(self, url: str) -> str:
        """The name of the server that an URL leads to. Raises `LookupError`."""
        return next(name for name in self.plan.servers if url.startswith(self.plan.url(name) + "/") or url == self.plan.url(name))

    # Start and stop

    def start(self) -> None:
        """Start every server and wait until all of them are running. Raises `ServerDied`, `ServerNotReady`, `ClusterError`."""
        self._say(f"starting {ADMIN} and its PostgreSQL")
        self.admin.start()
        self.admin.wait_ready(_RUNNING_WITHIN_S)
        if self.plan.tls:
            shutil.copyfile(self._operator_file("ca_file"), self.directory / CA_FILE)
        self._say(f"starting {', '.join(self.nodes)}")
        self._invite([name for name in self.nodes if not self._has_joined(name)])
        for node in self.nodes.values():
            node.start()
        for node in self.nodes.values():
            node.wait_ready(_RUNNING_WITHIN_S)
        self.wait_running(*self.nodes)
        if self._https_processes:
            eventually(self._has_fronts, _RUNNING_WITHIN_S, "every process for people's connections takes some")
        operator = self.operator()
        set_now = operator.request("GET", "/api/v1/settings").must(200).json()["replicas"]
        if self.replicas is None:
            self.replicas = set_now
        elif self.replicas != set_now:
            operator.request("PATCH", "/api/v1/settings", json={"replicas": self.replicas}).must(200)
        known = {user["username"] for user in operator.request("GET", "/api/v1/users?limit=1000").must(200).json()["users"]}
        for username in self.plan.accounts.keys() - known:
            self._create(username)

    def stop(self) -> None:
        """End every process of this cluster, and let go of the directory. Harmless when some or all have ended already."""
        for server in self.nodes.values():
            server.ask_to_stop()
        for server in self.nodes.values():
            server.stop()
        self.admin.stop(_ADMIN_GRACE_S)
        self._stop_leftovers()  # what somebody else started again after it was killed
        self._stop_postgres()
        self.forget()

    def forget(self) -> None:
        """Let go of the directory without stopping anything, as when we are killed; `stop` does it too."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def remove(self) -> None:
        """Delete the whole directory; after `stop`."""
        shutil.rmtree(self.directory)

    def kill_postgres(self) -> int:
        """End embedded PostgreSQL as `kill -9` does: the postmaster; its children notice by themselves. Its pid."""
        pid = self.postgres_pid()
        if pid is None:
            raise ClusterError("there is no PostgreSQL to kill")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.postgres_pid() != pid, 10, "PostgreSQL is gone")
        return pid

    def postgres_pid(self) -> int | None:
        """The process of embedded PostgreSQL, by its own `postmaster.pid`; None when there is none alive."""
        for file in (self.admin.data / "postgres").rglob("postmaster.pid"):
            try:
                first = file.read_text(encoding="ascii", errors="replace").split("\n", 1)[0].strip()
            except FileNotFoundError:
                continue
            if first.isdecimal() and _is_postgres(int(first), file.parent):
                return int(first)
        return None

    # Speaking to it

    def http(self, name: str, user: str | None = None, *, timeout_s: float = 30.0) -> Http:
        """A server as a person speaks to it (None: nobody); signs in once for each person."""
        token = None if user is None else self.token(user)
        return Http(self.plan.url(name), self.ca_file, None if token is None else f"Bearer {token}", timeout_s)

    def operator(self) -> Http:
        """The admin server as the local operator speaks to it."""
        return Http(self.plan.url(ADMIN), self.ca_file, f"Bearer {self._operator_file('token')}")

    def token(self, user: str) -> str:
        """A session's token of a person with an account here."""
        if user not in self._tokens:
            credentials = {"username": user, "password": self.plan.accounts[user]}
            answer = self.http(ADMIN).request("POST", "/api/v1/sessions", json=credentials).must(201)
            self._tokens[user] = answer.json()["token"]
        return self._tokens[user]

    def add_user(self, username: str, **more: object) -> None:
        """Make an account with a password of its own; `more` as the API takes it (`quota_bytes`, `administrator`, ...)."""
        self.plan = attrs.evolve(self.plan, accounts={**self.plan.accounts, username: secrets.token_urlsafe(12)})
        self.plan.write(self.directory / PLAN_FILE)
        self._create(username, **more)

    def statuses(self) -> dict[str, str]:
        """The status of each server by name, as the catalogue has it."""
        servers = self.operator().request("GET", "/api/v1/servers").must(200).json()["servers"]
        return {server["name"]: server["status"] for server in servers}

    def wait_status(self, status: str, *names: str, timeout_s: float = _RUNNING_WITHIN_S) -> None:
        """Return once the catalogue holds these servers for `status`. Raises `TimeRanOut`."""

        def all_so() -> bool:
            known = self.statuses()
            return all(known.get(name) == status for name in names)

        try:
            eventually(all_so, timeout_s, "")
        except TimeRanOut:
            now = self.statuses()
            raise TimeRanOut(f"not within {timeout_s:g} s: {', '.join(names)} {status}; the catalogue says {now}") from None

    def wait_running(self, *names: str, timeout_s: float = _RUNNING_WITHIN_S) -> None:
        """Return once these servers are running for the catalogue, and say so of themselves. Raises `TimeRanOut`."""
        self.wait_status("running", *names, timeout_s=timeout_s)

        def ready() -> bool:
            return all(self._answers(name, "/readyz") for name in names)

        eventually(ready, timeout_s, f"{', '.join(names)} ready for people")

    def details(self, path: str, user: str, via: str = ADMIN) -> dict[str, Any]:
        """`GET /api/v1/details/…` of a file."""
        answer: dict[str, Any] = self.http(via, user).request("GET", f"/api/v1/details/{path}", follow=True).must(200).json()
        return answer

    def holders(self, path: str, user: str, via: str = ADMIN) -> list[str]:
        """The holders of a file in the order in which they serve: origin, then replicas by priority."""
        known = self.details(path, user, via)
        return [known["origin"], *(replica["server"] for replica in sorted(known["replicas"], key=lambda replica: replica["priority"]))]

    # The parts

    def _answers(self, name: str, path: str) -> bool:
        try:
            return self.http(name, timeout_s=5).request("GET", path).status == 200
        except OSError:
            return False

    def _has_fronts(self) -> bool:
        # Until then each node process serves people itself, and there is little left of the machine for that: starting a front takes a
        # second of a core.
        try:
            answers = [self.http(name, timeout_s=5).request("GET", "/readyz").json() for name in self.nodes]
        except OSError:
            return False
        return all(answer["https_processes"] == self._https_processes for answer in answers)

    def _create(self, username: str, **more: object) -> Response:
        account = {"username": username, "email": f"{username}@example.org", "password": self.plan.accounts[username], **more}
        return self.operator().request("POST", "/api/v1/users", json=account).must(201)

    def _operator_file(self, member: str) -> str:
        return str(read_json(self.admin.data / "operator.json")[member])

    def _token_file(self, name: str) -> Path:
        return self.directory / name / "join-token"

    def _has_joined(self, name: str) -> bool:
        return (self.directory / name / "identity.pem").exists()

    def _invite(self, names: Sequence[str]) -> None:
        operator = self.operator()
        for name in names:
            invited = operator.request("POST", "/api/v1/servers/invites", json={"name": name}).must(201).json()
            self._token_file(name).parent.mkdir(exist_ok=True)
            write_atomically(self._token_file(name), invited["token"] + "\n", 0o600)

    def _process(self, name: str, kind: str) -> ServerProcess:
        ports, data = self.plan.servers[name], self.directory / name
        machine = self._machines.get(name) or ThisMachine()
        arguments = ["--data", str(data), "--listen", machine.address, "--public", machine.address]
        for use, port in ports.items():
            arguments += [f"--{use}-port", str(port)]
        if kind == "admin":
            arguments += ["--name", name, *self._admin_options]
        else:
            # Ignored after the first start; that way the command line to start it again is always the same.
            arguments += ["--join-file", str(self._token_file(name)), *self._options]
        if not self.plan.tls:
            arguments.append("--no-tls")
        command = self._run(f"securifile-{kind}", *arguments)
        return ServerProcess(name, command, data, self.directory / "logs" / f"{name}.log", machine)

    def _planned(self, nodes: int, tls: bool, accounts: Sequence[str], ports: Callable[[str, int], Iterator[dict[str, int]]]) -> Plan:
        kept = Plan.read(self.directory / PLAN_FILE)
        if kept is not None:
            if kept.tls != tls:
                # All servers start together here, which is how TLS may be turned on or off.
                kept = attrs.evolve(kept, tls=tls)
                kept.write(self.directory / PLAN_FILE)
            try:
                # Not at the first look: somebody else's look at the same port takes it, too, for a moment.
                eventually(lambda: not _busy(kept), _BUSY_S, "")
            except TimeRanOut:
                raise ClusterError(
                    f"another program listens on {', '.join(_busy(kept))}. Stop it, or start a new cluster in another directory."
                ) from None
            return kept
        taken: set[int] = set()
        servers = {ADMIN: first_free(ports("admin", 1), taken)}
        servers |= {f"node{number}": first_free(ports("node", number), taken) for number in range(1, nodes + 1)}
        plan = Plan(
            tls=tls,
            servers=servers,
            accounts={username: secrets.token_urlsafe(12) for username in accounts},
            addresses={name: machine.address for name, machine in self._machines.items()},
        )
        plan.write(self.directory / PLAN_FILE)
        return plan

    def _take_hold(self) -> int:
        """Lock the directory, for as long as this process lives: two of us would end each other's servers."""
        hold = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(hold)
            raise ClusterError(f"a cluster is running in {self.directory} already. Stop it first, or use another directory.") from None
        return hold

    def _stop_leftovers(self) -> None:
        """End servers of this directory that outlived whoever started them: known by pid and by the data directory they were given."""
        for ready in sorted(self.directory.glob(f"*/{READY_FILE}")):
            data = str(ready.parent)

            def is_it(line: list[str], data: str = data) -> bool:
                return data in line

            said = read_json(ready)
            if said is not None and end_process(int(said["pid"]), is_it):
                self._say(f"stopped {ready.parent.name}, which was left from before (process {said['pid']})")

    def _stop_postgres(self) -> None:
        pid = self.postgres_pid()
        if pid is not None:
            # SIGINT: PostgreSQL's "fast" shutdown, which does not wait for clients.
            end_process(pid, lambda line: self.postgres_pid() == pid, first=signal.SIGINT)


def _busy(plan: Plan) -> list[str]:
    """The ports of a plan on which somebody listens."""
    return [f"port {port} of {name}" for name, uses in plan.servers.items() for port in uses.values() if not is_free(port)]


def _is_postgres(pid: int, data: Path) -> bool:
    """Whether that process is the PostgreSQL of a data directory: by its program, and by where it stands, which is there."""
    line = command_line(pid)
    try:
        return bool(line) and Path(line[0]).name == "postgres" and os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.stat(data))
    except OSError:
        return False
