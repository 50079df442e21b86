"""What the command keeps between two runs: who is signed in, where, and whom to trust.

One file, `session.json`, mode 0600 in a folder of mode 0700; it is written beside itself and renamed, so there is never half of it.
The administrator's own machine has another key: `operator.json` in the admin server's data folder, written by that server.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import attrs

from securifile.client.asking import KnownServer, server_of
from securifile.client.errors import ClientError

FORMAT = 1
"""Of `session.json`; a file of a later format is not read."""


class NotSignedIn(ClientError):
    """There is no session to use."""


@attrs.frozen(kw_only=True)
class Session:
    """A sign-in as it is kept."""

    username: str | None
    """Whose it is; None: the operator of an admin server."""
    token: str = attrs.field(repr=False)
    servers: tuple[KnownServer, ...]
    root_pem: str | None
    """The certificates to trust, alone; None: those that this machine trusts."""
    expires_at: str | None = None
    """RFC 3339."""


def folder_of(environment: Mapping[str, str]) -> str:
    """Where the command keeps things: `$SECURIFILE_HOME`, or `securifile` under `$XDG_CONFIG_HOME` or `~/.config`."""
    chosen = environment.get("SECURIFILE_HOME")
    if chosen:
        return chosen
    base = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(base, "securifile")


def save(folder: str, session: Session) -> None:
    """Keep a session, replacing the one that was kept. Raises `OSError`."""
    os.makedirs(folder, 0o700, exist_ok=True)
    members = {"format": FORMAT, **attrs.asdict(session)}
    path = os.path.join(folder, "session.json")
    part = f"{path}.{os.getpid()}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(members, file, indent=2)
            file.write("\n")
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def load(folder: str) -> Session:
    """The session that was kept.

    Raises:
        NotSignedIn: there is none that can be read.
    """
    path = os.path.join(folder, "session.json")
    try:
        members = _read(path)
        if members.get("format") != FORMAT:
            raise NotSignedIn(f"{path} was written by another release of securifile. Sign in again: securifile login URL USER")
        return Session(
            username=members["username"],
            token=members["token"],
            servers=tuple(server_of(one) for one in members["servers"]),
            root_pem=members["root_pem"],
            expires_at=members.get("expires_at"),
        )
    except FileNotFoundError:
        raise NotSignedIn("Nobody is signed in here. Sign in first: securifile login URL USER") from None
    except (KeyError, TypeError, ValueError):
        raise NotSignedIn(f"{path} cannot be understood. Sign in again: securifile login URL USER") from None


def forget(folder: str) -> None:
    """Remove the kept session, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, "session.json"))


def operator(data_folder: str) -> Session:
    """The key of an admin server's operator, from that server's data folder.

    Raises:
        NotSignedIn: there is none, or it may not be read.
    """
    path = os.path.join(data_folder, "operator.json")
    try:
        members = _read(path)
        root_pem = None
        if members.get("ca_file"):
            with open(os.path.join(data_folder, members["ca_file"]), encoding="ascii") as file:
                root_pem = file.read()
        server = KnownServer(name="", url=str(members["url"]), kind="admin")
        return Session(username=None, token=members["token"], servers=(server,), root_pem=root_pem)
    except FileNotFoundError as error:
        raise NotSignedIn(f"{error.filename} is not there. Is an admin server running with this data folder?") from None
    except PermissionError as error:
        raise NotSignedIn(f"{error.filename} may only be read by the user that runs the admin server (or root).") from None
    except (KeyError, TypeError, ValueError):
        raise NotSignedIn(f"{path} cannot be understood. Is it from an admin server of another release?") from None


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        members = json.load(file)
    if not isinstance(members, dict):
        raise ValueError(path)
    return members
