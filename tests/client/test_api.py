"""The SDK against servers that fail in every way they can."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from securifile.client.api import Client
from securifile.client.asking import ROUNDS
from securifile.client.errors import Damaged, FileChanged, Problem, Uncertain, Unreachable
from securifile.client.local_files import StreamOutput
from securifile.http.targets import Target, parse_place
from securifile.model.digests import DigestAlgorithm
from tests.client.conftest import AtOnce, Impatient
from tests.client.fake_cluster import (
    PASSWORD,
    FakeCluster,
    FakeServer,
    Stored,
    breaking_after,
    corrupting,
    deaf,
    mute,
    redirecting,
    refusing,
)

BIG = os.urandom(3_000_001)


def at(text: str) -> Target:
    return parse_place(text)


def node(cluster: FakeCluster, name: str) -> FakeServer:
    return next(server for server in cluster.servers if server.name == name)


@pytest.fixture
def big(tmp_path: Path) -> str:
    path = tmp_path / "big.bin"
    path.write_bytes(BIG)
    return str(path)


@pytest_twisted.ensureDeferred
async def test_a_file_comes_back_as_it_went(client: Client, cluster: FakeCluster, big: str, tmp_path: Path) -> None:
    """What is uploaded is downloaded byte for byte, and the answers say how much it was and with which digest it was checked."""
    stored = await client.upload(at("alice/big.bin"), big)
    result = await client.download(at("alice/big.bin"), str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == BIG
    assert (stored["size"], result.size, result.digest) == (len(BIG), len(BIG), f"sha256:{stored['digest']}")
    assert cluster.asked("PUT")[0].server == "node1"


@pytest_twisted.ensureDeferred
async def test_an_empty_file_is_a_file(client: Client, tmp_path: Path) -> None:
    """A file without a byte is uploaded, checked and downloaded like any other."""
    (tmp_path / "nothing").touch()
    await client.upload(at("alice/nothing"), str(tmp_path / "nothing"))
    assert (await client.download(at("alice/nothing"), str(tmp_path / "back"))).size == 0
    assert (tmp_path / "back").read_bytes() == b""


@pytest_twisted.ensureDeferred
async def test_a_dead_server_is_passed_over(client: Client, cluster: FakeCluster, big: str) -> None:
    """A server that nobody listens at is not asked a second time while another answers, and nothing is said of it."""
    await node(cluster, "node1").stop()
    await client.upload(at("alice/a"), big)
    await client.upload(at("alice/b"), big)
    assert [one.server for one in cluster.asked("PUT")] == ["node2", "node2"]


@pytest.mark.parametrize(
    "misbehaviour", [refusing(503, "not-running"), refusing(502, "http-502"), refusing(500, "outcome-unknown"), deaf, mute]
)
@pytest_twisted.ensureDeferred
async def test_an_upload_is_repeated_under_the_same_key(client: Client, cluster: FakeCluster, big: str, misbehaviour: Any) -> None:
    """Whatever happens to the first try of an upload, the second has its key, and one version is made."""
    node(cluster, "node1").misbehave = [misbehaviour]
    stored = await client.upload(at("alice/a"), big)
    first, second = cluster.asked("PUT")
    assert (first.server, second.server) == ("node1", "node2")
    assert first.fields["idempotency-key"] == second.fields["idempotency-key"]
    assert stored["version"] == cluster.files["alice/a"].version == 1


@pytest_twisted.ensureDeferred
async def test_two_uploads_have_two_keys(client: Client, cluster: FakeCluster, big: str) -> None:
    """Uploading the same file twice on purpose makes two versions."""
    await client.upload(at("alice/a"), big)
    assert (await client.upload(at("alice/a"), big))["version"] == 2


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_final(client: Client, cluster: FakeCluster, big: str) -> None:
    """A refusal that would be the same elsewhere is raised at once, with its code, words and status."""
    node(cluster, "node1").misbehave = [refusing(423, "locked")]
    with pytest.raises(Problem) as caught:
        await client.upload(at("alice/a"), big)
    assert (caught.value.status, caught.value.code, str(caught.value)) == (423, "locked", "node1 says locked.")
    assert len(cluster.asked("PUT")) == 1


@pytest_twisted.ensureDeferred
async def test_giving_up_is_bounded(client: Client, cluster: FakeCluster, pauses: Impatient) -> None:
    """When every server says 503, each is asked a few times with growing pauses, then the last refusal is raised."""
    for server in cluster.servers:
        server.misbehave = [refusing(503, "not-running")] * 10
    with pytest.raises(Problem, match="not-running"):
        await client.details(at("alice/a"))
    assert len(cluster.seen) == ROUNDS * 4
    assert pauses.pauses == [0.25, 0.5, 1.0]


@pytest_twisted.ensureDeferred
async def test_no_server_at_all_is_said_with_reasons(client: Client, cluster: FakeCluster) -> None:
    """When nothing can be reached the error names every server that was tried."""
    for server in cluster.servers:
        await server.stop()
    with pytest.raises(Unreachable) as caught:
        await client.details(at("alice/a"))
    assert all(server.url in str(caught.value) for server in cluster.servers)


@pytest_twisted.ensureDeferred
async def test_what_must_not_happen_twice_is_not_repeated(client: Client, cluster: FakeCluster) -> None:
    """A move whose answer was lost is not sent again: it may have been carried out, and that is said."""
    cluster.files["alice/a"] = Stored(b"x", 1)
    node(cluster, "node1").misbehave = [mute]
    with pytest.raises(Uncertain, match="not known whether"):
        await client.move(at("alice/a"), at("alice/b"))
    assert len(cluster.asked("POST")) == 1


@pytest_twisted.ensureDeferred
async def test_a_delete_whose_answer_was_lost_is_done(client: Client, cluster: FakeCluster) -> None:
    """A delete is repeated when its answer was lost; that there is nothing then is success. Without a lost answer it is not."""
    cluster.files["alice/a"] = Stored(b"x", 1)
    node(cluster, "node1").misbehave = [mute]
    await client.delete(at("alice/a"))
    assert "alice/a" not in cluster.files and len(cluster.asked("DELETE")) == 2
    with pytest.raises(Problem, match="nothing here"):
        await client.delete(at("alice/a"))


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_followed_with_its_ticket_alone(client: Client, cluster: FakeCluster, big: str) -> None:
    """The request goes to where the redirect says, whole, with the ticket and without the token."""
    node(cluster, "node1").misbehave = [redirecting(lambda: node(cluster, "node3").url)]
    await client.upload(at("alice/a"), big)
    last = cluster.asked("PUT")[-1]
    assert (last.server, last.query, last.body == BIG) == ("node3", "ticket=t1", True)
    assert "authorization" not in last.fields


@pytest_twisted.ensureDeferred
async def test_the_token_goes_to_no_stranger(client: Client, cluster: FakeCluster, pauses: Impatient) -> None:
    """A redirect without a ticket to a server that the sign-in did not name is followed without credentials."""
    stranger = FakeCluster()
    [server] = stranger.listen(__import__("twisted.internet.reactor", fromlist=["x"]), "node9")
    try:

        def away(one: FakeServer, request: Any) -> bytes:
            request.setHeader("Location", server.url + "/api/v1/details/alice/a")
            request.setResponseCode(307)
            return b""

        node(cluster, "node1").misbehave = [away]
        with pytest.raises(Problem, match="session has ended"):
            await client.details(at("alice/a"))
        assert "authorization" not in stranger.seen[0].fields
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_node_sends_administration_to_an_admin_server(client: Client, cluster: FakeCluster) -> None:
    """The token goes along to another server of the cluster, which has no ticket to go by."""
    client.avoid(node(cluster, "admin1").url)
    node(cluster, "admin1").misbehave = [refusing(503, "shutting-down")]
    assert (await client.settings())["replicas"] == 2


@pytest_twisted.ensureDeferred
async def test_circles_end(client: Client, cluster: FakeCluster) -> None:
    """More than three redirects are not followed."""
    for server in cluster.servers:
        server.misbehave = [redirecting(lambda: node(cluster, "node1").url)] * 99
    with pytest.raises(Problem, match="redirected"):
        await client.details(at("alice/a"))
    assert len(cluster.seen) == 4


@pytest_twisted.ensureDeferred
async def test_a_ticket_that_came_too_late_is_asked_for_again(client: Client, cluster: FakeCluster) -> None:
    """When the ticket is refused the request starts again at another server."""
    cluster.files["alice/a"] = Stored(b"x", 1)
    node(cluster, "node1").misbehave = [redirecting(lambda: node(cluster, "node3").url)]
    node(cluster, "node3").misbehave = [refusing(401, "ticket-invalid")]
    assert (await client.details(at("alice/a")))["version"] == 1


@pytest_twisted.ensureDeferred
async def test_a_broken_download_goes_on_elsewhere(client: Client, cluster: FakeCluster, tmp_path: Path) -> None:
    """Each break is taken up by another server from the byte where it broke, and the whole is checked."""
    cluster.files["alice/a"] = Stored(BIG, 1)
    node(cluster, "node1").misbehave = [breaking_after(1_000_000)]
    node(cluster, "node2").misbehave = [breaking_after(1_500_000)]
    result = await client.download(at("alice/a"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BIG
    assert [(one.server, one.fields.get("range")) for one in cluster.asked("GET")] == [
        ("node1", None),
        ("node2", "bytes=1000000-"),
        ("node3", "bytes=2500000-"),
    ]
    assert result.server == node(cluster, "node3").url


@pytest_twisted.ensureDeferred
async def test_a_version_that_changes_in_between_is_fetched_from_its_beginning(
    client: Client, cluster: FakeCluster, tmp_path: Path
) -> None:
    """Two versions are never mixed: when the file was modified during a break, the new one is fetched whole."""
    cluster.files["alice/a"] = Stored(BIG, 1)

    def modify(server: FakeServer, request: Any) -> Any:
        answer = breaking_after(1_000_000)(server, request)
        cluster.files["alice/a"] = Stored(b"new", 2)
        return answer

    node(cluster, "node1").misbehave = [modify]
    await client.download(at("alice/a"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest_twisted.ensureDeferred
async def test_a_stream_that_cannot_be_taken_back_is_not_mixed_either(client: Client, cluster: FakeCluster) -> None:
    """Where the beginning has been written to a pipe, a modified file is an error and not a mixture."""
    cluster.files["alice/a"] = Stored(BIG, 1)

    def modify(server: FakeServer, request: Any) -> Any:
        answer = breaking_after(1_000_000)(server, request)
        cluster.files["alice/a"] = Stored(b"new", 2)
        return answer

    node(cluster, "node1").misbehave = [modify]
    written = io.BytesIO()
    with pytest.raises(Damaged, match="modified while"):
        await client.download_to(at("alice/a"), StreamOutput(written, AtOnce()))
    assert written.getvalue() == BIG[:1_000_000]


@pytest_twisted.ensureDeferred
async def test_a_damaged_download_is_fetched_again_and_never_kept(client: Client, cluster: FakeCluster, tmp_path: Path) -> None:
    """A wrong byte is noticed: another server is asked; if its answer is wrong too, nothing is written and what was there stays."""
    cluster.files["alice/a"] = Stored(BIG, 1)
    node(cluster, "node1").misbehave = [corrupting]
    await client.download(at("alice/a"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BIG
    for server in cluster.servers:
        server.misbehave = [corrupting, corrupting]
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(Damaged, match="sha256"):
        await client.download(at("alice/a"), str(tmp_path / "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"old"


@pytest_twisted.ensureDeferred
async def test_digests_that_http_has_no_name_for_are_checked_too(client: Client, cluster: FakeCluster, tmp_path: Path) -> None:
    """Without a Repr-Digest the recorded digest comes from the details, in whatever algorithm it is."""
    cluster.with_repr_digest = False
    cluster.files["alice/a"] = Stored(BIG, 1, "sha3-256")
    result = await client.download(at("alice/a"), str(tmp_path / "a"))
    assert result.digest == f"sha3-256:{cluster.files['alice/a'].digest.hex()}"
    for server in cluster.servers:
        server.misbehave = []
    node(cluster, "node1").misbehave = [corrupting]
    await client.download(at("alice/a"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == BIG


@pytest_twisted.ensureDeferred
async def test_a_download_that_fails_leaves_nothing(client: Client, cluster: FakeCluster, tmp_path: Path) -> None:
    """When the file is not there, or breaks for ever, no part of it remains on the disk."""
    with pytest.raises(Problem):
        await client.download(at("alice/none"), str(tmp_path / "a"))
    cluster.files["alice/a"] = Stored(BIG, 1)
    for server in cluster.servers:
        server.misbehave = [breaking_after(0)] * 99
    with pytest.raises(Unreachable):
        await client.download(at("alice/a"), str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_what_is_stored_is_compared_with_what_was_read(client: Client, cluster: FakeCluster, big: str) -> None:
    """When the server has stored something else than the file holds, the upload says so."""

    def damage(server: FakeServer, request: Any) -> None:
        server.cluster.seen[-1].body = b"else"

    node(cluster, "node1").misbehave = [damage]
    with pytest.raises(Damaged, match="upload it again"):
        await client.upload(at("alice/a"), big)


@pytest_twisted.ensureDeferred
async def test_a_known_digest_is_sent(client: Client, cluster: FakeCluster, big: str) -> None:
    """A digest that the caller knows goes along, so that the server can refuse other content."""
    await client.upload(at("alice/a"), big, digest=(DigestAlgorithm.SHA256, bytes(32)))
    assert cluster.asked("PUT")[0].fields["repr-digest"].startswith("sha-256=:AAAA")


@pytest_twisted.ensureDeferred
async def test_a_file_that_shrinks_is_not_stored(client: Client, cluster: FakeCluster, tmp_path: Path) -> None:
    """A file that is cut while it is sent ends the upload with an error, and the server gets no whole request."""
    path = tmp_path / "shrinking"
    path.write_bytes(BIG)

    def cut(done: int, total: int) -> None:
        os.truncate(path, 600_000)

    with pytest.raises(FileChanged):
        await client.upload(at("alice/a"), str(path), progress=cut)
    assert cluster.files == {}


@pytest_twisted.ensureDeferred
async def test_lists_are_read_page_by_page(client: Client, cluster: FakeCluster) -> None:
    """A folder of many pages is listed whole and in order."""
    cluster.page = 3
    cluster.files = {f"alice/{number:02}": Stored(b"", 1) for number in range(10)}
    assert [entry["name"] async for entry in client.entries(at("alice/"))] == [f"{number:02}" for number in range(10)]
    assert len(cluster.asked("GET")) == 4


@pytest_twisted.ensureDeferred
async def test_signing_in_gives_the_token_and_the_servers(client: Client, cluster: FakeCluster) -> None:
    """After a sign-in the client knows every server and its token; after a wrong password it is as it was."""
    with pytest.raises(Problem, match="wrong"):
        await client.sign_in("alice", "guess")
    await client.sign_in("alice", PASSWORD)
    assert {server.name for server in client.servers} == {"admin1", "node1", "node2", "node3"}
    await client.sign_out()
    assert client.token is None
