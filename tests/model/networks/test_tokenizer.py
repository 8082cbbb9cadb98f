"""The tokenizer: images to tokens and back."""

import pytest
import torch

from medvar_model.config import TOKENIZERS, TokenizerConfig
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.conv import Decoder, Encoder
from medvar_model.networks.pyramid import fit_codebook
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.training.losses import pixel_loss

TINY = TOKENIZERS["tiny"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 32, 32, generator=seeded(5)) * 2 - 1


@pytest.fixture
def tokenizer(images) -> Tokenizer:
    tokenizer = Tokenizer(TINY, seeded())
    fit_codebook(tokenizer.pyramid, tokenizer.latents(images).detach(), seeded(1))
    return tokenizer


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_shapes_follow_from_the_configuration(name):
    config = TOKENIZERS[name]
    tokenizer = Tokenizer(config, seeded())
    tokens = tokenizer.encode(torch.zeros(2, 1, config.image_side, config.image_side))
    assert [ids.shape for ids in tokens] == [(2, side * side) for side in config.scale_sides]
    assert sum(ids.shape[1] for ids in tokens) == config.n_tokens
    assert tokenizer.decode(tokens).shape == (2, 1, config.image_side, config.image_side)


def test_the_training_pass_chooses_the_tokens_of_encode(tokenizer, images):
    result = tokenizer(images)
    for ours, theirs in zip(result.tokens, tokenizer.encode(images), strict=True):
        assert torch.equal(ours, theirs)
    assert result.counts.sum(1).tolist() == [3, 12, 27, 48]


def test_decode_is_the_clamped_picture_of_the_training_pass_and_the_last_of_progressive(tokenizer, images):
    result = tokenizer(images)
    decoded = tokenizer.decode(result.tokens)
    torch.testing.assert_close(decoded, result.images.clamp(-1, 1).detach(), atol=1e-5, rtol=0)
    pictures = list(tokenizer.progressive(result.tokens))
    assert len(pictures) == 4
    assert torch.equal(pictures[-1], decoded)


def test_decoded_images_stay_within_range_but_the_training_pass_is_free_to_leave_it(tokenizer, images):
    with torch.no_grad():
        tokenizer.decoder.exit.bias.fill_(3.0)
    result = tokenizer(images)
    assert result.images.max() > 1
    assert tokenizer.decode(result.tokens).max() <= 1


def test_encoding_is_the_same_in_training_and_evaluation_mode_and_in_any_batch(tokenizer, images):
    together = torch.cat(tokenizer.train().encode(images), 1)
    alone = torch.cat([torch.cat(tokenizer.eval().encode(image[None]), 1) for image in images])
    assert torch.equal(together, alone)


def test_every_parameter_learns(tokenizer, images):
    result = tokenizer(images)
    (pixel_loss(result.images, images) + result.vq_loss).backward()
    still = [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The bias of keys shifts all scores of a query alike, which a softmax does not see; other parts must move.
    assert still == []


def test_a_few_steps_lower_the_loss(tokenizer, images):
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        result = tokenizer(images)
        loss = pixel_loss(result.images, images) + result.vq_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_same_seed_same_weights_whatever_the_global_generator_says():
    torch.manual_seed(1)
    first = Tokenizer(TINY, seeded(4)).state_dict()
    torch.manual_seed(2)
    second = Tokenizer(TINY, seeded(4)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_latent_map_is_float32_under_autocast(tokenizer, images):
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.latents(images).dtype == torch.float32
        assert tokenizer.decode(tokenizer.encode(images)).dtype == torch.float32


def test_attention_stands_at_the_coarsest_level_only():
    encoder, decoder = Encoder(TokenizerConfig(width=32)), Decoder(TokenizerConfig(width=32))
    assert [len(level.attentions) for level in encoder.levels] == [0, 0, 0, 0, 2]
    assert [len(level.attentions) for level in decoder.levels] == [0, 0, 0, 0, 3]


def test_the_encoder_pads_right_and_below_only():
    encoder = Encoder(TINY)
    level = encoder.levels[0]
    torch.nn.init.zeros_(level.downsample.weight)
    torch.nn.init.zeros_(level.downsample.bias)
    level.downsample.weight.data[:, :, 0, 0] = 1  # the kernel's first cell lies on the image's first pixel
    level.blocks = torch.nn.ModuleList()
    corner = torch.zeros(1, 8, 4, 4)
    corner[:, :, 0, 0] = 1
    assert level(corner)[0, 0].tolist() == [[8, 0], [0, 0]]


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (1, 1, 32, 40)])
def test_images_of_another_size_are_refused(tokenizer, shape):
    with pytest.raises(ConfigMismatch, match="wanted"):
        tokenizer.encode(torch.zeros(shape))
