"""A PostgreSQL that is nobody's: a site's own, as admin servers use with `--dsn`. The wheel's binaries, in a process of its own.

    python -m tests.processes.database DIRECTORY

runs it until SIGTERM, and writes how to connect to `DIRECTORY/dsn` as soon as it takes connections.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from securifile.admin.postgres import DATABASE
from securifile.admin.postgres_places import ROLE
from securifile.local.cluster import LocalCluster
from securifile.local.processes import ServerProcess, eventually, write_atomically

DSN = "dsn"


def ask_catalogue(cluster: LocalCluster, statement: str) -> list[tuple[Any, ...]]:
    """What the embedded PostgreSQL of a cluster answers to a question, as whoever runs the servers may ask it."""
    host = cluster.admin.data / "postgres" / "data"
    with closing(psycopg2.connect(host=str(host), user=ROLE, dbname=DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


class Database:
    """Started on entering, stopped on leaving."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = ServerProcess(
            "database", [sys.executable, "-m", "tests.processes.database", str(directory)], directory, directory / "log"
        )

    def __enter__(self) -> Database:
        self.process.start()
        eventually((self.directory / DSN).exists, 60, f"the database is there\n{self.process.log_tail()}")
        return self

    def __exit__(self, *why: object) -> None:
        self.process.stop(40)

    @property
    def dsn(self) -> str:
        """How to connect."""
        return (self.directory / DSN).read_text()


def main(directory: Path) -> None:
    """Run it."""
    from twisted.internet import reactor as given

    from securifile.admin.postgres import EmbeddedPostgres
    from securifile.workers import ThreadWorker

    reactor: Any = given
    worker = ThreadWorker(reactor, 2, "work")
    postgres = EmbeddedPostgres(reactor=reactor, directory=directory / "postgres", worker=worker)

    def start() -> None:
        postgres.startService()
        postgres.ready().addCallbacks(lambda dsn: write_atomically(directory / DSN, dsn), lambda failure: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.addSystemEventTrigger("before", "shutdown", postgres.stopService)
    reactor.addSystemEventTrigger("after", "shutdown", worker.stop)
    reactor.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
