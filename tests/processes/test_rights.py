"""The table of rights, each cell tried over HTTPS on a node that is not the origin; and what happens when a right is taken."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from securifile.local.asking import BodyCutShort, Response
from securifile.local.cluster import LocalCluster
from tests.processes.actions import BROKEN, MIB, files, get, noise, put

ORIGIN, ELSEWHERE = "node1", "node4"
ROLES = ["owner", "master", "editor", "reader", "nobody"]
PEOPLE = {"owner": "alice", "master": "mary", "editor": "eddie", "reader": "rita", "nobody": "nora"}

# The table of the design: who may.
MAY = {
    "read": {"owner", "master", "editor", "reader"},
    "list": {"owner", "master", "editor", "reader"},
    "modify": {"owner", "master", "editor"},
    "create": {"owner", "master", "editor"},
    "give access": {"owner", "master"},
    "take access": {"owner", "master"},
    "take the owner's access": set(),
    "delete": {"owner"},
    "move": {"owner"},
}
ON_A_FOLDER_ONLY = {"list", "create"}
_number = itertools.count()


@pytest.fixture(scope="module")
def people(cluster: LocalCluster) -> LocalCluster:
    """The cluster, with an account for each role and one for a bystander."""
    for username in ["mary", "eddie", "rita", "nora"]:
        cluster.add_user(username)
    return cluster


def share(cluster: LocalCluster, path: str, user: str, role: str, via: str = ORIGIN) -> None:
    cluster.http(via, "alice").request("PUT", f"/api/v1/access/{path}", json={"user": user, "role": role}, follow=True).must(200)


def access(cluster: LocalCluster, path: str) -> dict[str, str]:
    """Who has which role there, as the owner sees it."""
    answer = cluster.http(ORIGIN, "alice").request("GET", f"/api/v1/access/{path}", follow=True).must(200).json()
    return {grant["user"]: grant["role"] for grant in answer["grants"]}


def act(cluster: LocalCluster, person: str, action: str, folder: str) -> Response:
    """Try it, as that person, on the file `file` in that folder (or on the folder), through a node that is not the origin."""
    http, path = cluster.http(ELSEWHERE, person), f"{folder}/file"
    match action:
        case "read":
            return get(http, path)
        case "list":
            return http.request("GET", files(f"{folder}/"), follow=True)
        case "modify":
            return put(http, path, b"modified")
        case "create":
            return put(http, f"{folder}/created", b"created")
        case "give access":
            return http.request("PUT", f"/api/v1/access/{path}", json={"user": "bob", "role": "reader"}, follow=True)
        case "take access":
            return http.request("DELETE", f"/api/v1/access/{path}?user=bob", follow=True)
        case "take the owner's access":
            return http.request("PUT", f"/api/v1/access/{path}", json={"user": "alice", "role": "reader"}, follow=True)
        case "delete":
            return http.request("DELETE", files(path), follow=True)
        case "move":
            return http.request("POST", "/api/v1/move", json={"from": path, "to": f"{folder}/moved"}, follow=True)
    raise AssertionError(action)


def cells() -> Iterator[tuple[str, str, str]]:
    for granted_on, role, action in itertools.product(["file", "folder"], ROLES, MAY):
        if not (granted_on == "file" and action in ON_A_FOLDER_ONLY and role != "owner"):
            yield granted_on, role, action


@pytest.mark.parametrize(("granted_on", "role", "action"), list(cells()))
def test_the_table(people: LocalCluster, granted_on: str, role: str, action: str) -> None:
    """A role allows what the table says, and nothing else is done; to who has none, the file is not there."""
    person, folder = PEOPLE[role], f"alice/cell-{next(_number)}"
    alice = people.http(ORIGIN, "alice")
    alice.request("PUT", files(f"{folder}/")).must(201)
    put(alice, f"{folder}/file", b"first").must(201)
    if action == "take access":
        share(people, f"{folder}/file", "bob", "reader")
    if role in {"master", "editor", "reader"}:
        share(people, f"{folder}/file" if granted_on == "file" else f"{folder}/", person, role)
    response = act(people, person, action, folder)
    if role in MAY[action]:
        response.must(200, 201, 204)
    elif role == "nobody":
        response.must(404)
    else:
        # Nobody may, not even the owner: that is no matter of rights but of what can be said.
        response.must(403, 400, 409, 422) if action == "take the owner's access" else response.must(403)
    done = response.status < 300
    there = f"{folder}/moved" if action == "move" and done else f"{folder}/file"
    if action == "delete" and done:
        get(alice, there).must(404)
        return
    assert get(alice, there).must(200).body == (b"modified" if action == "modify" and done else b"first")
    bob_may_read = (action == "give access" and done) or (action == "take access" and not done)
    assert access(people, there).get("bob") == ("reader" if bob_may_read else None)
    if action == "create":
        get(alice, f"{folder}/created").must(200 if done else 404)


def test_what_is_created_in_a_folder_is_the_owners(people: LocalCluster) -> None:
    """A file that an editor makes in a shared folder is the folder owner's, in their quota."""
    alice = people.http(ORIGIN, "alice")
    alice.request("PUT", files("alice/inbox/")).must(201)
    share(people, "alice/inbox/", "eddie", "editor")
    before = {name: usage(people, name)["bytes"] for name in ("alice", "eddie")}
    put(people.http(ELSEWHERE, "eddie"), "alice/inbox/letter", b"x" * 1000).must(201)
    assert usage(people, "alice")["bytes"] == before["alice"] + 1000
    assert usage(people, "eddie")["bytes"] == before["eddie"]
    assert people.details("alice/inbox/letter", "alice")["owner"] == "alice"
    people.http(ELSEWHERE, "eddie").request("DELETE", files("alice/inbox/letter"), follow=True).must(403)


def usage(cluster: LocalCluster, user: str) -> dict[str, int]:
    answer: dict[str, int] = cluster.http("admin1", user).request("GET", f"/api/v1/users/{user}/usage").must(200).json()
    return answer


def test_a_taken_right_is_refused_everywhere_within_a_second(people: LocalCluster) -> None:
    """From one second after the grant was asked to be taken, every node refuses; before it was taken, every node served."""
    put(people.http(ORIGIN, "alice"), "alice/lent", b"lent").must(201)
    share(people, "alice/lent", "rita", "reader")
    readers = [people.http(name, "rita") for name in people.nodes]
    for reader in readers:
        get(reader, "alice/lent").must(200)
    taken = time.monotonic()
    people.http("node2", "alice").request("DELETE", "/api/v1/access/alice/lent?user=rita", follow=True).must(204)
    assert time.monotonic() - taken < 1.0
    for reader in readers:
        get(reader, "alice/lent").must(404)
    shared = people.http("node3", "rita").request("GET", "/api/v1/shared", follow=True).must(200).json()["shared"]
    assert "alice/lent" not in [entry["path"] for entry in shared]


@pytest.mark.parametrize("via", [ORIGIN, ELSEWHERE])
def test_a_taken_right_ends_the_transfer(people: LocalCluster, via: str) -> None:
    """Who is in the middle of a download when the right is taken does not get the rest."""
    size = 96 * MIB
    path = f"alice/long-{via}"
    people.http(ORIGIN, "alice", timeout_s=60).request("PUT", files(path), noise(MIB) * 96).must(201)
    share(people, path, "rita", "reader")
    with people.http(via, "rita").open("GET", files(f"{path}?relay=1")) as download:
        assert download.response().status == 200
        received = len(download.response().read(MIB))
        people.http(ORIGIN, "alice").request("DELETE", f"/api/v1/access/{path}?user=rita", follow=True).must(204)
        wait_until = time.monotonic() + 1.0
        while time.monotonic() < wait_until:  # reading slowly: what is in the sockets' buffers may still come
            download.answer_begins(0.05)
        with pytest.raises((BodyCutShort, *BROKEN)):
            for data in download.chunks():
                received += len(data)
    assert received < size
