"""Log events for a person at a terminal: one line each, tracebacks indented below.

    2026-11-21T09:57:43.250Z info  securifile.node.service: node node-1 serves people at https://…

What an event says may come from anybody, a path from the network for instance: control characters are escaped, so that
nobody forges a line or moves the cursor. Events of the debug level, and Twisted's "Starting factory", are for us and not shown.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from twisted.python import usage
from zope.interface import implementer

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_OF_FACTORIES = ("Starting factory {factory!r}", "Stopping factory {factory!r}")
"""Formats of what Twisted's factories say unless each of them is told not to: an address in memory, to nobody's use."""


def readable_console(options: usage.Options) -> None:
    """Let `twistd -n` log like this to standard output, unless its own options say where and how to log.

    Args:
        options: those of a plugin, from its `postOptions`: twistd makes its logger afterwards, from the options one level up.
    """
    twistd = options.parent
    if twistd is None or not twistd.get("nodaemon") or any(twistd.get(said) for said in ("logger", "logfile", "syslog")):
        return
    twistd["logger"] = f"{__name__}.{console.__name__}"


def console() -> ILogObserver:
    """What `twistd -n` logs with: a readable observer on standard output."""
    return readable_observer(sys.stdout)


def readable_observer(out: TextIO) -> ILogObserver:
    """An observer that writes each event to `out` and flushes it. It closes nothing."""
    return _Readable(out)


@implementer(ILogObserver)
class _Readable:
    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.debug or event.get("log_format") in _OF_FACTORIES:
            return
        self._out.write(readable(event))
        self._out.flush()


def readable(event: LogEvent) -> str:
    """One line with its end, and one indented line for each of a traceback. Never raises, as observers must not."""
    words = eventAsText(event, includeTraceback=False, includeTimestamp=False, includeSystem=False)
    level = getattr(event.get("log_level"), "name", "-")
    source = str(event.get("log_namespace", "-"))
    if source == "log_legacy":
        source = "twisted"  # what it says there of ports, in the way of old
    line = f"{_moment(event.get('log_time'))} {level:<5} {_plain(source)}: {_plain(words)}\n"
    failure = event.get("log_failure")
    if failure is None:
        return line
    try:
        traceback = str(failure.getTraceback())
    except Exception as error:  # a traceback formats what others wrote
        traceback = f"no traceback: {type(error).__name__}"
    return line + "".join(f"    {_plain(part)}\n" for part in traceback.split("\n") if part.strip())


def _moment(at: object) -> str:
    if not isinstance(at, int | float):
        return "-"
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)
