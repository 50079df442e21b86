"""Speed against what people would use instead: the same work by the same clients in the same run, alternating.

    make bench-quick      a few minutes, for a change under way
    make bench            all rows at full size

A machine has its moods, so a figure alone says little; the ratio of two taken one after the other says more, and the median of several
such pairs is what counts. Clients are written in C (curl, wrk), so that the client is not what is measured.

    figures     values: a sample, a goal; and the statistics of many
    rows        what is measured, and what it must come to
    work        one piece of work on one server, measured
    trips       round trips of heartbeats meanwhile; `returning`: a node that is verified
    targets     what is measured: `cluster` (SecuriFile), `nginx`, `swift`
    clients     curl and wrk
    processes   CPU time and memory of whole process trees
    report      the table; `history` keeps it, with the machine
"""
