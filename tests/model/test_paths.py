"""Names, paths and how they stand in a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.targets import parse_place, parse_target
from securifile.model.errors import Code, Refusal
from securifile.model.paths import DEPTH_MAX, NAME_BYTES_MAX, check_name, check_segments, check_username, quote_path, split_path


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except Refusal:
        return False
    return True


names = st.text(min_size=1, max_size=40).filter(is_name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\x00", "a\nb", "\x7f", "\x85", "x" * 256, "é" * 128, "\ud800"])
def test_what_is_no_name_is_refused(name: str) -> None:
    """Nothing, dots, slashes, controls, too long and half surrogates are no names, and the refusal says so."""
    with pytest.raises(Refusal) as caught:
        check_name(name)
    assert caught.value.code is Code.BAD_PATH
    assert caught.value.detail


@pytest.mark.parametrize("name", ["a", "...", ".hidden", "a b", "C:\\x", "日本", "x" * NAME_BYTES_MAX, "é" * 127, "👩‍👩‍👧"])
def test_all_else_is_a_name(name: str) -> None:
    """A name may be any text else: spaces, backslashes, other scripts."""
    assert check_name(name) == name


def test_names_are_in_normalisation_form_c() -> None:
    """The same name in two encodings of its accents is one name."""
    assert check_name("e\u0301") == "\u00e9"


@given(st.text(max_size=300))
def test_a_checked_name_stays_as_it_is(text: str) -> None:
    """Checking twice changes nothing."""
    if is_name(text):
        assert check_name(check_name(text)) == check_name(text)


def test_depth_and_length_are_bounded() -> None:
    """64 names deep and 4096 bytes long, not more."""
    assert len(check_segments(["a"] * DEPTH_MAX)) == DEPTH_MAX
    with pytest.raises(Refusal):
        check_segments(["a"] * (DEPTH_MAX + 1))
    with pytest.raises(Refusal):
        check_segments(["a" * 255] * 17)


@pytest.mark.parametrize("name", ["a", "0", "ada.l_-", "x" * 64])
def test_usernames(name: str) -> None:
    """Lower-case letters, digits, dot, underscore, hyphen."""
    assert check_username(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "A", "é", "a/b", "a\n", "x" * 65])
def test_what_is_no_username(name: str) -> None:
    """Anything else is refused, dots alone too."""
    with pytest.raises(Refusal):
        check_username(name)


@given(st.lists(names, max_size=5), st.booleans())
def test_a_quoted_path_is_read_back(segments: list[str], folder: bool) -> None:
    """What `quote_path` writes, `parse_target` reads as the same path."""
    checked = check_segments(segments)
    folder = folder or not checked
    target = parse_target(b"/api/v1/files/" + quote_path("ada", checked, folder).encode("ascii"))
    assert (target.owner, target.segments, target.folder) == ("ada", checked, folder)
    assert parse_place(str(target)) == target
    assert parse_target(target.url("details").encode(), "details") == target


def test_a_folder_ends_in_a_slash() -> None:
    """`a/` is a folder, `a` is not, and the root is."""
    assert split_path("a/b/") == (("a", "b"), True)
    assert split_path("a/b") == (("a", "b"), False)
    assert split_path("") == ((), True)
    assert parse_target(b"/api/v1/files/ada").is_root
    assert parse_target(b"/api/v1/files/ada/") == parse_target(b"/api/v1/files/ada")
    for bad in ("/", "//", "a//b", "/a"):
        with pytest.raises(Refusal):
            split_path(bad)


@pytest.mark.parametrize(
    "path",
    [
        b"/api/v1/files/ada/a%2Fb",
        b"/api/v1/files/ada/a%2fb",
        b"/api/v1/files/ada/%2e%2e/x",
        b"/api/v1/files/ada/%2E",
        b"/api/v1/files/ada/../bob/x",
        b"/api/v1/files/ada//x",
        b"/api/v1/files/ada/x//",
        b"/api/v1/files//x",
        b"/api/v1/files/",
        b"/api/v1/files/ada/%ff",
        b"/api/v1/files/ada/\xff",
        b"/api/v1/files/ada/%C0%AE",
        b"/api/v1/files/ada/%00",
        b"/api/v1/files/ada/%",
        b"/api/v1/files/ada/%zz",
        b"/api/v1/files/ada/%0",
        b"/api/v1/files/ada/%0a",
        b"/api/v1/files/ADA/x",
        b"/api/v1/files/%2e%2e/x",
    ],
)
def test_paths_that_could_be_read_two_ways_are_refused(path: bytes) -> None:
    """Encoded slashes and dots, empty parts, bytes that are not UTF-8 and bare percent signs never name an entry."""
    with pytest.raises(Refusal) as caught:
        parse_target(path)
    assert caught.value.code is Code.BAD_PATH


def test_another_kind_of_path_is_not_there() -> None:
    """A path of another kind is no target of this one."""
    with pytest.raises(Refusal) as caught:
        parse_target(b"/api/v1/other/ada/x")
    assert caught.value.code is Code.NOT_FOUND


def test_a_percent_sign_is_decoded_once() -> None:
    """`%2525` is the name `%25`, and a plus is a plus."""
    assert parse_target(b"/api/v1/files/ada/%2525+").segments == ("%25+",)


@given(st.binary(max_size=60))
def test_any_path_is_read_or_refused(path: bytes) -> None:
    """No bytes make the reader fail otherwise."""
    try:
        target = parse_target(b"/api/v1/files/" + path)
    except Refusal:
        return
    assert parse_target(target.url().encode()) == target
