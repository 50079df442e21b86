"""From what each observer thinks of each subject to what the cluster holds each server for.

Judgements are taken one at a time, and only observers that are running at that moment count: the first to be put down
loses its vote, so two halves of a cluster cannot put each other down. With fewer than two other running
nodes the admin servers' own heartbeats decide; they also say which of two equal halves goes on, because the other one
could not commit anything.

    running --most hold it for down, or it is absent--> down        running --one holds it for failed--> failed
    failed  --most hold it for down, or it is absent--> down        down    --only by verification--> running, failed

*Absent* is what is known without votes: it was taken offline, or it is a new process that nobody has verified.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from securifile.model.servers import Status

Opinions = Mapping[tuple[str, str], Status]
"""(observer, subject) -> what the observer holds the subject for."""


def _votes(subject: str, held: Mapping[str, Status], opinions: Opinions) -> list[Status]:
    return [
        opinions.get((observer, subject), held[subject])
        for observer, status in held.items()
        if observer != subject and status is Status.RUNNING
    ]


def judge(
    subject: str, held: Mapping[str, Status], opinions: Opinions, admins: Mapping[str, Status], absent: Collection[str] = ()
) -> Status:
    """What `subject` should be held for.

    Args:
        held: what each node is held for now.
        opinions: of nodes; those of observers that are not running do not count.
        admins: what the admin servers' own heartbeats say, by subject; decides where fewer than two nodes can.
        absent: nodes that are down whatever anybody thinks.
    """
    if held[subject] is Status.DOWN or subject in absent:
        return Status.DOWN
    votes = _votes(subject, held, opinions)
    if len(votes) < 2:
        is_down = admins.get(subject, held[subject]) is Status.DOWN
    else:
        is_down = votes.count(Status.DOWN) * 2 > len(votes)
    if is_down:
        return Status.DOWN
    return Status.FAILED if Status.FAILED in votes else held[subject]


def in_doubt(held: Mapping[str, Status], opinions: Opinions, admins: Mapping[str, Status], absent: Collection[str] = ()) -> set[str]:
    """Of whom anybody thinks otherwise than the cluster: no other subject's judgement can change, whoever else loses its vote."""
    doubted = {subject for (_, subject), status in opinions.items() if status is not held.get(subject)}
    doubted |= {subject for subject, status in admins.items() if status is not held.get(subject)}
    return {subject for subject in doubted.union(absent) if held.get(subject, Status.DOWN) is not Status.DOWN}


def summarise(
    held: Mapping[str, Status], opinions: Opinions, admins: Mapping[str, Status], absent: Collection[str] = ()
) -> dict[str, Status]:
    """The new summary: judgements that would change something are taken one after another, the surest first.

    Of equally sure ones those come first that the admin servers share.
    """
    summary = dict(held)
    # Each round takes one judgement; a subject is judged once at most, so this ends.
    open_subjects = in_doubt(held, opinions, admins, absent)
    while True:
        changing = []
        for subject in sorted(open_subjects):
            verdict = judge(subject, summary, opinions, admins, absent)
            if verdict is not summary[subject]:
                sureness = _votes(subject, summary, opinions).count(verdict), admins.get(subject) is verdict
                changing.append((sureness, subject, verdict))
        if not changing:
            return summary
        _, subject, verdict = max(changing, key=lambda one: one[:2])
        summary[subject] = verdict
        open_subjects.discard(subject)
