"""What servers say to each other: every message is a value.

A request is answered by exactly one answer, or by an error (`Refused`). Messages whose answer carries nothing are
answered by `Done`. On the wire a message is its class's name and its fields; a field added later has a default, and
fields a receiver does not know are passed over, so that neighbouring releases understand each other.
"""

from __future__ import annotations

from typing import Any

import attrs

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Sidecar, WholeBlob
from securifile.model.facts import Change, Claim, Fact
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.proofs import Proof, Report
from securifile.model.roles import Role
from securifile.model.servers import Status
from securifile.model.staged import Note, StagedUpload


@attrs.frozen(kw_only=True)
class Done:
    """It is done, and there is nothing more to say."""

    reached: Position | None = None
    """In the answer to what the feed brought: how far the index is now. None: not said."""


# --- every server to every other: heartbeats, locks, announcements ---


@attrs.frozen(kw_only=True)
class Heartbeat:
    """Are you there? Sent every heartbeat interval, in every status."""

    position: Position
    used_bytes: int = 0
    available_bytes: int = 0
    boot: str = ""
    """The life of the sender's process."""
    judgements: dict[str, Status] = attrs.field(factory=dict)
    """How the sender judges each other server: the observer's row of the matrix."""


@attrs.frozen(kw_only=True)
class HeartbeatAnswer:
    """I am. With what the sender of the heartbeat needs for its standing."""

    position: Position
    held_for: Status
    """What the answering server holds the asker for."""
    wall: float = 0.0
    """Of an admin server: its wall clock, seconds since 1970."""


@attrs.frozen(kw_only=True)
class LeaseAsk:
    """May `holder` modify this file for `duration_s`? Asking again with the same attempt renews."""

    key: bytes
    """The file's id; for a new path a hash of the parent's id and the name."""
    attempt: AttemptId
    person: str
    duration_s: float


@attrs.frozen(kw_only=True)
class LeaseAnswer:
    """Granted, or who has it and for how long still."""

    granted: bool
    holder: str | None = None
    """The person whose upload holds it."""
    node: str | None = None
    expires_in_s: float = 0.0


@attrs.frozen(kw_only=True)
class LeaseLook:
    """Who holds this key? Nothing is granted by it; `granted` in the answer: nobody."""

    key: bytes


@attrs.frozen(kw_only=True)
class LeaseRelease:
    """The attempt has ended; forget its lease. Not sent to who has the feature `unlocking`, and has heard of the attempt's commit."""

    key: bytes
    attempt: AttemptId


@attrs.frozen(kw_only=True)
class Announce:
    """This was committed at `position`. Answered by `Done` when the receiver's index has it."""

    position: Position
    facts: tuple[Fact, ...]


@attrs.frozen(kw_only=True)
class Ended:
    """On a notice connection: the process that was this life of the sender is over, and so is every other one that served people for it.

    Answered by `Done`.
    """

    boot: str


@attrs.frozen(kw_only=True)
class SettledAsk:
    """You committed this attempt: may its version be shown to people? Answered by `SettledAnswer`. (Feature `settling`.)"""

    attempt: AttemptId
    settled: bool = False
    """It may, as the asking server knows, who coordinated the upload; the answer is of no interest."""


@attrs.frozen(kw_only=True)
class SettledAnswer:
    """What is known of that attempt, at the moment of the answer."""

    word: str
    """`settled`: no node can give the version before any more. `under-way`: the writer is not answered yet; who asks may show the version
    before. `unknown`: neither can be said; who asks may show the version when it has become certain by itself, and not the one before."""


# --- node to admin server: the feed ---


@attrs.frozen(kw_only=True)
class Follow:
    """Send me every change after `position`, in order, as `Changes`, from now on; and this is where I am reached."""

    position: Position
    url: str
    protocol_address: str
    boot: str = ""
    """The life of the sender's process."""
    mark: bytes = b""
    """That of the change at revision `marked`, the last one whose mark the index knows: to tell a history from another."""
    marked: int = 0


@attrs.frozen(kw_only=True)
class Following:
    """The feed starts; when `snapshot`, with `SnapshotPart`s, because the position is too old or of another history."""

    position: Position
    snapshot: bool


@attrs.frozen(kw_only=True)
class Changes:
    """Admin to node: the next changes, without a gap. Answered by `Done` after they are in the index."""

    epoch: int
    changes: tuple[Change, ...]


@attrs.frozen(kw_only=True)
class MissedAsk:
    """Node to node: which changes come after `position`? Answered by `Changes`, empty when they are not at hand."""

    position: Position


@attrs.frozen(kw_only=True)
class SnapshotPart:
    """Admin to node: a part of everything there is at `position`; after the `last` it takes the index's place."""

    position: Position
    facts: tuple[Fact, ...]
    last: bool
    mark: bytes = b""
    """That of the last change before the position."""
    compare: bool = False
    """Not to be taken: the index knows what the catalogue has lost. What it has otherwise is to be handed in (`HandIn`)."""
    blobs: bool = False
    """With `compare`: the catalogue was made anew, and what is on the disk is to be handed in, too."""


@attrs.frozen(kw_only=True)
class HandIn:
    """Node to admin: a part of what the index has otherwise than the snapshot that was to be compared. Answered by `Done`."""

    position: Position
    """How far the index is, in the history that the catalogue lost."""
    number: int
    """Of the part, from 0."""
    claims: tuple[Claim, ...]
    last: bool
    blobs: tuple[Sidecar, ...] | None = None
    """What is on the disk, a part of it as well; None: not told."""


# --- node to admin server: acting for a person ---


@attrs.frozen(kw_only=True)
class Commit:
    """Make this attempt version `number` of the file, if that is the next one."""

    attempt: AttemptId
    person: str
    owner: str
    parent: EntryId
    name: str
    file: EntryId
    """The file's id; for a new path the id it gets."""
    number: int
    """1 for a new path; otherwise current version + 1."""
    size: int
    digest: bytes
    algorithm: DigestAlgorithm
    copies: tuple[Copy, ...]
    key: str | None = None
    """The Idempotency-Key of the request."""
    request: bytes = b""
    """Hash of person, path and precondition: what must be equal when a key comes again."""


@attrs.frozen(kw_only=True)
class Committed:
    """Committed at `position` (now, or earlier when the same attempt or key comes again)."""

    position: Position
    facts: tuple[Fact, ...]
    attempt: AttemptId
    """The attempt that won: another one when an Idempotency-Key was answered from memory."""
    created: bool
    known_by: tuple[str, ...] = ()
    """Running nodes of which the answering server knows that their indexes have it: they need not be told."""


@attrs.frozen(kw_only=True)
class OutcomeAsk:
    """How did this attempt end? With `abandon`, it ends now if it has not yet."""

    attempt: AttemptId
    abandon: bool


@attrs.frozen(kw_only=True)
class Outcome:
    """`committed` (then with the answer of the commit), `abandoned`, or None: not ended."""

    ended: str | None
    committed: Committed | None = None


@attrs.frozen(kw_only=True)
class KeyAsk:
    """Was this Idempotency-Key used before? Answered by `Outcome`; refused when used for something else."""

    person: str
    key: str
    request: bytes


@attrs.frozen(kw_only=True)
class MakeFolder:
    """Create a folder."""

    person: str
    owner: str
    parent: EntryId
    name: str
    id: EntryId


@attrs.frozen(kw_only=True)
class Delete:
    """Delete an entry; a folder with all beneath it when `recursive`."""

    person: str
    entry: EntryId
    recursive: bool = False
    version: int | None = None
    """Only if this is the current version (`If-Match`)."""


@attrs.frozen(kw_only=True)
class Move:
    """Give an entry another parent and name, within the same owner's namespace."""

    person: str
    entry: EntryId
    parent: EntryId
    name: str


@attrs.frozen(kw_only=True)
class SetGrant:
    """Give, change (`role`) or take away (None) a person's right."""

    person: str
    entry: EntryId
    username: str
    role: Role | None


@attrs.frozen(kw_only=True)
class Acted:
    """What acting for the person committed."""

    position: Position
    facts: tuple[Fact, ...]


@attrs.frozen(kw_only=True)
class SignIn:
    """A person's name (or e-mail address) and password, for a session."""

    username: str
    password: str = attrs.field(repr=False)
    peer: str


@attrs.frozen(kw_only=True)
class SignedIn:
    """The new session; the token is nowhere else."""

    token: str = attrs.field(repr=False)
    username: str
    expires_at: float
    position: Position
    facts: tuple[Fact, ...]


@attrs.frozen(kw_only=True)
class CheckPassword:
    """Is this the person's password? For HTTP Basic."""

    username: str
    password: str = attrs.field(repr=False)
    peer: str


@attrs.frozen(kw_only=True)
class PasswordChecked:
    """It is; valid until the person's `credentials` change."""

    username: str
    credentials: int


@attrs.frozen(kw_only=True)
class SignOut:
    """End a session."""

    token_hash: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class RenewCertificate:
    """A CSR (PEM) for the asking node itself."""

    csr: bytes


@attrs.frozen(kw_only=True)
class RenewedCertificate:
    """The new certificate with its chain (PEM)."""

    chain: bytes


@attrs.frozen(kw_only=True)
class AuditKept:
    """Admin to node: the records of this boot up to this number are kept."""

    boot: str
    number: int


# --- verification of a returning node ---


@attrs.frozen(kw_only=True)
class Verify:
    """Admin to node: challenge `subject` (perhaps yourself) on all files you share. Answered by `Verified`."""

    subject: str
    nonce: bytes
    position: Position
    """The subject has caught up to here; the asked node answers from an index that has, too."""
    challengers: tuple[str, ...] = ()
    """To the subject itself: who has verified it; only what none of these holds is left to be asked for."""


@attrs.frozen(kw_only=True)
class Verified:
    """What came of it."""

    report: Report


@attrs.frozen(kw_only=True)
class ChallengeItem:
    """One file that both hold."""

    file: EntryId
    attempt: AttemptId
    algorithm: DigestAlgorithm


@attrs.frozen(kw_only=True)
class Challenge:
    """Node to node: prove that you have these. Answered by `Proofs`."""

    nonce: bytes
    whole: bool
    """Whole blobs; else only the blocks that the nonce picks."""
    items: tuple[ChallengeItem, ...]


@attrs.frozen(kw_only=True)
class Proofs:
    """One proof for each item, in order."""

    proofs: tuple[Proof, ...]


@attrs.frozen(kw_only=True)
class RepairSelf:
    """Admin to node: read every copy you should have, and fetch what is missing or rotten. Answered by `Repaired`."""


@attrs.frozen(kw_only=True)
class Repaired:
    """What came of it."""

    checked: int
    fetched: int
    lost: tuple[EntryId, ...]
    """Files (the first of them) that no other holder could give."""


@attrs.frozen(kw_only=True)
class CopyMade:
    """Node to admin: this node has the blob of a version that lists it as pending. Answered by `Done`."""

    file: EntryId
    attempt: AttemptId


@attrs.frozen(kw_only=True)
class CopyBad:
    """Node to admin: this node's copy cannot be used; it is pending again. Answered by `Done`."""

    file: EntryId
    attempt: AttemptId
    reason: str


@attrs.frozen(kw_only=True)
class FailingCopy:
    """One pending copy that the sender has tried to make, and could not."""

    file: EntryId
    attempt: AttemptId
    failures: int
    """How often it was tried in vain."""
    since_s: float
    """How long ago it failed for the first time."""
    reason: str
    own_disk: bool = False
    """It is the sender's disk that cannot take it; else the content could not be had."""


@attrs.frozen(kw_only=True)
class CopiesFailing:
    """Node to every admin server, as long as it goes on: these copies cannot be made here. Answered by `Done`."""

    copies: tuple[FailingCopy, ...]


@attrs.frozen(kw_only=True)
class CheckedCopy:
    """One of the sender's copies was read whole, and is sound."""

    attempt: AttemptId
    at: float
    """Wall clock of the sender, seconds since 1970."""


@attrs.frozen(kw_only=True)
class CopiesChecked:
    """Node to admin: these copies were checked, and this is how the node's copies are on the whole. Answered by `Done`."""

    copies: tuple[CheckedCopy, ...]
    oldest_at: float | None
    """When the copy was checked (or, if it never was, committed) that has waited longest; None: the node has no copy."""
    quarantined: int
    """Blobs that were put aside and that nobody has removed."""


# --- bulk connections: one transfer at a time ---


@attrs.frozen(kw_only=True)
class StoreBlob:
    """The blob of this attempt follows as a stream. Answered by `BlobStored`."""

    attempt: AttemptId
    file: EntryId
    version: int
    algorithm: DigestAlgorithm
    size: int | None
    """When it is known beforehand: for early refusal."""
    vouched: bool = False
    """The end of the stream tells the digest (`BlobSent`), and the receiver computes none. (Feature `vouched`.)"""


@attrs.frozen(kw_only=True)
class BlobSent:
    """In the END of a `StoreBlob` that is `vouched`: what was sent. The receiver keeps it only if it received that."""

    size: int
    digest: bytes
    checksum: bytes
    """BLAKE3 (32 bytes) over the checksums of the blocks, one after the other: BLAKE3 (16 bytes) of each 256 KiB."""


@attrs.frozen(kw_only=True)
class BlobStored:
    """It is durable here. The receiver has computed the checksum; the digest as well, unless the blob is `vouched`."""

    size: int
    digest: bytes
    checksum: bytes | None = None
    """As in `BlobSent`; told of a stream."""


@attrs.frozen(kw_only=True)
class StoreBlobs:
    """These blobs, all of each. Answered by `BlobsStored`. (Feature `whole`.)"""

    blobs: tuple[WholeBlob, ...]


@attrs.frozen(kw_only=True)
class FetchBlob:
    """Bytes [start, stop) of the blob, please (`stop` None: to its end)."""

    attempt: AttemptId
    start: int = 0
    stop: int | None = None


@attrs.frozen(kw_only=True)
class BlobFollows:
    """The bytes follow as a stream; the whole blob is `size` long."""

    size: int


# --- resumable uploads (feature `resumable`): decision 15 ---


@attrs.frozen(kw_only=True)
class AppendBlob:
    """On a bulk connection: bytes of a resumable upload from `offset` on follow as a stream. Answered by `BlobAppended`.

    When the stream breaks, what has come is kept, unless it is `checked`.
    """

    upload: StagedUpload
    offset: int
    """Not beyond what is there already; what is there is passed over."""
    length: int | None = None
    """Of the whole, if it is known by now."""
    checked: bool = False
    """The end of the stream says that its checksum is right; nothing of it counts before."""


@attrs.frozen(kw_only=True)
class BlobAppended:
    """Everything before `offset` is durable here."""

    offset: int


@attrs.frozen(kw_only=True)
class UploadLook:
    """How far is this upload with you? Ends an append that is under way, if the upload is that person's. Answered by `UploadFound`."""

    attempt: AttemptId
    person: str


@attrs.frozen(kw_only=True)
class UploadFound:
    """What is durable here; None: nothing is known of it."""

    upload: StagedUpload | None = None
    note: Note | None = None
    sealed: bool = False
    """It is, or was, a staged blob."""


@attrs.frozen(kw_only=True)
class UploadCatchUp:
    """Fetch what you lack of this upload before `offset` from `source` (None: there is nothing yet). Answered by `BlobAppended`."""

    upload: StagedUpload
    offset: int
    length: int | None
    source: str | None


@attrs.frozen(kw_only=True)
class UploadSeal:
    """Make a staged blob of it. Answered by `BlobStored`; again, if it is one already."""

    attempt: AttemptId
    file: EntryId
    version: int
    size: int


@attrs.frozen(kw_only=True)
class UploadDrop:
    """Forget it; a blob that it became stays. Answered by `Done`."""

    attempt: AttemptId


# --- errors ---


@attrs.frozen(kw_only=True)
class Refused:
    """A `Refusal` on its way to another server."""

    code: str
    detail: str
    retry_after_s: float | None = None
    evidence: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BlobsStored:
    """What became of each of the blobs of `StoreBlobs`, in their order."""

    results: tuple[BlobStored | Refused, ...]


Message = Any
"""Any of the classes above (attrs instances)."""
