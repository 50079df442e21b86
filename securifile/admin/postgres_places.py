"""Whom the embedded PostgreSQL runs as, and what that user finds: its programs, and a data directory of its own."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

import attrs

from securifile.process import CannotStart

ROLE = "securifile"

# Who postgres runs as when we are root: the first of these that the system has.
UNPRIVILEGED_USERS = ("postgres", "nobody")

_NOT_NEEDED = shutil.ignore_patterns("include", "*.a", "pkgconfig")


class PostgresFailed(CannotStart):
    """The embedded PostgreSQL cannot be prepared or started; the message says why, with its last words."""


@attrs.frozen(kw_only=True)
class Owner:
    """Whom postgres runs as. `switch` says that we are root and the child has to become that user."""

    name: str
    uid: int
    gid: int
    switch: bool


def owner_of(run_as: str | None) -> Owner:
    """That user; without a name: this process's own, or the first that there is of those without rights. Raises `PostgresFailed`."""
    if os.geteuid() != 0:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError as error:
            raise PostgresFailed(f"user {os.geteuid()} has no name: PostgreSQL needs a line for it in /etc/passwd") from error
        if run_as not in (None, name):
            raise PostgresFailed(f"only root can run PostgreSQL as another user ({run_as})")
        return Owner(name=name, uid=os.geteuid(), gid=os.getegid(), switch=False)
    for name in (run_as,) if run_as is not None else UNPRIVILEGED_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Owner(name=name, uid=entry.pw_uid, gid=entry.pw_gid, switch=True)
    raise PostgresFailed(
        "PostgreSQL does not run as root, and none of these users exists: "
        + ", ".join((run_as,) if run_as is not None else UNPRIVILEGED_USERS)
        + ". Make one, or run the admin server as an ordinary user."
    )


def take_directory(directory: Path) -> int:
    """Make the directory and lock it; the descriptor that holds the lock."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(directory, 0o700)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise PostgresFailed(f"another admin server runs the database in {directory}") from error
    return descriptor


def reachable_programs(installation: Path, owner: Owner) -> Path:
    """The directory of PostgreSQL's programs, from where `owner` may run them.

    A virtual environment under /root is closed to other users, and a program that resolves its own path cannot be started by
    the trick that opens the data directory. So the programs are copied, once for each version, to where root keeps such things.
    """
    if not owner.switch or _may_enter(installation / "bin", owner):
        return installation / "bin"
    identity = (installation / "bin" / "postgres").stat()
    name = f"securifile-postgres-{identity.st_size:x}-{identity.st_mtime_ns:x}"
    for parent in (Path("/var/lib"), Path(tempfile.gettempdir())):
        if not (os.access(parent, os.W_OK) and _may_enter(parent, owner)):
            continue
        copy = parent / name
        if not copy.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}", dir=parent))
            package = installation.parent
            shutil.copytree(installation, unfinished / package.name / installation.name, symlinks=True, ignore=_NOT_NEEDED)
            # Libraries that a wheel brings are beside its package, and are found from the programs by a relative path.
            if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            os.chmod(unfinished, 0o755)
            os.rename(unfinished, copy)
        found = copy.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise PostgresFailed(f"{copy} should belong to root and be writable by nobody else; remove it")
        return copy / installation.parent.name / installation.name / "bin"
    raise PostgresFailed(f"user {owner.name} cannot reach {installation}, and there is no place for a copy")


def _may_enter(directory: Path, owner: Owner) -> bool:
    """Whether the permission bits let `owner` walk to `directory`."""
    groups = set(os.getgrouplist(owner.name, owner.gid))

    def may_pass(step: Path) -> bool:
        found = step.stat()
        if found.st_uid == owner.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        return bool(found.st_mode & (stat.S_IXGRP if found.st_gid in groups else stat.S_IXOTH))

    real = directory.resolve()
    return all(may_pass(step) for step in (real, *real.parents))


def own_data(data: Path, owner: Owner) -> None:
    """See that existing data belongs to the user that postgres runs as."""
    if not data.exists():
        return
    if not (data / "PG_VERSION").exists():
        raise PostgresFailed(f"{data} is not a database of PostgreSQL; move it away")
    if data.stat().st_uid == owner.uid:
        return
    if not owner.switch:
        raise PostgresFailed(f"{data} belongs to user {data.stat().st_uid}, but PostgreSQL is to run as {owner.name}")
    for _, directories, files, descriptor in os.fwalk(data, follow_symlinks=False):
        for name in (*directories, *files):
            os.chown(name, owner.uid, owner.gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(data, owner.uid, owner.gid)


def fresh_directory(directory: Path, owner: Owner) -> None:
    """An empty directory of that user, in place of what is there."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    os.chown(directory, owner.uid, owner.gid)


def rename_durably(old: Path, new: Path) -> None:
    """Rename, for certain when this returns."""
    os.rename(old, new)
    descriptor = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_access_rules(data: Path, owner: Owner) -> None:
    """Let in the user that we run as, and root, and nobody else."""
    people = sorted({pwd.getpwuid(os.geteuid()).pw_name, pwd.getpwuid(0).pw_name})
    access = "local all all peer map=securifile\nlocal replication all peer map=securifile\n"
    names = "".join(f'securifile "{person}" {ROLE}\n' for person in people)
    for name, text in (("pg_hba.conf", access), ("pg_ident.conf", names)):
        # The directory is postgres' own: as root never write through a name that it may have made a link of.
        fresh = data / f"{name}.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, owner.uid, owner.gid)
            file.write(text)
        os.rename(fresh, data / name)
