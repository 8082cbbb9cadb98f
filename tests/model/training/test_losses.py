"""The losses: formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvar_model.training.losses import (
    TokenizerLossWeights,
    next_scale_loss,
    pixel_loss,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixel_loss_is_a_fifth_of_the_absolute_and_all_of_the_squared_error():
    x, y = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    assert float(pixel_loss(x, y)) == pytest.approx(0.2 * 0.25 + 0.125)
    assert float(pixel_loss(x, y, TokenizerLossWeights(absolute=1.0, squared=0.0))) == pytest.approx(0.25)


def test_pixel_loss_is_computed_in_float32():
    x, y = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16), torch.full((1, 1, 64, 64), 1e-3)
    loss = pixel_loss(x, y)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(0.2e-3 + 1e-6, rel=1e-5)


def test_next_scale_loss_is_the_mean_over_all_tokens():
    tokens = [torch.randint(7, (3, n), generator=seeded(n)) for n in (1, 4, 9)]
    logits = torch.randn(3, 14, 7, generator=seeded())
    loss = next_scale_loss(logits, tokens)
    torch.testing.assert_close(loss.mean, F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten()))
    weighted = (loss.per_scale * torch.tensor([1.0, 4.0, 9.0])).sum() / 14
    torch.testing.assert_close(weighted, loss.mean)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_a_scale_weighs_as_its_number_of_tokens_to_a_power(power):
    tokens = [torch.randint(7, (3, n), generator=seeded(n)) for n in (1, 4, 9)]
    logits = torch.randn(3, 14, 7, generator=seeded()).requires_grad_()
    loss = next_scale_loss(logits, tokens, power)
    alike = [
        F.cross_entropy(part.flatten(0, 1), ids.flatten())
        for part, ids in zip(logits.split([1, 4, 9], 1), tokens, strict=True)
    ]
    weights = [n**power for n in (1, 4, 9)]
    wanted = sum(weight * mean for weight, mean in zip(weights, alike, strict=True)) / sum(weights)
    torch.testing.assert_close(loss.weighted, wanted)
    ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss.weighted, wanted))
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(loss.mean, next_scale_loss(logits, tokens).mean)


def test_next_scale_loss_of_equal_logits_is_the_logarithm_of_the_vocabulary():
    loss = next_scale_loss(torch.zeros(2, 5, 512), [torch.zeros(2, 1).long(), torch.zeros(2, 4).long()])
    assert float(loss.mean) == pytest.approx(math.log(512))


def test_accuracy_counts_hits_of_each_scale():
    tokens = [torch.tensor([[1]]), torch.tensor([[0, 1, 2, 0]])]
    logits = F.one_hot(torch.tensor([[1, 0, 1, 1, 1]]), 3).float()
    assert next_scale_loss(logits, tokens).accuracy.tolist() == [1.0, 0.5]
