"""The catalogue's own tables, beside those of the facts, as numbered forward migrations.

A migration leaves the schema usable by the previous release; none is ever changed after it was released.
"""

from __future__ import annotations

from securifile.sql.tables import FACT_TABLES

FIRST = (
    *FACT_TABLES,
    "CREATE UNIQUE INDEX one_entry_a_name ON entries (parent, name) WHERE parent IS NOT NULL",
    "CREATE UNIQUE INDEX one_root_an_owner ON entries (owner) WHERE parent IS NULL",
    "CREATE UNIQUE INDEX one_person_an_email ON people (email)",
    # The one row that orders all commits: a writing transaction updates it first.
    """CREATE TABLE cluster (
        one BIGINT PRIMARY KEY CHECK (one = 1),
        epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        system_identifier {text} NOT NULL,
        began BIGINT NOT NULL,
        reconciled BOOLEAN NOT NULL,
        rebuilding BOOLEAN NOT NULL,
        mark {bytes} NOT NULL)""",
    # Revisions go on from epoch to epoch.
    """CREATE TABLE changes (
        epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        mark {bytes} NOT NULL,
        body {bytes} NOT NULL,
        PRIMARY KEY (epoch, revision))""",
    "CREATE INDEX change_by_revision ON changes (revision)",
    # What nodes know that the catalogue lost; with `why` it was left to the administrator. See reconciliation.py.
    """CREATE TABLE handed_in (
        epoch BIGINT NOT NULL,
        node {text} NOT NULL,
        at_epoch BIGINT NOT NULL,
        at_revision BIGINT NOT NULL,
        PRIMARY KEY (epoch, node))""",
    """CREATE TABLE claims (
        epoch BIGINT NOT NULL,
        node {text} NOT NULL,
        number BIGINT NOT NULL,
        body {bytes} NOT NULL,
        why {text},
        PRIMARY KEY (epoch, node, number))""",
    # What only one admin server does at a time; see duties.py.
    """CREATE TABLE duties (
        name {text} PRIMARY KEY,
        holder {text} NOT NULL,
        turn BIGINT NOT NULL)""",
    # How attempts ended; an attempt without a row has not ended.
    """CREATE TABLE attempts (
        attempt {bytes} PRIMARY KEY,
        ended {text} NOT NULL,
        person {text},
        idempotency_key {text},
        request {bytes},
        answer {bytes},
        ended_at {float} NOT NULL)""",
    "CREATE UNIQUE INDEX one_attempt_a_key ON attempts (person, idempotency_key) WHERE idempotency_key IS NOT NULL",
    """CREATE TABLE versions (
        file {bytes} NOT NULL,
        number BIGINT NOT NULL,
        attempt {bytes} NOT NULL,
        size BIGINT NOT NULL,
        digest {bytes} NOT NULL,
        algorithm {text} NOT NULL,
        origin {text} NOT NULL,
        committed_at {float} NOT NULL,
        committed_by {text} NOT NULL,
        epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        PRIMARY KEY (file, number))""",
    """CREATE TABLE passwords (
        username {text} PRIMARY KEY,
        hash {text} NOT NULL)""",
    """CREATE TABLE invites (
        secret_hash {bytes} PRIMARY KEY,
        name {text} NOT NULL,
        expires_at {float} NOT NULL)""",
    # Who observes what: the whole matrix, for people to look at; the summary is in `servers`.
    """CREATE TABLE judgements (
        observer {text} NOT NULL,
        subject {text} NOT NULL,
        status {text} NOT NULL,
        since {float} NOT NULL,
        PRIMARY KEY (observer, subject))""",
    """CREATE TABLE heartbeats (
        server {text} PRIMARY KEY,
        at {float} NOT NULL,
        epoch BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        used_bytes BIGINT NOT NULL,
        available_bytes BIGINT NOT NULL)""",
    # When each copy was last read whole and found sound, by what its node told; of another attempt than the current one: not at all.
    """CREATE TABLE checks (
        file {bytes} NOT NULL,
        node {text} NOT NULL,
        attempt {bytes} NOT NULL,
        at {float} NOT NULL,
        PRIMARY KEY (file, node))""",
    # What each node told of its copies on the whole.
    """CREATE TABLE scrubs (
        node {text} PRIMARY KEY,
        oldest_at {float},
        quarantined BIGINT NOT NULL,
        told_at {float} NOT NULL)""",
    """CREATE TABLE storage_samples (
        server {text} NOT NULL,
        at {float} NOT NULL,
        used_bytes BIGINT NOT NULL,
        available_bytes BIGINT NOT NULL,
        PRIMARY KEY (server, at))""",
    """CREATE TABLE audit (
        boot {text} NOT NULL,
        number BIGINT NOT NULL,
        at {float} NOT NULL,
        server {text} NOT NULL,
        event {text} NOT NULL,
        person {text},
        path {text},
        entry {text},
        status BIGINT,
        bytes BIGINT,
        duration_s {float},
        peer {text},
        detail {text},
        PRIMARY KEY (server, boot, number))""",
    "CREATE INDEX audit_at ON audit (at)",
    "CREATE INDEX audit_of_person ON audit (person, at)",
    # What happened to a server; the condition is that of `Catalogue.audit_about`, word for word.
    "CREATE INDEX audit_about_server ON audit (peer, at) WHERE event IN ('status', 'verification', 'verdict', 'bad-copy')",
)
"""Release 0.1."""

SECOND = (
    # The epoch in which the catalogue was made anew from the nodes; 0: never. What a node knows from before it cannot be compared.
    "ALTER TABLE cluster ADD COLUMN rebuilt BIGINT NOT NULL DEFAULT 0",
    # Whether the node told, too, what is on its disk.
    "ALTER TABLE handed_in ADD COLUMN blobs BOOLEAN NOT NULL DEFAULT FALSE",
    # What is on the disks of nodes, for a catalogue that is made anew; with `why` it is left to the administrator.
    """CREATE TABLE held (
        epoch BIGINT NOT NULL,
        node {text} NOT NULL,
        attempt {bytes} NOT NULL,
        body {bytes} NOT NULL,
        why {text},
        PRIMARY KEY (epoch, node, attempt))""",
    "CREATE INDEX held_by_attempt ON held (attempt)",
)
"""What making a catalogue anew takes."""
