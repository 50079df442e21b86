"""What every subcommand works with: its arguments, the console, and a client made from the kept session."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from securifile.client import configuration
from securifile.client.api import Client
from securifile.client.asking import KnownServer
from securifile.client.configuration import NotSignedIn, Session
from securifile.client.console import Console
from securifile.client.errors import ClientError
from securifile.client.exchange import Http
from securifile.client.trust import endpoints
from securifile.http.targets import Target, parse_place
from securifile.model.errors import Refusal
from securifile.model.interfaces import IWorker


class Context:
    """One run of the command.

    Args:
        reactor: connects, and keeps the time.
        arguments: as `arguments.parse` understood them.
        environment: of the process.
        console: the terminal.
        random: a source of random bytes fit for secrets.
        worker: where files are read, written and hashed.
    """

    def __init__(
        self,
        reactor: Any,
        arguments: argparse.Namespace,
        environment: Mapping[str, str],
        console: Console,
        random: Callable[[int], bytes],
        worker: IWorker,
    ) -> None:
        self.reactor = reactor
        self.arguments = arguments
        self.console = console
        self.random = random
        self.worker = worker
        self.folder = configuration.folder_of(environment)
        self.operator_folder = arguments.operator or environment.get("SECURIFILE_ADMIN_DATA")
        self._session: Session | None = None
        self._client: Client | None = None

    @property
    def session(self) -> Session:
        """The operator's key if that was asked for, else the kept sign-in. Raises `NotSignedIn`."""
        if self._session is None:
            self._session = configuration.operator(self.operator_folder) if self.operator_folder else configuration.load(self.folder)
        return self._session

    @property
    def client(self) -> Client:
        """A client for the session. Raises `NotSignedIn`."""
        if self._client is None:
            self._client = self.connect(self.session.servers, self.session.root_pem, self.session.token)
        return self._client

    def connect(self, servers: tuple[KnownServer, ...], root_pem: str | None, token: str | None) -> Client:
        """A client of one's own making. Raises `ClientError` when the certificates cannot be read."""
        try:
            http = Http(endpoints(self.reactor, root_pem), self.reactor)
        except ValueError as error:
            raise ClientError(f"The root certificate cannot be used: {error}.") from None
        self._client = Client(http, servers, clock=self.reactor, random=self.random, worker=self.worker, token=token)
        return self._client

    async def close(self) -> None:
        """Break off the connections."""
        if self._client is not None:
            await self._client.close()

    @property
    def username(self) -> str:
        """Who is signed in. Raises `NotSignedIn` for the operator, who owns nothing."""
        if self.session.username is None:
            raise NotSignedIn(
                "The operator of an admin server has no files. Name a person; or be one: without --operator and with"
                " SECURIFILE_ADMIN_DATA unset, after securifile login URL USER"
            )
        return self.session.username

    def place(self, text: str) -> Target:
        """The entry that a path of the command line means. Raises `ClientError`."""
        try:
            return parse_place(self.username + text if text.startswith("/") else text)
        except Refusal as refusal:
            raise ClientError(
                f"{text!r} is no path: {refusal.detail} A path begins with its owner, as alice/docs/a.txt, or with a slash for your own."
            ) from None
