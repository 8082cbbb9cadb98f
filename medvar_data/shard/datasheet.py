"""What a shard set says of itself in sentences: where its scans come from, what was done to them, what it is not good for.

In: counts, the recipe, what is known of the collections. Out: schema.org's description and Croissant's `rai:` properties. Only
what the set itself knows is said; what its publishers alone know (demographics, who annotated) is left to them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import pyarrow as pa

from medvar_data.catalog.collection import license_text
from medvar_data.naming import how_many
from medvar_data.records import LICENSE_TERMS
from medvar_data.shardset.dataset import Dataset
from medvar_data.shardset.schema import SPLITS

WIDE_REGIONS = ("spine", "body", "unknown")  # that may reach a face


@dataclass(frozen=True)
class Origin:
    """What is known of a collection whose scans are in the set; the names are those of `CollectionSpec`."""

    name: str
    title: str
    license: str
    license_confirmed: bool
    license_url: str = ""
    doi: str = ""
    citation: str = ""
    homepage: str = ""
    commercial: str = "unknown"
    derivatives: str = "unknown"
    share_alike: str = "unknown"
    redistribute: str = "unknown"


@dataclass(frozen=True)
class Share:
    """How much of the set one collection × modality × region makes up."""

    collection: str
    modality: str
    region: str
    cases: int
    patients: int
    slices: int


@dataclass(frozen=True)
class Contents:
    """Counts of a set."""

    shares: tuple[Share, ...]
    rejected: int
    labelled: int  # cases


def origins_of(collections: pa.Table) -> tuple[Origin, ...]:
    """The collections of a set, from its collections.parquet."""
    names = [field.name for field in fields(Origin) if field.name != "name"]
    rows = collections.select(["collection", *names]).to_pylist()
    return tuple(Origin(name=row.pop("collection"), **row) for row in sorted(rows, key=lambda row: row["collection"]))


def contents_of(cases: pa.Table, rejected: int) -> Contents:
    """Count a set's cases.parquet."""
    by = ["collection", "modality", "region"]
    counts = [("case", "count"), ("patient", "count_distinct"), ("n_kept", "sum")]
    counted = cases.group_by(by).aggregate(counts).select([*by, "case_count", "patient_count_distinct", "n_kept_sum"])
    rows = counted.rename_columns([field.name for field in fields(Share)]).to_pylist()
    shares = sorted((Share(**row) for row in rows), key=astuple)
    return Contents(tuple(shares), rejected, sum(cases["has_label"].to_pylist()))


def summary(
    dataset: Dataset, contents: Contents, origins: Sequence[Origin], told: Sequence[str] = ()
) -> dict[str, Any]:
    """Description, keywords and the properties of Croissant's vocabulary for responsible use; `told` is of `people`."""
    side, shares = dataset.image_side, contents.shares
    counts = ", ".join(f"{dataset.splits[split].slices:,} {split}" for split in SPLITS)
    about = sorted({word for share in shares for word in (share.modality, share.region)})
    return {
        "description": (
            f"{side} x {side} pixel slices of CT and MR scans, each with its label map and with what was done to it: "
            f"{counts}. {_count(shares)}. Made by medvar with the recipe {dataset.recipe['name']}; "
            "every slice keeps the licence of the collection that its scan was published in (column license)."
        ),
        "keywords": ["medical imaging", *about],
        "rai:dataCollection": (
            "Scans of these collections, as whoever made this set had them: "
            + ("; ".join(origin.title for origin in origins) or "none")
            + ". medvar collected nothing itself."
        ),
        "rai:dataCollectionType": ["Secondary Data analysis"],
        "rai:dataCollectionRawData": (
            "The scans stay with their publishers. The columns source_sha256 and label_sha256 name the files that were read."
        ),
        "rai:dataCollectionMissingData": (
            f"{how_many(contents.rejected, 'scan')} found and left out; rejects.parquet gives the reason of each. "
            f"{contents.labelled:,} of {how_many(sum(s.cases for s in shares), 'scan')} with an annotation; the masks of the others are all zero "
            "(column has_label)."
        ),
        "rai:dataPreprocessingProtocol": steps(dataset),
        "rai:dataAnnotationProtocol": [
            "Label maps are those of the collections, their values mapped to ids from 1 within each collection; "
            "the same id means different structures in different collections. Small separate parts are taken off as dust; "
            "cases.parquet counts them."
        ],
        "rai:dataManipulationProtocol": [
            "Nothing is made up or balanced: slices are taken or left out, never generated, and no pixel is drawn over but what lies "
            "outside the body."
        ],
        "rai:dataImputationProtocol": (
            "No value is estimated. Slices between the contours of a coarser grid are interpolated, which the column steps says."
        ),
        **_responsible(side, shares, told),
    }


def terms_of_use(origins: Sequence[Origin]) -> str:
    """The terms of every collection in one line each."""
    lines = [
        f"{origin.name}: {license_text(origin.license, origin.license_confirmed)}; "
        + ", ".join(f"{term.replace('_', ' ')} {getattr(origin, term)}" for term in LICENSE_TERMS)
        for origin in origins
    ]
    return "\n".join(lines) or "No collection is in this set."


def _count(shares: Sequence[Share]) -> str:
    names = {share.collection for share in shares}
    return f"{how_many(sum(s.cases for s in shares), 'scan')} of {how_many(len(names), 'collection')}"


def steps(dataset: Dataset) -> list[str]:
    """What a recipe does, in its order; all its values are in dataset.json."""
    recipe = dataset.recipe
    fit = "stretched to" if recipe["aspect"] == "stretch" else "scaled alike along both axes to fit"
    along = "the axis that the collection names" if recipe["slice_axis"] == "collection" else recipe["slice_axis"]
    return [
        "Scans are turned to canonical directions, without resampling, and cut into slices along " + along + ".",
        "What lies outside the body (table, cushions, wires) is set to background; cases.parquet gives its volume.",
        f"CT becomes 8 bit by {recipe['ct_normalizer']} (level {recipe['ct_level_hu']:g} HU, width {recipe['ct_width_hu']:g} HU"
        + (", others by region" if recipe["ct_windows"] else "")
        + f"), MR by {recipe['mr_normalizer']} ({recipe['mr_low_percentile']:g} and {recipe['mr_high_percentile']:g} of the scan's "
        "voxels that are not 0, without what was set to background); "
        "the columns low and high hold the bounds of each slice.",
        f"Slices are {fit} {dataset.image_side} x {dataset.image_side} pixels; the spacing before is in spacing_row_mm and spacing_col_mm.",
        "Of annotated scans the slices with an annotation are kept, of others those with enough body.",
        "Patients were put into train, val and test whole, "
        + (
            "as their publishers split them and others by a hash"
            if dataset.split.get("respect_official")
            else "by a hash"
        )
        + ", those whose scans are the same together; the slices of a split lie in a seeded random order.",
    ]


def official_test_elsewhere(cases: pa.Table) -> list[str]:
    """Say of each collection how many of its publisher's test scans lie in train or val; nothing where there are none."""
    columns = (cases[name].to_pylist() for name in ("collection", "official_split", "split"))
    moved = Counter(
        (collection, split)
        for collection, official, split in zip(*columns, strict=True)
        if official == "test" and split != "test"
    )
    return [
        f"The publisher's own test scans of {name} are not all in test here: "
        + ", ".join(f"{moved[name, split]:,} in {split}" for split in SPLITS if moved[name, split])
        + ". Do not compare with published results on that test set; the option --respect-official-splits keeps it apart."
        for name in sorted({name for name, _ in moved})
    ]


def limits(side: int) -> list[str]:
    """What a set of slices of `side` pixels a side is not good for."""
    return [
        f"Slices, 8 bit, {side} x {side} pixels: intensities outside low to high, finer detail and the context of "
        "neighbouring slices are lost.",
        "Not for diagnosis or any other decision on a patient.",
        "Structures too small for this size vanish from the label maps (vanished_labels in cases.parquet).",
        "Some collections share scans with others. Scans that are the same by file, pixels, statistics or description lie in one split "
        "(edges.parquet); a patient whom two collections name otherwise, with scans that differ, may lie in two.",
    ]


def people(collections: pa.Table, cases: pa.Table) -> list[str]:
    """What is left of people in a set, and what was done about it: headers, files, faces, text in pictures.

    Args:
        collections: rows of collections.parquet, counted.
        cases: rows of cases.parquet.
    """
    n_faces, n_texts = (sum(collections[name].to_pylist()) for name in ("n_faces", "n_burned_in_text"))
    wide = sum(region in WIDE_REGIONS for region in cases["region"].to_pylist())
    n_private = sum(not public for public in collections["public"].to_pylist())
    return [
        "Medical images of people. Of the headers no name, date, identifier or free text is stored; patients are salted hashes. "
        "Cases of public collections keep the names that their publishers gave them, numbers of patients included.",
        f"Faces: nothing was done to them here. {how_many(n_faces, 'scan')} of {cases.num_rows:,} may show one: those whose description says that "
        "the face is there, and those of a head, brain or neck of which nothing is known (column defaced, by description and region; nothing looked "
        f"at the pictures). {how_many(wide, 'scan')} of a spine, a whole body or an unknown region may reach a face too.",
        f"Text burned into pictures: pictures that a header marks so, and captures of screens, were left out. Text was looked for in all others "
        f"(column burned_in_text): suspected in {how_many(n_texts, 'scan')}. Small, faint or moving text is not found.",
        f"{how_many(n_private, 'collection')} not public: there digests of files are keyed, positions in the scanner and the slant of slices are "
        "left out, and extremes are rounded. Whoever has the files themselves can recognise their pixels in any case.",
    ]


def _responsible(side: int, shares: Sequence[Share], told: Sequence[str]) -> dict[str, Any]:
    """Limits, biases, people, uses and upkeep."""
    return {
        "rai:dataLimitations": limits(side),
        "rai:dataBiases": [
            "The collections are no sample of any population: each was chosen by its publishers, often for one disease, scanner or "
            "protocol, and its share here follows from its size.",
            *(
                f"{s.collection}, {s.modality} of the {s.region}: {how_many(s.cases, 'scan')} of {how_many(s.patients, 'patient')}, "
                f"{how_many(s.slices, 'slice')}."
                for s in shares
            ),
        ],
        "rai:personalSensitiveInformation": list(told),
        "rai:dataSocialImpact": (
            "Models trained on it can make medical images that look real and show nobody: of use where scans cannot be shared, of "
            "harm where they are taken for findings. A model can repeat single scans of its training."
        ),
        "rai:annotationsPerItem": "One label map a slice, made from the one that its publisher gives, or from a vote of several raters.",
        "rai:dataUseCases": [
            "Training and evaluation of generative models and of segmentation on slices, within the terms of each collection."
        ],
        "rai:dataReleaseMaintenancePlan": (
            "None is promised. The set can be made again from the same downloads with `medvar-data shard`; dataset.json names versions, "
            "recipe and seed, and `medvar-data verify` checks every file."
        ),
    }
