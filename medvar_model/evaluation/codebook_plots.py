"""Draw a tokenizer's codes: heat maps of their use, curves by scale, reconstructions.

In: `CodeMeasures` by name. Out: PNG and SVG files in one folder.

    usage-<name>.png             a heat map of all codes for each scale, and for all together (MedVAR's Figure 4)
    conditions-<name>.png        the same for each condition, all scales together
    scales.png, scales.svg       use, perplexity, residual energy, PSNR by scale, all tokenizers in one
    reconstructions-<name>.png   slices above, what their tokens make of them below
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from medvar_model.evaluation.codebook import CodeMeasures
from medvar_model.mosaic import mosaic
from medvar_model.networks.codebook import USAGE_MARGIN

LEAST, MOST = USAGE_MARGIN, 100.0  # ends of the colours, in units of uniform use
ACROSS = 6
MAP_INCHES, DPI = 1.9, 110


def heat_map(hits: Any) -> Float64[np.ndarray, "rows columns"]:
    """Lay the use of V codes in a grid, row by row, in units of uniform use; 4,096 codes make 64 x 64. Unused places are NaN."""
    values = np.asarray(hits, dtype=np.float64)
    columns = math.ceil(math.sqrt(len(values)))
    grid = np.full(columns * math.ceil(len(values) / columns), np.nan)
    grid[: len(values)] = values * len(values) / max(values.sum(), 1)
    return grid.reshape(-1, columns)


def write_plots(
    folder: Path,
    measures: Mapping[str, CodeMeasures],
    sides: Mapping[str, Sequence[int]],
    conditions: Mapping[int, str],
) -> list[Path]:
    """Write all pictures; see the head of the file.

    Args:
        folder: for the files.
        measures: of each tokenizer, by its name.
        sides: of each tokenizer's token maps.
        conditions: name of each condition's row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, one in measures.items():
        maps = {f"{n} x {n}": hits for n, hits in zip(sides[name], one.counts, strict=True)}
        files.append(
            _heat_maps(
                folder / f"usage-{name}.png", f"{name}: use of codes by scale", maps | {"all": one.counts.sum(0)}
            )
        )
        rows = {conditions.get(row, str(row)): hits for row, hits in one.by_condition.items()}
        files.append(_heat_maps(folder / f"conditions-{name}.png", f"{name}: use of codes by condition", rows))
        files.append(folder / f"reconstructions-{name}.png")
        files[-1].write_bytes(mosaic(one.shown))
    return [*files, *_curves(folder, measures)]


def _heat_maps(path: Path, title: str, maps: Mapping[str, Any]) -> Path:
    across = min(ACROSS, len(maps))
    down = math.ceil(len(maps) / across)
    figure = Figure(
        figsize=(across * MAP_INCHES + 0.9, down * (MAP_INCHES + 0.25) + 0.4), dpi=DPI, layout="constrained"
    )
    colours = colormaps["viridis"].with_extremes(bad="white", under="white")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, hits) in zip(axes, maps.items(), strict=False):
        grid = heat_map(hits)
        used = f"{(grid >= LEAST).sum():,} of {len(hits):,}"
        image = axis.imshow(grid, norm=LogNorm(LEAST, MOST, clip=False), cmap=colours, interpolation="nearest")
        axis.set_title(f"{name}\n{used}", fontsize=7)
        axis.set_axis_on()
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=list(axes), label="times uniform use", shrink=0.8, extend="both")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path)
    return path


def _curves(folder: Path, measures: Mapping[str, CodeMeasures]) -> list[Path]:
    figure = Figure(figsize=(10, 5.6), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    titles = (
        "codes used, % of what uniform use would", "perplexity, % of the vocabulary", "latent energy left, %",
        "PSNR of the first scales, dB",
    )  # fmt: skip
    for name, one in measures.items():
        use, vocabulary = one.usage, one.counts.shape[1]
        rows = (
            [100 * share / most for share, most in zip(use.share, use.uniform, strict=True)],
            [100 * value / vocabulary for value in use.perplexity],
            [100 * value for value in one.residual],
            one.psnr,
        )
        for axis, row in zip(axes, rows, strict=True):
            axis.plot(range(1, len(row) + 1), row, marker="o", markersize=3, label=name)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("scale", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    files = [folder / "scales.png", folder / "scales.svg"]
    for file in files:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
