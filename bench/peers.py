"""The steps of the recipe `paper` written with MONAI and with TorchIO, as their manuals do it: the peers of bench/harmonize.py.

In: the paths of an image and a label, and the recipe. Out: 8-bit slices and masks [z, row, column]. Each pipeline is the
fastest form that was found in its library's own words; what a library lacks is left out and said at its function.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torchio
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    KeepLargestConnectedComponent,
    LoadImage,
    Orientation,
    RemoveSmallObjects,
    Resize,
    ScaleIntensityRange,
)

from medvar_data.catalog.recipe import Recipe


@dataclass(frozen=True)
class Slices:
    """8-bit slices and their masks, [z, row, column]."""

    images: np.ndarray
    masks: np.ndarray


def monai_slices(image: str, label: str, modality: str, recipe: Recipe) -> Slices:
    """Do every step with MONAI: orientation, body by its largest component, dust in 3D and 2D, slices, resize, 8 bit.

    The body is the largest component of the foreground, without opening and hull (MONAI has neither).
    """
    load = Compose(
        [LoadImage(image_only=True, reader="NibabelReader"), EnsureChannelFirst(), Orientation("RAS", labels=None)]
    )
    voxels, labels = load(image), load(label)
    threshold = recipe.body_threshold_hu if modality == "CT" else 0.0
    foreground = voxels > threshold
    body = KeepLargestConnectedComponent(connectivity=3)(foreground)
    voxels[(foreground & ~body.bool()) & (labels == 0)] = -1024.0 if modality == "CT" else 0.0
    labels = RemoveSmallObjects(min_size=recipe.label_min_voxels, connectivity=3)(labels)
    kept = torch.nonzero(labels[0].any(dim=0).any(dim=0)).flatten()
    pictures = voxels[0, :, :, kept].permute(2, 1, 0).flip(1, 2)  # z first: MONAI resizes channels of 2D at once
    masks = labels[0, :, :, kept].permute(2, 1, 0).flip(1, 2)
    masks = torch.stack([_monai_tidy(mask, recipe) for mask in masks])
    shrinks = max(pictures.shape[1:]) > recipe.side
    low, high = _bounds(voxels.numpy(), modality, recipe)
    finish = Compose(
        [
            Resize((recipe.side, recipe.side), mode="area" if shrinks else "bilinear"),
            ScaleIntensityRange(low, high, 0, 255, clip=True),
        ]
    )
    images = torch.round(finish(pictures)).to(torch.uint8)
    squares = Resize((recipe.side, recipe.side), mode="nearest-exact")(masks).to(torch.uint8)
    return Slices(images.numpy(), squares.numpy())


def torchio_slices(image: str, label: str, modality: str, recipe: Recipe) -> Slices:
    """Do what TorchIO offers: orientation, slices, clipping, resize, 8 bit; it has no cleanup of body or dust."""
    subject = torchio.Subject(image=torchio.ScalarImage(image), label=torchio.LabelMap(label))
    subject = torchio.ToCanonical()(subject)
    kept = torch.nonzero(subject["label"].data[0].any(dim=0).any(dim=0)).flatten()
    first, last, depth = int(kept[0]), int(kept[-1]), subject.spatial_shape[2]
    low, high = _bounds(subject["image"].numpy(), modality, recipe)
    steps = torchio.Compose(
        [
            torchio.Crop((0, 0, 0, 0, first, depth - 1 - last)),
            torchio.Resize((recipe.side, recipe.side, last - first + 1)),
            torchio.Clamp(low, high),
            torchio.RescaleIntensity((0, 255), in_min_max=(low, high)),
        ]
    )
    done = steps(subject)
    pictures = torch.round(done["image"].data[0]).to(torch.uint8).permute(2, 1, 0).flip(1, 2)
    masks = done["label"].data[0].to(torch.uint8).permute(2, 1, 0).flip(1, 2)
    return Slices(pictures.numpy(), masks.numpy())


def _monai_tidy(mask: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    return RemoveSmallObjects(min_size=recipe.label_slice_min_pixels, connectivity=2)(mask[None])[0]


def _bounds(voxels: np.ndarray, modality: str, recipe: Recipe) -> tuple[float, float]:
    if modality == "CT":
        half = recipe.ct_width_hu / 2
        return recipe.ct_level_hu - half, recipe.ct_level_hu + half
    low, high = np.percentile(voxels[voxels != 0], [recipe.mr_low_percentile, recipe.mr_high_percentile])
    return float(low), float(high)
