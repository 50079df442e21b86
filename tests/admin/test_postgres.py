"""The embedded PostgreSQL: real processes, because what it promises is about processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from securifile.admin.database import PostgresDatabase
from securifile.admin.postgres import EmbeddedPostgres
from securifile.admin.postgres_leftovers import signal_leftovers
from securifile.admin.postgres_places import PostgresFailed
from tests.databases import InlineWorker, embedded

pytestmark = pytest.mark.processes


async def answer(dsn: str) -> int:
    """What the database at `dsn` says to a question."""
    database = PostgresDatabase(reactor=reactor, dsn=dsn, random=lambda: 0.5)
    try:
        return (await database.read(lambda sql: sql.query("SELECT 42")))[0][0]  # type: ignore[no-any-return]
    finally:
        await database.stop()


@asynccontextmanager
async def running(directory: Path, **more: Any) -> AsyncIterator[EmbeddedPostgres]:
    postgres = embedded(directory, **more)
    postgres.startService()
    try:
        yield postgres
    finally:
        await postgres.stopService()


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Path]:
    """A directory below one that only we may enter."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    yield closed / "postgres"


@pytest_twisted.ensureDeferred
async def test_it_starts_in_a_directory_that_nobody_else_can_reach(private: Path) -> None:
    """Data below a closed directory is no obstacle, and the modes of what is above it stay as they were."""
    before = private.parent.stat().st_mode
    async with running(private) as postgres:
        assert await answer(await postgres.ready()) == 42
        assert (private / "data").stat().st_mode & 0o777 == 0o700
    assert private.parent.stat().st_mode == before
    assert private.stat().st_mode & 0o777 == 0o700


@pytest_twisted.ensureDeferred
async def test_postgres_is_not_root(private: Path) -> None:
    """The process runs as an ordinary user, whoever we are."""
    async with running(private) as postgres:
        await postgres.ready()
        assert os.stat(f"/proc/{postgres.pid}").st_uid != 0


@pytest_twisted.ensureDeferred
async def test_a_long_path_is_no_obstacle(private: Path) -> None:
    """A data directory whose socket has a longer path than a socket may have can be connected to."""
    async with running(private / ("x" * 60) / ("y" * 60)) as postgres:
        assert await answer(await postgres.ready()) == 42
        assert "/proc/self/fd/" in postgres.dsn


@pytest_twisted.ensureDeferred
async def test_stopping_ends_the_process_and_the_data_stay(private: Path) -> None:
    """After stopService there is no process, and another start finds what was committed."""
    async with running(private) as postgres:
        database = PostgresDatabase(reactor=reactor, dsn=await postgres.ready(), random=lambda: 0.5)
        await database.transact("make", lambda sql: sql.execute("CREATE TABLE kept (x BIGINT)"))
        await database.stop()
        pid = postgres.pid
    assert not Path(f"/proc/{pid}").exists()
    assert not (private / "data" / "postmaster.pid").exists()
    async with running(private) as postgres:
        database = PostgresDatabase(reactor=reactor, dsn=await postgres.ready(), random=lambda: 0.5)
        assert list(await database.read(lambda sql: sql.query("SELECT x FROM kept"))) == []
        await database.stop()


@pytest_twisted.ensureDeferred
async def test_what_a_death_in_the_first_moment_leaves_is_no_obstacle(private: Path) -> None:
    """Lock files that are still empty, because the process was killed while it wrote them, do not keep the next one from starting."""
    async with running(private) as postgres:
        await postgres.ready()
    for lock in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (private / "data" / lock).touch()
    async with running(private) as postgres:
        assert await answer(await postgres.ready()) == 42


@pytest_twisted.ensureDeferred
async def test_a_postgres_that_dies_is_started_again(private: Path) -> None:
    """When the process is killed, another one takes its place, and the owner hears of it."""
    again: Deferred[None] = Deferred()
    async with running(private, on_restart=lambda: again.callback(None)) as postgres:
        dsn = await postgres.ready()
        killed = postgres.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await again
        assert postgres.pid not in (None, killed)
        assert await postgres.ready() == dsn
        assert await answer(dsn) == 42


@pytest_twisted.ensureDeferred
async def test_the_leftover_of_a_killed_admin_server_is_replaced(private: Path) -> None:
    """A postgres whose parent was killed is ended by the next start, which then has its own."""
    program = (
        "import sys; from pathlib import Path; from twisted.internet import reactor; from tests.databases import embedded\n"
        "postgres = embedded(Path(sys.argv[1])); postgres.startService()\n"
        "postgres.ready().addCallback(lambda _: print(postgres.pid, flush=True)); reactor.run()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, os.fspath(private)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        while not select.select([parent.stdout], [], [], 0)[0]:
            await deferLater(reactor, 0.05)
        leftover = int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert b"postgres" in Path(f"/proc/{leftover}/cmdline").read_bytes()
    async with running(private) as postgres:
        assert await answer(await postgres.ready()) == 42
        assert postgres.pid != leftover
        path = Path(f"/proc/{leftover}/cmdline")
        assert not path.exists() or path.read_bytes() == b""  # gone, or waiting to be reaped by whom it was left to


@pytest_twisted.ensureDeferred
async def test_a_lock_file_with_the_number_of_another_process_is_no_obstacle(private: Path) -> None:
    """A process that has got the number of a dead postgres is not touched, and does not keep ours from starting."""
    async with running(private) as postgres:
        await postgres.ready()
    innocent = subprocess.Popen(["sleep", "60"], user=(private / "data").stat().st_uid)
    try:
        (private / "data" / "postmaster.pid").write_text(f"{innocent.pid}\n/proc/self/cwd\n1\n5432\n.\n\n0 0\n")
        async with running(private) as postgres:
            assert await answer(await postgres.ready()) == 42
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_process_of_another_database_is_not_signalled() -> None:
    """Leftovers are known by the name of their data directory, so another database's process stays."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "--cluster_name=securifile-1-2"])
    try:
        uid = os.geteuid()
        assert signal_leftovers("securifile-1-3", uid, signal.SIGTERM, frozenset()) == set()
        assert signal_leftovers("securifile-1", uid, signal.SIGTERM, frozenset()) == set()
        assert signal_leftovers("securifile-1-2", uid + 1, signal.SIGTERM, frozenset()) == set()
        assert other.poll() is None
        while signal_leftovers("securifile-1-2", uid, signal.SIGTERM, frozenset()) != {other.pid}:
            pass  # it has not come to its exec yet
        assert other.wait() == -signal.SIGTERM
    finally:
        other.kill()
        other.wait()


@pytest_twisted.ensureDeferred
async def test_two_admin_servers_cannot_have_one_directory(private: Path) -> None:
    """The second one is told so, and the first one goes on."""
    async with running(private) as first:
        dsn = await first.ready()
        async with running(private) as second:
            with pytest.raises(PostgresFailed, match="another admin server"):
                await second.ready()
        assert await answer(dsn) == 42


@pytest_twisted.ensureDeferred
async def test_an_interrupted_first_start_is_begun_anew(private: Path) -> None:
    """Half a database, left by a crash during the first start, is thrown away."""
    (private / "data.new").mkdir(parents=True)
    (private / "data.new" / "PG_VERSION").write_text("16")
    async with running(private) as postgres:
        assert await answer(await postgres.ready()) == 42


@pytest_twisted.ensureDeferred
async def test_foreign_data_is_refused(private: Path) -> None:
    """A directory that holds something else is not touched; the error says what to do."""
    (private / "data").mkdir(parents=True)
    (private / "data" / "letters.txt").write_text("dear")
    async with running(private) as postgres:
        with pytest.raises(PostgresFailed, match="move it away"):
            await postgres.ready()
    assert (private / "data" / "letters.txt").read_text() == "dear"


@pytest_twisted.ensureDeferred
async def test_a_setting_that_postgres_refuses_is_told_to_who_waits(private: Path) -> None:
    """When it does not get ready in several starts, `ready` fails with what postgres said."""
    async with running(private, settings={"shared_buffers": "nonsense"}) as postgres:
        with pytest.raises(PostgresFailed, match="shared_buffers"):
            await postgres.ready()


@pytest_twisted.ensureDeferred
async def test_programs_that_the_user_cannot_reach_are_copied(private: Path) -> None:
    """An installation below a closed directory is run from a copy. Only root changes users, so only root needs it."""
    if os.geteuid() != 0:
        pytest.skip("only root runs postgres as another user")
    import shutil

    from securifile.admin.postgres import installed
    from securifile.admin.postgres_places import owner_of, reachable_programs

    wheel = installed()
    closed = private.parent / wheel.parent.name / wheel.name
    shutil.copytree(wheel, closed, symlinks=True)
    libraries = wheel.parent.with_name(f"{wheel.parent.name}.libs")
    shutil.copytree(libraries, closed.parent.with_name(libraries.name))
    programs = reachable_programs(closed, owner_of(None))
    try:
        assert programs != closed / "bin"
        async with running(private, installation=closed) as postgres:
            assert await answer(await postgres.ready()) == 42
        assert reachable_programs(closed, owner_of(None)) == programs
    finally:
        shutil.rmtree(programs.parents[2])


def test_the_worker_of_these_tests_works_at_once() -> None:
    """What the inline worker is given has been done when it returns."""
    assert InlineWorker().do(int, "3").result == 3
