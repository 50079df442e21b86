"""What the simulated servers log is for the judges of a run; only what is critical is printed."""

from __future__ import annotations

import sys

import pytest
from twisted.logger import FilteringLogObserver, LogLevel, LogLevelFilterPredicate, globalLogBeginner, textFileLogObserver


@pytest.fixture(scope="session", autouse=True)
def _logging_begun() -> None:
    """Else the publisher keeps 65,536 events for an observer that never comes, and with them the clusters that logged them."""
    critical = LogLevelFilterPredicate(defaultLogLevel=LogLevel.critical)
    globalLogBeginner.beginLoggingTo([FilteringLogObserver(textFileLogObserver(sys.stderr), [critical])], redirectStandardIO=False)
