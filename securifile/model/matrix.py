"""From what each observer thinks of each subject to what the cluster holds each server for.

Judgements are taken one at a time, and only observers that are running at that moment count: the first to be put down
loses its vote, so two halves of a cluster cannot put each other down. With fewer than two other running
nodes the admin servers' own heartbeats decide.
"""

from __future__ import annotations

from collections.abc import Mapping

from securifile.model.servers import Status

Opinions = Mapping[tuple[str, str], Status]
"""(observer, subject) -> what the observer holds the subject for."""


def _votes(subject: str, held: Mapping[str, Status], opinions: Opinions) -> list[Status]:
    return [
        opinions.get((observer, subject), held[subject])
        for observer, status in sorted(held.items())
        if observer != subject and status is Status.RUNNING
    ]


def judge(subject: str, held: Mapping[str, Status], opinions: Opinions, admins: Mapping[str, Status]) -> Status:
    """What `subject` should be held for.

    Args:
        held: what each node is held for now.
        opinions: of nodes; those of observers that are not running do not count.
        admins: what the admin servers' own heartbeats say, by subject; decides where fewer than two nodes can.
    """
    votes = _votes(subject, held, opinions)
    if Status.FAILED in votes:
        return Status.FAILED
    if len(votes) < 2:
        return admins.get(subject, held[subject])
    return Status.DOWN if votes.count(Status.DOWN) * 2 > len(votes) else Status.RUNNING


def summarise(held: Mapping[str, Status], opinions: Opinions, admins: Mapping[str, Status]) -> dict[str, Status]:
    """The new summary: judgements that would change something are taken one after another, the surest first."""
    summary = dict(held)
    # Each round takes one judgement; a subject is judged once at most, so this ends.
    open_subjects = set(summary)
    while True:
        changing = []
        for subject in sorted(open_subjects):
            verdict = judge(subject, summary, opinions, admins)
            if verdict is not summary[subject]:
                changing.append((_votes(subject, summary, opinions).count(verdict), subject, verdict))
        if not changing:
            return summary
        _, subject, verdict = max(changing, key=lambda one: (one[0], one[1]))
        summary[subject] = verdict
        open_subjects.discard(subject)
