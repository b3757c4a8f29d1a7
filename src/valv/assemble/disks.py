"""The encrypted disks of a node, as its operator works with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from valv.assemble.custody import Desk
from valv.cli.operator import Disk
from valv.config import load
from valv.errors import ConfigFault
from valv.formats.officer import Officer
from valv.keys import disks, luks
from valv.keys.luks import Header, Volume


class Disks:
    """`valv.cli.operator.Disks`. `directory`: the node's folder, None where the work needs none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def status(self, device: Path) -> Disk:
        return _shown(device, Volume(device).header())

    def create(self, device: Path, *, erase: bool) -> Disk:
        return _shown(device, disks.create(self._holder(), device, erase=erase))

    def open(self, device: Path, name: str) -> Path:
        volume = Volume(device)
        return volume.open(disks.secret_of(self._holder(), volume), name)

    def close(self, name: str) -> None:
        luks.close(name)

    def rotate(self, device: Path, *, drop_others: bool) -> Disk:
        return _shown(device, disks.rotate(self._holder(), Volume(device), drop_others=drop_others))

    def escrow(self, device: Path, officers: Sequence[Officer], threshold: int) -> Disk:
        return _shown(device, disks.escrow(self._holder(), Volume(device), officers, threshold))

    def recover(self, device: Path, private_keys: Mapping[str, bytes]) -> Disk:
        volume = Volume(device)
        disks.give(self._holder(), volume, disks.recover(volume, private_keys))
        return _shown(device, volume.header())

    def open_with(self, device: Path, name: str, private_keys: Mapping[str, bytes]) -> Path:
        volume = Volume(device)
        return volume.open(disks.recover(volume, private_keys), name)

    def erase(self, device: Path) -> None:
        volume = Volume(device)
        volume.header()
        volume.erase()

    def scratch(self, device: Path, name: str, *, erase: bool) -> Path:
        return disks.scratch(device, name, erase=erase)

    def _holder(self) -> Desk:
        if self._directory is None:
            raise ConfigFault("this needs the node's folder")
        return Desk(load(self._directory))


def _shown(device: Path, header: Header) -> Disk:
    return Disk(
        device=device,
        uuid=header.uuid,
        cipher=header.cipher,
        nodes=tuple(sorted({token.node for token in header.nodes.values() if token.keyslots})),
        officers=tuple((one.threshold, tuple(sorted(one.shares))) for one in header.escrows.values() if one.keyslots),
        others=header.others,
    )
