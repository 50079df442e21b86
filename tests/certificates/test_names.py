"""Names in certificates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.certificates.names import PersonUri, ServerUri, parse_uri
from securifile.model.servers import ServerKind

CLUSTERS = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
SERVERS = st.builds(
    ServerUri, CLUSTERS, st.sampled_from(ServerKind), st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
)
PEOPLE = st.builds(PersonUri, CLUSTERS, st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True))


def test_the_spelling() -> None:
    """The three kinds look as the design says."""
    assert str(ServerUri("c1", ServerKind.NODE, "ada")) == "securifile://c1/node/ada"
    assert str(ServerUri("c1", ServerKind.ADMIN, "ada")) == "securifile://c1/admin/ada"
    assert str(PersonUri("c1", "ada.l")) == "securifile://c1/person/ada.l"


@given(st.one_of(SERVERS, PEOPLE))
def test_round_trip(uri: ServerUri | PersonUri) -> None:
    """What was written is read back, the kind included."""
    assert parse_uri(str(uri)) == uri


@given(st.one_of(SERVERS, PEOPLE), st.data())
def test_one_spelling(uri: ServerUri | PersonUri, data: st.DataObject) -> None:
    """No two texts are read as the same name: whatever is read, is written in the same way."""
    text = str(uri)
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.sampled_from(["", "%61", "/", "\n", " ", "A", ":", "?", "#", "@"])) + text[place + 1 :]
    try:
        again = parse_uri(changed)
    except ValueError:
        return
    assert str(again) == changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "securifile://c1/node",
        "securifile://c1/node/",
        "securifile://c1//ada",
        "securifile:///node/ada",
        "securifile://c1/node/ada/",
        "securifile://c1/node/ada\n",
        "securifile://c1/node/Ada",
        "securifile://C1/node/ada",
        "Securifile://c1/node/ada",
        "securifile://c1:80/node/ada",
        "securifile://u@c1/node/ada",
        "securifile://c1/node/%61da",
        "securifile://c1/person/%61da",
        "securifile://c1/person/../node/ada",
        "securifile://c1/person/ada?x",
        "securifile://c1/robot/ada",
        "https://c1/node/ada",
    ],
)
def test_what_is_no_name(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_uri(text)
