"""The `securifile` command from its arguments to its exit code, against small real servers."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.client.arguments import parse
from securifile.client.command import ACTIONS, run
from securifile.client.console import Console
from tests.client.conftest import AtOnce
from tests.client.fake_cluster import PASSWORD, TOKEN, FakeCluster, FakeServer, Stored


@attrs.frozen
class Ran:
    """What one run of the command left."""

    code: int
    out: str
    err: str
    raw: bytes


class Terminal(io.TextIOWrapper):
    """A stream in memory that may claim to be a terminal."""

    def __init__(self, content: bytes = b"", tty: bool = False) -> None:
        self.memory = io.BytesIO(content)
        self.tty = tty
        super().__init__(self.memory, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return self.tty


class Shell:
    """Runs command lines in one home."""

    def __init__(self, home: Path) -> None:
        self.environment = {"SECURIFILE_HOME": str(home)}
        self.tty = False

    def start(self, line: str, *more: str, stdin: bytes = b"", answers: list[str] | None = None) -> tuple[Deferred[int], Callable[[], Ran]]:
        waiting = list(answers or [])
        streams = Terminal(stdin), Terminal(), Terminal(tty=self.tty)

        def ask(prompt: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        running = Deferred.fromCoroutine(
            run(
                reactor,
                parse([*line.split(), *more]),
                environment=self.environment,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                ask=ask,
                random=os.urandom,
                worker=AtOnce(),
            )
        )
        codes: list[int] = []
        running.addCallback(codes.append)

        def ran() -> Ran:
            raw = streams[1].memory.getvalue()
            return Ran(codes[0], raw.decode(errors="replace"), streams[2].memory.getvalue().decode(), raw)

        return running, ran

    async def __call__(self, line: str, *more: str, stdin: bytes = b"", answers: list[str] | None = None) -> Ran:
        running, ran = self.start(line, *more, stdin=stdin, answers=answers)
        await running
        return ran()


@pytest.fixture
def stranger(tmp_path: Path) -> Shell:
    """A shell where nobody is signed in."""
    return Shell(tmp_path / "home")


@pytest.fixture
def shell(stranger: Shell, cluster: FakeCluster) -> Shell:
    """A shell where alice is signed in."""
    pytest_twisted.blockon(Deferred.fromCoroutine(stranger(f"login {cluster.servers[0].url} alice", answers=[PASSWORD])))
    cluster.seen.clear()
    return stranger


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with three files and a folder in it, and a link."""
    folder = tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "sub" / "b ü.txt").write_text("second")
    (folder / "sub" / "empty").touch()
    (folder / "link").symlink_to("/etc/passwd")
    return folder


@pytest_twisted.ensureDeferred
async def test_signing_in_and_out(stranger: Shell, cluster: FakeCluster, tmp_path: Path) -> None:
    """The password comes from the terminal, a file or standard input; what is kept has the token and is private; nothing shows it."""
    url = cluster.servers[0].url
    (tmp_path / "pass").write_text(PASSWORD + "\n")
    for more, stdin, answers in (
        ([], b"", [PASSWORD]),
        (["--password-file", str(tmp_path / "pass")], b"", []),
        (["--password-stdin"], PASSWORD.encode(), []),
    ):
        ran = await stranger(f"login {url} alice", *more, stdin=stdin, answers=answers)
        assert (ran.code, ran.out) == (0, "Signed in as alice until 2026-11-22T10:00:00Z; 3 nodes are known.\n")
        assert "TLS IS OFF" in ran.err
    kept = tmp_path / "home" / "session.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["token"] == TOKEN
    ran = await stranger("whoami")
    assert "alice@example.org" in ran.out and "until 2026-11-22" in ran.out
    assert TOKEN not in (await stranger(f"--json login {url} alice", answers=[PASSWORD])).out
    assert (await stranger("logout")).out == "Signed out.\n"
    assert not kept.exists()
    ran = await stranger("ls")
    assert (ran.code, ran.out) == (1, "") and "securifile login URL USER" in ran.err


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_said(stranger: Shell, cluster: FakeCluster, tmp_path: Path) -> None:
    """A failed sign-in keeps nothing, exits with 1 and says why; without a terminal it says how to give the password."""
    ran = await stranger(f"login {cluster.servers[0].url} alice", answers=["guess"])
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("securifile: The name or the password is wrong.\n")
    assert not (tmp_path / "home").exists()
    assert "--password-file" in (await stranger(f"login {cluster.servers[0].url} alice")).err


@pytest_twisted.ensureDeferred
async def test_an_ended_session_asks_for_a_new_one(shell: Shell, cluster: FakeCluster) -> None:
    """When the server does not know the token any more, the advice is to sign in again."""
    cluster.sessions.clear()
    ran = await shell("ls")
    assert (ran.code, ran.err) == (1, "securifile: This session has ended. Sign in again: securifile login URL USER\n")


@pytest_twisted.ensureDeferred
async def test_files_go_and_come(shell: Shell, cluster: FakeCluster, here: Path, tmp_path: Path) -> None:
    """put, ls, info, cat, get, mv and rm do what they say, with paths that are one's own or begin with their owner."""
    ran = await shell("put", str(here / "a.txt"), "/")
    assert (ran.code, ran.out, ran.err) == (0, "alice/a.txt: version 1, 5 B, 2 of 3 copies durable\n", "")
    assert (await shell("put - /from-stdin", stdin=b"piped")).code == 0
    assert (await shell("ls")).out == "a.txt\nfrom-stdin\n"
    assert (await shell("ls -l alice/")).out.splitlines()[1].split() == ["5", "B", "v1", "alice", "a.txt"]
    assert (await shell("ls alice/a.txt")).out == "a.txt\n"
    assert (await shell("cat /a.txt alice/from-stdin")).raw == b"firstpiped"
    info = (await shell("info alice/a.txt")).out
    assert "sha256:" in info and "replica 1" in info and "bob through node1" in info
    ran = await shell("get /a.txt", str(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "first" and ran.out.startswith(f"{tmp_path}/a.txt: 5 B from http://127.0.0.1:")
    assert (await shell("get /a.txt -")).raw == b"first"
    assert (await shell("mv /a.txt /b.txt")).out == "alice/a.txt is now alice/b.txt\n"
    assert (await shell("rm /b.txt alice/from-stdin")).code == 0
    assert cluster.files == {}


@pytest_twisted.ensureDeferred
async def test_folders_go_and_come(shell: Shell, cluster: FakeCluster, here: Path, tmp_path: Path) -> None:
    """A folder is uploaded and downloaded with all that is in it; links are passed over with a note."""
    ran = await shell("put -r", str(here), "/")
    assert ran.code == 0 and ran.err == f"securifile: {here}/link: a symbolic link, passed over\n"
    assert set(cluster.files) == {"alice/here/a.txt", "alice/here/sub/b ü.txt", "alice/here/sub/empty"}
    assert (await shell("put -r", str(here), "/")).code == 0, "folders that are there are no error"
    assert (await shell("get -r /here", str(tmp_path / "back"))).code == 0
    assert (tmp_path / "back" / "sub" / "b ü.txt").read_text() == "second"
    assert (await shell("rm /here/")).code == 1
    assert (await shell("rm -r /here")).code == 0
    assert cluster.files == {}


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_uploaded_is_noted_and_the_rest_goes(shell: Shell, cluster: FakeCluster, here: Path) -> None:
    """Names that are not UTF-8, twins in other code points, pipes: each has its note; the other files go; the exit code is 1."""
    (here / "link").unlink()
    Path(os.fsdecode(os.fsencode(here) + b"/bad\xff")).write_text("x")
    (here / "e\u0301").write_text("decomposed")
    (here / "\u00e9").write_text("composed")
    os.mkfifo(here / "pipe")
    ran = await shell("put -r", str(here), "/")
    assert ran.code == 1
    assert "surrogate" in ran.err and "other code points" in ran.err and "not a regular file" in ran.err
    assert len(ran.err.splitlines()) == 3
    assert set(cluster.files) == {"alice/here/a.txt", "alice/here/sub/b ü.txt", "alice/here/sub/empty", "alice/here/\u00e9"}
    assert cluster.files["alice/here/\u00e9"].data == b"decomposed"


@pytest_twisted.ensureDeferred
async def test_a_servers_names_lead_nowhere(shell: Shell, cluster: FakeCluster, tmp_path: Path) -> None:
    """A name like `..` in a list is noted, not followed; neither is a link where a folder should be."""
    cluster.folders |= {"alice/d", "alice/d/sub"}
    cluster.files = {"alice/d/..": Stored(b"evil", 1), "alice/d/good": Stored(b"good", 1), "alice/d/sub/x": Stored(b"x", 1)}
    (tmp_path / "into").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "into" / "d").mkdir()
    (tmp_path / "into" / "d" / "sub").symlink_to(tmp_path / "elsewhere")
    ran = await shell("get -r /d", str(tmp_path / "into"))
    assert ran.code == 1 and "'..'" in ran.err and "symbolic link" in ran.err
    assert [path.name for path in (tmp_path / "into" / "d").iterdir() if not path.is_symlink()] == ["good"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_mistakes_are_explained(shell: Shell, cluster: FakeCluster, here: Path) -> None:
    """What cannot work is refused before anything goes, with the way that would."""
    cluster.folders.add("alice/docs")
    for line, advice in (
        (f"put {here} /x", "add -r"),
        (f"put {here}/a.txt {here}/a.txt /x", "/x/ with a slash"),
        ("put - /docs/", "has no name"),
        (f"put {here}/a.txt /docs", "slash at its end"),
        (f"put {here}/none /docs/", "No such file"),
        ("get /docs/", "add -r"),
        ("get -r /docs -", "standard output"),
        ("ls Docs/a", "begins with its owner"),
        ("cluster set replicas", "KEY=VALUE"),
        ("user set bob", "--help"),
    ):
        ran = await shell(line)
        assert ran.code == 1 and advice in ran.err and ran.err.startswith("securifile: "), (line, ran)
    assert cluster.files == {}


@pytest_twisted.ensureDeferred
async def test_rights(shell: Shell, cluster: FakeCluster) -> None:
    """share, access, unshare and shared say what is so."""
    assert (await shell("share /docs bob editor")).out == "bob is now editor of alice/docs\n"
    assert cluster.grants == {"alice/docs": {"bob": "editor"}}
    assert (await shell("access /docs")).out.splitlines()[3].split() == ["bob", "editor", "alice"]
    assert (await shell("unshare /docs bob")).code == 0
    assert (await shell("access /docs")).out == "You are owner. Nobody else has a role.\n"
    assert "bob/a.txt" in (await shell("shared")).out


@pytest_twisted.ensureDeferred
async def test_folders_with_parents(shell: Shell, cluster: FakeCluster) -> None:
    """mkdir makes one folder, with -p those above it; what is there already is an error without -p, and a file always is."""
    assert (await shell("mkdir /a/b")).code == 1
    assert (await shell("mkdir -p /a/b/c")).code == 0
    assert (await shell("mkdir -p /a/b/c")).code == 0
    assert (await shell("mkdir /a")).code == 1
    cluster.files["alice/f"] = Stored(b"", 1)
    assert (await shell("mkdir -p /f")).code == 1
    assert {"alice/a", "alice/a/b", "alice/a/b/c"} < cluster.folders


@pytest_twisted.ensureDeferred
async def test_people(shell: Shell, cluster: FakeCluster) -> None:
    """People are added, shown, changed, given passwords, closed and removed."""
    ran = await shell("user add carol carol@example.org --quota 10G --valid-until 2026-12-31")
    assert ran.out == "carol is added. The password, shown only this once: made-for-you\n"
    assert cluster.users["carol"]["quota_bytes"] == 10 << 30
    assert cluster.users["carol"]["valid_until"] == "2026-12-31T23:59:59Z"
    assert (await shell("user add dan d@example.org --password-stdin", stdin=b"a password\n")).out == "dan is added.\n"
    assert cluster.users["dan"]["password"] == "a password"
    assert "carol@example.org" in (await shell("user list")).out
    await shell("user set carol --quota none --valid-until never --administrator yes")
    assert [cluster.users["carol"][name] for name in ("quota_bytes", "valid_until", "administrator")] == [None, None, True]
    await shell("user disable carol")
    assert "DISABLED" in (await shell("user show carol")).out
    await shell("user enable carol")
    assert cluster.users["carol"]["disabled"] is False
    assert (await shell("user password carol", answers=["new", "other"])).code == 1
    assert (await shell("user password carol", answers=["new", "new"])).code == 0
    assert cluster.users["carol"]["password"] == "new" and "current_password" not in cluster.users["carol"]
    assert (await shell("user password --password-stdin", stdin=b"old\nnewer\n")).code == 0
    assert (cluster.users["alice"]["current_password"], cluster.users["alice"]["password"]) == ("old", "newer")
    cluster.files["carol/x"] = Stored(b"abc", 1)
    assert (await shell("usage carol")).out == "carol: 1 files, 3 B, no limit\n"
    assert "carol/x" in (await shell("usage carol --files")).out
    assert (await shell("user remove carol")).code == 1
    assert (await shell("user remove carol --files")).code == 0
    assert "carol" not in cluster.users


@pytest_twisted.ensureDeferred
async def test_servers_and_settings(shell: Shell, cluster: FakeCluster) -> None:
    """The table of servers, invitations and settings."""
    ran = await shell("status")
    assert ran.out.startswith("WARNING: TLS IS OFF") and "3 of 3 nodes running" in ran.out
    assert (await shell("node list")).out == ran.out
    assert "HOLDS IT FOR" in (await shell("node show node1")).out
    assert (await shell("node invites")).out == "No invitations are open.\n"
    assert (await shell("node invite node4")).out.startswith("join-me\n")
    assert "node4" in (await shell("node invites")).out
    assert (await shell("node offline node1")).code == 0
    assert cluster.asked("POST")[-1].path == "/api/v1/servers/node1/offline"
    assert (await shell("cluster set replicas=3 write_copies=null digest=sha3-256")).code == 0
    assert cluster.settings == {"replicas": 3, "write_copies": None, "digest": "sha3-256"}
    assert "sha3-256" in (await shell("cluster show")).out


@pytest_twisted.ensureDeferred
async def test_offline_and_online(shell: Shell, cluster: FakeCluster) -> None:
    """What was done is told, with what follows from it and where to look."""
    ran = await shell("node offline node2")
    assert (ran.code, ran.out.startswith("node2 is offline: ")) == (0, True)
    ran = await shell("node online node2")
    assert (ran.code, "securifile explain node2" in ran.out) == (0, True)
    assert [one.path for one in cluster.asked("POST")][-2:] == ["/api/v1/servers/node2/offline", "/api/v1/servers/node2/online"]


@pytest_twisted.ensureDeferred
async def test_a_repair_is_waited_for(shell: Shell, cluster: FakeCluster) -> None:
    """However often the server says that it goes on; then it is told what was found. What could not be had makes the exit code 1."""
    done = {"name": "node2", "under_way": False, "checked": 7, "fetched": 2, "lost": []}
    cluster.repaired = [{"name": "node2", "under_way": True}, {"name": "node2", "under_way": True}, done]
    ran = await shell("node repair node2")
    assert ran.code == 0 and ran.out.startswith("node2: 7 copies checked, 2 fetched again, 0 could not be had.")
    assert ran.err.count("still reading") == 1
    cluster.repaired = [{**done, "lost": ["00ff"]}]
    ran = await shell("node repair node2")
    assert (ran.code, ran.out.splitlines()[-1]) == (1, "  00ff")
    cluster.repaired = [{"name": "node2", "under_way": True}, done]
    assert json.loads((await shell("--json node repair node2")).out) == done


@pytest_twisted.ensureDeferred
async def test_drain_and_remove(shell: Shell, cluster: FakeCluster) -> None:
    """With --dry-run nothing is done, and it is told what would be; without, what is being done and how to watch it."""
    ran = await shell("node drain node2 --dry-run")
    assert (ran.code, ran.out) == (
        0, "12 copies would be made on other nodes, 3 of them the only one on a running node. Nothing was done.\n"
    )  # fmt: skip
    assert "securifile explain node2" in (await shell("node drain node2")).out
    assert "Nothing was done" in (await shell("node undrain node2 --dry-run")).out
    assert (await shell("node undrain node2")).out == "Files are kept on node2 again; it has 12 copies.\n"
    assert "can be removed" in (await shell("node remove node2 --dry-run")).out
    assert (await shell("node remove node2")).out == "node2 is no member of the cluster any more.\n"
    asked = [(one.method, one.path.removeprefix("/api/v1/servers/"), one.query) for one in cluster.seen if "node2" in one.path]
    assert asked == [
        ("POST", "node2/drain", "dry_run=1"),
        ("POST", "node2/drain", ""),
        ("DELETE", "node2/drain", "dry_run=1"),
        ("DELETE", "node2/drain", ""),
        ("DELETE", "node2", "dry_run=1"),
        ("DELETE", "node2", ""),
    ]
    assert (await shell("node remove node2 --force --dry-run")).code == 0
    assert cluster.seen[-1].query == "dry_run=1&force=1"


@pytest_twisted.ensureDeferred
async def test_replace(shell: Shell, cluster: FakeCluster) -> None:
    """First an invitation, then nothing until the new node runs, then the old one is drained; and never the same name."""
    assert (await shell("node replace node1 node1")).code == 1
    assert "no node node9" in (await shell("node replace node9 node4")).err
    assert "would be invited" in (await shell("node replace node1 node4 --dry-run")).out
    assert cluster.invites == []
    ran = await shell("node replace node1 node4")
    assert ran.out.startswith("join-me\n") and ran.out.endswith("securifile node replace node1 node4\n")
    # The token is not made void by giving the command too early.
    assert "has not joined yet" in (await shell("node replace node1 node4")).err
    assert len(cluster.invites) == 1
    cluster.servers[2].status = "down"
    assert "node2 is down" in (await shell("node replace node1 node2")).err
    assert not any(one.path.endswith("/drain") for one in cluster.seen)
    ran = await shell("node replace node1 node3")
    assert "12 copies are made on other nodes now" in ran.out
    assert cluster.asked("POST")[-1].path == "/api/v1/servers/node1/drain"


@pytest_twisted.ensureDeferred
async def test_explain(shell: Shell, cluster: FakeCluster) -> None:
    """A word with a slash is a file's path, one without is a node; what comes is a page of text, or the answer with --json."""
    cluster.explained = {"next": ["nothing: 3 of 3 copies are good"]}
    ran = await shell("explain /docs/a")
    assert ran.code == 0 and ran.out.startswith("path:        alice/docs/a\n")
    assert ran.out.endswith("\nnext:\n  nothing: 3 of 3 copies are good\n")
    cluster.explained = {"name": "node1", "status": "running", "next": ["nothing: it is running"]}
    assert (await shell("explain node1")).out.startswith("node:        node1\n")
    assert cluster.seen[-1].path == "/api/v1/servers/node1/explain"
    assert json.loads((await shell("--json explain node1")).out) == cluster.explained


@pytest_twisted.ensureDeferred
async def test_json_is_one_value_a_line(shell: Shell, cluster: FakeCluster, here: Path) -> None:
    """With --json, before or after the subcommand, standard output has the servers' answers and nothing else."""
    ran = await shell("--json put", str(here / "a.txt"), str(here / "sub" / "empty"), "/")
    assert [json.loads(line)["path"] for line in ran.out.splitlines()] == ["alice/a.txt", "alice/empty"]
    assert [entry["name"] for entry in json.loads((await shell("ls --json")).out)["entries"]] == ["a.txt", "empty"]
    assert json.loads((await shell("status --json")).out)["cluster"] == "test"
    ran = await shell("--json info /none")
    assert (ran.code, ran.out) == (1, "") and ran.err.startswith("securifile: There is nothing here")


@pytest_twisted.ensureDeferred
async def test_the_operator_needs_no_sign_in(stranger: Shell, cluster: FakeCluster, tmp_path: Path) -> None:
    """With the admin server's data folder, named or in the environment, administration works without a session."""
    (tmp_path / "operator.json").write_text(json.dumps({"url": cluster.servers[0].url, "token": TOKEN, "ca_file": None}))
    assert "3 of 3 nodes" in (await stranger("status --operator", str(tmp_path))).out
    stranger.environment["SECURIFILE_ADMIN_DATA"] = str(tmp_path)
    assert (await stranger("user add first first@example.org --administrator")).code == 0
    assert cluster.users["first"]["administrator"] is True
    ran = await stranger("ls")
    assert ran.code == 1 and "has no files" in ran.err


def test_progress_is_for_terminals() -> None:
    """A progress line is drawn on a terminal a few times a second, and taken away before anything else is said there."""
    clock = Clock()
    for tty, as_json, drawn in ((True, False, True), (False, False, False), (True, True, False)):
        stderr = Terminal(tty=tty)
        console = Console(Terminal(), Terminal(), stderr, as_json=as_json, ask=str, clock=clock)
        progress = console.progress("a\x1b[2Jb")
        for done in (100_000, 200_000, 300_000):
            clock.advance(0.15)
            progress(done, 400_000)
        line = stderr.memory.getvalue().decode()
        assert (line == "\r 50 %  195 KiB of 391 KiB  651 KiB/s  a\\x1b[2Jb") is drawn, line
        console.note("done")
        assert stderr.memory.getvalue().decode().removeprefix(line).strip("\r ") == "securifile: done\n"


@pytest_twisted.ensureDeferred
async def test_interrupted_downloads_leave_nothing(shell: Shell, cluster: FakeCluster, tmp_path: Path) -> None:
    """Cancelled in mid-transfer, the command leaves no partial file, says so, and exits with 130."""
    cluster.files["alice/a"] = Stored(bytes(3_000_000), 1)
    begun: Deferred[None] = Deferred()

    def stalling(server: FakeServer, request: object) -> object:
        data = server._answer(request, server.cluster.seen[-1])
        request.setHeader("Content-Length", str(len(data)))  # type: ignore[attr-defined]
        request.write(data[:1_000_000])  # type: ignore[attr-defined]
        reactor.callLater(0.05, begun.callback, None)
        return 1  # NOT_DONE_YET

    for server in cluster.servers:
        server.misbehave = [stalling]
    into = tmp_path / "into"
    into.mkdir()
    running, ran = shell.start("get /a", str(into))
    await begun
    assert [path.name.endswith(".part") for path in into.iterdir()] == [True]
    running.cancel()
    await running
    assert (ran().code, ran().err) == (130, "securifile: interrupted\n")
    assert list(into.iterdir()) == []


def test_every_subcommand_is_carried_out_by_something() -> None:
    """The parser and the table of actions know the same subcommands, and none takes a password as an argument."""
    from securifile.client.arguments import parser

    found: set[str] = set()

    def walk(one: object) -> None:
        for action in one._actions:  # type: ignore[attr-defined]
            assert action.dest != "password"
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for made in action.choices.values():
                    walk(made)
        verb = one.get_default("action")  # type: ignore[attr-defined]
        if verb:
            found.add(verb)

    walk(parser())
    assert found == set(ACTIONS)


@pytest.mark.parametrize(
    "line", ["", "nonsense", "share /a bob owner", "user add x y --quota lots", "user add x y --valid-until soon", "login"]
)
def test_what_is_not_understood_exits_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that makes no sense says so on standard error and exits with 2."""
    with pytest.raises(SystemExit) as exit:
        parse(line.split())
    assert exit.value.code == 2
    assert "usage: securifile" in capsys.readouterr().err


@pytest.mark.processes
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """The real process, interrupted while it waits for a server that never answers, cleans up and exits with 130."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "session.json").write_text(
            json.dumps({"format": 1, "username": "alice", "token": "t", "servers": [{"name": "n", "url": url}], "root_pem": None})
        )
        environment = {**os.environ, "SECURIFILE_HOME": str(tmp_path)}
        into = tmp_path / "into"
        into.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "securifile.client", "get", "/a", str(into / "a")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            # As from a terminal: a shell without job control, as in CI, starts what runs in the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        connection.settimeout(30)
        assert connection.recv(4)
        assert len(list(into.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        connection.close()
    assert (process.returncode, err) == (130, "securifile: interrupted\n")
    assert list(into.iterdir()) == []
