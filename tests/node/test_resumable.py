"""What the coordinator of a resumable upload decides about copies that differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from securifile.model.entries import BlobSummary
from securifile.node.resumable import agreed

NODES = ["n1", "n2", "n3", "n4", "n5"]
SEALS = st.dictionaries(st.sampled_from(NODES), st.sampled_from([b"a", b"b", b"c"]), max_size=5)


@given(digests=SEALS)
def test_only_copies_with_the_digest_that_most_have_count(digests: dict[str, bytes]) -> None:
    """Whatever holders computed: those that count all have one digest, more of them than have any other, in the order of priority."""
    digest, holders = agreed({node: BlobSummary(size=1, digest=value) for node, value in digests.items()}, NODES)
    assert holders == [node for node in NODES if digests.get(node) == digest and digest is not None]
    counts = sorted((list(digests.values()).count(value) for value in set(digests.values())), reverse=True)
    unclear = not counts or (len(counts) > 1 and counts[0] == counts[1])
    assert (digest is None) == unclear
    assert unclear or len(holders) == counts[0]
