"""The image side of CLIP ViT-L/14 at 336 pixels, on which CMMD stands; 768 numbers an image, of length 1.

In: 8-bit grey slices. Out: projected class tokens. Radford et al. 2021 (arXiv 2103.00020); the vision transformer of Dosovitskiy et
al. 2021 (arXiv 2010.11929), normalised before each part and once more before all of them, with x sigmoid(1.702 x) for GELU. Input and
scale are those of CMMD (Jayasumana et al. 2024, arXiv 2401.09603). Layers have the names of the published checkpoint, whose text
side is not read.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from medvar_data.storage.store import file_digest
from medvar_model.evaluation.extractors.base import Extractor, Grey, Inputs, described_by, resized
from medvar_model.evaluation.extractors.weights import (
    Published,
    fill,
    find_weights,
    hugging_face_cache,
    read_published,
)

NAME = "clip"
METRICS = {"cmmd": "cmmd", "cmmd_u": "cmmd_u"}
REPOSITORY = "openai/clip-vit-large-patch14-336"
PUBLISHED = Published(
    NAME,
    ("model.safetensors", "pytorch_model.bin"),
    f"https://huggingface.co/{REPOSITORY} (1.7 GB; `hf download {REPOSITORY}` puts it where it is looked for)",
)
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EPSILON = 1e-5  # of the layer norms
PARTS = ("vision_model.", "visual_projection.")  # of the checkpoint; the rest is its text side

Tokens = Float[Tensor, "b tokens width"]


@dataclass(frozen=True)
class ClipSize:
    """Sizes of a vision tower; the defaults are those of ViT-L/14 at 336 pixels."""

    side: int = 336
    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    features: int = 768

    @property
    def tokens(self) -> int:
        """The class token and one for each patch."""
        return (self.side // self.patch) ** 2 + 1


PUBLISHED_SIZE = ClipSize()


class Embeddings(nn.Module):
    """A token for the image and one for each patch, with their positions."""

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(size.width))
        self.patch_embedding = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)
        self.position_embedding = nn.Embedding(size.tokens, size.width)

    def forward(self, images: Float[Tensor, "b 3 side side"]) -> Tokens:
        """Give the tokens, the image's first, patches row by row."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class Attention(nn.Module):
    """Multi-head attention of all tokens to all."""

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size.width, size.width) for _ in range(4))

    def forward(self, x: Tokens) -> Tokens:
        """Attend, scaled by the root of a head's width."""
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Hidden(nn.Module):
    """Two linear layers with the quick GELU between them."""

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size.width, size.hidden), nn.Linear(size.hidden, size.width)

    def forward(self, x: Tokens) -> Tokens:
        """Compute the layers."""
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Block(nn.Module):
    """Attention, then two linear layers, each on normalised tokens and added to them."""

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(size), Hidden(size)
        self.layer_norm1, self.layer_norm2 = _norm(size), _norm(size)

    def forward(self, x: Tokens) -> Tokens:
        """Compute the block."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Tower(nn.Module):
    """The vision transformer; gives the normalised class token."""

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.embeddings = Embeddings(size)
        self.pre_layrnorm = _norm(size)  # spelt so in the checkpoint
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Block(size) for _ in range(size.layers))})
        self.post_layernorm = _norm(size)

    def forward(self, images: Float[Tensor, "b 3 side side"]) -> Float[Tensor, "b width"]:
        """Compute the transformer."""
        x = self.pre_layrnorm(self.embeddings(images))
        for block in self.encoder["layers"].children():
            x = block(x)
        return self.post_layernorm(x[:, 0])


class Clip(nn.Module):
    """CLIP's image side.

    Args:
        size: of the tower.
    """

    def __init__(self, size: ClipSize) -> None:
        super().__init__()
        self.vision_model = Tower(size)
        self.visual_projection = nn.Linear(size.width, size.features, bias=False)

    def forward(self, images: Float32[Tensor, "b 3 side side"]) -> Float32[Tensor, "b features"]:
        """Give the projected class token, scaled to length 1.

        Args:
            images: normalised by `MEAN` and `SPREAD`, at the tower's side.
        """
        return F.normalize(self.visual_projection(self.vision_model(images)), dim=1)


def open_clip(device: torch.device, given: str = "") -> Extractor:
    """Give CLIP's features with CMMD's input.

    Args:
        device: where they are computed.
        given: the checkpoint's file, or the folder it lies in; empty looks in the cache of the Hugging Face libraries.

    Raises:
        MissingCheckpoint: the checkpoint is not there, or is another network's.
    """
    path = find_weights(PUBLISHED, given, hugging_face_cache(REPOSITORY))
    network, size = load_clip(path), PUBLISHED_SIZE
    says = {
        "weights": path.name,
        "source": REPOSITORY,
        "sha256": file_digest(path),
        "licence": "MIT",
        "input": f"CMMD's: {size.side} x {size.side} pixels, Pillow's bicubic on 8 bits; CLIP's mean and deviation, three equal channels",
    }
    return Extractor(
        NAME, size.features, described_by(network, clip_input, size.features, device), False, True, says, METRICS
    )


def load_clip(path: Path, size: ClipSize = PUBLISHED_SIZE) -> Clip:
    """Read the image side of a checkpoint.

    Raises:
        MissingCheckpoint: the file is absent, unsafe, or of a CLIP of other sizes.
    """
    content = read_published(PUBLISHED, path)
    ours = {
        name: value
        for name, value in content.items()
        if name.startswith(PARTS) and not name.endswith("position_ids")  # a range, which older checkpoints keep
    }
    with torch.device("meta"):
        network = Clip(size)
    network.to_empty(device="cpu")
    fill(network, ours, path, PUBLISHED)
    return network


def clip_input(images: Grey) -> Inputs:
    """Bring images to 336 x 336 with Pillow's bicubic filter in 8 bits, and normalise them by CLIP's mean and deviation."""
    grey = resized(images, PUBLISHED_SIZE.side, Image.Resampling.BICUBIC)[:, None].float() / 255
    mean, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, SPREAD))
    return (grey.expand(-1, 3, -1, -1) - mean) / spread


def _norm(size: ClipSize) -> nn.LayerNorm:
    return nn.LayerNorm(size.width, eps=EPSILON)
