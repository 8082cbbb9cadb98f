"""Small training runs that several test files share."""

from dataclasses import replace
from pathlib import Path

import torch

from medvar_model.config import TOKENIZERS
from medvar_model.loader import DataSpec
from medvar_model.machine import processes
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.tokenizer import LOOP as TOKENIZER_LOOP
from medvar_model.training.tokenizer import TrainTokenizer, train_tokenizer
from medvar_model.training.transformer import LOOP as TRANSFORMER_LOOP
from medvar_model.training.transformer import TrainTransformer, train_transformer

PROCESS = processes.Process(1, 0, torch.device("cpu"))
STYLES = {"samples": 32, "batch_size": 4, "checkpoint_every": 8, "validate_every": 16, "log_every": 4}


def tokenizer_spec(shards, out, **loop) -> TrainTokenizer:
    """Eight steps: one without quantization, then k-means, then two revivals."""
    settings = replace(TOKENIZER_LOOP, **STYLES | {"base_learning_rate": 0.02} | loop)
    return TrainTokenizer(
        str(out),
        DataSpec(str(shards), workers=1),
        TOKENIZERS["tiny"],
        settings,
        TokenizerLossWeights(perceptual=0.0),
        unquantized=0.03,
        codebook_images=12,
        revive_every=10,
    )


def transformer_spec(shards, out, tokenizer, **loop) -> TrainTransformer:
    settings = replace(TRANSFORMER_LOOP, **STYLES | {"base_learning_rate": 0.02} | loop)
    return TrainTransformer(str(out), DataSpec(str(shards), workers=1), str(tokenizer), "d2", settings)


def run(spec, report=lambda log: None, stop=lambda: False, process=PROCESS):
    function = train_tokenizer if isinstance(spec, TrainTokenizer) else train_transformer
    return function(spec, process, report, stop)


def same_files(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()
