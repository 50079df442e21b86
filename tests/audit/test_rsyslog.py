"""A syslog server that is not ours takes our records in, and people can read them there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater

from securifile.audit.records import NumberedRecord, parse_message, record_of
from securifile.audit.sender import AuditSender
from securifile.model.records import AuditRecord
from tests.audit.doubles import done, spool

RSYSLOGD = shutil.which("rsyslogd") or shutil.which("rsyslogd", path="/usr/sbin:/sbin")
reactor: Any = installed

CONFIGURATION = """
global(workDirectory="{directory}" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="on")
module(load="imtcp")
input(type="imtcp" port="0" address="127.0.0.1" listenPortFileName="{directory}/port")
template(name="words" type="string" string="%timegenerated:::date-year% %hostname% %app-name% %syslogseverity-text% %msgid% |%msg%\\n")
action(type="omfile" file="{directory}/whole.log" template="RSYSLOG_SyslogProtocol23Format")
action(type="omfile" file="{directory}/words.log" template="words")
"""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another process; the test's own timeout ends it."""
    for _ in range(1000):
        if condition():
            return
        await deferLater(reactor, 0.02)
    raise AssertionError("the other process did not do it within 20 s")


@asynccontextmanager
async def rsyslog(directory: Path) -> AsyncIterator[int]:
    """A running rsyslogd; its port on the loopback."""
    assert RSYSLOGD is not None
    configuration = directory / "rsyslog.conf"
    configuration.write_text(CONFIGURATION.format(directory=directory))
    errors = (directory / "errors").open("wb")
    process = subprocess.Popen(
        [RSYSLOGD, "-n", "-f", str(configuration), "-i", str(directory / "pid")],
        stdout=errors,
        stderr=errors,
        env={**os.environ, "TZ": "UTC"},
    )
    try:
        port = directory / "port"
        await until(lambda: process.poll() is not None or (port.exists() and port.read_text() != ""))
        assert process.poll() is None, (directory / "errors").read_text()
        yield int(port.read_text())
    finally:
        process.terminate()
        process.wait(10)
        errors.close()


@pytest.mark.processes
@pytest.mark.skipif(RSYSLOGD is None, reason="rsyslogd is not installed (apt-get install rsyslog)")
@pytest_twisted.ensureDeferred
async def test_rsyslog(tmp_path: Path) -> None:
    """rsyslogd understands framing, header, structured data and words; what it writes out again is still the same record."""
    records = [
        AuditRecord(
            at=1795255063.25, server="node-1", event="read", person="ann", path='/ann/"plan" [1]\\.txt', status=200, bytes=5, duration_s=0.2
        ),
        AuditRecord(at=1795255064.5, server="node-1", event="write", person="bjørn", path="/bjørn/a\nb%", status=403, peer="192.0.2.7"),
        AuditRecord(at=1795255065.0, server="node-1", event="read", person="ann", path="/" + "long/" * 1000, status=503),
    ]
    trail = spool(tmp_path / "spool", clock=reactor)
    for record in records:
        done(trail.keep(record))
    async with rsyslog(tmp_path) as port:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        sender = AuditSender(trail, lambda: [endpoint], clock=reactor, random=bytes, confirming=False)
        sender.startService()
        whole, words = tmp_path / "whole.log", tmp_path / "words.log"
        try:
            await until(lambda: words.exists() and words.read_bytes().count(b"\n") >= 3 and whole.read_bytes().count(b"\n") >= 3)
        finally:
            sender.stopService()
    read = [record_of(parse_message(line)) for line in whole.read_bytes().splitlines()]
    assert read == [NumberedRecord(boot="b1", number=n, record=record) for n, record in enumerate(records, 1)]
    first, second, third = words.read_text(encoding="utf-8").replace("\ufeff", "").splitlines()
    assert first.split(" ", 1)[1] == 'node-1 securifile info read |ann: read /ann/"plan" [1]\\.txt, status 200, 5 bytes in 0.200 s'
    assert "securifile warning write |bjørn: write /bjørn/a%0Ab%25, status 403, from 192.0.2.7" in second
    assert "securifile err read |ann" in third
