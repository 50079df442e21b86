"""No record that was kept is lost, whatever happens to the process, and the spool never grows beyond its limit."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from securifile.audit.spool import MARKS_S, NOTE_DELAY_S, RETRY_S, Spool
from securifile.model.errors import SpoolFull
from tests.audit.doubles import AT_THE_END, InlineWorker, StepWorker, done, ending, everything, expected, names, record, spool


def remember(kept: list[tuple[str, int]], name: tuple[str, int], _: None) -> None:
    kept.append(name)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.spool"))


def test_kept_is_read(tmp_path: Path) -> None:
    """Records come out in the order in which they were kept, numbered from 1."""
    trail = spool(tmp_path)
    for n in range(1, 8):
        done(trail.keep(record(n)))
    assert names(everything(trail)) == expected("b1", 1, 2, 3, 4, 5, 6, 7)


def test_kept_means_fsynced(tmp_path: Path) -> None:
    """`keep` fires only after the fsync, and all that come meanwhile share the next one."""
    worker = StepWorker()
    trail = ending(Spool(tmp_path, boot="b1", version="1", worker=worker, clock=Clock()))
    opened = trail.open()
    worker.run()
    done(opened)
    kept = [trail.keep(record(n)) for n in (1, 2, 3, 4)]
    assert worker.names == ["create"]
    worker.step()
    assert worker.names == ["append"]
    assert [d.called for d in kept] == [False] * 4
    worker.step()
    assert [d.called for d in kept] == [True, False, False, False]
    assert worker.names == ["append"]
    worker.step()
    assert all(d.called for d in kept)
    assert worker.names == []


def test_nothing_is_read_before_it_is_durable(tmp_path: Path) -> None:
    """A record that only waits to be written is not sent."""
    clock = Clock()
    trail = spool(tmp_path, clock=clock)
    trail.note(record(1))
    assert everything(trail) == []
    clock.advance(NOTE_DELAY_S)
    assert names(everything(trail)) == expected("b1", 1)


def test_noted_within_100_ms(tmp_path: Path) -> None:
    """A read is on the disk within 100 ms, together with others, even while more keep coming."""
    clock = Clock()
    worker = InlineWorker()
    trail = spool(tmp_path, clock=clock, worker=worker)
    for n in range(1, 15):
        trail.note(record(n))
        clock.advance(0.01)
    found = names(everything(trail))
    assert found[:5] == expected("b1", 1, 2, 3, 4, 5)
    assert worker.done.count("append") == 2


def test_a_write_takes_the_reads_along(tmp_path: Path) -> None:
    """A kept record does not overtake those noted before it."""
    trail = spool(tmp_path)
    trail.note(record(1))
    done(trail.keep(record(2)))
    assert names(everything(trail)) == expected("b1", 1, 2)


def test_old_boots_first(tmp_path: Path) -> None:
    """After a restart the records of earlier boots come first, under their own boot ids."""
    for boot in ("zz", "aa", "mm"):
        trail = spool(tmp_path, boot)
        done(trail.keep(record(1)))
        done(trail.keep(record(2)))
    assert names(everything(trail)) == expected("zz", 1, 2) + expected("aa", 1, 2) + expected("mm", 1, 2)


def test_a_boot_is_never_used_twice(tmp_path: Path) -> None:
    """Numbers that begin again under the same boot id would be taken for doubles."""
    done(spool(tmp_path).keep(record(1)))
    with pytest.raises(ValueError, match="before"):
        spool(tmp_path)


def test_confirmed_is_deleted(tmp_path: Path) -> None:
    """Segments go when all of them is confirmed; what remains is exactly what is not confirmed, also after a restart."""
    trail = spool(tmp_path, segment_bytes=1000)
    for n in range(1, 21):
        done(trail.keep(record(n)))
    before = len(files(tmp_path))
    assert before > 4
    trail.confirm("b1", 13)
    assert len(files(tmp_path)) < before
    assert names(everything(trail)) == expected("b1", *range(14, 21))
    assert names(everything(spool(tmp_path, "b2"))) == expected("b1", *range(14, 21))


def test_confirmed_is_deleted_from_a_full_disk(tmp_path: Path) -> None:
    """When not even the marks can be written, what was confirmed goes all the same, which makes room; the marks come with the next ones."""
    trail = spool(tmp_path, segment_bytes=1000)
    for n in range(1, 21):
        done(trail.keep(record(n)))
    before = len(files(tmp_path))
    (tmp_path / "confirmed.new").mkdir()
    trail.confirm("b1", 12)
    assert len(files(tmp_path)) < before
    (tmp_path / "confirmed.new").rmdir()
    trail.confirm("b1", 13)
    assert names(everything(spool(tmp_path, "b2"))) == expected("b1", *range(14, 21))


def test_many_confirmations_are_written_down_once_a_second(tmp_path: Path) -> None:
    """The first at once, those that follow together; all of them when the spool is closed."""
    clock = Clock()
    trail = ending(Spool(tmp_path, boot="b1", version="1", worker=InlineWorker(), clock=clock))
    done(trail.open())
    for n in range(1, 11):
        done(trail.keep(record(n)))

    def marked() -> str:
        return (tmp_path / "confirmed").read_text(encoding="ascii")

    trail.confirm("b1", 1)
    assert "b1 1\n" in marked()
    for n in range(2, 6):
        trail.confirm("b1", n)
        clock.advance(0.1)
    assert "b1 1\n" in marked()
    clock.advance(MARKS_S)
    assert "b1 5\n" in marked()
    trail.confirm("b1", 7)
    clock.advance(0.1)
    trail.confirm("b1", 8)
    done(trail.close())
    assert "b1 8\n" in marked()
    assert not clock.getDelayedCalls()


def test_everything_confirmed(tmp_path: Path) -> None:
    """When all of an old boot is confirmed nothing of it is left but space."""
    done(spool(tmp_path).keep(record(1)))
    trail = spool(tmp_path, "b2")
    trail.confirm("b1", 1)
    assert files(tmp_path) == []
    assert trail.unconfirmed_bytes == 0


@pytest.mark.parametrize(("boot", "number"), [("b9", 5), ("b1", 0), ("b1", -1), ("b1", 99)])
def test_strange_confirmations(tmp_path: Path, boot: str, number: int) -> None:
    """Confirmations of the unknown are harmless: what is written afterwards is still sent."""
    trail = spool(tmp_path)
    done(trail.keep(record(1)))
    trail.confirm(boot, number)
    done(trail.keep(record(2)))
    assert names(everything(trail))[-1:] == expected("b1", 2)


def test_confirmations_do_not_go_back(tmp_path: Path) -> None:
    """An older confirmation that comes late changes nothing."""
    trail = spool(tmp_path)
    for n in (1, 2, 3):
        done(trail.keep(record(n)))
    trail.confirm("b1", 2)
    trail.confirm("b1", 1)
    assert names(everything(trail)) == expected("b1", 3)


def test_reader_goes_on_while_confirmed(tmp_path: Path) -> None:
    """A reader that is behind a confirmation skips what is gone, and sees what comes later."""
    trail = spool(tmp_path, segment_bytes=1000)
    reader = trail.reader()
    for n in range(1, 11):
        done(trail.keep(record(n)))
    assert names(done(reader.next(1))) == expected("b1", 1)
    trail.confirm("b1", 8)
    assert names(done(reader.next(1))) == expected("b1", 9)
    assert names(done(reader.next(1))) == expected("b1", 10)
    assert done(reader.next(1)) == []
    done(trail.keep(record(11)))
    assert names(done(reader.next(1))) == expected("b1", 11)


def test_full(tmp_path: Path) -> None:
    """At the limit records are refused, before it requests are; what was refused takes no number; confirming makes room."""
    trail = spool(tmp_path, limit_bytes=8000)
    kept = 0
    refused_requests_first = False
    while True:
        try:
            done(trail.keep(record(kept + 1)))
        except SpoolFull:
            break
        kept += 1
        refused_requests_first = refused_requests_first or not trail.has_room()
    with pytest.raises(SpoolFull):
        trail.note(record(0))
    assert refused_requests_first
    assert 8000 >= sum(path.stat().st_size for path in files(tmp_path)) > 7000
    trail.confirm("b1", kept)
    assert trail.has_room()
    done(trail.keep(record(kept + 1)))
    assert names(everything(trail)) == expected("b1", kept + 1)


def test_one_burst_that_fills_it(tmp_path: Path) -> None:
    """When all of the limit came in one group, confirming it makes room all the same."""
    clock = Clock()
    trail = spool(tmp_path, clock=clock, limit_bytes=8000)
    with pytest.raises(SpoolFull):
        for n in range(1, 1000):
            trail.note(record(n))
    clock.advance(1)
    assert not trail.has_room()
    trail.confirm("b1", everything(trail)[-1].number)
    assert trail.has_room()
    done(trail.keep(record(1)))


def test_notes_count_before_they_are_written(tmp_path: Path) -> None:
    """Reads that wait for the disk count: memory does not grow beyond the limit either."""
    trail = spool(tmp_path, limit_bytes=4000)
    with pytest.raises(SpoolFull):
        for n in range(1000):
            trail.note(record(n))
    assert trail.unconfirmed_bytes <= 4000


@pytest.mark.parametrize("failing", ["create", "append"])
def test_failing_disk(tmp_path: Path, failing: str) -> None:
    """When the disk fails the waiting are told, requests are refused, and nothing noted is lost when it recovers."""
    clock, worker = Clock(), InlineWorker()
    trail = spool(tmp_path, clock=clock, worker=worker)
    if failing == "append":
        done(trail.keep(record(1)))
    else:
        trail.note(record(1))
    worker.broken.add(failing)
    trail.note(record(2))
    with pytest.raises(OSError, match="fails"):
        done(trail.keep(record(3)))
    assert not trail.has_room()
    with pytest.raises(SpoolFull):
        done(trail.keep(record(4)))
    clock.advance(RETRY_S)
    assert not trail.has_room()
    worker.broken.clear()
    clock.advance(RETRY_S)
    assert trail.has_room()
    done(trail.keep(record(4)))
    assert names(everything(trail)) == expected("b1", 1, 2, 3, 4)
    assert names(everything(spool(tmp_path, "b2"))) == expected("b1", 1, 2, 3, 4)


def test_uncertain_tail_does_not_double(tmp_path: Path) -> None:
    """What a failed write left on the disk is not read beside what was written for it again."""
    clock, worker = Clock(), InlineWorker()
    trail = spool(tmp_path, clock=clock, worker=worker)
    done(trail.keep(record(1)))
    worker.broken |= {"append", "give_up"}
    with pytest.raises(OSError, match="fails"):
        done(trail.keep(record(2)))
    # The write had reached the file after all.
    other = spool(tmp_path.parent / "other", "b1")
    done(other.keep(record(1)))
    size = files(tmp_path)[0].stat().st_size
    done(other.keep(record(2)))
    with files(tmp_path)[0].open("ab") as file:
        file.write(files(tmp_path.parent / "other")[0].read_bytes()[size:])
    worker.broken.clear()
    clock.advance(RETRY_S)
    done(trail.keep(record(3)))
    for reader in (trail, spool(tmp_path, "b2")):
        assert names(everything(reader)) == expected("b1", 1, 2, 3)
        assert names(everything(reader, 1)) == expected("b1", 1, 2, 3)


def test_close_writes_all(tmp_path: Path) -> None:
    """Closing writes what was noted, and then takes no more."""
    trail = spool(tmp_path)
    trail.note(record(1))
    done(trail.close())
    assert not trail.has_room()
    with pytest.raises(SpoolFull):
        trail.note(record(2))
    assert names(everything(spool(tmp_path, "b2"))) == expected("b1", 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file cut, or garbled from any byte on, gives all records before that byte; what was confirmed does not come back."""
    AT_THE_END.close()
    directory = tmp_path_factory.mktemp("spool")
    trail = spool(directory)
    ends = []
    for n in range(1, 6):
        done(trail.keep(record(n)))
        ends.append(files(directory)[0].stat().st_size)
    confirmed = data.draw(st.integers(0, 5))
    trail.confirm("b1", confirmed)
    path = files(directory)[0]
    cut = data.draw(st.integers(0, ends[-1]))
    whole = path.read_bytes()
    tail = data.draw(st.sampled_from([b"", b"\0" * 50, b"\xff" * 50]))
    if cut < ends[-1] and tail:
        tail = bytes([whole[cut] ^ 0x55]) + tail
    path.write_bytes(whole[:cut] + tail)
    whole_records = sum(end <= cut for end in ends)
    after = spool(directory, "b2")
    assert names(everything(after)) == expected("b1", *range(confirmed + 1, whole_records + 1))
    done(after.keep(record(1)))
    assert names(everything(after))[-1:] == expected("b2", 1)
    shutil.rmtree(directory)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_killed_between_any_steps(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Killed between any two steps of the disk: what was kept and not confirmed is there, in order, without gaps."""
    AT_THE_END.close()
    directory = tmp_path_factory.mktemp("spool")
    must: list[tuple[str, int]] = []
    confirmed: dict[str, int] = {}
    for life in range(3):
        worker, clock, boot = StepWorker(), Clock(), f"b{life}"
        trail = ending(Spool(directory, boot=boot, version="1", worker=worker, clock=clock, segment_bytes=1000))
        trail.open()
        worker.run()
        n = 0
        for action in data.draw(st.lists(st.sampled_from("knscct"), max_size=25)):
            if action == "k":
                n += 1
                trail.keep(record(n)).addCallback(partial(remember, must, (boot, n)))
            elif action == "n":
                n += 1
                trail.note(record(n))
            elif action == "s" and worker.waiting:
                worker.step()
            elif action == "c" and must:
                known, number = data.draw(st.sampled_from(must))
                trail.confirm(known, number)
                confirmed[known] = max(confirmed.get(known, 0), number)
            elif action == "t":
                clock.advance(1)
    last = spool(directory, "end")
    found = [(spooled.boot, spooled.number) for spooled in everything(last)]
    assert set(found) >= {(boot, number) for boot, number in must if number > confirmed.get(boot, 0)}
    assert found == sorted(set(found))
    for boot in {boot for boot, _ in found}:
        numbers = [number for known, number in found if known == boot]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    shutil.rmtree(directory)


def test_rot_in_the_middle_is_set_aside(tmp_path: Path) -> None:
    """Damage to what was once durable costs what it hit; the rest is sent, and the file stays for the operator."""
    trail = spool(tmp_path, segment_bytes=1000)
    for n in range(1, 11):
        done(trail.keep(record(n)))
    first = files(tmp_path)[0]
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 0xFF
    first.write_bytes(content)
    after = spool(tmp_path, "b2")
    found = names(everything(after))
    assert found[0] == expected("b1", 1)[0]
    assert found[-3:] == expected("b1", 8, 9, 10)
    after.confirm("b1", 10)
    assert files(tmp_path) == []
    assert [path.name for path in tmp_path.glob("*.damaged")] == [first.name + ".damaged"]


@pytest.mark.parametrize(
    "content",
    [b"", b"securifile-confirmed 1\nb1 2\n", b"\0" * 30, b"securifile-confirmed 1\nb1 x\nend\n", b"securifile-confirmed 9\nb1 2\nend\n"],
)
def test_lost_marks_mean_sent_again(tmp_path: Path, content: bytes) -> None:
    """Without a readable note of what was confirmed, records are sent again: the receiver knows them."""
    trail = spool(tmp_path)
    for n in (1, 2, 3):
        done(trail.keep(record(n)))
    (tmp_path / "confirmed").write_bytes(content)
    assert names(everything(spool(tmp_path, "b2"))) == expected("b1", 1, 2, 3)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Who read what is a secret too: the folder and its files are the owner's alone."""
    trail = spool(tmp_path / "spool")
    done(trail.keep(record(1)))
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert files(tmp_path / "spool")[0].stat().st_mode & 0o077 == 0
