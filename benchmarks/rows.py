"""What is measured, with whom it is compared, and what it must come to."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from benchmarks.cluster import SecuriFile
from benchmarks.figures import Goal, Measure
from benchmarks.returning import OneThread, Returning
from benchmarks.trips import BulkAndHeartbeats
from benchmarks.work import Download, Files, Sizes, SmallDownloads, SmallUploads, Upload, Work

NGINX, SWIFT, ONE_THREAD = "nginx", "Swift", OneThread.name


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table."""

    name: str
    title: str
    unit: str
    """`MiB/s` or `/s`."""
    replicas: int
    """Copies that SecuriFile makes beside the origin's meanwhile."""
    work: Work
    others: tuple[str, ...]
    """Who does it too."""
    goals: tuple[Goal, ...]


def at_least(against: str, must: float, aim: float) -> Goal:
    """So many times the rate of another."""
    return Goal(measure=Measure.RATIO, against=against, must=must, aim=aim)


def rows(sizes: Sizes, files: Files) -> Sequence[Row]:
    """All of them, in the order in which they are measured: those without replicas first, since files from then would get some later."""
    large, part, parts = sizes.large, sizes.part, sizes.parts
    both, nginx = (NGINX, SWIFT), (NGINX,)
    return (
        Row(
            name="put-one",
            title="PUT of a large file, one copy",
            unit="MiB/s",
            replicas=0,
            work=Upload(files=files, size=large),
            others=nginx,
            goals=(at_least(NGINX, 0.70, 0.85),),
        ),
        Row(
            name="get",
            title="GET of a large file",
            unit="MiB/s",
            replicas=0,
            work=Download(files=files, size=large),
            others=both,
            goals=(at_least(NGINX, 0.85, 1.0), Goal(measure=Measure.CPU, must=1.0, aim=0.6)),
        ),
        Row(
            name="get-many",
            title=f"GET of {parts} files at once",
            unit="MiB/s",
            replicas=0,
            work=Download(files=files, size=part, count=parts),
            others=both,
            goals=(at_least(NGINX, 0.85, 1.0),),
        ),
        Row(
            name="relay",
            title="GET of a large file, relayed",
            unit="MiB/s",
            replicas=0,
            work=Download(
                files=files,
                size=large,
                where=lambda target, path: target.url_without_copy(path) if isinstance(target, SecuriFile) else target.url(path),
            ),
            others=both,
            goals=(at_least(NGINX, 0.40, 0.60), at_least(SWIFT, 1.3, 1.3)),
        ),
        Row(
            name="get-small",
            title="GET of 4 KiB, 16 connections",
            unit="/s",
            replicas=0,
            work=SmallDownloads(files=files, seconds=sizes.many_s),
            others=both,
            goals=(Goal(measure=Measure.RATE, must=2500, aim=5000), Goal(measure=Measure.P99, must=20, aim=20)),
        ),
        Row(
            name="verify-two",
            title=f"Verification of a returning node, {sizes.verified} files of 1 MiB, two copies",
            unit="MiB/s",
            replicas=1,
            work=Returning(files, sizes.verified),
            others=(ONE_THREAD,),
            goals=(at_least(ONE_THREAD, 0.6, 1.5),),
        ),
        Row(
            name="put-three",
            title="PUT of a large file, three copies",
            unit="MiB/s",
            replicas=2,
            work=Upload(files=files, size=large),
            others=both,
            goals=(at_least(SWIFT, 1.5, 2.5), at_least(NGINX, 0.25, 0.35), Goal(measure=Measure.CPU, must=7.0, aim=5.5)),
        ),
        Row(
            name="put-many",
            title=f"PUT of {parts} files at once, three copies",
            unit="MiB/s",
            replicas=2,
            work=Upload(files=files, size=part, count=parts),
            others=both,
            goals=(at_least(SWIFT, 1.5, 2.5),),
        ),
        Row(
            name="heartbeats",
            title="Heartbeats while a large file goes up, three copies",
            unit="MiB/s",
            replicas=2,
            work=BulkAndHeartbeats(files=files, size=large, count=1),
            others=(),
            goals=(Goal(measure=Measure.P50, must=2, aim=0.5), Goal(measure=Measure.P99, must=15, aim=5)),
        ),
        Row(
            name="heartbeats-many",
            title=f"Heartbeats while {parts} files go up at once, three copies",
            unit="MiB/s",
            replicas=2,
            work=BulkAndHeartbeats(files=files, size=part, count=parts),
            others=(),
            goals=(Goal(measure=Measure.P50, must=2, aim=0.5), Goal(measure=Measure.P99, must=15, aim=5)),
        ),
        Row(
            name="put-small",
            title="PUT of 4 KiB, 16 connections, three copies",
            unit="/s",
            replicas=2,
            work=SmallUploads(seconds=sizes.many_s),
            others=both,
            goals=(Goal(measure=Measure.RATE, must=300, aim=800),),
        ),
        Row(
            name="put-small-busy",
            title="PUT of 4 KiB, 64 connections, three copies",
            unit="/s",
            replicas=2,
            work=SmallUploads(seconds=sizes.many_s, connections=64),
            others=both,
            goals=(Goal(measure=Measure.RATE, must=300, aim=800),),
        ),
        Row(
            name="verify",
            title=f"Verification of a returning node, {sizes.verified} files of 1 MiB, three copies",
            unit="MiB/s",
            replicas=2,
            work=Returning(files, sizes.verified),
            others=(ONE_THREAD,),
            goals=(at_least(ONE_THREAD, 0.6, 1.5),),
        ),
    )
