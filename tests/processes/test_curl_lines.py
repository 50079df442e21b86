"""The demo as a newcomer uses it: start it, paste what it prints, press Ctrl-C, start it again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from securifile.local.curl_lines import curl_lines
from securifile.local.processes import command_line, environment, eventually

README = Path(__file__).parent.parent.parent / "README.md"
LAST_LINE = "Ctrl-C stops everything."


class Demo:
    """One run of the demo in a folder."""

    def __init__(self, folder: Path, number: int) -> None:
        self.output = folder / f"demo-{number}.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "securifile.local.demo"], cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment()
            )
        try:
            eventually(lambda: LAST_LINE in self.said() or self.process.poll() is not None, 90, "the demo runs")
            assert self.process.poll() is None, self.said()
        except BaseException:
            self.ctrl_c()
            raise

    def said(self) -> str:
        return self.output.read_text()

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"process (\d+)", self.said())]

    def to_paste(self) -> str:
        return self.said().partition("Paste into")[2].partition("\n")[2].partition(LAST_LINE)[0]

    def ctrl_c(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="securifile-demo-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def paste(folder: Path, lines: str) -> str:
    """Run the lines in a shell in that folder; what they print. A line that fails ends them."""
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=folder, capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.mark.timeout(240)
def test_the_printed_lines_work(folder: Path) -> None:
    """Every line that the demo prints works when pasted; Ctrl-C ends every process; a second run finds the same files."""
    first = Demo(folder, 1)
    try:
        lines = first.to_paste()
        head, sharing = lines.split("# delete it")[0], "# let bob read it"
        assert sharing in head
        printed = paste(folder, head)
        digests = re.findall(r"^([0-9a-f]{64})  -$", printed, re.MULTILINE)
        assert len(digests) == 6
        assert len(set(digests)) == 1
        for word in ('"origin"', '"priority"', "noise.bin", '"version"'):
            assert word in printed
        pids = first.pids()
        assert len(pids) == 6
    finally:
        status = first.ctrl_c()
    assert status == 0
    assert [pid for pid in pids if command_line(pid)] == []
    assert "Traceback" not in first.said()

    second = Demo(folder, 2)
    try:
        again = second.to_paste()
        assert again == lines
        sign_in, delete = again.split("# upload 200 MB")[0], again.split("# delete it")[1].partition("\n")[2]
        look = "\napi $NODE/api/v1/files/alice/noise.bin\n"
        assert paste(folder, sign_in + look) == "quiet now\n"
        paste(folder, sign_in + delete)
        assert "noise.bin" not in paste(folder, sign_in + "\napi $NODE/api/v1/files/alice/\n")
    finally:
        second.ctrl_c()


def test_the_readme_shows_the_same_lines() -> None:
    """The README's lines are those of the demo, with alice's password left out."""
    urls = [f"https://127.0.0.1:{9443 + 10 * number}" for number in range(5)]
    readme = [line.strip() for line in README.read_text().splitlines()]
    for step in curl_lines(ca_file="demo-data/ca.pem", urls=urls, password="ALICES-PASSWORD"):
        for line in str(step).splitlines():
            assert line.strip() in readme
