"""What tests of several rooms need: a database of each engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from securifile.admin.database import PostgresDatabase
from securifile.admin.postgres import EmbeddedPostgres
from tests.databases import embedded

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL for all tests; each takes a database of its own in it (`postgres_dsn`)."""
    server = embedded(tmp_path_factory.mktemp("postgres") / "server")
    server.startService()
    try:
        pytest_twisted.blockon(server.ready())
        yield server
    finally:
        pytest_twisted.blockon(server.stopService())


@pytest.fixture
def postgres_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The connection string of a fresh, empty database."""
    name = f"test_{next(_numbers)}"
    pytest_twisted.blockon(Deferred.fromCoroutine(_outside(postgres.dsn, f"CREATE DATABASE {name}")))
    yield postgres.dsn.replace("dbname=postgres", f"dbname={name}")
    pytest_twisted.blockon(Deferred.fromCoroutine(_outside(postgres.dsn, f"DROP DATABASE {name} WITH (FORCE)")))


@pytest.fixture
def postgres_database(postgres_dsn: str) -> Iterator[PostgresDatabase]:
    """A fresh, empty database."""
    database = PostgresDatabase(reactor=reactor, dsn=postgres_dsn, random=lambda: 0.5)
    yield database
    pytest_twisted.blockon(database.stop())


async def _outside(dsn: str, statement: str) -> Any:
    """Run what PostgreSQL does not allow within a transaction."""
    from txpostgres import txpostgres

    connection = txpostgres.Connection(reactor)
    await connection.connect(dsn)
    try:
        await connection.runOperation(statement)
    finally:
        connection.close()
