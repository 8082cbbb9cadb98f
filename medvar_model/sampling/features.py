"""Look inside: what tokenizer and transformer make of the slices of a shard set.

In: a `Features`. Out: a folder with

    slices.parquet              a row a slice: key, condition, log-likelihood with and without the condition, nats of each scale
    maps-000000.safetensors     a batch: keys of slices.parquet in order; `tokens` (n, L), `latents` (n, C, S, S),
                                `hidden.<block>` (n, D, S, S): the finest scale's positions after that block, `surprise` (n, side, side)
    surprise/                   a shard set of the surprise maps with the geometry of the slices: `medvar-data reconstruct` lays them back

One teacher-forced pass gives all. Surprise is -log p of the tokens, nats a pixel: a token's share is spread over the pixels it stands for,
so that the sum over an image is its -log-likelihood.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from safetensors.torch import save_file
from torch import Tensor

from medvar_data.shardset.dataset import read_dataset, read_table
from medvar_data.shardset.derived import DerivedSet, DerivedWriter
from medvar_data.storage.parquet import write_table
from medvar_data.storage.store import Store
from medvar_model.errors import ConfigMismatch, UnknownCondition, UnusableFolder
from medvar_model.loader import DataSpec, Examples, Loader
from medvar_model.machine.folders import check_writable
from medvar_model.machine.processes import Process
from medvar_model.networks.scales import ScaleSchedule, as_map
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.opened import OpenedRun, condition_row, open_run


@dataclass(frozen=True)
class Features:
    """What to look at.

    Args:
        data: a shard set and which of its slices.
        run: a transformer's run or checkpoint.
        out: a new or empty folder.
        split: of the slices.
        count: slices, evenly spread; 0 takes all.
        blocks: of the transformer, from 0, whose positions are kept as maps.
        scan_maps: write `surprise/`; needs a whole shard set, with its cases.
        batch_size: slices at a time.
        tokenizer: a tokenizer's run or checkpoint; empty takes the copy in the transformer's run.
    """

    data: DataSpec
    run: str
    out: str
    split: str = "test"
    count: int = 0
    blocks: tuple[int, ...] = ()
    scan_maps: bool = True
    batch_size: int = 16
    tokenizer: str = ""


@dataclass(frozen=True, eq=False)
class Inside:
    """What one teacher-forced pass shows of a batch.

    Attributes:
        tokens: ids of all scales, one after the other.
        latents: what the pyramid codes.
        nats: -log p of each token with the slice's condition, and without one.
        hidden: by block, the positions of the finest scale.
    """

    tokens: Tensor
    latents: Tensor
    nats: Float32[Tensor, "batch tokens"]
    nats_unconditional: Float32[Tensor, "batch tokens"]
    hidden: dict[int, Float[Tensor, "batch width side side"]]


def write_features(spec: Features, device: torch.device) -> int:
    """Take the pass and write everything; returns how many slices there were.

    Raises:
        UnknownCondition: the run does not know a condition of the set.
        MissingCheckpoint: the run or its tokenizer is not there.
        ConfigMismatch: the tokenizer does not fit, or there is no such block.
        UnusableFolder: the folder is not empty.
    """
    opened = check_features(spec)
    transformer, tokenizer = opened.networks(device)
    side, out, store = tokenizer.config.image_side, Path(spec.out), Store(spec.data.shards)
    loader = Loader(spec.data, spec.split, side, spec.batch_size, 0, Process(1, 0, device))
    rows_of = _rows(opened, loader.conditions)
    out.mkdir(parents=True, exist_ok=True)
    table: list[dict[str, Any]] = []
    scans = _ScanMaps(out / "surprise", store, opened) if spec.scan_maps else None
    for number, examples in enumerate(loader.passes(spec.batch_size, spec.count)):
        rows = torch.tensor([rows_of[int(row)] for row in examples.conditions], device=device)
        inside = look_inside(transformer, tokenizer, examples.images, rows, spec.blocks)
        maps = surprise_maps(inside.nats, transformer.schedule, side)
        save_file(_tensors(inside, maps), out / f"maps-{number:06d}.safetensors")
        table += list(_table_rows(examples, inside, transformer.schedule, f"maps-{number:06d}.safetensors"))
        if scans is not None:
            scans.add(examples.keys, maps.cpu().numpy())
    write_table(out / "slices.parquet", pa.Table.from_pylist(table), {"medvar.run": opened.kept.digest})
    if scans is not None:
        scans.finish()
    return len(table)


def check_features(spec: Features) -> OpenedRun:
    """Check what `write_features` checks before it begins, and write nothing.

    Raises:
        ModelError: what stands in its way; see `write_features`.
    """
    out = Path(spec.out)
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise UnusableFolder(f"{out} is not empty; name a new folder with -o.")
    opened = open_run(spec.run, spec.tokenizer)
    depth = opened.kept.config.depth  # type: ignore[union-attr]
    if any(not 0 <= block < depth for block in spec.blocks):
        raise ConfigMismatch(f"--block is one of {spec.blocks}; wanted numbers from 0 to {depth - 1}.")
    return opened


@torch.no_grad()
def look_inside(
    transformer: Transformer, tokenizer: Tokenizer, images: Tensor, rows: Tensor, blocks: tuple[int, ...] = ()
) -> Inside:
    """Code images and predict their tokens in one pass with their conditions and one without.

    Args:
        transformer: in evaluation mode.
        tokenizer: its own.
        images: float32, batch x 1 x side x side, [-1, 1].
        rows: condition rows.
        blocks: whose outputs are kept.
    """
    latents = tokenizer.latents(images)
    tokens = tokenizer.pyramid.encode(latents)
    inputs, ids = torch.cat(tokenizer.pyramid.inputs(tokens), 1), torch.cat(tokens, 1)
    hidden: dict[int, Tensor] = {}
    length = transformer.schedule.lengths[-1]
    handles = [
        transformer.blocks[block].register_forward_hook(
            lambda module, given, answer, block=block: hidden.__setitem__(block, as_map(answer[:, -length:].float()))
        )
        for block in blocks
    ]
    try:
        nats = _nats(transformer(rows, inputs), ids)
    finally:
        for handle in handles:
            handle.remove()
    nobody = torch.full_like(rows, transformer.config.n_conditions)
    return Inside(ids, latents, nats, _nats(transformer(nobody, inputs), ids), hidden)


def surprise_maps(
    nats_BL: Float32[Tensor, "batch tokens"], schedule: ScaleSchedule, side: int
) -> Float32[Tensor, "batch side side"]:
    """Spread each token's nats over the pixels it stands for, and add up the scales."""
    total = nats_BL.new_zeros(len(nats_BL), 1, side, side)
    for part in nats_BL.split(schedule.lengths, dim=1):
        coarse = as_map(part[..., None])
        spread = F.interpolate(coarse, size=(side, side), mode="nearest-exact")
        whole, kept = spread.sum((2, 3), keepdim=True), part.sum(1)[:, None, None, None]
        total += spread * (kept / whole.clamp(min=1e-12))
    return total[:, 0]


def _nats(logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    return F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten(), reduction="none").view_as(ids_BL)


def _tensors(inside: Inside, maps: Tensor) -> dict[str, Tensor]:
    kept = {"tokens": inside.tokens.to(torch.int32), "latents": inside.latents.half(), "surprise": maps}
    kept |= {f"hidden.{block}": states.half() for block, states in inside.hidden.items()}
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def _table_rows(examples: Examples, inside: Inside, schedule: ScaleSchedule, file: str) -> Iterator[dict[str, Any]]:
    scales = torch.stack([part.sum(1) for part in inside.nats.split(schedule.lengths, dim=1)], 1).double()
    for n, key in enumerate(examples.keys):
        yield {
            "key": key,
            "file": file,
            "place": n,
            "log_likelihood": -float(scales[n].sum()),
            "log_likelihood_unconditional": -float(inside.nats_unconditional[n].double().sum()),
            "scale_nats": scales[n].tolist(),
        }


def _rows(opened: OpenedRun, conditions: dict[str, int]) -> dict[int, int]:
    """From the set's rows of conditions to the run's.

    Raises:
        UnknownCondition: the run knows one of them not.
    """
    unknown = sorted(set(conditions) - set(opened.kept.conditions))
    if unknown:
        raise UnknownCondition(
            f"The set has the condition {unknown[0]}, which the run was not trained with. Choose slices with --where."
        )
    n = opened.kept.config.n_conditions  # type: ignore[union-attr]
    return {row: condition_row(name, opened.kept.conditions, n) for name, row in conditions.items()}


class _ScanMaps:
    """Writes maps as they come as a shard set whose rows are those of the slices, with nats a pixel for intensities.

    White is as surprising as a guess among all codes.
    """

    def __init__(self, folder: Path, store: Store, opened: OpenedRun) -> None:
        self._store, self._dataset = store, read_dataset(store)
        self._slices = read_table(store, "slices.parquet", self._dataset)
        self._place = {key: place for place, key in enumerate(self._slices["key"].to_pylist())}
        config, side = opened.frozen.config, self._dataset.image_side
        high = math.log(config.vocabulary) * config.n_tokens / side**2
        self._scale: dict[str, Any] = {"normalizer": "window", "low": 0.0, "high": high}
        self._cases: set[tuple[str, str]] = set()
        versions = {
            "transformer": opened.kept.digest,
            "tokenizer": opened.frozen.digest,
            "map": "surprise, nats a pixel",
        }
        about = DerivedSet(side, self._dataset.conditions, versions, self._dataset.recipe, self._dataset.digest)
        self._writer = DerivedWriter(folder, about)

    def add(self, keys: Sequence[str], maps: Float32[np.ndarray, "batch side side"]) -> None:
        """Take in the maps of some slices."""
        rows = self._slices.take([self._place[key] for key in keys]).to_pylist()
        for row, surprise in zip(rows, maps, strict=True):
            self._cases.add((row["collection"], row["case"]))
            self._writer.add({**row, **self._scale}, _picture(surprise, self._dataset.image_side, self._scale["high"]))

    def finish(self) -> None:
        """Write the tables."""
        cases = read_table(self._store, "cases.parquet", self._dataset).to_pylist()
        kept = [row for row in cases if (row["collection"], row["case"]) in self._cases]
        self._writer.finish([{**row, **self._scale} for row in kept])


def _picture(surprise: np.ndarray, side: int, high: float) -> UInt8[np.ndarray, "side side"]:
    """Grey values of a map, at the set's side."""
    repeat = side // surprise.shape[0]
    spread = surprise.repeat(repeat, 0).repeat(repeat, 1) / repeat**2
    return np.clip(np.rint(255 * spread / high), 0, 255).astype(np.uint8)
