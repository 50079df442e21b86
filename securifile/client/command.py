"""The `securifile` command: one run, from the command line to the exit code."""

from __future__ import annotations

import argparse
import getpass
import io
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TextIO

from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred

from securifile.client import administration_commands as administration
from securifile.client import catalogue_commands as catalogue
from securifile.client import explaining
from securifile.client import file_commands as files
from securifile.client.arguments import parse
from securifile.client.console import Console
from securifile.client.context import Context
from securifile.client.errors import ClientError, Problem
from securifile.model.errors import Code, Refusal
from securifile.model.interfaces import IWorker
from securifile.node.worker import ThreadWorker

THREADS = 4
"""For files and digests on this side; a command transfers a few files at a time."""

DONE, FAILED, MISUNDERSTOOD, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; the last is what shells give for SIGINT (128 + 2). argparse exits with 2 by itself."""

ACTIONS: dict[str, Callable[[Context], Awaitable[int]]] = {
    "login": administration.login,
    "logout": administration.logout,
    "whoami": administration.whoami,
    "ls": files.ls,
    "put": files.put,
    "get": files.get,
    "cat": files.cat,
    "rm": files.rm,
    "mv": files.mv,
    "mkdir": files.mkdir,
    "info": files.info,
    "explain": explaining.explain,
    "share": files.share,
    "unshare": files.unshare,
    "access": files.access,
    "shared": files.shared,
    "usage": files.usage,
    "status": administration.status,
    "user list": administration.user_list,
    "user add": administration.user_add,
    "user set": administration.user_set,
    "user show": administration.user_show,
    "user disable": administration.user_disable,
    "user enable": administration.user_enable,
    "user password": administration.user_password,
    "user remove": administration.user_remove,
    "node list": administration.status,
    "node show": administration.node_show,
    "node invite": administration.node_invite,
    "node invites": administration.node_invites,
    "node offline": administration.node_command,
    "node online": administration.node_command,
    "node repair": administration.node_repair,
    "node drain": administration.node_drain,
    "node undrain": administration.node_drain,
    "node replace": administration.node_replace,
    "node remove": administration.node_remove,
    "cluster show": administration.cluster_show,
    "cluster set": administration.cluster_set,
    "admin epoch": catalogue.epoch,
    "admin accept-epoch": catalogue.accept_epoch,
    "admin dismiss-left": catalogue.dismiss_left,
    "admin rebuild-catalogue": catalogue.rebuild_catalogue,
    "admin backup": catalogue.backup,
}


async def run(
    reactor: Any,
    arguments: argparse.Namespace,
    *,
    environment: Mapping[str, str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    ask: Callable[[str], str],
    random: Callable[[int], bytes],
    worker: IWorker,
) -> int:
    """Carry out one command line; the exit code. What fails is said on `stderr`, with what to do about it.

    When it is cancelled it leaves no partial files, and 130.
    """
    console = Console(stdin, stdout, stderr, as_json=bool(arguments.json), ask=ask, clock=reactor)
    context = Context(reactor, arguments, environment, console, random, worker)
    try:
        return await ACTIONS[arguments.action](context)
    except CancelledError:
        console.note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output wants no more of it: not worth a word.
        return FAILED
    except Problem as problem:
        console.note(problem.detail + _advice(problem))
    except Refusal as refusal:
        console.note(refusal.detail)
    except ClientError as error:
        console.note(str(error))
    except OSError as error:
        console.note(f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error))
    finally:
        console.clear_line()
        await context.close()
    return FAILED


def _advice(problem: Problem) -> str:
    """What to do about a refusal, where the command knows more of it than the server."""
    if problem.code in (Code.INVALID_TOKEN, Code.NO_CREDENTIALS):
        return " Sign in again: securifile login URL USER"
    if problem.code == Code.IS_A_FOLDER:
        return " Write the path with a slash at its end to put something into the folder, or add -r to take all of it."
    return ""


def print_status(data_folder: str) -> Deferred[int]:
    """Print the table of servers, with the key of the operator of the admin server whose data folder this is; an exit code.

    For `twistd securifile-admin status`.
    """
    from twisted.internet import reactor

    arguments = parse(["--operator", data_folder, "status"])
    return Deferred.fromCoroutine(_on_this_terminal(reactor, arguments))


async def _on_this_terminal(reactor: Any, arguments: argparse.Namespace) -> int:
    # Names of files may hold what the terminal's encoding has no letter for.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    worker = ThreadWorker(reactor, THREADS, "command")
    try:
        return await run(
            reactor,
            arguments,
            environment=os.environ,
            stdin=sys.stdin,
            stdout=sys.stdout,
            stderr=sys.stderr,
            ask=getpass.getpass,
            random=os.urandom,
            worker=worker,
        )
    finally:
        worker.stop()


async def _react(reactor: Any, arguments: argparse.Namespace) -> None:
    """Run until done, or until SIGINT or SIGTERM stop the reactor; then clean up before it stops."""
    running = Deferred.fromCoroutine(_on_this_terminal(reactor, arguments))
    finished: Deferred[int] = Deferred()

    def stop() -> Deferred[int]:
        running.cancel()
        return finished

    reactor.addSystemEventTrigger("before", "shutdown", stop)
    code = FAILED
    try:
        code = await running
    finally:
        finished.callback(code)
    raise SystemExit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Exits with 0 (done), 1 (not done), 2 (not understood) or 130 (interrupted)."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    if parsed.verb == "simulate":
        # It is everything but a client, and none of the other subcommands should take its time to start.
        from securifile.simulation.__main__ import carry_out

        raise SystemExit(carry_out(parsed))
    task.react(_react, (parsed,))
