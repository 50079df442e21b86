"""The subcommands about the catalogue as a whole: its backup, and what is done when something of it, or all of it, was lost."""

from __future__ import annotations

import os
from pathlib import Path

from securifile.admin.backup import BackupFailed, back_up
from securifile.client import configuration
from securifile.client.asking import Json
from securifile.client.configuration import NotSignedIn
from securifile.client.context import Context
from securifile.client.errors import ClientError, Unreachable
from securifile.client.status import printable, table
from securifile.process import REBUILD

WRITTEN = {"people": "people", "files": "files", "folders": "folders", "rights": "rights", "sign_ins": "sign-ins", "servers": "servers"}
"""What a reconciliation wrote, in words."""


async def epoch(context: Context) -> int:
    """How the present epoch of the catalogue is, and what is left to the administrator."""
    state = await context.client.epoch()
    context.console.result(state, lambda: _state(state))
    return 0


async def accept_epoch(context: Context) -> int:
    """Go on without the nodes that have not come."""
    arguments = context.arguments
    state: Json = {"under_way": True}
    while state.get("under_way"):
        state = await context.client.accept_epoch(without=arguments.without, trust=arguments.trust, dry_run=arguments.dry_run)
    context.console.result(state, lambda: _accepted(state))
    return 0


async def dismiss_left(context: Context) -> int:
    """Forget what was left to the administrator."""
    answer = await context.client.dismiss_left()
    context.console.done(answer, f"Forgotten: {answer.get('dismissed')}.")
    return 0


async def rebuild_catalogue(context: Context) -> int:
    """Ask for the catalogue to be made anew from the nodes, when its database is gone."""
    data = _data_folder(context)
    if not (data / "ca").is_dir():
        raise ClientError(
            f"{data / 'ca'} is not there. Without the cluster's certificate authority no node will speak to this server: put the folder"
            " back from a backup first."
        )
    try:
        configuration.operator(os.fspath(data))
        state = await context.client.epoch()
    except (NotSignedIn, Unreachable):
        (data / REBUILD).touch(0o644)
        told = {"rebuild": os.fspath(data)}
        context.console.result(
            told,
            lambda: (
                f"{data} is told to make its catalogue anew, if its database is empty. What to do now:\n"
                "  1  start the admin server: nodes hand in what they know; nothing is changed or deleted meanwhile, and reading goes on\n"
                "  2  wait for as many nodes as can come:  securifile admin epoch\n"
                "  3  look at what would be made of it:    securifile admin accept-epoch --dry-run\n"
                "  4  make it:                             securifile admin accept-epoch\n"
            ),
        )
        return 0
    if not state.get("rebuilding"):
        raise ClientError("The admin server runs and has a catalogue. One is made anew only in an empty database.")
    context.console.result(state, lambda: _state(state))
    return 0


async def backup(context: Context) -> int:
    """Copy the admin server's data folder while it runs."""
    data, target = _data_folder(context), Path(context.arguments.directory)
    try:
        whole = await context.worker.do(back_up, data, target)
    except BackupFailed as error:
        raise ClientError(str(error)) from None
    missing = "" if whole else " The database is not in it: it is not embedded, so back it up with its own tools."
    context.console.done({"backup": os.fspath(target), "database": whole}, f"{target} is a copy of {data}.{missing}")
    return 0


def _data_folder(context: Context) -> Path:
    if not context.operator_folder:
        raise ClientError(
            "This works on the admin server's own machine. Name its data folder: --operator DATA_DIR, or SECURIFILE_ADMIN_DATA"
        )
    return Path(context.operator_folder).absolute()


def _state(state: Json) -> str:
    number, handed_in = state.get("epoch"), state.get("handed_in", {})
    if state.get("rebuilding"):
        head = f"Epoch {number}: the catalogue is being made anew from the nodes. People can change nothing until it is accepted.\n"
    elif state.get("reconciled"):
        head = f"Epoch {number}, reconciled.\n"
    else:
        head = f"Epoch {number}: the catalogue went back in time. People can change nothing until the nodes have handed in what it lost.\n"
    rows = [(name, position, "") for name, position in handed_in.items()]
    rows += [(name, "", "has not come") for name in state.get("missing", ())]
    text = head + ("\n" + table(("NODE", "KNOWS UP TO", ""), rows) if rows else "")
    if not state.get("reconciled"):
        text += "\nTo go on without nodes that have not come: securifile admin accept-epoch (--dry-run first)\n"
    return text + _left(state.get("left", ()))


def _accepted(state: Json) -> str:
    written = ", ".join(f"{state['written'].get(name, 0)} {word}" for name, word in WRITTEN.items())
    most = f", as {state['knows_most']} knows them" if state.get("knows_most") else ""
    if state.get("dry_run"):
        text = f"Would be written{most}: {written}. Nothing was done.\n"
        if state.get("missing"):
            text += f"Not come yet: {', '.join(state['missing'])}. What only they know would be listed when they come.\n"
        for node, others in state.get("strangers", {}).items():
            text += f"{printable(node)} is no member by what {', '.join(others)} handed in: say --without {node} or --trust {node}\n"
        return text + _left(state.get("would_be_left", ()))
    text = f"Epoch {state.get('epoch')} is reconciled. Written{most}: {written}. People can change things again.\n"
    return text + _left(state.get("left", ()))


def _left(left: list[Json] | tuple[()]) -> str:
    if not left:
        return ""
    rows = [(one.get("node") or "", one.get("what"), one.get("why")) for one in left]
    return f"\nLeft to you ({len(rows)}); when seen to: securifile admin dismiss-left\n" + table(("NODE", "WHAT", "WHY"), rows)
