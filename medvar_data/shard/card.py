"""Write a set's data card, README.md, in the form that the Hugging Face Hub reads: YAML on top, then Markdown for people.

In: what dataset.json will say and the set's tables. Out: the file's bytes, a function of these and of `CARD_VERSION` alone, so that
`verify` can make them again. The card says first what the set obliges to, since nobody may publish it against its licences.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medvar_data.catalog.collection import license_text
from medvar_data.naming import printable
from medvar_data.records import LICENSE_TERMS
from medvar_data.shard.citations import CITATION_FILE, citations_bytes
from medvar_data.shard.datasheet import Origin, contents_of, limits, official_test_elsewhere, origins_of, people, steps
from medvar_data.shard.terms import Obligation, obligations, own_terms
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.schema import SPLITS

CARD_FILE = "README.md"
DOCUMENTS = (CARD_FILE, CITATION_FILE)
CARD_VERSION = (
    2  # raised with every change of what the card or the citations say: sets keep the words that they were made with
)
HUB_LICENSES = frozenset({
    "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "apache-2.0", "mit", "gpl-3.0",
})  # fmt: skip
HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
SPECIAL = re.compile(r"([\\`*_\[\]|#~$])")
ADDRESS = re.compile(r"https?://[\w.~:/?#@!$&'()*+,;=%\-]+", re.ASCII)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stated:
    """The tables that the card is made from.

    Attributes:
        cases, collections: as in the set.
        reasons: rejected cases by reason.
    """

    cases: pa.Table
    collections: pa.Table
    reasons: Mapping[str, int]

    @cached_property
    def held(self) -> pa.Table:
        """The collections of which the set holds scans, by name."""
        kept = self.collections.filter(pc.greater(self.collections["n_kept"], 0))
        return kept.sort_by([("collection", "ascending")])

    @cached_property
    def origins(self) -> tuple[Origin, ...]:
        """The same, as the datasheet has them."""
        return origins_of(self.held)


def documents(dataset: Dataset, stated: Stated) -> dict[str, bytes]:
    """Make the files for people that lie beside a set: README.md and CITATION.bib, by name.

    Args:
        dataset: what dataset.json says, but for the digests of these files.
        stated: the set's tables.
    """
    return {
        CARD_FILE: card_text(dataset, stated).encode(),
        CITATION_FILE: citations_bytes(stated.origins),
    }


def card_text(dataset: Dataset, stated: Stated) -> str:
    """The card; the arguments are those of `documents`."""
    name = f"medvar-{dataset.recipe['name']}-{dataset.digest[:12]}"
    sections = {
        "May it be used, and may it be passed on?": _may_be_used(stated),
        "What is in it": _contents(dataset, stated),
        "Licences": _licences(stated),
        "Splits": _splits(dataset, stated.cases),
        "How it was made": [f"- {step}" for step in steps(dataset)],
        "What was left out": _left_out(stated),
        "Faces, text in pictures, privacy": [f"- {sentence}" for sentence in people(stated.held, stated.cases)],
        "Limits": [f"- {limit}" for limit in limits(dataset.image_side)],
        "How to load it": _loading(dataset),
        "How to cite it": _citing(stated.origins),
        "How to check it": ["`medvar-data verify FOLDER` computes everything here again, this page included."],
    }
    parts = [_front_matter(dataset, stated, name), f"# {_plain(name)}", _introduction(dataset)]
    for title, lines in sections.items():
        parts += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _front_matter(dataset: Dataset, stated: Stated, name: str) -> str:
    """YAML, each value as JSON, which is YAML too: no text can mean more than itself."""
    about = {word.lower() for column in ("modality", "region") for word in stated.cases[column].to_pylist()}
    values: dict[str, Any] = {
        **_hub_license(stated.origins),
        "pretty_name": name,
        "size_categories": [_size(sum(split.slices for split in dataset.splits.values()))],
        "task_categories": ["image-segmentation", "unconditional-image-generation"],
        "annotations_creators": ["found"],
        "source_datasets": ["extended"],
        "tags": ["medical", "medvar", *sorted(about)],
    }
    files = [{"split": HUB_SPLITS[split], "path": f"{split}-*.tar"} for split in SPLITS if dataset.splits[split].shards]
    if files:
        values["configs"] = [{"config_name": "default", "data_files": files}]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _hub_license(origins: Sequence[Origin]) -> dict[str, str]:
    """The licence as the Hub names it; `other` where there are several, or one that it does not know or nobody read."""
    if len(names := {(origin.license, origin.license_confirmed) for origin in origins}) == 1:
        [(name, confirmed)] = names
        if confirmed and name.lower() in HUB_LICENSES:
            return {"license": name.lower()}
    return {"license": "other", "license_name": "terms-of-each-collection"}


def _size(n_slices: int) -> str:
    return next((name for bound, name in SIZES if n_slices < bound), "n>10M")


def _introduction(dataset: Dataset) -> str:
    side = dataset.image_side
    return (
        f"Slices of CT and MR scans, {side} x {side} pixels, 8 bit, each with its label map and with what was done to it. Made by "
        f"medvar with the recipe {_plain(dataset.recipe['name'])}. Every slice keeps the licence of the collection that its scan was "
        "published in; no new licence is given here."
    )


def _may_be_used(stated: Stated) -> list[str]:
    cases = stated.cases
    if not cases.num_rows:
        return ["No scan is in this set."]
    found = {obligation.term: obligation for obligation in obligations(cases)}
    sentences = [_sentence(found[term]) for term in ("redistribute", "commercial", "derivatives", "share_alike")]
    own = own_terms(cases, stated.collections)
    columns = [zip(cases[term].to_pylist(), own[term].to_pylist(), strict=True) for term in LICENSE_TERMS]
    n_stricter = sum(any(a != b for a, b in answers) for answers in zip(*columns, strict=True))
    sentences.append(
        "Where several collections hold one scan, the strictest terms of all of them hold for each copy "
        f"(columns {', '.join(f'`{term}`' for term in LICENSE_TERMS)} of `cases.parquet`); here that makes the terms of {n_stricter:,} of "
        f"{cases.num_rows:,} scans stricter than those of their own collection."
    )
    return [f"- {sentence}" for sentence in sentences]


SENTENCES: Mapping[str, Mapping[str, str]] = {
    "redistribute": {
        "no": "**Do not publish this set**: passing it on is forbidden by the terms of {}.",
        "unknown": "**Do not publish this set**: whether it may be passed on is not known of {}.",
        "yes": "It may be passed on, under the terms below.",
    },
    "commercial": {
        "no": "**Non-commercial use only**, because of {}.",
        "unknown": "**Treat it as non-commercial**: whether it may be used for profit is not known of {}.",
        "yes": "Commercial use is allowed.",
    },
    "derivatives": {
        "no": "**No derivatives**: what is made of it may not be passed on, because of {}. Slices of a scan are derivatives.",
        "unknown": "**Treat it as without derivatives**: whether what is made of it may be passed on is not known of {}.",
        "yes": "What is made of it may be passed on.",
    },
    "share_alike": {
        "yes": "**Share alike**: what is made of it must carry the same licence, because of {}.",
        "unknown": "**Treat it as share-alike**: whether what is made of it must carry the same licence is not known of {}.",
        "no": "What is made of it may carry another licence.",
    },
}


def _sentence(obligation: Obligation) -> str:
    return SENTENCES[obligation.term][obligation.answer].format(", ".join(obligation.collections))


def _contents(dataset: Dataset, stated: Stated) -> list[str]:
    rows = []
    for share in contents_of(stated.cases, 0).shares:
        rows.append(
            (share.collection, share.modality, share.region, *map(_n, (share.cases, share.patients, share.slices)))
        )
    head = ("collection", "modality", "region", "scans", "patients", "slices")
    seen = [
        (row["collection"], row["title"], "yes" if row["public"] else "no", *(_n(row[name]) for name in ("n_faces", "n_burned_in_text")))
        for row in stated.held.to_pylist()
    ]  # fmt: skip
    more = ("collection", "title", "public", "scans that may show a face", "scans with text suspected")
    labelled = sum(stated.cases["has_label"].to_pylist())
    return [
        *_table(head, rows), "", *_table(more, seen), "",
        f"{labelled:,} of {stated.cases.num_rows:,} scans have an annotation. Names of label ids stand in `collections.parquet`, "
        f"all columns in `croissant.json`. Pictures are stored as {dataset.codec}.",
    ]  # fmt: skip


def _licences(stated: Stated) -> list[str]:
    rows = [
        (
            row["collection"], license_text(row["license"], row["license_confirmed"]), row["license_url"],
            *(row[term] for term in LICENSE_TERMS), row["access"],
        )
        for row in stated.held.to_pylist()
    ]  # fmt: skip
    head = ("collection", "licence", "text", "commercial", "derivatives", "share alike", "redistribute", "access")
    notes = [
        f"- {_plain(row['collection'])}: {_plain(text)}"
        for row in stated.held.to_pylist()
        for text in (row["license_evidence"], row["license_conflict"])
        if text
    ]
    return [*_table(head, rows), "", *notes]


def _splits(dataset: Dataset, cases: pa.Table) -> list[str]:
    rows = [(s, *map(_n, (e.patients, e.cases, e.slices, len(e.shards)))) for s in SPLITS for e in [dataset.splits[s]]]
    respected = dataset.split.get("respect_official")
    return [
        *_table(("split", "patients", "scans", "slices", "shards"), rows), "",
        "Patients were split whole, "
        + ("as their publishers split them, others by a hash" if respected else "by a hash of their names and a seed")
        + "; patients whose scans are the same (`edges.parquet`) count as one."
        + (" Exact copies but the first were left out." if dataset.drop_duplicates else "")
        + (f" Slices were chosen by the condition {_code(dataset.where)}." if dataset.where else ""),
        *(f"\n{_plain(sentence)}" for sentence in official_test_elsewhere(cases)),
    ]  # fmt: skip


def _left_out(stated: Stated) -> list[str]:
    if not stated.reasons:
        return ["Nothing: every scan that was found is in the set."]
    rows = [(reason, _n(count)) for reason, count in sorted(stated.reasons.items())]
    return [*_table(("reason", "scans"), rows), "", "Each is a row of `rejects.parquet`, with a sentence."]


def _loading(dataset: Dataset) -> list[str]:
    reader = (
        ""
        if dataset.codec == "png"
        else " Pictures in this codec need the reader of a few lines that medvar's docs print."
    )
    return [
        "```python",
        "from datasets import load_dataset  # or webdataset, or medvar's own stream",
        "",
        'slices = load_dataset("FOLDER", split="train", streaming=True)',
        "```",
        "",
        f"A sample is an image, its mask and a JSON of the same name.{reader} The tables are Parquet.",
    ]


def _citing(origins: Sequence[Origin]) -> list[str]:
    cited = [f"- {_plain(origin.title)}: {_plain(origin.citation)}" for origin in origins if origin.citation]
    return [f"Cite each collection that you use; `{CITATION_FILE}` has the entries.", "", *cited]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(map(_plain, row))} |" for row in rows)


def _plain(text: str) -> str:
    """A text as Markdown shows it, whoever wrote it: no markup, no HTML; an address becomes a link."""
    if ADDRESS.fullmatch(text):
        return f"<{text}>"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return SPECIAL.sub(r"\\\1", " ".join(escaped.split()))


def _code(text: str) -> str:
    """A text as code, which nothing in it can end."""
    return f"`{printable(text, 500).replace('`', chr(39))}`"


def _n(number: int) -> str:
    return f"{number:,}"


def reasons_of(rejects: pa.Table) -> Counter[str]:
    """Count rejected cases by reason, from rejects.parquet."""
    return Counter(rejects["reason"].to_pylist())
