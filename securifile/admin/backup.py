"""A copy of an admin server's data folder while it runs: started in its place, it is that server as it was.

    ca/ identity.pem    as they are
    audit/              the trail so far; the last line may be half there, which the server mends when it starts
    postgres/data/      by `pg_basebackup`, checked by `pg_verifybackup`

The copy of the database is told to begin a new timeline when it is first started (`recovery.signal`). So the admin server that starts with
it sees at once that time went back, and takes back from the nodes what they know beyond it (`reconciliation.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from securifile.admin.postgres import installed
from securifile.admin.postgres_places import ROLE

DATABASE = Path("postgres") / "data"

_NEW_TIMELINE = "\n# A backup: what is in pg_wal is all there is, and then a new timeline begins.\nrestore_command = 'false'\n"


class BackupFailed(Exception):
    """The backup was not made; the message says why. What there is of it has been removed."""


def back_up(data: Path, target: Path) -> bool:
    """Copy the data folder of a running admin server. Blocks, for as long as the database takes to be read.

    Args:
        data: The data folder.
        target: Where to; made here, and there only when it is complete.

    Returns:
        Whether the database is in it; one that is not embedded is backed up with its own tools.

    Raises:
        BackupFailed: with the reason.
        OSError: the disk.
    """
    target = target.absolute()
    if target.exists():
        raise BackupFailed(f"{target} is there already. Name a folder that is not.")
    if not (data / "ca").is_dir():
        raise BackupFailed(f"{data} is not the data folder of an admin server.")
    unfinished = target.with_name(f"{target.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    try:
        embedded = (data / DATABASE).is_dir()
        if embedded:
            (unfinished / DATABASE).parent.mkdir(mode=0o700)
            copy_database(data / DATABASE, unfinished / DATABASE)
        for name in ("ca", "audit"):
            if (data / name).is_dir():
                shutil.copytree(data / name, unfinished / name)
        for name in ("identity.pem", "trust.pem", "servers.pem", "people.pem"):
            if (data / name).is_file():
                shutil.copy2(data / name, unfinished / name)
        _sync(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    os.rename(unfinished, target)
    _sync_directory(target.parent)
    return embedded


def copy_database(data: Path, copy: Path) -> None:
    """Copy the data directory of a PostgreSQL that runs as ours do; the copy begins a new timeline. Blocks. Raises `BackupFailed`."""
    # The name of a socket may have 107 bytes; from its own directory it is short.
    programs = installed() / "bin"
    _run([programs / "pg_basebackup", "-h", "/proc/self/cwd", "-U", ROLE, "-D", copy, "--checkpoint=fast"], data)
    _run([programs / "pg_verifybackup", "--quiet", copy], data)
    with open(copy / "postgresql.auto.conf", "a", encoding="utf-8") as file:
        file.write(_NEW_TIMELINE)
    (copy / "recovery.signal").touch(0o600)


def _run(command: Sequence[str | Path], directory: Path) -> None:
    done = subprocess.run([os.fspath(word) for word in command], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " / ".join(done.stderr.strip().splitlines())
        raise BackupFailed(f"{Path(command[0]).name} failed: {words}. The admin server has to run, and this as its user or root.")


def _sync(folder: Path) -> None:
    for directory, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(Path(directory) / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_directory(Path(directory))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
