"""`valv dataset destroy` and `valv dataset certificate`: the end of a dataset, and what proves it.

Two officers order it, at the key holder; this guides them there, and fetches the certificate afterwards.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valv.cli.command import HERE, Door, Local, command, group
from valv.cli.custody import MinutesFile, Sign, SignFiles, ToFile
from valv.cli.text import size
from valv.errors import InputFault, UnreachableFault

if TYPE_CHECKING:
    from valv.formats.certificate import Certificate

app = group("Destroy a dataset.")
certificate = group("Certificates of destruction: fetch, read and prove them.")
app.add_typer(certificate, name="certificate")
PAUSE = 0.5
PATIENCE = 300.0
"""Seconds between two looks for a certificate, and for which it is waited."""
LARGEST = 1 << 30
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
Number = Annotated[int | None, typer.Option("--version", min=1, help="Its version.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.", show_default=False)
]
BundleFile = Annotated[Path, typer.Argument(metavar="FILE", help="What 'certificate fetch' wrote.", show_default=False)]


@command(
    app,
    "destroy",
    action="dataset.certificate",
    example="valv dataset destroy heart-cohort --version 2 --reason 'Withdrawn by the donors.' --order destroy.order\n"
    "valv dataset destroy heart-cohort --reason 'The study is over.' --node /srv/valv \\\n"
    "    --sign anna.officer --sign bo.officer --certificate heart-cohort.json",
)
def destroy(
    door: Door,
    name: Name,
    reason: Annotated[str, typer.Option(help="One line; it stands in the minutes.", show_default=False)],
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="This version only.", show_default=False)
    ] = None,
    node: Annotated[
        Path | None,
        typer.Option("--node", metavar="DIR", help="The node's folder, to hand the order in here.", show_default=False),
    ] = None,
    sign: Sign = None,
    sign_passphrase_file: SignFiles = None,
    order: ToFile = None,
    minutes: MinutesFile = None,
    kept: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Wait for the certificate; keep it.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy a dataset for ever: its keys, every copy of its files in every store, and what backups have of it.

    Two officers sign: on the node, with --node and --sign, or elsewhere, with --order. Nobody can undo it. The node
    then deletes the copies, looks that nothing is left, and writes a certificate.
    """
    from valv.cli import custody, officer

    if order is None and node is None:
        raise InputFault("nobody could carry it out", "write the order to a file (--order), or name the node (--node)")
    plan = door.get("datasets", name, "destruction")
    doomed = [one for one in plan["versions"] if not one["destroyed"] and version in (None, one["version"])]
    if not doomed:
        what = "is destroyed already" if plan["versions"] else "has no version"
        raise InputFault(f"{name}{f' version {version}' if version else ''} {what}", "see 'valv dataset show'")
    if kept is not None and (order is not None or len(doomed) > 1):
        raise InputFault("one certificate comes, after the order", "later: valv dataset certificate fetch")
    _show(door, plan, doomed)
    if not yes:
        custody.typed(door, plan["dataset"])
    keys = tuple(one["key_id"] for one in doomed)
    wanted = custody.new_order(plan["node"], "destroy", key_ids=keys, reason=" ".join(reason.split()))
    signers = officer.read_all(door, sign or [], sign_passphrase_file or [])
    desk = door.operator.keys(node) if node is not None else None
    if not custody.carry_out(door, desk, wanted, signers, order=order, minutes=minutes):
        return
    door.note("The keys are destroyed. The node now deletes every copy, and then writes the certificate.")
    if kept is not None:
        _save(door, name, doomed[0]["version"], kept, wait=True)


def _show(door: Door, plan: Any, doomed: list[Any]) -> None:
    rows = [
        (f"{plan['dataset']}@{one['version']}", one["files"], size(one["size"]), store, count, size(stored))
        for one in doomed
        for store, count, stored in (one["copies"] or [("–", 0, 0)])
    ]
    door.table(("version", "files", "size", "store", "copies", "stored"), rows)
    for place in plan["key_backups"]:
        door.note(f"  key backup in {place}: the key goes from there too")
    for backup in plan["backups"]:
        door.note(f"  backups in {backup['place']}: may keep the files, encrypted; nothing opens them then")
    door.warn("This will be lost for ever: no backup brings it back.")


@command(
    certificate,
    "fetch",
    action="dataset.certificate",
    example="valv dataset certificate fetch heart-cohort --version 2\n"
    "valv dataset certificate fetch heart-cohort --version 2 --pdf -o destroyed.pdf",
)
def fetch(
    door: Door,
    name: Name,
    version: Number = None,
    output: Output = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="The PDF, to be printed.")] = False,
) -> None:
    """Keep the certificate that a version was destroyed: JSON that proves itself, or a PDF."""
    if version is None:
        found = [one["version"] for one in door.get("datasets", name, "destruction")["versions"] if one["destroyed"]]
        if len(found) != 1:
            raise InputFault(f"{len(found)} versions of {name} are destroyed", "name one: --version")
        version = found[0]
    target = output or Path(f"{name}-{version}.certificate.{'pdf' if pdf else 'json'}")
    _save(door, name, version, target, pdf=pdf)
    if not door.answer({"file": str(target), "dataset": name, "version": version}) and not pdf:
        door.note(f"Prove it anywhere: valv dataset certificate verify {target} --key VKEY")


def _save(door: Door, name: str, version: int, target: Path, *, pdf: bool = False, wait: bool = False) -> None:
    from valv.cli import arriving
    from valv.cli.client import Problem, path

    parts = ("datasets", name, "certificates", str(version), *(["pdf"] if pdf else []))
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with door.client.stream(path(*parts)) as response:
                arriving.save(target, response.iter_bytes(1 << 16), "")
            break
        except (Problem, UnreachableFault) as fault:
            passing = isinstance(fault, UnreachableFault) or fault.problem in ("no_certificate", "not_yet")
            if not (wait and passing) or time.monotonic() > end:
                raise
        time.sleep(PAUSE)
    door.note(f"The certificate is in {target}.")


@command(
    certificate,
    "verify",
    action=HERE,
    example="valv dataset certificate verify heart-cohort-2.certificate.json --key node.key",
)
def verify(
    screen: Local,
    file: BundleFile,
    key: Annotated[
        str,
        typer.Option("--key", metavar="VKEY", help="The ledger's key, or a file with it.", show_default=False),
    ],
) -> None:
    """Prove on this computer, without the node, that a certificate is the node's and stands in its signed ledger.

    The verifier key is got from elsewhere than the certificate: from the node ('valv node show'), or from an auditor.
    """
    import msgspec

    from valv.formats import certificate as format

    found: Certificate = format.verify(_content(file), _key(key))
    if not screen.answer(msgspec.to_builtins(found)):
        screen.say(format.words(found))
        screen.note(f"The certificate holds: {found.node} signed it, with its ledger.")


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as kept:
            return kept.read(LARGEST)
    except OSError as error:
        raise InputFault(f"{file}: {error.strerror}") from None


def _key(key: str) -> str:
    """The key itself, or what the file of this name holds."""
    if "+" in key and not Path(key).is_file():
        return key.strip()
    return _content(Path(key)).decode("utf-8", "replace").strip()
