"""Which lives of servers' processes are over."""

from __future__ import annotations

from securifile.model.lives import LIVES_KEPT, Lives


def test_a_life_that_has_ended_is_over() -> None:
    """That one, of that server; what was admitted before or after it is another one."""
    lives = Lives()
    assert not lives.is_over("n1", "first", 1)
    assert lives.end("n1", "first", 1)
    assert lives.is_over("n1", "first", 1)
    assert not lives.is_over("n1", "second", 1)
    assert not lives.is_over("n2", "first", 1)


def test_several_lives_of_a_server_can_be_over() -> None:
    """The last ones are remembered: a process that ends before it is admitted does not make its predecessor alive again."""
    lives = Lives()
    for number in range(LIVES_KEPT + 1):
        lives.end("n1", f"life {number}", 1)
    assert not lives.is_over("n1", "life 0", 1)
    assert all(lives.is_over("n1", f"life {number}", 1) for number in range(1, LIVES_KEPT + 1))
    lives.forget("n1")
    assert not lives.is_over("n1", "life 1", 1)


def test_who_was_never_admitted_is_not_over() -> None:
    """No life is nobody's; a server that has none in the catalogue says nothing of its end."""
    lives = Lives()
    assert not lives.end("n1", "", 1)
    assert not lives.is_over("n1", "", 1)


def test_who_speaks_lives() -> None:
    """A life that speaks after it was said to be over is not, and that is not believed a second time; other lives are as before."""
    lives = Lives()
    lives.end("n1", "first", 1)
    lives.end("n1", "second", 1)
    assert lives.speaks("n1", "third")
    assert lives.speaks("n2", "second")
    assert not lives.speaks("n1", "second")
    assert not lives.is_over("n1", "second", 1)
    assert lives.is_over("n1", "first", 1)
    assert not lives.end("n1", "second", 1)
    assert not lives.is_over("n1", "second", 1)
    assert lives.speaks("n1", "second")


def test_what_was_told_in_another_epoch_says_nothing() -> None:
    """A catalogue that went back in time may have an earlier life for the admitted one, while people are still served by a later one."""
    lives = Lives()
    lives.end("n1", "first", 1)
    assert not lives.is_over("n1", "first", 2)
    assert lives.is_over("n1", "first", 1)
    lives.end("n1", "first", 2)
    assert lives.is_over("n1", "first", 2)
