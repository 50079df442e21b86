"""twistd finds both servers, however SecuriFile was installed: `setup.py` says why that needs care.

Each way of installing is done for real into an empty environment. What SecuriFile depends on is not installed again
but borrowed from the environment of the tests, by a `.pth` file; nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import attrs
import pytest

from tests.sources import ROOT

pytestmark = pytest.mark.processes

SERVERS = ("node", "admin")


def run(*command: str | Path, cwd: Path) -> str:
    """What a program printed; its errors are part of the failure when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@attrs.frozen
class Place:
    """An environment without SecuriFile, and a checkout to install from."""

    checkout: Path
    python: Path

    def pip(self, *arguments: str | Path) -> str:
        """Run the tests' own pip on this environment: it has none."""
        return run(sys.executable, "-m", "pip", "--quiet", "--python", self.python, *arguments, cwd=self.checkout)

    def twistd(self, *arguments: str) -> str:
        """Run twistd from a folder where it cannot find the checkout by accident."""
        elsewhere = self.checkout.parent / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        return run(self.python, "-c", "from twisted.scripts.twistd import run; run()", *arguments, cwd=elsewhere)

    def import_and_print(self, code: str) -> str:
        """Run a line of Python there."""
        return run(self.python, "-c", code, cwd=self.python.parent).strip()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty environment, and a copy of what the package is made from."""
    checkout = tmp_path / "checkout"
    leave = shutil.ignore_patterns("__pycache__", "dropin.cache")
    for folder in ("securifile", "twisted"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=leave)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout / name)
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    borrowed = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # (pip does see it, and must be told to --ignore-installed: it would find the work done, or undo it over there.)
    # A path named by a .pth is not searched for .pth files, so an editable SecuriFile over there does not come along.
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed), encoding="utf-8")
    return Place(checkout=checkout, python=python)


def wheel_of(place: Place) -> Path:
    """The wheel, built from the copy."""
    run(sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=place.checkout)
    (wheel,) = (place.checkout / "dist").glob("securifile-*.whl")
    return wheel


def assert_twistd_knows_both(place: Place) -> None:
    """twistd lists the two servers and can load them."""
    listed = place.twistd("--help")
    for server in SERVERS:
        assert f"securifile-{server}" in listed
        assert f"Usage: twistd [options] securifile-{server} [" in place.twistd(f"securifile-{server}", "--help")


def test_twistd_finds_the_servers_of_a_wheel(place: Place) -> None:
    """A wheel brings every module and both plugins, and nothing that stands in for Twisted's own files."""
    wheel = wheel_of(place)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("twisted/")} == {f"twisted/plugins/securifile_{server}.py" for server in SERVERS}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "securifile").rglob("*.py")}
    assert ours <= names
    place.pip("install", "--ignore-installed", "--no-deps", "--no-index", wheel)
    assert str(place.checkout) not in place.import_and_print("import securifile; print(securifile.__file__)")
    assert_twistd_knows_both(place)


def test_twistd_finds_the_servers_of_a_checkout(place: Place) -> None:
    """An editable install puts the checkout itself on the path, where twistd sees the plugins."""
    place.pip("install", "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation", "--editable", place.checkout)
    assert place.import_and_print("import securifile; print(securifile.__file__)") == str(place.checkout / "securifile/__init__.py")
    assert_twistd_knows_both(place)
