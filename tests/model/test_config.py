"""Configurations: counts, round trips, refusals."""

import json

import pytest
import torch

from medvar_model.config import (
    TOKENIZERS,
    TRANSFORMERS,
    TokenizerConfig,
    TransformerConfig,
    from_dict,
    to_dict,
    tokenizer_parameters,
    transformer_config,
    transformer_parameters,
)
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer


def counted(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_have_as_many_parameters_as_counted(name):
    with torch.device("meta"):
        tokenizer = Tokenizer(TOKENIZERS[name])
    assert counted(tokenizer) == tokenizer_parameters(TOKENIZERS[name])


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("d16", 310_283_520), ("d20", 600_917_136), ("d24", 1_033_399_360), ("d30", 2_010_020_356)],
)
def test_transformers_have_the_papers_numbers_of_parameters(size, parameters):
    config = transformer_config(size, TOKENIZERS["paper"], n_conditions=1000)
    with torch.device("meta"):
        transformer = Transformer(config)
    assert counted(transformer) == transformer_parameters(config) == parameters


@pytest.mark.parametrize("n_conditions", [1, 17])
@pytest.mark.parametrize("size", ["d2", "d16", "d20", "d24", "d30"])
def test_the_closed_form_of_the_count_holds_for_any_number_of_conditions(size, n_conditions):
    d, n = TRANSFORMERS[size].depth, n_conditions
    c = 64 * d
    closed = d * (18 * c**2 + 14 * c + d) + 2 * c**2 + (n + 4823) * c + 4096
    assert transformer_parameters(transformer_config(size, TOKENIZERS["paper"], n)) == closed


def test_the_papers_tokenizer_has_108942593_parameters_and_5762_more_in_colour():
    assert tokenizer_parameters(TokenizerConfig()) == 108_942_593
    assert tokenizer_parameters(TokenizerConfig(image_channels=3)) == 108_948_355


def test_the_paper_fixes_680_tokens_and_a_latent_side_of_16():
    paper = TOKENIZERS["paper"]
    assert (paper.n_tokens, paper.latent_side, paper.downsampling) == (680, 16, 16)


@pytest.mark.parametrize(
    ("size", "width", "drop_path", "gamma"),
    [("d16", 1024, 0.0667, 1e-3), ("d20", 1280, 0.0833, 1e-3), ("d24", 1536, 0.1, 1e-4), ("d30", 1920, 0.125, 1e-5)],
)
def test_depth_decides_width_heads_and_drop_path(size, width, drop_path, gamma):
    config = transformer_config(size, TOKENIZERS["paper"], n_conditions=3)
    assert (config.width, config.heads) == (width, config.depth)
    assert config.drop_path_rate == pytest.approx(drop_path, abs=5e-5)
    assert config.gamma_init == gamma


@pytest.mark.parametrize("config", [*TOKENIZERS.values(), TransformerConfig(depth=3, n_conditions=2, drop_path=0.0)])
def test_json_round_trip(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 3}, "no key 'widht'"),
        ({"width": "160"}, "TokenizerConfig.width is '160'"),
        ({"width": True}, "TokenizerConfig.width is True"),
        ({"scale_sides": [1, 2.0]}, "TokenizerConfig.scale_sides"),
        ({"commitment": None}, "TokenizerConfig.commitment is None"),
    ],
)
def test_from_dict_names_the_key_that_is_wrong(change, message):
    with pytest.raises(ConfigMismatch, match=message):
        from_dict(TokenizerConfig, to_dict(TokenizerConfig()) | change)


def test_from_dict_names_the_key_that_is_missing():
    with pytest.raises(ConfigMismatch, match="needs the key 'n_conditions'"):
        from_dict(TransformerConfig, {"depth": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_side": 250}, "halvings"),
        ({"image_side": 512}, "halvings"),
        ({"scale_sides": (2, 4, 16)}, "the first of them 1"),
        ({"scale_sides": (1, 4, 4, 16)}, "growing"),
        ({"scale_sides": (1,)}, "at least two"),
        ({"width": 40}, "normalisation groups"),
        ({"n_smoothers": 11}, "smoothers"),
        ({"residual_ratio": 1.5}, "residual_ratio"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"level_multipliers": ()}, "level_multipliers"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigMismatch, match=message):
        TokenizerConfig(**change)


@pytest.mark.parametrize("change", [{"depth": 0}, {"n_conditions": 0}, {"condition_dropout": 1.0}, {"drop_path": -0.1}])
def test_a_transformer_that_cannot_be_built_is_refused(change):
    with pytest.raises(ConfigMismatch, match=next(iter(change))):
        TransformerConfig(**({"depth": 2, "n_conditions": 3} | change))


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(ConfigMismatch, match="d2, d3, d4"):
        transformer_config("d17", TOKENIZERS["paper"], 3)
