"""The node's own steps with withdrawals. Each is one transaction after what it speaks of is done, so that it may be cut
off anywhere and is taken up again. A body that is begun has its name in the records before its first byte."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from valv.app import carrying, reading, streams, text
from valv.app import withdrawal as withdrawals
from valv.app.deposit import PARTICIPANTS
from valv.app.node import Node, each, new_id
from valv.app.rotation import KEPT
from valv.app.streams import DATASET, WITHDRAWAL, Step, retried
from valv.core import dataset, withdrawal
from valv.core.process import NODE
from valv.errors import Fault, FormatFault, KeyFault, Refusal
from valv.formats import participants
from valv.formats.seal import sidecar
from valv.ports.compute import DAMAGE, Job, Reader, Rewritten
from valv.ports.records import Unit
from valv.vault.encrypt import Encryptor

BATCH = 1000
WEIGHT = 900 << 10
"""Headers, and bytes of them, that are sealed in one go."""
INDEXES = (".tbi", ".csi")
NO_TABLE = (
    "The version has no participants.tsv, so that the node cannot know which files are whose. It stays closed. Deposit"
    " a new version without who withdrew, and revoke the permits of this one."
)


class Names(msgspec.Struct, frozen=True):
    """What a text of the kind `NAMES` holds: `pseudonyms` that the version has, all `names` that must not be left, and
    those of others of which one of them is a part."""

    pseudonyms: tuple[str, ...]
    names: tuple[str, ...]
    keep: tuple[str, ...]


def step(node: Node, reader: Reader) -> int:
    """Bring every withdrawal one step further. Returns how many are under way."""
    with node.records.reading() as unit:
        going = streams.find(unit, WITHDRAWAL, phases=withdrawal.GOING, newest_first=False, limit=1000)
    each(going, lambda state: _advance(node, reader, state))
    return len(going)


def _advance(node: Node, reader: Reader, state: withdrawal.Withdrawal) -> None:
    with node.records.reading() as unit:
        owner = streams.need(unit, DATASET, state.dataset_id)[0]
    old = owner.version(state.version)
    if state.phase == "carrying":
        carrying.finish(node, state)
    elif old is None or old.destroyed:
        fail(node, state, "The key of the version was destroyed: nobody uses it any more.")
    elif owner.phase == "closed":
        fail(node, state, "The dataset was closed: nobody uses it any more.")
    elif state.phase == "asked":
        _plan(node, reader, state, owner, old)
    elif state.phase == "waiting":
        _go_on(node, state)
    else:
        _work(node, reader, state, old)


# --- the plan ---


def _plan(
    node: Node, reader: Reader, state: withdrawal.Withdrawal, owner: dataset.Dataset, old: dataset.Version
) -> None:
    with node.records.reading() as unit:
        files = reading.files(unit, owner.dataset_id, old.number)
        tables = unit.rows("file", {"deposit": old.deposit_id, "path": PARTICIPANTS, "state": KEPT})
        wanted = msgspec.json.decode(text.get(unit, state.persons), type=withdrawals.Persons)
    if not tables:
        fail(node, state, NO_TABLE)
        return
    try:
        people = participants.parse(_table(node, reader, tables[0]))
    except DAMAGE as fault:
        fail(node, state, f"participants.tsv cannot be read: {fault.detail}. The version stays closed.")
        return
    gone = [one for one in people if one.pseudonym in wanted.pseudonyms]
    if not gone:
        _nobody(node, state)
        return
    node.keys.create(state.key_id, old.claimed)
    rows = planned(files, people, gone)
    rows.append({"file": tables[0]["id"], "work": "table", "state": "todo", "base": ""})
    _begin(node, state, _names(people, gone), [row | {"withdrawal": state.withdrawal_id} for row in rows], len(files))


def _table(node: Node, reader: Reader, row: dict[str, Any]) -> bytes:
    content = bytearray()
    for chunk in reading.plain(node, reader, reading.mounted(row, row["path"])):
        content += chunk
        if len(content) > participants.LARGEST:
            raise FormatFault("the table is too large", f"at most {participants.LARGEST} bytes")
    return bytes(content)


def planned(
    files: Sequence[dict[str, Any]],
    people: Sequence[participants.Participant],
    gone: Sequence[participants.Participant],
) -> list[dict[str, Any]]:
    """What is to be done with each file. Of these people alone: dropped. Theirs and others': rewritten. Nobody's:
    looked through, for the table may not be whole; so are all others where a person who goes has no file named. An
    index follows what it is of."""
    theirs = {one.pseudonym for one in gone}
    whose: dict[str, set[str]] = {}
    for one in people:
        for path in one.files:
            whose.setdefault(path, set()).add(one.pseudonym)
    unsure = any(not one.files for one in gone)
    by_path = {row["path"]: row for row in files}
    rows = []
    for row in files:
        path, owners = row["path"], whose.get(row["path"], set())
        base = by_path.get(path[:-4]) if path.endswith(INDEXES) else None
        if owners and owners <= theirs:
            work = "drop"
        elif base is not None:
            work = "index"
        elif owners & theirs:
            work = "rewrite"
        elif not owners or unsure:
            work = "look"
        else:
            work = "take"
        rows.append({"file": row["id"], "work": work, "state": "todo", "base": base["id"] if base else ""})
    return rows


def _names(people: Sequence[participants.Participant], gone: Sequence[participants.Participant]) -> Names:
    names = {name for one in gone for name in (one.pseudonym, *one.samples)}
    folded = [name.casefold() for name in names]
    others = {name for one in people if one not in gone for name in (one.pseudonym, *one.samples)} - names
    keep = (name for name in others if any(part in name.casefold() for part in folded))
    return Names(tuple(sorted(one.pseudonym for one in gone)), tuple(sorted(names)), tuple(sorted(keep)))


@retried
def _begin(node: Node, state: withdrawal.Withdrawal, names: Names, rows: Sequence[dict[str, Any]], files: int) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        stream = WITHDRAWAL.stream(state.withdrawal_id)
        if _commit(unit, state, withdrawal.Plan(by=NODE, at=at, files=files)):
            text.put(
                unit, stream, withdrawals.NAMES, msgspec.json.encode(names).decode(), at, longest=withdrawals.LONGEST
            )
            unit.insert("withdrawal_file", rows)


@retried
def _nobody(node: Node, state: withdrawal.Withdrawal) -> None:
    """The version opens again, unless an earlier withdrawal that came to no end closed it too."""
    at = node.clock()
    with node.records.writing() as unit:
        owner, number = streams.need(unit, DATASET, state.dataset_id)
        known = streams.find(unit, WITHDRAWAL, link=("dataset", state.dataset_id), limit=withdrawals.MOST)
        unsettled = any(one.version == state.version and one.phase in ("failed", "cancelled") for one in known)
        now, version = streams.need(unit, WITHDRAWAL, state.withdrawal_id)
        events = withdrawal.decide(now, withdrawal.FindNobody(by=NODE, at=at), withdrawal.Facts())
        if isinstance(events, Refusal):
            return
        steps: list[Step[Any]] = [Step(WITHDRAWAL, state.withdrawal_id, version, now, events)]
        if not unsettled:
            opening = dataset.OpenVersion(by=NODE, at=at, version=state.version)
            opened = dataset.decide(owner, opening, dataset.Facts())
            steps.append(Step(DATASET, state.dataset_id, number, owner, opened))
        streams.commit(unit, steps, by=NODE, at=at, command=new_id())
        carrying.erase(unit, state, at)
        carrying.tell(
            unit,
            owner,
            state,
            at,
            "A withdrawal found nobody",
            f"No line of participants.tsv of {owner.name} version {state.version} has a pseudonym that you named."
            + (" The version stays closed." if unsettled else " The version is open again."),
        )


# --- the files ---


def _work(node: Node, reader: Reader, state: withdrawal.Withdrawal, old: dataset.Version) -> None:
    _give_up_begun(node, state)
    with node.records.reading() as unit:
        rows = unit.rows("withdrawal_file", {"withdrawal": state.withdrawal_id}, order="file")
    todo = [row for row in rows if row["state"] == "todo"]
    bases = {row["file"]: row for row in rows}
    by_work: dict[str, list[dict[str, Any]]] = {}
    for row in todo:
        by_work.setdefault(row["work"], []).append(row)
    if "drop" in by_work:
        for row in by_work["drop"][:BATCH]:
            _settle(node, state, row, "dropped")
    elif "take" in by_work or "keep" in by_work:
        _take(node, state, old, [*by_work.get("take", ()), *by_work.get("keep", ())][:BATCH])
    elif "look" in by_work or "rewrite" in by_work:
        _rewrite(node, reader, state, old, [*by_work.get("look", ()), *by_work.get("rewrite", ())][0])
    elif any(row["state"] == "asking" for row in rows):
        _record(node, state, withdrawal.Wait(by=NODE, at=node.clock(), files=_asking(rows)), told=True)
    elif "index" in by_work:
        _index(node, reader, state, by_work["index"][0], bases)
    elif "table" in by_work:
        _rewrite_table(node, reader, state, by_work["table"][0], rows)
    else:
        carrying.publish(node, state, old)


def _asking(rows: Sequence[dict[str, Any]]) -> int:
    return sum(row["state"] == "asking" for row in rows)


def _go_on(node: Node, state: withdrawal.Withdrawal) -> None:
    with node.records.reading() as unit:
        asking = unit.count("withdrawal_file", {"withdrawal": state.withdrawal_id, "state": "asking"})
    if not asking:
        _record(node, state, withdrawal.GoOn(by=NODE, at=node.clock()))


def _take(node: Node, state: withdrawal.Withdrawal, old: dataset.Version, rows: Sequence[dict[str, Any]]) -> None:
    """Files of others: the same bodies, their headers sealed to the successor's key."""
    with node.records.reading() as unit:
        files = {row["id"]: row for row in unit.rows("file", {"id": [row["file"] for row in rows]})}
    light: list[dict[str, Any]] = []
    weight = 0
    for row in rows:
        weight += len(files[row["file"]]["header"])
        if weight > WEIGHT and light:
            break
        light.append(row)
    _take_these(node, state, old, light, files)


def _take_these(
    node: Node,
    state: withdrawal.Withdrawal,
    old: dataset.Version,
    rows: Sequence[dict[str, Any]],
    files: dict[str, dict[str, Any]],
) -> None:
    try:
        headers = node.keys.reseal_across(old.key_id, [files[row["file"]]["header"] for row in rows], state.key_id)
    except DAMAGE:
        node.keys.reseal_across(old.key_id, [], state.key_id)  # raises where a key is at fault, and not a header
        if len(rows) > 1:
            half = len(rows) // 2
            _take_these(node, state, old, rows[:half], files)
            _take_these(node, state, old, rows[half:], files)
            return
        with node.records.reading() as unit:
            now = unit.rows("file", {"id": rows[0]["file"]})[0]
        if now["header"] == files[now["id"]]["header"]:  # else a rotation was quicker: at the next turn
            _ask_custodian(node, rows[0], "damaged")
        return
    at = node.clock()
    with node.records.writing() as unit:
        if not _commit(unit, state, withdrawal.RecordTaken(by=NODE, at=at, files=len(rows))):
            return
        made = [
            withdrawals.new_row(state, files[row["file"]], at) | {"header": header}
            for row, header in zip(rows, headers, strict=True)
        ]
        unit.insert("file", made)
        unit.update_each(
            "withdrawal_file",
            ((_key(row), {"state": "done", "made": new["id"]}) for row, new in zip(rows, made, strict=True)),
        )


def _rewrite(
    node: Node, reader: Reader, state: withdrawal.Withdrawal, old: dataset.Version, row: dict[str, Any]
) -> None:
    """Look through a file, or take the people out of it; what was made is looked through again."""
    with node.records.reading() as unit:
        file = unit.rows("file", {"id": row["file"]})[0]
        names = _known(unit, state)
    job = Job("look" if row["work"] == "look" else "rewrite", file["path"], names.names, names.keep)
    body, made = _asked(node, reader, state, old.key_id, row, file, job)
    if made.outcome == "custodian":
        _ask_custodian(node, row, made.why)
    elif made.outcome == "drop":
        _settle(node, state, row, "dropped")
    elif made.outcome == "clean":
        _change(node, row, {"work": "take"})
    elif made.outcome == "mentions":
        _change(node, row, {"work": "rewrite"})
    else:
        new = _new_file(node, state, file, body, made)
        _, seen = _asked(
            node, reader, state, state.key_id, row, new, Job("look", file["path"], names.names, names.keep)
        )
        _keep(node, state, row, new, "" if seen.outcome == "clean" else "remains")


def _index(
    node: Node,
    reader: Reader,
    state: withdrawal.Withdrawal,
    row: dict[str, Any],
    bases: dict[str, dict[str, Any]],
) -> None:
    """An index of a file that was taken over is taken over, of one that was dropped dropped, else made anew."""
    base = bases[row["base"]]
    if not base["made"]:
        _settle(node, state, row, "dropped")
        return
    with node.records.reading() as unit:
        file = unit.rows("file", {"id": row["file"]})[0]
        before, new = (unit.rows("file", {"id": ident})[0] for ident in (base["file"], base["made"]))
    if before["body"] == new["body"]:
        _change(node, row, {"work": "take"})
        return
    kind: Any = file["path"].rpartition(".")[2]
    body, made = _asked(node, reader, state, state.key_id, row, new, Job("index", new["path"], ("-",), kind=kind))
    if made.outcome == "rewritten":
        _keep(node, state, row, _new_file(node, state, file, body, made), "")
    else:
        _settle(node, state, row, "dropped")  # who works with the file can make one


def _asked(
    node: Node,
    reader: Reader,
    state: withdrawal.Withdrawal,
    key_id: str,
    row: dict[str, Any],
    file: dict[str, Any],
    job: Job,
) -> tuple[str, Rewritten]:
    """The name of the new body, and the answer to the job."""
    body = new_id()
    grant = _grant(state)
    token, uid = reader.reserve()
    if job.do != "look":
        _change(node, row, {"body": body})
    node.keys.revoke(grant)  # that of a step which was cut off was for another process
    try:
        node.keys.grant(grant, [key_id], uid, reading.GRANT)
        # Held against the hash tree: what is wrong with an old body must not be sealed into the new one.
        mounted = reading.mounted(file | {"known_outside": True}, file["path"])
        public = node.keys.create(state.key_id, _class(node, state))
        return body, reader.rewrite(token, grant, mounted, job, public_key=public, body=body)
    except KeyFault:
        with node.records.reading() as unit:
            now = unit.rows("file", {"id": file["id"]})
        if now and now[0]["header"] != file["header"]:
            raise  # a rotation was quicker: at the next turn
        return body, Rewritten("custodian", "damaged")
    except FormatFault:
        return body, Rewritten("custodian", "broken")
    except DAMAGE:
        return body, Rewritten("custodian", "damaged")
    finally:
        with contextlib.suppress(Fault):  # it ends by itself
            node.keys.revoke(grant)


def _class(node: Node, state: withdrawal.Withdrawal) -> Any:
    with node.records.reading() as unit:
        owner = streams.need(unit, DATASET, state.dataset_id)[0]
    old = owner.version(state.version)
    assert old is not None
    return old.claimed


def _grant(state: withdrawal.Withdrawal) -> str:
    return f"rewrite-{state.withdrawal_id}"


def _new_file(
    node: Node, state: withdrawal.Withdrawal, file: dict[str, Any], body: str, made: Rewritten
) -> dict[str, Any]:
    return withdrawals.new_row(state, file, node.clock()) | {
        "body": body,
        "header": made.header,
        "size": made.size,
        "cipher_size": made.cipher_size,
        "segments": made.segments,
        "seal_root": made.seal_root,
        "tree_root": made.tree_root,
        "sha256": made.sha256,
        "sent_sha256": None,
        "known_outside": False,
    }


def _rewrite_table(
    node: Node,
    reader: Reader,
    state: withdrawal.Withdrawal,
    row: dict[str, Any],
    rows: Sequence[dict[str, Any]],
) -> None:
    """`participants.tsv` without the people, and without files that are there no more."""
    with node.records.reading() as unit:
        file = unit.rows("file", {"id": row["file"]})[0]
        names = _known(unit, state)
        dropped = [one["file"] for one in rows if one["work"] != "table" and not one["made"]]
        paths = {
            one["path"]
            for start in range(0, len(dropped), BATCH)
            for one in unit.rows("file", {"id": dropped[start : start + BATCH]})
        }
    content = participants.without(_table(node, reader, file), frozenset(names.pseudonyms), frozenset(paths))
    body = new_id()
    _change(node, row, {"body": body})
    encryptor = Encryptor(
        node.storage.writer(body),
        node.storage.writer(sidecar(body)),
        node.keys.create(state.key_id, _class(node, state)),
    )
    try:
        encryptor.write(content)
        sealed = encryptor.finish()
    except BaseException:
        encryptor.abort()
        raise
    made = Rewritten("rewritten", **msgspec.structs.asdict(sealed))
    _keep(node, state, row, _new_file(node, state, file, body, made), "")


# --- the records ---


def _known(unit: Unit, state: withdrawal.Withdrawal) -> Names:
    rows = unit.rows("text", {"owner_stream": WITHDRAWAL.stream(state.withdrawal_id), "kind": withdrawals.NAMES})
    return msgspec.json.decode(rows[0]["body"], type=Names)


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {"withdrawal": row["withdrawal"], "file": row["file"]}


def _change(node: Node, row: dict[str, Any], values: dict[str, Any]) -> None:
    with node.records.writing() as unit:
        unit.update("withdrawal_file", _key(row), values)


def _settle(node: Node, state: withdrawal.Withdrawal, row: dict[str, Any], outcome: withdrawal.Outcome) -> None:
    """A file that comes to an end without a new one."""
    at = node.clock()
    with node.records.writing() as unit:
        file = unit.rows("file", {"id": row["file"]})[0]
        order = withdrawal.RecordFile(
            by=NODE, at=at, file_id=row["file"], outcome=outcome, before=file["tree_root"].hex(), after=""
        )
        if _commit(unit, state, order):
            unit.update("withdrawal_file", _key(row), {"state": "done", "work": "drop"})


def _keep(node: Node, state: withdrawal.Withdrawal, row: dict[str, Any], new: dict[str, Any], why: str) -> None:
    """The new file is one of the successor's; `why`: once the custodian says so."""
    at = node.clock()
    with node.records.writing() as unit:
        before = unit.rows("file", {"id": row["file"]})[0]
        order = withdrawal.RecordFile(
            by=NODE,
            at=at,
            file_id=row["file"],
            outcome="rewritten",
            before=before["tree_root"].hex(),
            after=new["tree_root"].hex(),
        )
        now = streams.need(unit, WITHDRAWAL, state.withdrawal_id)[0]
        if now.phase != "rewriting" or (not why and not _commit(unit, state, order)):
            carrying.leave(unit, new["body"], new["id"], at)
            unit.update("withdrawal_file", _key(row), {"body": ""})
            return
        unit.insert("file", [new])
        values = {"made": new["id"], "body": "", "why": why, "state": "asking" if why else "done"}
        unit.update("withdrawal_file", _key(row), values)


def _ask_custodian(node: Node, row: dict[str, Any], why: str) -> None:
    _change(node, row, {"state": "asking", "why": why})


def _give_up_begun(node: Node, state: withdrawal.Withdrawal) -> None:
    """Bodies that a step was writing when it was cut off."""
    with node.records.reading() as unit:
        rows = unit.rows("withdrawal_file", {"withdrawal": state.withdrawal_id})
    begun = [row for row in rows if row["body"]]
    if not begun:
        return
    node.keys.revoke(_grant(state))
    at = node.clock()
    with node.records.writing() as unit:
        for row in begun:
            carrying.leave(unit, row["body"], row["file"], at)
            unit.update("withdrawal_file", _key(row), {"body": ""})


@retried
def _record(node: Node, state: withdrawal.Withdrawal, order: withdrawal.Commands, *, told: bool = False) -> None:
    with node.records.writing() as unit:
        if _commit(unit, state, order) and told:
            owner = streams.need(unit, DATASET, state.dataset_id)[0]
            carrying.tell(
                unit,
                owner,
                state,
                order.at,
                "A withdrawal needs you",
                f"In {owner.name} version {state.version} there are files that the node cannot rewrite by itself. Say"
                f" for each whether it is dropped or kept: 'valv withdrawal show {state.withdrawal_id}', or the"
                " dataset's page. Until then the version stays closed.",
            )


@retried
def fail(node: Node, state: withdrawal.Withdrawal, why: str) -> None:
    """The version stays closed, and the custodian is told why."""
    at = node.clock()
    with node.records.writing() as unit:
        said = text.put(unit, WITHDRAWAL.stream(state.withdrawal_id), "why", why[: text.LONGEST], at)
        if _commit(unit, state, withdrawal.Fail(by=NODE, at=at, why=said)):
            owner = streams.need(unit, DATASET, state.dataset_id)[0]
            carrying.erase(unit, state, at)
            carrying.tell(unit, owner, state, at, "A withdrawal came to no end", why)


def _commit(unit: Unit, state: withdrawal.Withdrawal, order: withdrawal.Commands) -> bool:
    """Where somebody cancelled it meanwhile, nothing happens. Whether something did."""
    now, version = streams.need(unit, WITHDRAWAL, state.withdrawal_id)
    events = withdrawal.decide(now, order, withdrawal.Facts())
    if isinstance(events, Refusal):
        return False
    done = Step(WITHDRAWAL, state.withdrawal_id, version, now, events)
    streams.commit(unit, [done], by=NODE, at=order.at, command=new_id())
    return True


def clear(node: Node) -> int:
    """What withdrawals that came to no end have made, and the names that they were about. Returns how many."""
    with node.records.reading() as unit:
        idents = {row["withdrawal"] for row in unit.rows("withdrawal_file")}
        over = [
            state
            for ident in sorted(idents)
            if (state := streams.need(unit, WITHDRAWAL, ident)[0]).phase not in withdrawal.GOING
        ]
    for state in over:
        at = node.clock()
        node.keys.revoke(_grant(state))
        with node.records.writing() as unit:
            for row in unit.rows("withdrawal_file", {"withdrawal": state.withdrawal_id}):
                if row["body"]:
                    carrying.leave(unit, row["body"], row["file"], at)
            if not state.successor:
                for row in unit.rows("file", {"deposit": state.withdrawal_id}):
                    carrying.leave(unit, row["body"], row["id"], at)
                unit.delete("file", {"deposit": state.withdrawal_id})
            unit.delete("withdrawal_file", {"withdrawal": state.withdrawal_id})
            carrying.erase(unit, state, at)
    return len(over)
