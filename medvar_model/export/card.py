"""The model card: what a model is, what it was trained on and how to use it, in the form of the Hugging Face hub.

In: checkpoints and, where it is at hand, the shard set they were trained on. Out: Markdown with a front matter in YAML.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvar_data.records import LICENSE_TERMS
from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.storage.store import Store
from medvar_model.checkpoints.checkpoint import Contents
from medvar_model.config import (
    TokenizerConfig,
    TransformerConfig,
    tokenizer_parameters,
    transformer_parameters,
)
from medvar_model.errors import ConfigMismatch
from medvar_model.sampling.sample import SampleSettings

COLUMNS = ("collection", "title", "license", "license_confirmed", "doi", "n_kept", *LICENSE_TERMS)
TAGS = ("medical-imaging", "ct", "mri", "next-scale-prediction", "vqvae")
NOT_FOR = (
    "Not for diagnosis, treatment or any other decision on a person. Images are drawn, not measured: anatomy can be wrong in ways "
    "that look right.",
    "What the training collections lack (ages, scanners, diseases, regions) the model lacks too.",
    "A generative model can repeat images that it was trained on. Search its samples for copies before you pass them on "
    "(`medvar-model evaluate`).",
)


@dataclass(frozen=True)
class CardSpec:
    """What the card says beside what the checkpoints do.

    Args:
        name: of the model.
        license: of the weights, as the hub spells it.
        settings: how to sample.
        collections: rows of `collections_of`; none where the set is not at hand.
    """

    name: str
    license: str
    settings: SampleSettings
    collections: Sequence[Mapping[str, Any]] = ()


def collections_of(shards: str, trained_on: str) -> tuple[dict[str, Any], ...]:
    """Read the collections of a shard set, with their licences.

    Args:
        shards: the set.
        trained_on: digest of the set that a run was trained on; "" where it is not known.

    Raises:
        ConfigMismatch: it is another set.
    """
    store = Store(shards)
    dataset = read_dataset(store)
    if trained_on and dataset.digest != trained_on:
        raise ConfigMismatch(
            f"{shards} has digest {dataset.digest[:12]}, the run was trained on {trained_on[:12]}. Name that set, or leave out --shards."
        )
    rows: list[dict[str, Any]] = read_table(store, "collections.parquet", dataset, columns=list(COLUMNS)).to_pylist()
    return tuple(row for row in rows if row["n_kept"])


def model_card(kept: Contents, frozen: Contents | None, spec: CardSpec) -> str:
    """Write the card.

    Args:
        kept: the model's checkpoint.
        frozen: the tokenizer that a transformer belongs to.
        spec: the rest.
    """
    parts = [
        _front_matter(kept, spec),
        f"# {_plain(spec.name)}\n\n{_what(kept)}",
        _table("What it is made of", _architecture(kept, frozen)),
        _table("Training", _training(kept)),
        _conditions(kept),
        _data(spec),
        _use(kept, spec),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in NOT_FOR),
        "## Sources\n\n- MedVAR: arXiv 2602.14512. The method: VAR, arXiv 2404.02905.\n- Written from the checkpoint by `medvar-model export`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(kept: Contents, spec: CardSpec) -> str:
    """YAML; each value is written as JSON, which is YAML too and needs no quoting of our own."""
    task = "unconditional-image-generation" if kept.kind == "transformer" else "image-feature-extraction"
    values = {"license": spec.license, "library_name": "medvar", "pipeline_tag": task, "tags": list(TAGS)}
    return (
        "---\n" + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()) + "---"
    )


def _what(kept: Contents) -> str:
    if kept.kind == "transformer":
        return "A next-scale autoregressive transformer that draws CT and MR slices, with the multi-scale tokenizer it belongs to."
    return "A multi-scale VQVAE tokenizer of CT and MR slices."


def _architecture(kept: Contents, frozen: Contents | None) -> list[tuple[str, str]]:
    rows = []
    if isinstance(kept.config, TransformerConfig):
        config = kept.config
        rows += [
            (
                "transformer",
                f"{config.depth} blocks, width {config.width}, {transformer_parameters(config):,} parameters",
            ),
            ("its digest", f"`{kept.digest}`"),
        ]
    tokenizer = frozen or kept
    assert isinstance(tokenizer.config, TokenizerConfig)
    images, sides = tokenizer.config, ", ".join(map(str, tokenizer.config.scale_sides))
    return [
        *rows,
        ("tokenizer", f"{images.vocabulary:,} codes, {tokenizer_parameters(images):,} parameters"),
        ("its digest", f"`{tokenizer.digest}`"),
        ("images", f"{images.image_side} × {images.image_side} pixels, one channel, 8 bit"),
        ("tokens of an image", f"{images.n_tokens}, in maps of side {sides}"),
    ]


def _training(kept: Contents) -> list[tuple[str, str]]:
    run, rows = kept.run, []
    if shard_set := run.get("shard_set"):
        rows += [
            ("shard set", f"digest `{shard_set['digest']}`"),
            ("training slices", f"{shard_set['train_slices']:,}"),
        ]
    if seen := run.get("progress"):
        rows.append(("images seen", f"{seen['samples']:,} ({seen['step']:,} of {seen['steps']:,} steps)"))
    loop = run.get("settings", {}).get("loop", {})
    named = {
        "batch_size": "batch",
        "base_learning_rate": "learning rate at a batch of 256",
        "average": "average of weights",
        "seed": "seed",
    }
    rows += [(says, f"{loop[name]:g}") for name, says in named.items() if name in loop]
    if versions := run.get("versions"):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows


def _conditions(kept: Contents) -> str:
    if not kept.conditions:
        return ""
    names = ", ".join(f"`{name}`" for name in sorted(kept.conditions))
    return f"## Conditions\n\nIt draws slices of these, or of none named: {names}."


def _data(spec: CardSpec) -> str:
    if not spec.collections:
        return ""
    head = ["collection", "title", "scans", "licence", *(term.replace("_", " ") for term in LICENSE_TERMS), "DOI"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in spec.collections:
        license_name = row["license"] + ("" if row["license_confirmed"] else " (unconfirmed)")
        cells = [
            row["collection"],
            row["title"],
            row["n_kept"],
            license_name,
            *(row[term] for term in LICENSE_TERMS),
            row["doi"] or "–",
        ]
        lines.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return (
        "## Collections\n\nThe whole shard set was made of these; training saw its training split. Whether weights fall under the terms of "
        "the images is for you to judge.\n\n" + "\n".join(lines)
    )


def _use(kept: Contents, spec: CardSpec) -> str:
    if kept.kind == "tokenizer":
        return '## Use\n\n```python\nfrom pathlib import Path\nfrom medvar_model.checkpoints.checkpoint import load_tokenizer\n\ntokenizer = load_tokenizer(Path("FOLDER"))\n```'
    s = spec.settings
    options = f"--guidance {s.guidance:g} --top-k {s.top_k} --top-p {s.top_p:g} --seed {s.seed}"
    condition = min(kept.conditions, default="none")
    return (
        "## Use\n\n```sh\n"
        f"medvar-model sample FOLDER -o drawn --condition {condition} -n 8 {options}\n```\n\n"
        f"Recommended: guidance {s.guidance:g}, top-k {s.top_k} (0: all), top-p {s.top_p:g}; they stand in `generation_config.json`. The "
        "folder is a checkpoint: `evaluate`, `train --init-from` and `load_transformer` take it as it is."
    )


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _plain(value: object) -> str:
    """Text that stays text in Markdown, on one line."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "|\\`*_<>[]#" else c for c in text)
