"""Reading VAR's files: names, configuration, fold to grey, diagnosis of wrong files.

The files are made here from the published table of names and shapes, with random numbers.
"""

import pytest
import torch
from support.var_files import SIDES, autoencoder, autoencoder_shapes, transformer, transformer_shapes, write_var_files

from medvar_model.checkpoints.import_var import (
    import_tokenizer,
    import_transformer,
    rename_tokenizer,
    rename_transformer,
    tokenizer_config_of,
    transformer_config_of,
)
from medvar_model.config import PAPER_SIDES
from medvar_model.errors import ConfigMismatch, MissingCheckpoint
from medvar_model.networks.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_var_files(tmp_path_factory.mktemp("var"))


def test_the_released_autoencoder_has_324_names_which_all_fit():
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in autoencoder_shapes(160, 4096, 32)}
        assert len(state) == 324
        renamed = rename_tokenizer(state)
        tokenizer = Tokenizer(tokenizer_config_of(renamed, PAPER_SIDES))
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 108_948_355
    assert {name: value.shape for name, value in tokenizer.state_dict().items()} == {
        name: value.shape for name, value in renamed.items()
    }


@pytest.mark.parametrize(("depth", "names"), [(16, 220), (20, 272), (24, 324), (30, 402)])
def test_the_released_transformers_have_as_many_names_as_published(depth, names):
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in transformer_shapes(depth, PAPER_SIDES, 1000, 4096, 32)}
        config = transformer_config_of(rename_transformer(state), None)
    assert len(state) == names
    assert (config.depth, config.width, config.n_conditions) == (depth, 64 * depth, 1000)
    assert (config.scale_sides, config.vocabulary, config.mlp_ratio) == (PAPER_SIDES, 4096, 4)


@pytest.mark.parametrize("file", ["vae.pth", "ar-ckpt-last.pth"])
def test_the_autoencoder_is_read_from_bare_and_wrapped_files(files, file):
    tokenizer = import_tokenizer(files / file, image_channels=3, scale_sides=SIDES)
    config = tokenizer.config
    assert (config.width, config.level_multipliers, config.blocks_per_level) == (32, (1, 1, 2, 2, 4), 2)
    assert (config.image_side, config.vocabulary, config.latent_channels, config.n_smoothers) == (64, 64, 8, 4)
    state = tokenizer.state_dict()
    for name, value in autoencoder().items():
        if name == "decoder.up.4.attn.2.proj_out.weight":
            assert torch.equal(state["decoder.levels.4.attentions.2.output.weight"], value)
        if name == "encoder.down.1.downsample.conv.weight":
            assert torch.equal(state["encoder.levels.1.downsample.weight"], value)
    assert all(parameter.requires_grad for parameter in tokenizer.parameters())


@pytest.mark.parametrize("file", ["var.pth", "ar-ckpt-last.pth"])
def test_the_transformer_is_read_from_bare_and_wrapped_files(files, file):
    model = import_transformer(files / file, scale_sides=SIDES)
    assert (model.config.depth, model.config.n_conditions, model.config.head_width) == (2, 6, 64)
    source = transformer()
    assert torch.equal(model.condition_embedding.weight[6], source["class_emb.weight"][6])
    assert torch.equal(model.position_embedding, source["pos_1LC"][0])
    assert torch.equal(model.blocks[1].attention.log_scale, source["blocks.1.attn.scale_mul_1H11"].flatten())
    logits = model.eval()(torch.tensor([0, 6]), torch.zeros(2, 29, 8))
    assert logits.isfinite().all()


def test_names_of_parallel_training_are_understood(files, tmp_path):
    torch.save({f"module.{name}": value for name, value in transformer().items()}, tmp_path / "ddp.pth")
    assert import_transformer(tmp_path / "ddp.pth", scale_sides=SIDES).config.depth == 2


def test_the_fold_to_one_channel_is_exact_for_grey_images(files):
    colour = import_tokenizer(files / "vae.pth", image_channels=3, scale_sides=SIDES)
    grey = import_tokenizer(files / "vae.pth", scale_sides=SIDES)
    assert grey.config.image_channels == 1
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    in_colour, in_grey = colour(images.expand(-1, 3, -1, -1)), grey(images)
    torch.testing.assert_close(colour.latents(images.expand(-1, 3, -1, -1)), grey.latents(images), atol=1e-4, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(in_colour.tokens, in_grey.tokens, strict=True))
    torch.testing.assert_close(in_colour.images.mean(1, keepdim=True), in_grey.images, atol=1e-4, rtol=0)


def test_half_precision_files_become_float32(tmp_path):
    torch.save({name: value.half() for name, value in transformer().items()}, tmp_path / "half.pth")
    model = import_transformer(tmp_path / "half.pth", scale_sides=SIDES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_wrong_kind_of_file_is_named(files):
    with pytest.raises(MissingCheckpoint, match=r"does not hold VAR's transformer.*encoder\.conv_in"):
        import_transformer(files / "vae.pth")
    with pytest.raises(MissingCheckpoint, match=r"does not hold VAR's autoencoder.*pos_start"):
        import_tokenizer(files / "var.pth")


def test_an_absent_file_is_named(files):
    with pytest.raises(MissingCheckpoint, match=r"no weight file .*var_d16\.pth"):
        import_transformer(files / "var_d16.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: v for n, v in s.items() if "scale_mul" not in n}, "before April 2024"),
        (lambda s: s | {"shared_ada_lin.1.weight": torch.zeros(768, 128)}, "shares one modulation"),
        (lambda s: s | {"blocks.0.extra": torch.zeros(1)}, "does not fit the model.*blocks.0.extra"),
        (lambda s: {n: v for n, v in s.items() if n != "head.bias"}, "does not fit the model.*head.bias"),
        (lambda s: s | {"head.bias": torch.zeros(65)}, "does not fit the model.*head.bias"),
        (lambda s: {n: v for n, v in s.items() if not n.startswith("blocks.1.")}, "as many heads as blocks"),
    ],
)
def test_variants_that_cannot_be_built_are_diagnosed(tmp_path, change, message):
    torch.save(change(transformer()), tmp_path / "var.pth")
    with pytest.raises(ConfigMismatch, match=message):
        import_transformer(tmp_path / "var.pth", scale_sides=SIDES)


def test_scales_that_do_not_fit_are_refused(files):
    with pytest.raises(ConfigMismatch, match="30 positions, which no schedule"):
        import_transformer(files / "var.pth")
    with pytest.raises(ConfigMismatch, match="30 positions at 4 scales, but"):
        import_transformer(files / "var.pth", scale_sides=(1, 2, 5))


def test_a_grey_autoencoder_cannot_be_unfolded(tmp_path):
    state = autoencoder()
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"][:, :1]
    state["decoder.conv_out.weight"] = state["decoder.conv_out.weight"][:1]
    state["decoder.conv_out.bias"] = state["decoder.conv_out.bias"][:1]
    torch.save(state, tmp_path / "grey.pth")
    assert import_tokenizer(tmp_path / "grey.pth", scale_sides=SIDES).config.image_channels == 1
    with pytest.raises(ConfigMismatch, match="1 channels; wanted 3"):
        import_tokenizer(tmp_path / "grey.pth", image_channels=3, scale_sides=SIDES)
