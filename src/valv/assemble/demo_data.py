"""The demonstration's own data: made anew each time, always the same, and of nobody.

A small VCF of a made-up cohort, and a registry of made-up patients with rare diseases as Phenopackets.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

DISEASES = (
    ("MONDO:0009861", "phenylketonuria"),
    ("MONDO:0009061", "cystic fibrosis"),
    ("MONDO:0007739", "Huntington disease"),
    ("MONDO:0018150", "Gaucher disease"),
    ("MONDO:0007947", "Marfan syndrome"),
    ("MONDO:0010602", "haemophilia A"),
)
TERMS = (
    ("HP:0001250", "Seizure"),
    ("HP:0001263", "Global developmental delay"),
    ("HP:0002072", "Chorea"),
    ("HP:0002110", "Bronchiectasis"),
    ("HP:0000098", "Tall stature"),
    ("HP:0001744", "Splenomegaly"),
)


def variants(folder: Path, samples: int = 80, sites: int = 400) -> None:
    """`cohort.vcf`: `sites` biallelic variants of `samples` made-up people on chromosome 22, phased; with
    `participants.tsv`."""
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(20260101)  # noqa: S311 - the same data each time
    people = [f"S{number:04d}" for number in range(1, samples + 1)]
    lines = [
        "##fileformat=VCFv4.3",
        "##contig=<ID=chr22,length=50818468>",
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">',
        "\t".join(("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *people)),
    ]
    position = 10_510_000
    for _ in range(sites):
        position += dice.randrange(20, 900)
        reference, other = dice.sample("ACGT", 2)
        frequency = min(0.5, dice.betavariate(0.6, 4))
        calls = [f"{int(dice.random() < frequency)}|{int(dice.random() < frequency)}" for _ in people]
        lines.append("\t".join(("chr22", str(position), ".", reference, other, ".", "PASS", ".", "GT", *calls)))
    (folder / "cohort.vcf").write_text("\n".join(lines) + "\n", "utf-8")
    rows = ["pseudonym\tconsent_group\tfiles\tsamples"]
    rows += [f"P-{number:04d}\tmain\tcohort.vcf\t{name}" for number, name in enumerate(people, 1)]
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", "utf-8")


def registry(folder: Path, patients: int = 120) -> dict[str, int]:
    """One Phenopacket (GA4GH v2, JSON) for each made-up patient. Returns how many have each disease."""
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    dice = random.Random(20260102)  # noqa: S311 - the same data each time
    counts: dict[str, int] = {}
    rows = ["pseudonym\tconsent_group\tfiles\tsamples"]
    for number in range(1, patients + 1):
        ident, label = dice.choices(DISEASES, weights=(30, 25, 15, 12, 10, 8))[0]
        counts[label] = counts.get(label, 0) + 1
        packet = {
            "id": f"case-{number:04d}",
            "subject": {
                "id": f"R-{number:04d}",
                "sex": dice.choice(["FEMALE", "MALE"]),
                "dateOfBirth": f"{dice.randrange(1950, 2020)}-{dice.randrange(1, 13):02d}-{dice.randrange(1, 29):02d}",
            },
            "phenotypicFeatures": [
                {"type": {"id": term, "label": name}} for term, name in dice.sample(TERMS, dice.randrange(1, 4))
            ],
            "diseases": [{"term": {"id": ident, "label": label}}],
            "metaData": {"createdBy": "demonstration", "phenopacketSchemaVersion": "2.0"},
        }
        name = f"case-{number:04d}.json"
        (cases / name).write_text(json.dumps(packet, indent=1), "utf-8")
        rows.append(f"R-{number:04d}\tmain\tcases/{name}\t")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    return counts


COUNT_DISEASES = """
import collections, csv, json, pathlib
counts = collections.Counter()
for path in sorted(pathlib.Path("/data").rglob("*.json")):
    for disease in json.loads(path.read_text("utf-8"))["diseases"]:
        counts[disease["term"]["label"]] += 1
with open("/outbox/diseases.csv", "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(["disease", "patients"])
    writer.writerows(sorted(counts.items()))
"""
"""What the demonstration's researcher runs over the registry."""

READ_FOR_EVER = """
import pathlib, time
path = next(pathlib.Path("/data").rglob("case-0001.json"))
while True:
    path.read_bytes()
    time.sleep(0.05)
"""
"""A run that reads until it is cut."""
