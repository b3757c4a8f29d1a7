"""The custodian takes a participant out on the dataset's page; the researcher sees where the permit moved, and why."""

from __future__ import annotations

import secrets
from typing import Any

from tests.app.test_withdrawal import CANARY, FILES
from valv.app import withdrawing


def test_a_custodian_takes_a_participant_out(portal: Any) -> None:
    world, carin, rikard = portal.world, portal.person("carin"), portal.person("rikard")
    name = f"d-{secrets.token_hex(4)}"
    world.deposit(name, FILES | {"old.zip": b"PK\3\4 of nobody"}, claimed="identifiable")
    permit = world.permit(name)
    page = carin.see(f"/datasets/{name}")
    assert "Withdraw participants" in page and "Withdraw participants" not in rikard.see(f"/datasets/{name}")
    carin.see(f"/datasets/{name}")
    carin.send(f"/datasets/{name}/withdraw", {"pseudonyms": "", "withdraw-reason": "They asked."})
    assert carin.status == 400 and "pseudonym" in carin.page
    carin.send(f"/datasets/{name}/withdraw", {"pseudonyms": CANARY, "withdraw-reason": ""})
    assert carin.status == 400 and CANARY in carin.page  # what was typed is still there
    answer = carin.send(f"/datasets/{name}/withdraw", {"pseudonyms": f"{CANARY}\n", "withdraw-reason": "They asked."})
    assert answer.status_code == 200 and CANARY not in carin.page and "closed, participants withdrew" in carin.page
    assert "closed: participants withdrew" in rikard.see(f"/permits/{permit}")
    world.work()
    page = carin.see(f"/datasets/{name}")
    assert "old.zip" in page and "Waits for you" in page
    action = next(
        word for word in page.split('"') if word.startswith(f"/datasets/{name}/withdrawals/") and "/files/" in word
    )
    assert "old.zip" not in portal.person("dagny").see(f"/datasets/{name}")
    carin.see(f"/datasets/{name}")
    carin.send(action, {"fate": "keep"})
    assert "old.zip" not in carin.page
    world.work()
    withdrawing.clear(world.worker)
    page = carin.see(f"/datasets/{name}")
    assert "took the place of version 1" in page and "replaced by version 2" in page and "two officers" in page
    page = rikard.see(f"/permits/{permit}")
    assert "for version 2" in page and "participants withdrew" in page and CANARY not in page
