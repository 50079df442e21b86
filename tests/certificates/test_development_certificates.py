"""The script that makes certificates to develop with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from securifile.certificates.identity import Identity, TrustAnchors
from tests.sources import ROOT

SCRIPT = ROOT / "certs" / "make-development-certificates"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def test_it_makes_what_a_developer_needs(tmp_path: Path) -> None:
    """It makes identities for servers and people under one authority; a second run keeps that; another cluster is refused."""
    folder = tmp_path / "certificates"
    first = run(str(folder), "--node", "ada", "--node", "bob", "--host", "files.example")
    assert first.returncode == 0, first.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["admin-admin-1", "authority", "node-ada", "node-bob", "person-ada"]
    anchors = TrustAnchors.load(str(folder / "node-ada"))
    assert anchors.fingerprint in first.stdout
    assert str(Identity.load(str(folder / "node-ada")).uri) == "securifile://dev/node/ada"
    assert str(Identity.load(str(folder / "person-ada")).uri) == "securifile://dev/person/ada"
    assert run(str(folder)).returncode == 0
    assert TrustAnchors.load(str(folder / "node-node-1")) == anchors
    other = run(str(folder), "--cluster", "other")
    assert other.returncode != 0
    assert "choose another folder" in other.stderr
