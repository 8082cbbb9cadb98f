"""Read the weights of VAR's official files (https://github.com/FoundationVision/VAR) into our models.

In: a `.pth` file: a bare state dict (`vae_ch160v4096z32.pth`, `var_d16.pth`), or a training checkpoint with both.
Out: a `Tokenizer` or a `Transformer`, its configuration read off the shapes. Only weights are loaded, never code.

VAR's images have three channels. For grey images the fold to one channel is exact: the first convolution's
weights are summed over its input channels, and the last one's averaged over its output channels gives the
mean of the three.

Names not in the table of `conv.py`:

| here                                          | VAR                                    |
|-----------------------------------------------|----------------------------------------|
| to_latent, from_latent                        | quant_conv, post_quant_conv            |
| pyramid.codebook.codes                        | quantize.embedding.weight              |
| pyramid.smoothers.i.conv                      | quantize.quant_resi.qresi_ls.i         |
| feature_projection                            | word_embed                             |
| condition_embedding, level_embedding          | class_emb, lvl_embed                   |
| start_embedding, position_embedding           | pos_start, pos_1LC (without lone axes) |
| blocks.i.modulation                           | blocks.i.ada_lin.1                     |
| blocks.i.attention.query_key_value, .output   | blocks.i.attn.mat_qkv, .proj           |
| blocks.i.attention.query_bias, .value_bias    | blocks.i.attn.q_bias, .v_bias          |
| blocks.i.attention.log_scale                  | blocks.i.attn.scale_mul_1H11           |
| blocks.i.feed_forward.widen, .narrow          | blocks.i.ffn.fc1, .fc2                 |
| head_modulation                               | head_nm.ada_lin.1                      |
| (dropped: constants, statistics)              | lvl_1L, attn_bias_for_masking,         |
|                                               | zero_k_bias, ema_vocab_hit_SV          |
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from medvar_model.checkpoints.weight_files import read_weights
from medvar_model.config import PAPER_SIDES, TokenizerConfig, TransformerConfig
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer

PARTS = {"tokenizer": ("vae_local", "quantize.embedding.weight"), "transformer": ("var_wo_ddp", "pos_1LC")}
"""Of each network: its name in VAR's training checkpoints, and a weight that it alone has."""

WRAPPERS = ("state_dict", "model", "model_state_dict")  # in which others put a state dict

SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

DROPPED = re.compile(r"(^|\.)(lvl_1L|attn_bias_for_masking|zero_k_bias|ema_vocab_hit_SV)$")

TOKENIZER_NAMES = (
    (r"^(encoder|decoder)\.conv_in\.", r"\1.entry."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.exit."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.norm."),
    (r"^(encoder|decoder)\.(?:down|up)\.(\d+)\.", r"\1.levels.\2."),
    (r"\.(down|up)sample\.conv\.", r".\1sample."),
    (r"\.block\.(\d+)\.", r".blocks.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.mid\.block_1\.", ".middle.before."),
    (r"\.mid\.attn_1\.", ".middle.attention."),
    (r"\.mid\.block_2\.", ".middle.after."),
    (r"\.(norm|conv)([12])\.", r".\1_\2."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.qkv\.", ".query_key_value."),
    (r"\.proj_out\.", ".output."),
    (r"^quant_conv\.", "to_latent."),
    (r"^post_quant_conv\.", "from_latent."),
    (r"^quantize\.embedding\.weight$", "pyramid.codebook.codes"),
    (r"^quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"pyramid.smoothers.\1.conv."),
    (r"^quantize\.quant_resi\.qresi\.", "pyramid.smoothers.0.conv."),
)

TRANSFORMER_NAMES = (
    (r"^word_embed\.", "feature_projection."),
    (r"^class_emb\.", "condition_embedding."),
    (r"^lvl_embed\.", "level_embedding."),
    (r"^pos_start$", "start_embedding"),
    (r"^pos_1LC$", "position_embedding"),
    (r"^(blocks\.\d+)\.ada_lin\.1\.", r"\1.modulation."),
    (r"\.attn\.mat_qkv\.", ".attention.query_key_value."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.attn\.q_bias$", ".attention.query_bias"),
    (r"\.attn\.v_bias$", ".attention.value_bias"),
    (r"\.attn\.scale_mul_1H11$", ".attention.log_scale"),
    (r"\.ffn\.fc1\.", ".feed_forward.widen."),
    (r"\.ffn\.fc2\.", ".feed_forward.narrow."),
    (r"^head_nm\.ada_lin\.1\.", "head_modulation."),
)


def import_tokenizer(path: Path, *, image_channels: int = 1, scale_sides: tuple[int, ...] = PAPER_SIDES) -> Tokenizer:
    """Read VAR's autoencoder.

    Args:
        path: `vae_ch160v4096z32.pth`, or a training checkpoint.
        image_channels: 1 to fold the colours, 3 to keep them.
        scale_sides: sides of the token maps, which the file does not hold.

    Raises:
        MissingCheckpoint: the file is absent, or holds something else.
        ConfigMismatch: the weights are not of a shape that can be built.
    """
    weights = _open(path, part="vae_local", mark="quantize.embedding.weight", kind="autoencoder")
    state = rename_tokenizer(weights)
    if image_channels == 1 and state["encoder.entry.weight"].shape[1] == 3:
        state = fold_colours(state)
    config = tokenizer_config_of(state, scale_sides)
    if config.image_channels != image_channels:
        raise ConfigMismatch(
            f"{path} holds an autoencoder for {config.image_channels} channels; wanted {image_channels}. "
            "Only three can be folded into one."
        )
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    _fill(tokenizer, state, path)
    return tokenizer


def import_transformer(path: Path, *, scale_sides: tuple[int, ...] | None = None) -> Transformer:
    """Read VAR's transformer; depth, width, conditions and codes follow from the shapes.

    Args:
        path: `var_d16.pth` and the like, or a training checkpoint `ar-ckpt-last.pth`.
        scale_sides: sides of the token maps; None for the one of VAR's two schedules that has as many tokens.

    Raises:
        MissingCheckpoint: the file is absent, or holds something else.
        ConfigMismatch: the weights are of a variant that cannot be built here; the message says which.
    """
    weights = _open(path, part="var_wo_ddp", mark="pos_1LC", kind="transformer")
    if any(name.startswith("shared_ada_lin") for name in weights):
        raise ConfigMismatch(
            f"{path} shares one modulation between all blocks (as VAR's d36 for 512 pixels does), which is "
            "not built here. Take one of the other files."
        )
    if not any(name.endswith("scale_mul_1H11") for name in weights):
        raise ConfigMismatch(
            f"{path} has no attention temperatures: it is one of the files from before April 2024, whose "
            "queries and keys are not normalised. Download the present file of the same name."
        )
    state = rename_transformer(weights)
    config = transformer_config_of(state, scale_sides)
    with torch.device("meta"):
        transformer = Transformer(config)
    _fill(transformer, state, path)
    return transformer


def rename_tokenizer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the autoencoder's weights (or gradients) our names."""
    return _rename(weights, TOKENIZER_NAMES)


def rename_transformer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the transformer's weights (or gradients) our names, without axes of length 1."""
    state = _rename(weights, TRANSFORMER_NAMES)
    for name in state:
        if name in ("start_embedding", "position_embedding"):
            state[name] = state[name].squeeze(0)
            state[name] = state[name].squeeze(0) if name == "start_embedding" else state[name]
        elif name.endswith("log_scale"):
            state[name] = state[name].flatten()
    return state


def fold_colours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a three-channel tokenizer's state into that of one channel; exact for grey images."""
    folded = dict(state)
    folded["encoder.entry.weight"] = state["encoder.entry.weight"].sum(1, keepdim=True)
    folded["decoder.exit.weight"] = state["decoder.exit.weight"].mean(0, keepdim=True)
    folded["decoder.exit.bias"] = state["decoder.exit.bias"].mean(0, keepdim=True)
    return folded


def tokenizer_config_of(state: Mapping[str, Tensor], scale_sides: tuple[int, ...]) -> TokenizerConfig:
    """Read a tokenizer's configuration off its weights' shapes; what has no shape is as in VAR."""
    levels = _count(state, r"encoder\.levels\.(\d+)\.")
    width, image_channels = state["encoder.entry.weight"].shape[:2]
    outs = [state[f"encoder.levels.{i}.blocks.0.conv_2.weight"].shape[0] for i in range(levels)]
    vocabulary, latent_channels = state["pyramid.codebook.codes"].shape
    return TokenizerConfig(
        image_side=scale_sides[-1] * 2 ** (levels - 1),
        image_channels=image_channels,
        width=width,
        level_multipliers=tuple(out // width for out in outs),
        blocks_per_level=_count(state, r"encoder\.levels\.0\.blocks\.(\d+)\."),
        latent_channels=latent_channels,
        vocabulary=vocabulary,
        scale_sides=scale_sides,
        n_smoothers=_count(state, r"pyramid\.smoothers\.(\d+)\."),
    )


def transformer_config_of(state: Mapping[str, Tensor], scale_sides: tuple[int, ...] | None) -> TransformerConfig:
    """Read a transformer's configuration off its weights' shapes."""
    tokens, width = state["position_embedding"].shape
    depth = _count(state, r"blocks\.(\d+)\.")
    known = [sides for sides in (PAPER_SIDES, SIDES_512) if sum(side**2 for side in sides) == tokens]
    if scale_sides is None and not known:
        raise ConfigMismatch(
            f"The file's transformer has {tokens} positions, which no schedule of VAR's has. Give scale_sides."
        )
    sides = scale_sides or known[0]
    if sum(side**2 for side in sides) != tokens or len(sides) != len(state["level_embedding.weight"]):
        raise ConfigMismatch(
            f"The file's transformer has {tokens} positions at {len(state['level_embedding.weight'])} "
            f"scales, but scale_sides {sides} make {sum(side**2 for side in sides)} at {len(sides)}. Give "
            "the sides it was trained with."
        )
    if width % depth or len(state["blocks.0.attention.log_scale"]) != depth:
        raise ConfigMismatch(
            f"The file's transformer is {width} wide and {depth} deep; wanted as many heads as blocks."
        )
    return TransformerConfig(
        depth=depth,
        n_conditions=len(state["condition_embedding.weight"]) - 1,
        vocabulary=len(state["head.weight"]),
        latent_channels=state["feature_projection.weight"].shape[1],
        scale_sides=sides,
        head_width=width // depth,
        mlp_ratio=len(state["blocks.0.feed_forward.widen.weight"]) // width,
    )


def parts_of(path: Path) -> tuple[str, ...]:
    """Say which of VAR's networks a file holds: tokenizer, transformer or both.

    Raises:
        MissingCheckpoint: the file is absent or unsafe, or holds neither; the message says what it holds.
    """
    content = read_weights(path)
    parts = tuple(kind for kind, (part, mark) in PARTS.items() if mark in _part(content, part))
    if not parts:
        wanted = " or ".join(f"{mark!r} ({kind})" for kind, (_, mark) in PARTS.items())
        raise MissingCheckpoint(
            f"{path} holds neither of VAR's networks: wanted a weight named {wanted}, found {_contents(content)}. Give the official "
            "file, or a training checkpoint of VAR's own trainer."
        )
    return parts


def _open(path: Path, part: str, mark: str, kind: str) -> dict[str, Tensor]:
    """Find the wanted state dict in a bare or wrapped file, and say what else it is if it is not there."""
    content: Mapping[str, object] = read_weights(path)
    weights = _part(content, part)
    if mark not in weights:
        raise MissingCheckpoint(
            f"{path} does not hold VAR's {kind}: it has no {mark!r}, and its first keys are {_contents(content)}. Give "
            f"the file of the {kind} itself, or a training checkpoint that wraps it."
        )
    return weights


def _part(content: Mapping[str, object], part: str) -> dict[str, Tensor]:
    """Give a part's weights, whatever they are wrapped in."""
    for name in ("trainer", part, *WRAPPERS):
        inner = content.get(name)
        if isinstance(inner, Mapping):
            content = inner
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _contents(content: Mapping[str, object]) -> str:
    """Name the first keys of a file, and of what it wraps."""
    inner = [(name, value) for name, value in content.items() if isinstance(value, Mapping)]
    named = [repr(name) for name in list(content)[:3]]
    wrapped = [f"{name!r} with {', '.join(repr(key) for key in list(value)[:3])}" for name, value in inner[:3]]
    return ", ".join(named) + (f"; in it {'; '.join(wrapped)}" if wrapped else "")


def _rename(weights: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in weights.items():
        if DROPPED.search(name):
            continue
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers that a pattern finds in the names."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _fill(model: torch.nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give a model without storage its weights, in float32; refuse names or shapes that do not fit."""
    wanted = model.state_dict()
    wrong = sorted(set(state) ^ set(wanted)) + [
        name for name in wanted if name in state and wanted[name].shape != state[name].shape
    ]
    if wrong:
        raise ConfigMismatch(
            f"{path} does not fit the model its shapes suggest: {len(wrong)} weights are missing, unknown "
            f"or of another shape, the first of them {wrong[0]!r}. It may come from a changed copy of VAR."
        )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    model.requires_grad_(True)
