"""The kept session, and the operator's key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from securifile.client import configuration
from securifile.client.asking import KnownServer
from securifile.client.configuration import NotSignedIn, Session

SESSION = Session(
    username="alice",
    token="secret-token",
    servers=(KnownServer(name="node1", url="https://a:1"), KnownServer(name="admin1", url="https://b:1", kind="admin", status="down")),
    root_pem="pem",
    expires_at="2026-11-22T10:00:00Z",
)


def test_a_session_comes_back(tmp_path: Path) -> None:
    """What is saved is loaded; a second save replaces it; after forgetting there is none."""
    folder = str(tmp_path / "deep" / "folder")
    configuration.save(folder, Session(username="bob", token="x", servers=(), root_pem=None))
    configuration.save(folder, SESSION)
    assert configuration.load(folder) == SESSION
    configuration.forget(folder)
    configuration.forget(folder)
    with pytest.raises(NotSignedIn, match="securifile login"):
        configuration.load(folder)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """The file is 0600 in a folder of 0700 whatever the umask, nothing else is left, and the token is in no repr."""
    before = os.umask(0)
    try:
        configuration.save(str(tmp_path / "kept"), SESSION)
    finally:
        os.umask(before)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    [file] = (tmp_path / "kept").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "secret-token" not in repr(SESSION)


def test_where_it_is(tmp_path: Path) -> None:
    """The folder is $SECURIFILE_HOME, or under $XDG_CONFIG_HOME, or under ~/.config."""
    assert configuration.folder_of({"SECURIFILE_HOME": "/s", "XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == "/s"
    assert configuration.folder_of({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == "/x/securifile"
    assert configuration.folder_of({"HOME": "/h"}) == "/h/.config/securifile"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "username": "a", "token": "t", "servers": 3}']
)
def test_what_cannot_be_understood_asks_for_a_new_sign_in(tmp_path: Path, text: str) -> None:
    """A damaged file, or one of a later release, does not crash the command."""
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(NotSignedIn, match="Sign in again"):
        configuration.load(str(tmp_path))


def test_the_operators_key(tmp_path: Path) -> None:
    """URL, token and root come from operator.json; the root's file may be named relative to the data folder."""
    with pytest.raises(NotSignedIn, match="Is an admin server running"):
        configuration.operator(str(tmp_path))
    (tmp_path / "operator.json").write_text(json.dumps({"url": "https://a:8443", "token": "t", "ca_file": "ca/root.pem"}))
    with pytest.raises(NotSignedIn, match=r"root\.pem is not there"):
        configuration.operator(str(tmp_path))
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "root.pem").write_text("pem")
    session = configuration.operator(str(tmp_path))
    assert (session.username, session.token, session.root_pem) == (None, "t", "pem")
    assert [(server.url, server.kind) for server in session.servers] == [("https://a:8443", "admin")]
    (tmp_path / "operator.json").write_text("{}")
    with pytest.raises(NotSignedIn, match="cannot be understood"):
        configuration.operator(str(tmp_path))
