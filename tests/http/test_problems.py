"""Problems: every code has a status, and the answer holds what a person needs."""

from __future__ import annotations

import json

import pytest

from securifile.http.problems import STATUS, internal_error, problem, refusal_of, status_of
from securifile.model import errors
from securifile.model.errors import Code, Refusal


def test_every_code_has_a_status() -> None:
    """The table is complete and holds only errors."""
    assert set(STATUS) == set(Code)
    assert all(400 <= status <= 599 and title for status, title in STATUS.values())


def test_a_problem_holds_its_evidence() -> None:
    """Standard members, the code, and the evidence beside them; ids and digests as text."""
    status, headers, body = problem(Refusal(Code.LOCKED, "Wait.", holder="ada", digest=b"\x01\xff", retry_after_s=2.1), "urn:x")
    assert status == 423
    assert dict(headers)[b"Content-Type"] == b"application/problem+json"
    assert dict(headers)[b"Retry-After"] == b"3"
    assert json.loads(body) == {
        "type": "urn:securifile:problem:locked",
        "title": "Locked",
        "status": 423,
        "code": "locked",
        "detail": "Wait.",
        "instance": "urn:x",
        "holder": "ada",
        "digest": "01ff",
    }


def test_evidence_cannot_replace_a_standard_member() -> None:
    """Evidence named `status` or `type` is left out."""
    assert json.loads(problem(Refusal(Code.LOCKED, "x", status="odd")).body)["status"] == 423


@pytest.mark.parametrize("code", [code for code in Code if status_of(code) == 401])
def test_401_says_how_to_sign_in(code: Code) -> None:
    """Every 401 challenges for Bearer and Basic (RFC 9110, section 11.6.1 demands one)."""
    challenges = [value for name, value in problem(Refusal(code, "x")).headers if name == b"WWW-Authenticate"]
    assert challenges == [b'Bearer realm="SecuriFile"', b'Basic realm="SecuriFile", charset="UTF-8"']


def test_405_and_416_carry_their_headers() -> None:
    """405 lists what is allowed, 416 the size."""
    refusal = Refusal(Code.METHOD_NOT_ALLOWED, "x", allow=["PUT", "GET"])
    assert (b"Allow", b"GET, PUT") in problem(refusal).headers
    assert (b"Content-Range", b"bytes */7") in problem(Refusal(Code.RANGE, "x", size=7)).headers


def test_the_world_failing_has_an_answer_and_bugs_have_none() -> None:
    """What is not our bug becomes a refusal; a bug does not, and its answer tells nothing."""
    for error in (errors.DatabaseUnavailable(), errors.SpoolFull(), errors.DiskFull(), errors.OutcomeUnknown()):
        refusal = refusal_of(error)
        assert refusal is not None
        assert problem(refusal).status >= 500
    assert refusal_of(ValueError("secret")) is None
    assert problem(internal_error()).status == 500


def test_odd_text_in_evidence_does_no_harm() -> None:
    """Half surrogates from a bad path do not break the answer."""
    assert json.loads(problem(Refusal(Code.BAD_PATH, "x", name="\ud800")).body)["name"] == "?"
