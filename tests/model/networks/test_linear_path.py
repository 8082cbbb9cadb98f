"""The linear path beside the convolutions: where it begins, and that it takes part."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvar_model.config import TOKENIZERS, tokenizer_parameters
from medvar_model.networks.linear_path import LinearPath, low_frequencies
from medvar_model.networks.tokenizer import Tokenizer

PATH = replace(TOKENIZERS["tiny"], linear_path=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_frequencies_are_orthonormal_and_the_lowest_come_first():
    rows = low_frequencies(8, 100).flatten(1)
    assert rows.shape == (64, 64)
    torch.testing.assert_close(rows @ rows.T, torch.eye(64, dtype=torch.float64))
    torch.testing.assert_close(low_frequencies(8, 16).flatten(1), rows[:16])
    torch.testing.assert_close(rows[0], torch.full((64,), 1 / 8, dtype=torch.float64))
    fade = torch.cos((torch.arange(8) + 0.5) * torch.pi / 8).double() / 32**0.5
    torch.testing.assert_close(rows[1], fade.repeat(8), msg="the second varies along a row, once")


@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_tokenizer_leaves_what_the_lowest_frequencies_hold(channels):
    config = replace(PATH, image_channels=channels, latent_channels=9 * channels)
    tokenizer = Tokenizer(config, seeded())
    grid = torch.linspace(-1, 1, 32)
    images = torch.stack([grid.expand(32, 32), grid[:, None].expand(32, 32)])[:, None].repeat(1, channels, 1, 1)
    drawn = tokenizer.render(tokenizer.latents(images))
    assert (drawn - images).square().mean().sqrt() < 0.02, "slopes are low frequencies"
    patches = F.unfold(images[:, :1], config.downsampling, stride=config.downsampling)
    basis = low_frequencies(config.downsampling, 9).float().flatten(1)
    kept = F.fold((patches.transpose(1, 2) @ basis.T @ basis).transpose(1, 2), 32, 8, stride=8)
    torch.testing.assert_close(drawn[:, :1], kept, atol=1e-5, rtol=0)


def test_an_error_of_the_latent_map_is_as_large_as_that_of_the_pixels():
    path = LinearPath(replace(PATH, latent_channels=16))
    error = torch.randn(4, 16, 4, 4, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(path.synthesis(error).square().mean(), error.square().mean())


def test_both_maps_and_all_convolutions_learn():
    tokenizer = Tokenizer(PATH, seeded())
    images = torch.rand(2, 1, 32, 32, generator=seeded(1)) * 2 - 1
    optimizer = torch.optim.SGD(tokenizer.parameters(), lr=0.1)
    for _ in range(3):  # the layers that begin at zero first, then what stands before them
        optimizer.zero_grad()
        outcome = tokenizer(images)
        ((outcome.images - images).square().mean() + outcome.vq_loss).backward()
        optimizer.step()
    still = [
        name for name, value in tokenizer.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0
    ]
    assert still == []
    assert sum(value.numel() for value in tokenizer.parameters()) == tokenizer_parameters(PATH)


def test_without_it_nothing_is_drawn_otherwise():
    plain = Tokenizer(TOKENIZERS["tiny"], seeded())
    assert plain.linear_path is None
    assert not any("linear_path" in name for name in plain.state_dict())
