"""How a node becomes a member: once, with a join token that an administrator made.

    1 ask the admin server for the cluster's certificates, and check the root against the fingerprint in the token
    2 over TLS that trusts this root only: show the secret and a CSR, get a certificate

The key is made here and never leaves this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import ssl
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IPolicyForHTTPS
from zope.interface import implementer

from securifile.certificates.identity import Identity, TrustAnchors, make_csr, new_key
from securifile.certificates.join import JoinToken
from securifile.model.servers import HostPort
from securifile.process import CannotStart, write_json

ANSWER_S = 15.0
"""How long an admin server may take to sign."""

MEMBERSHIP = "node.json"


class EnrolmentFailed(CannotStart):
    """The node could not join. The message says why; most often a new token is needed (securifile node invite NAME)."""


@attrs.frozen(kw_only=True)
class Admin:
    """An admin server as enrolment told of it."""

    name: str
    url: str
    protocol_address: str
    syslog_address: str
    public_key: str = ""
    """DER, hexadecimal."""


@attrs.frozen(kw_only=True)
class Membership:
    """Who this node is, and whom to ask first: what it keeps of the enrolment beside its identity."""

    cluster: str
    name: str
    admins: tuple[Admin, ...]

    def save(self, folder: Path) -> None:
        """Write it down."""
        write_json(folder / MEMBERSHIP, attrs.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Membership:
        """Read it. Raises `FileNotFoundError` before the enrolment."""
        value = json.loads((folder / MEMBERSHIP).read_text("utf-8"))
        return cls(cluster=value["cluster"], name=value["name"], admins=tuple(Admin(**admin) for admin in value["admins"]))


@implementer(IPolicyForHTTPS)
class _TrustNobodyYet:
    """For the one question whose answer is checked against the token's fingerprint."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See `IPolicyForHTTPS`."""
        return ssl.CertificateOptions(verify=False)


@implementer(IBodyProducer)
class _Body:
    """A small request body, sent at once."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.length = len(content)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """See `IBodyProducer`."""
        consumer.write(self._content)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is left to pause."""

    def resumeProducing(self) -> None:
        """Nothing is left to resume."""

    def stopProducing(self) -> None:
        """Nothing is left to stop."""


class Enrolment:
    """Joins a cluster."""

    _log = Logger()

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._folder = folder

    async def join(self, token: JoinToken, url: str, protocol_address: HostPort, hosts: list[str]) -> tuple[Identity, Membership]:
        """Become a member, and keep what that takes in the data folder.

        Args:
            url: where people will reach this node.
            protocol_address: where peers will.
            hosts: names and addresses for the certificate.

        Raises:
            EnrolmentFailed: not joined; the token is used up only if the admin server says so.
        """
        problem = "the token names no admin server"
        for admin in token.admins:
            try:
                anchors = await self._trust(admin, token)
                return await self._enrol(admin, token, anchors, url, protocol_address, hosts)
            except EnrolmentFailed:
                raise
            except Exception as error:
                problem = f"{admin}: {error or type(error).__name__}"
                self._log.warn("cannot join through {admin}: {problem}", admin=admin, problem=problem)
        raise EnrolmentFailed(f"No admin server could be asked: {problem}")

    async def _trust(self, admin: str, token: JoinToken) -> TrustAnchors:
        status, answer = await self._ask(Agent(self._reactor, _TrustNobodyYet()), b"GET", f"{admin}/api/v1/trust", None)
        if status != 200:
            raise ValueError(f"GET /api/v1/trust answered {status}")
        anchors = TrustAnchors(root=answer["root"].encode(), servers=answer["servers"].encode(), people=answer["people"].encode())
        if anchors.fingerprint != token.fingerprint:
            raise EnrolmentFailed(
                f"{admin} shows another root certificate than the token names. The token is for another cluster, or somebody is in between."
            )
        return anchors

    async def _enrol(
        self, admin: str, token: JoinToken, anchors: TrustAnchors, url: str, protocol_address: HostPort, hosts: list[str]
    ) -> tuple[Identity, Membership]:
        key = new_key()
        policy = BrowserLikePolicyForHTTPS(ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(anchors.root)]))
        asked = {
            "secret": token.secret,
            "name": token.name,
            "csr": make_csr(key).decode("ascii"),
            "url": url,
            "protocol_address": str(protocol_address),
            "hosts": hosts,
        }
        status, answer = await self._ask(Agent(self._reactor, policy), b"POST", f"{admin}/api/v1/enrolment", asked)
        if status != 201:
            raise EnrolmentFailed(str(answer.get("detail", f"the admin server answered {status}")))
        identity = Identity.of(key, answer["chain"].encode("ascii"))
        admins = tuple(Admin(**{one.name: admin.get(one.name, "") for one in attrs.fields(Admin)}) for admin in answer["admins"])
        membership = Membership(cluster=answer["cluster"], name=token.name, admins=admins)
        anchors.save(str(self._folder))
        identity.save(str(self._folder))
        membership.save(self._folder)
        self._log.info("joined cluster {cluster} as node {name}", cluster=membership.cluster, name=membership.name)
        return identity, membership

    async def _ask(self, agent: Agent, method: bytes, url: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        headers = Headers({"User-Agent": ["securifile-node"], "Content-Type": ["application/json"]})
        producer = None if body is None else _Body(json.dumps(body).encode())
        asking: Deferred[Any] = agent.request(method, url.encode("ascii"), headers, producer)
        timer = self._clock.callLater(ANSWER_S, asking.cancel)
        try:
            response = await asking
            content = await readBody(response)
        finally:
            if timer.active():
                timer.cancel()
        value = json.loads(content)
        return response.code, value if isinstance(value, dict) else {}
