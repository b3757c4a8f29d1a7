"""What can go wrong, said once.

Two kinds, kept apart. A *Refusal* is a domain "no": a value that the core returns, with a stable code. A *Fault* is a
broken world: an exception. One table (`CATALOGUE`) gives each code its HTTP status, its exit code and its next step, so
that an API problem (RFC 9457), a line in the terminal and a page all say the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """How one code is shown: `status` for HTTP, `exit` for the shell, `title` what happened, `hint` what to do."""

    status: int
    exit: int
    title: str
    hint: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A domain "no". `code` is stable and listed in `CATALOGUE`; `detail` says what exactly, without personal data."""

    code: str
    detail: str = ""

    @property
    def row(self) -> Row:
        return CATALOGUE[self.code]


@dataclass(eq=False)
class Fault(Exception):
    """A broken world: a full disk, a truncated file, a peer that is away. Subclasses fix `code`."""

    detail: str = ""
    hint: str = ""
    context: dict[str, str] = field(default_factory=dict)
    code = "fault.internal"

    def __str__(self) -> str:
        row = self.row
        text = f"{row.title}: {self.detail}" if self.detail else row.title
        hint = self.hint or row.hint
        return f"{text} ({hint})" if hint else text

    @property
    def row(self) -> Row:
        return CATALOGUE[self.code]


class InternalFault(Fault):
    code = "fault.internal"


class ConfigFault(Fault):
    """The configuration cannot be used; `detail` lists every fault with its key."""

    code = "fault.config"


class InputFault(Fault):
    """A value from outside has the wrong form."""

    code = "fault.input"


class FormatFault(Fault):
    """A file or message breaks its format (Crypt4GH, signed note, manifest …)."""

    code = "fault.format"


class KeyFault(Fault):
    """No key at hand opens this; `detail` names the fingerprints that could."""

    code = "fault.key"


class IntegrityFault(Fault):
    """Bytes are not the ones that were sealed: dropped, swapped, altered, truncated or of another version."""

    code = "fault.integrity"


class StorageFault(Fault):
    """The storage backend failed (full, read-only, away)."""

    code = "fault.storage"


class FullFault(StorageFault):
    code = "fault.full"


class MissingFault(Fault):
    """Something that a record points to is not there."""

    code = "fault.missing"


class SealedFault(Fault):
    """The key holder has not been opened yet."""

    code = "fault.sealed"


class ComputeFault(Fault):
    """A run could not be started or ended as asked."""

    code = "fault.compute"


class UnreachableFault(Fault):
    """A process or peer that is needed does not answer."""

    code = "fault.unreachable"


class ConflictFault(Fault):
    """Somebody else changed the same stream at the same time, more often than we retried."""

    code = "fault.conflict"


class RefusedFault(Fault):
    """Carries a `Refusal` through code that can only raise (doors use it to render the refusal)."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal

    @property
    def row(self) -> Row:
        return CATALOGUE[self.refusal.code]


CATALOGUE: Final[dict[str, Row]] = {
    # --- faults -------------------------------------------------------------------------------------------------
    "fault.internal": Row(500, 70, "Something broke inside the node", "tell the operator the reference number"),
    "fault.config": Row(500, 78, "The configuration cannot be used", "run 'valv config check'"),
    "fault.input": Row(400, 64, "The request has the wrong form", ""),
    "fault.format": Row(422, 65, "The file breaks its format", ""),
    "fault.key": Row(
        422, 65, "No key at hand opens this", "encrypt the file for the node's public key: 'valv node key'"
    ),
    "fault.integrity": Row(
        422, 65, "The bytes are not the ones that were sealed", "send the file again from a good copy"
    ),
    "fault.storage": Row(503, 74, "The storage failed", "try again; tell the operator if it stays"),
    "fault.full": Row(507, 74, "The storage is full", "tell the operator; nothing of the failed step was kept"),
    "fault.missing": Row(404, 66, "Not found", ""),
    "fault.sealed": Row(503, 69, "The node's keys are locked", "an operator opens them with 'valv keys unseal'"),
    "fault.compute": Row(503, 71, "The run could not be handled", "look at 'valv doctor'"),
    "fault.unreachable": Row(503, 69, "A part of the node does not answer", "start the node with 'valv up'"),
    "fault.conflict": Row(409, 75, "Somebody changed this at the same moment", "look at it again, then repeat"),
    # --- refusals of the key holder -----------------------------------------------------------------------------
    "key_not_yours": Row(403, 77, "This process may not ask that of the key holder", ""),
    "no_grant": Row(403, 77, "No grant covers this key", "the run or the viewing must be started again"),
    "key_stays_inside": Row(403, 77, "What this key protects does not leave the node", "analyse it in place"),
    "key_class": Row(409, 65, "The key is of another class", ""),
    "key_destroyed": Row(410, 66, "The key was destroyed; its id is not used again", "use a new key id"),
    "key_in_use": Row(409, 75, "Somebody works with the key at this moment", "the node tries again by itself"),
    "key_missing": Row(400, 64, "No key is named", ""),
    "ceremony_missing": Row(409, 65, "The node has no key officers yet", "hold a ceremony: 'valv keys ceremony'"),
    "two_officers": Row(403, 77, "Two officers must sign", "let another officer sign: 'valv keys sign'"),
    "officer_twice": Row(400, 64, "Two officers have the same name or key", "each makes a key of their own"),
    "officer_unknown": Row(403, 77, "This is no officer of the node", "see 'valv keys status'"),
    "threshold": Row(400, 64, "That number of persons cannot be", "2 up to the number of officers"),
    "shares_missing": Row(403, 77, "More officers must give their shares", "see 'valv keys status'"),
    "order_old": Row(409, 65, "The order is too old, or from the future", "make it anew and let two officers sign it"),
    "order_foreign": Row(403, 77, "The order is for another node", "make it for this node"),
    "persons_missing": Row(
        409,
        65,
        "A node for identifiable data needs two persons to unseal it",
        "hold a ceremony with '--persons 2'",
    ),
    "node_closed": Row(
        503, 75, "This node was restored and is not open yet", "its operator opens it with 'valv restore open'"
    ),
    "ledger_short": Row(
        409,
        75,
        "The end of the ledger is missing",
        "give the place that holds the rest; or go on without it: 'valv restore open --accept-loss'",
    ),
    "backup_overtaken": Row(409, 75, "Another backup was made meanwhile", "the node goes on by itself"),
    "ledger_forked": Row(
        409, 75, "The ledger does not continue the one that was signed", "compare it with its last witnessed checkpoint"
    ),
    # --- refusals: log-in and rights -------------------------------------------------------------------------------
    "login_needed": Row(401, 77, "You are not logged in", "log in: 'valv login'"),
    "login_failed": Row(401, 77, "Name or password is wrong", "check both; after five failures wait a minute"),
    "login_limited": Row(429, 75, "Too many failed log-ins", "wait a minute"),
    "not_allowed": Row(403, 77, "You may not do this", ""),
    "second_factor": Row(403, 77, "A fresh second factor is needed", "confirm it: 'valv login --second-factor'"),
    "code_wrong": Row(403, 77, "The code is wrong or was used before", "wait for the next code"),
    "token_foreign": Row(403, 77, "The form was not sent from this page", "load the page again and repeat"),
    "not_found": Row(404, 66, "Not found", "check the name; what you may not see is not found either"),
    # --- refusals: processes -----------------------------------------------------------------------------------
    "not_yours": Row(403, 77, "This step is somebody else's", ""),
    "wrong_phase": Row(409, 65, "Not possible at this stage", "look at the current state"),
    "name_taken": Row(409, 65, "This name is taken", "choose another name"),
    "name_wrong": Row(400, 64, "This name cannot be used", "use small letters, digits, '-' and '_'"),
    "path_wrong": Row(400, 64, "This file name cannot be used", "rename the file"),
    "file_known": Row(409, 65, "This file was received already", "it need not be sent again"),
    "file_larger": Row(413, 65, "The file is larger than allowed", "ask the operator"),
    "offset_wrong": Row(409, 65, "The file goes on at another place", "ask for its offset, and go on there"),
    "upload_busy": Row(423, 75, "This file is being sent already", "wait a moment, ask for the offset, go on there"),
    "checksum": Row(422, 65, "The checksum is not the declared one", "send the file again from a good copy"),
    "files_missing": Row(409, 65, "Files that were announced have not come", "send them, then submit"),
    "deposit_empty": Row(409, 65, "The deposit has no file", "send at least one file"),
    "participants_wrong": Row(422, 65, "participants.tsv cannot be used", "see the custodian's page"),
    "scrub_going": Row(409, 75, "Such a scrub is under way already", "see 'valv fixity status'"),
    "no_certificate": Row(404, 66, "There is no certificate of destruction", "the node writes it when nothing is left"),
    "already_published": Row(409, 65, "This deposit was published before", ""),
    "no_version": Row(404, 66, "There is no such version", "look at the dataset's page"),
    "version_destroyed": Row(410, 66, "The key of this version was destroyed", "nothing opens it any more"),
    "rotation_going": Row(409, 75, "The keys of this version are being rotated already", "see 'valv keys rotations'"),
    "version_closed": Row(
        409, 65, "This version is closed: participants withdrew", "wait for the version that takes its place"
    ),
    "version_replaced": Row(409, 65, "Another version took the place of this one", "use that one"),
    "permit_suspended": Row(
        403, 77, "The permit is suspended: participants narrowed their consent", "ask the committee"
    ),
    "permits_left": Row(409, 75, "Permits still name the old version", "the node goes on by itself"),
    "withdrawal_going": Row(
        409,
        75,
        "A withdrawal from this version is under way",
        "wait for its end; or cancel it and ask again, naming all who withdraw",
    ),
    "person_missing": Row(400, 64, "Nobody is named", "give a file with one pseudonym a line"),
    "person_wrong": Row(400, 64, "This pseudonym cannot be used", "one a line, as in participants.tsv"),
    "files_open": Row(409, 65, "Files wait for the custodian's word", "see 'valv withdrawal show'"),
    "files_left": Row(409, 75, "Not all files are of the new key pair yet", "the node goes on by itself"),
    "body_stays": Row(409, 65, "Only a rekeying gives a file another body", ""),
    "rule_wrong": Row(400, 64, "This rule cannot be used", "write it like: copies = 2, tape after 90 d, only in NO"),
    "store_unknown": Row(404, 66, "There is no such store", "see 'valv storage status'"),
    "same_store": Row(400, 64, "Both stores are the same", "name two"),
    "wrong_place": Row(403, 77, "These data may not rest there", "choose a store of the dataset's country and unit"),
    "files_moving": Row(409, 75, "Not all files are where they are to be yet", "the node goes on by itself"),
    "not_claimed": Row(409, 65, "The version is not claimed to be anonymised", ""),
    "not_scanned": Row(409, 65, "The version was not scanned yet", "wait for the scan"),
    "already_scanned": Row(409, 65, "The version was scanned before", ""),
    "already_assessed": Row(409, 65, "The version was assessed before", ""),
    "already_identifiable": Row(409, 65, "The version is identifiable already", ""),
    "own_claim": Row(403, 77, "Nobody assesses their own claim", "ask a second person"),
    "own_application": Row(403, 77, "Nobody decides on their own application", "ask another member"),
    "own_outputs": Row(403, 77, "Nobody checks their own outputs", "ask another checker"),
    "reason_missing": Row(400, 64, "A reason is needed", "write one sentence"),
    "context_missing": Row(400, 64, "The checker needs to know what this is", "describe the outputs in one sentence"),
    "dataset_missing": Row(400, 64, "No dataset is named", ""),
    "dataset_twice": Row(400, 64, "A dataset is named twice", "name it once"),
    "dataset_unknown": Row(404, 66, "A dataset is not in the catalogue", "look at the catalogue"),
    "person_unknown": Row(404, 66, "A person has no account here", "they log in once first"),
    "disease_missing": Row(400, 64, "The disease is not named", "add for example MONDO:0005147"),
    "place_missing": Row(400, 64, "The place of work is not named", "add the country"),
    "duration": Row(400, 64, "The duration cannot be granted", ""),
    "licence": Row(400, 64, "The terms of use are not accepted", "accept them"),
    "download_identifiable": Row(403, 77, "Identifiable data are never downloaded", "compute on them in the node"),
    "abroad": Row(403, 77, "Identifiable data are not used from abroad", "let a partner in that country apply"),
    "against_consent": Row(403, 77, "The donors did not consent to this use", "change the purpose or the dataset"),
    "ends_before_start": Row(400, 64, "The end lies before the start", ""),
    "no_permit": Row(403, 77, "No permit covers this", "apply for access"),
    "permit_ended": Row(403, 77, "The permit has ended", "apply again"),
    "permit_not_begun": Row(403, 77, "The permit has not begun", "wait for its start"),
    "other_mode": Row(403, 77, "The permit is for another mode", "apply for this mode"),
    "not_yet": Row(409, 65, "Too early", ""),
    "command_missing": Row(400, 64, "No command is named", "write it after '--'"),
    "over_limit": Row(400, 64, "More is asked than the node allows", ""),
    "nothing_to_release": Row(409, 65, "The run left no outputs", "write them to /outbox"),
    "no_file": Row(404, 66, "There is no such file", ""),
    "already_checked": Row(409, 65, "This file is decided already", ""),
    "seal_broken": Row(409, 65, "The files changed since they were sealed", "tell the operator"),
    "not_released": Row(403, 77, "This file was not released", ""),
    "not_proven": Row(403, 77, "Possession of the private key was not shown", "repeat 'valv account key add'"),
    "key_known": Row(409, 65, "This key is registered already", ""),
    "no_key": Row(404, 66, "There is no such key", "see 'valv account key list'"),
}
