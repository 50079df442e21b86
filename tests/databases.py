"""What tests need to have a database: a worker without threads, and a PostgreSQL that does not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from securifile.admin.postgres import EmbeddedPostgres
from securifile.model.interfaces import IWorker

T = TypeVar("T")


@implementer(IWorker)
class InlineWorker:
    """Works at once, in the caller's thread."""

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        return execute(work, *arguments)


def embedded(directory: Path, *, settings: dict[str, str] | None = None, **more: Any) -> EmbeddedPostgres:
    """A PostgreSQL in `directory`, quick because a power cut may harm it."""
    quick = {"fsync": "off", "full_page_writes": "off", **(settings or {})}
    return EmbeddedPostgres(reactor=reactor, directory=directory, worker=InlineWorker(), settings=quick, **more)
