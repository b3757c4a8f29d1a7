"""The generated pages and golden tables are what the code says now."""

from pathlib import Path

from valv.assemble import reference

ROOT = Path(__file__).resolve().parents[2]


def test_pages_are_fresh():
    stale = "\n".join(reference.stale(ROOT))
    assert not stale, f"{stale}\nrun 'python -m valv.assemble.reference --write' and review the change"


def test_check_tells_a_stale_page(tmp_path, capsys):
    assert reference.main(["--write", "--root", str(tmp_path)]) == 0
    assert reference.main(["--check", "--root", str(tmp_path)]) == 0
    page = tmp_path / "docs/generated/errors.md"
    page.write_text(page.read_text("utf-8").replace("not_allowed", "changed"), "utf-8")
    assert reference.main(["--check", "--root", str(tmp_path)]) == 1
    assert "-| `changed`" in capsys.readouterr().out
