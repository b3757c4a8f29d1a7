"""Everything that somebody can ask of the node, by name. Each operation of each door names one of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal[
    "node",
    "session",
    "catalogue",
    "account",
    "dataset",
    "deposit",
    "access",
    "permit",
    "data",
    "run",
    "release",
    "key",
    "ledger",
]


class Action(msgspec.Struct, frozen=True):
    """`kind`: of the resource that it acts on; `summary`: what it does, for documentation."""

    kind: Kind
    summary: str


ACTIONS: Final[Mapping[str, Action]] = {
    "node.see": Action("node", "see what node this is and whether it works"),
    "node.operate": Action("node", "run the node: its state, its queues, its backups"),
    "node.unseal": Action("node", "open the node's keys after a start"),
    "session.open": Action("session", "log in"),
    "session.see": Action("session", "see one's own log-in"),
    "session.close": Action("session", "log out"),
    "catalogue.find": Action("catalogue", "search the catalogue"),
    "account.see": Action("account", "see an account"),
    "account.key_add": Action("account", "register a public key"),
    "account.key_end": Action("account", "end a public key"),
    "account.factor": Action("account", "set up a second factor"),
    "account.manage": Action("account", "create an account, change its roles"),
    "dataset.register": Action("dataset", "register a dataset"),
    "dataset.describe": Action("dataset", "write a dataset's catalogue text"),
    "dataset.see": Action("dataset", "see a dataset's description and versions"),
    "dataset.report": Action("dataset", "read the report of the identifier scan"),
    "dataset.assess": Action("dataset", "confirm or deny that a version is anonymised"),
    "dataset.narrow": Action("dataset", "make a version identifiable again"),
    "dataset.close": Action("dataset", "close a dataset"),
    "dataset.withdraw": Action("dataset", "take out a participant who withdrew, or narrow what one consents to"),
    "dataset.withdrawals": Action("dataset", "see the withdrawals from a dataset, without who withdrew"),
    "dataset.history": Action("dataset", "see who touched a dataset"),
    "dataset.certificate": Action("dataset", "see what a destruction takes, and the certificate that it is done"),
    "deposit.open": Action("deposit", "begin a deposit"),
    "deposit.receive": Action("deposit", "send a file"),
    "deposit.submit": Action("deposit", "hand in a deposit"),
    "deposit.cancel": Action("deposit", "cancel a deposit"),
    "deposit.see": Action("deposit", "see a deposit and its state"),
    "access.draft": Action("access", "begin an application"),
    "access.save": Action("access", "change an application"),
    "access.submit": Action("access", "hand in an application"),
    "access.withdraw": Action("access", "withdraw an application"),
    "access.see": Action("access", "read an application"),
    "access.list": Action("access", "list the applications that one may see"),
    "access.return": Action("access", "return an application for changes"),
    "access.approve": Action("access", "approve an application, which issues a permit"),
    "access.reject": Action("access", "reject an application"),
    "permit.see": Action("permit", "see a permit"),
    "permit.revoke": Action("permit", "revoke a permit"),
    "permit.resume": Action("permit", "let a suspended permit be used again"),
    "permit.give_back": Action("permit", "give a permit back"),
    "data.compute": Action("data", "compute on a dataset version"),
    "data.download": Action("data", "download a file, sealed to one's own key"),
    "run.queue": Action("run", "start a run"),
    "run.see": Action("run", "see a run's state"),
    "run.stop": Action("run", "stop a run"),
    "release.request": Action("release", "ask for the release of outputs"),
    "release.see": Action("release", "see a release and its decisions"),
    "release.inspect": Action("release", "look at outputs before they are released"),
    "release.check": Action("release", "approve or reject an output"),
    "release.withdraw": Action("release", "withdraw a request for release"),
    "release.fetch": Action("release", "download a released output"),
    "storage.see": Action("node", "see the stores, what lies in them and what is being moved"),
    "storage.rule": Action("dataset", "say how many copies of a dataset there are, and where"),
    "storage.move": Action("dataset", "move a dataset from one store to another"),
    "storage.place": Action("data", "put a copy of data into a store; `country` and `unit` are the store's"),
    "fixity.see": Action("node", "see how the copies of all files are, and the scrubs that read them again"),
    "fixity.run": Action("node", "have copies read again, and damaged ones made anew"),
    "key.see": Action("key", "see how the rotation of a version's keys goes on"),
    "key.rotate": Action("key", "rotate the keys of a version, or encrypt its files anew"),
    "ledger.show": Action("ledger", "read the ledger"),
    "ledger.verify": Action("ledger", "prove that the ledger was not rewritten"),
}
