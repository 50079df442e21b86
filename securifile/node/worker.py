"""Where a node's blocking work is done: see `securifile.workers`, which both kinds of server share."""

from __future__ import annotations

from securifile.workers import InlineWorker, ThreadWorker

__all__ = ["InlineWorker", "ThreadWorker"]
