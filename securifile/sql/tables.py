"""The tables of the facts, the same in the catalogue (PostgreSQL) and in a node's index (SQLite).

Statements here use the placeholders `{bytes}` and `{text}` for the two column types that are spelled differently;
text is compared by code point in both, so that both list names in the same order.
"""

from __future__ import annotations

_TYPES = {
    "postgresql": {"bytes": "BYTEA", "text": 'TEXT COLLATE "C"', "float": "DOUBLE PRECISION"},
    "sqlite": {"bytes": "BLOB", "text": "TEXT", "float": "REAL"},
}


def spelled(statements: tuple[str, ...], dialect: str) -> tuple[str, ...]:
    """The statements with the column types of `dialect` (`postgresql` or `sqlite`)."""
    return tuple(statement.format(**_TYPES[dialect]) for statement in statements)


FACT_TABLES = (
    """CREATE TABLE people (
        username {text} PRIMARY KEY,
        email {text} NOT NULL,
        administrator BOOLEAN NOT NULL,
        valid_from {float} NOT NULL,
        valid_until {float},
        disabled BOOLEAN NOT NULL,
        quota_bytes BIGINT,
        credentials BIGINT NOT NULL)""",
    """CREATE TABLE sessions (
        token_hash {bytes} PRIMARY KEY,
        username {text} NOT NULL,
        expires_at {float} NOT NULL)""",
    "CREATE INDEX sessions_of_person ON sessions (username)",
    """CREATE TABLE entries (
        id {bytes} PRIMARY KEY,
        owner {text} NOT NULL,
        parent {bytes},
        name {text} NOT NULL,
        created_at {float} NOT NULL,
        number BIGINT,
        attempt {bytes},
        size BIGINT,
        digest {bytes},
        algorithm {text},
        committed_at {float},
        committed_by {text})""",
    # A file has a version (number is not null), a folder has none. Not unique here: an index may for a moment know
    # an announced entry and the one whose place it took; the catalogue adds the unique index.
    "CREATE INDEX entries_in_folder ON entries (parent, name)",
    "CREATE INDEX entries_of_owner ON entries (owner, id)",
    "CREATE INDEX entries_by_attempt ON entries (attempt)",
    """CREATE TABLE copies (
        file {bytes} NOT NULL,
        node {text} NOT NULL,
        priority BIGINT NOT NULL,
        durable BOOLEAN NOT NULL,
        PRIMARY KEY (file, node))""",
    "CREATE INDEX copies_on_node ON copies (node, file)",
    "CREATE INDEX copies_pending ON copies (node) WHERE NOT durable",
    """CREATE TABLE usage (
        owner {text} PRIMARY KEY,
        files BIGINT NOT NULL,
        bytes BIGINT NOT NULL)""",
    """CREATE TABLE grants (
        entry {bytes} NOT NULL,
        username {text} NOT NULL,
        role {text} NOT NULL,
        granted_by {text} NOT NULL,
        PRIMARY KEY (entry, username))""",
    "CREATE INDEX grants_of_person ON grants (username, entry)",
    """CREATE TABLE servers (
        name {text} PRIMARY KEY,
        kind {text} NOT NULL,
        url {text} NOT NULL,
        protocol_address {text} NOT NULL,
        public_key {bytes} NOT NULL,
        status {text} NOT NULL,
        syslog_address {text} NOT NULL,
        boot {text} NOT NULL,
        offline BOOLEAN NOT NULL,
        draining BOOLEAN NOT NULL,
        since {float} NOT NULL)""",
    """CREATE TABLE settings (
        cluster {text} PRIMARY KEY,
        body {text} NOT NULL)""",
)
"""What facts are kept in."""

FACT_TABLE_NAMES = ("people", "sessions", "entries", "copies", "usage", "grants", "servers", "settings")
