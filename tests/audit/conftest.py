"""What each test of this room leaves behind is ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.audit.doubles import AT_THE_END


@pytest.fixture(autouse=True)
def no_files_stay_open() -> Iterator[None]:
    """Spools and audit files end with the test, as they end with their process; otherwise hundreds stay open."""
    with AT_THE_END:
        yield
