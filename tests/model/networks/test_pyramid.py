"""The one residual loop and its codebook: laws."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvar_model.config import TOKENIZERS, TokenizerConfig
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.codebook import Codebook, count_codes, k_means, revive, usage
from medvar_model.networks.pyramid import Pyramid, fit_codebook
from medvar_model.networks.tokenizer import Tokenizer

SIXTEEN = TokenizerConfig(width=32, vocabulary=128, latent_channels=8)  # the paper's ten scales


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pyramid_and_map(config: TokenizerConfig = TOKENIZERS["tiny"], batch: int = 3) -> tuple[Pyramid, torch.Tensor]:
    pyramid = Pyramid(config)
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.normal_(0, 0.3, generator=seeded(1))
    side = config.latent_side
    return pyramid, torch.randn(batch, config.latent_channels, side, side, generator=seeded(2))


@pytest.mark.parametrize("config", [TOKENIZERS["tiny"], SIXTEEN])
def test_decode_is_the_last_of_grow(config):
    pyramid, latents = pyramid_and_map(config)
    tokens = pyramid.encode(latents)
    sums = list(pyramid.grow(tokens))
    assert len(sums) == pyramid.schedule.n
    assert torch.equal(pyramid.decode(tokens), sums[-1])


def test_every_scale_codes_what_the_sum_of_the_coarser_has_not_explained():
    pyramid, latents = pyramid_and_map(SIXTEEN)
    tokens = pyramid.encode(latents)
    sums = [pyramid.blank(3), *pyramid.grow(tokens)]
    for k, wanted in enumerate(pyramid.wanted(latents)):
        rest = pyramid.shrink(k, latents - sums[k])
        torch.testing.assert_close(wanted, rest.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_the_training_pass_chooses_the_tokens_of_encode_and_the_sum_of_decode():
    pyramid, latents = pyramid_and_map()
    result = pyramid(latents)
    for ours, theirs in zip(result.tokens, pyramid.encode(latents), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(result.total, pyramid.decode(result.tokens), atol=1e-6, rtol=0)


def test_inputs_are_what_sampling_would_be_shown():
    pyramid, latents = pyramid_and_map()
    tokens = pyramid.encode(latents)
    inputs, total = pyramid.inputs(tokens), pyramid.blank(3)
    for k, ids in enumerate(tokens[:-1]):
        total = pyramid.add(k, total, ids)
        assert torch.equal(inputs[k], pyramid.input(k + 1, total))
    assert torch.cat(inputs, 1).shape == (3, pyramid.schedule.total - 1, 8)
    assert not torch.cat(inputs, 1).requires_grad


def test_the_loss_is_the_mean_over_scales_of_codebook_and_commitment_terms():
    pyramid, latents = pyramid_and_map()
    sums = list(pyramid.grow(pyramid.encode(latents)))
    expected = sum(1.25 * F.mse_loss(total, latents) for total in sums) / 4
    torch.testing.assert_close(pyramid(latents).loss, expected)


def test_the_sum_passes_its_gradient_to_the_map_unchanged_and_none_to_the_codes():
    pyramid, latents = pyramid_and_map()
    latents.requires_grad_()
    weight = torch.randn(latents.shape, generator=seeded(3))
    (pyramid(latents).total * weight).sum().backward()
    assert torch.equal(latents.grad, weight)
    assert pyramid.codebook.codes.grad is None


def test_commitment_moves_the_map_and_the_other_term_moves_the_codes():
    pyramid, latents = pyramid_and_map()
    latents.requires_grad_()
    pyramid(latents).loss.backward()
    sums = [total.detach() for total in pyramid.grow(pyramid.encode(latents))]
    expected = sum(0.25 * 2 * (latents.detach() - total) / total.numel() for total in sums) / 4
    torch.testing.assert_close(latents.grad, expected)
    assert pyramid.codebook.codes.grad.abs().sum() > 0
    assert all(smoother.conv.weight.grad.abs().sum() > 0 for smoother in pyramid.smoothers)


def test_the_finest_scale_is_neither_shrunk_nor_enlarged():
    pyramid, latents = pyramid_and_map()
    assert pyramid.shrink(3, latents) is latents
    ids = torch.zeros(1, 16, dtype=torch.int64)
    code = pyramid.codebook.codes[0]
    torch.testing.assert_close(pyramid.lift(3, ids), pyramid.smoothers[3](code.expand(1, 4, 4, -1).movedim(3, 1)))


def test_a_smoother_is_half_the_map_and_half_its_convolution():
    pyramid, latents = pyramid_and_map()
    smoother = pyramid.smoothers[0]
    torch.testing.assert_close(smoother(latents), 0.5 * latents + 0.5 * smoother.conv(latents))


def test_shrinking_averages_uneven_cells():
    pyramid, _ = pyramid_and_map(SIXTEEN)
    row = torch.arange(16.0).expand(1, 1, 16, 16)
    # Cell i of 13 over 16 positions runs from floor(16 i / 13) to ceil(16 (i + 1) / 13).
    cells = [(16 * i // 13, -(-16 * (i + 1) // 13)) for i in range(13)]
    expected = [sum(range(a, b)) / (b - a) for a, b in cells]
    torch.testing.assert_close(pyramid.shrink(8, row)[0, 0, 0], torch.tensor(expected))


def keys_weight(distance: float, a: float = -0.75) -> float:
    """The cubic convolution kernel of Keys 1981."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_enlarging_is_cubic_convolution_between_cell_centres_and_repeats_the_border():
    pyramid, _ = pyramid_and_map(SIXTEEN)
    pyramid.smoothers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    side = SIXTEEN.scale_sides[4]
    ids = torch.randint(128, (1, side * side), generator=seeded(4))
    weights = torch.zeros(16, side)
    for i in range(16):
        centre = (i + 0.5) * side / 16 - 0.5
        for j in range(int(centre // 1) - 1, int(centre // 1) + 3):
            weights[i, min(max(j, 0), side - 1)] += keys_weight(centre - j)
    codes = pyramid.codebook.codes.detach()[ids[0]].view(side, side, -1).movedim(2, 0)
    expected = weights @ codes @ weights.T
    torch.testing.assert_close(pyramid.lift(4, ids)[0].detach(), expected, atol=1e-5, rtol=0)


def test_tokens_of_other_scales_are_refused():
    pyramid, _ = pyramid_and_map()
    with pytest.raises(ConfigMismatch, match="9 tokens an image; wanted 4"):
        pyramid.lift(1, torch.zeros(1, 9, dtype=torch.int64))


def test_the_pyramid_ignores_autocast():
    pyramid, latents = pyramid_and_map()
    plain = pyramid(latents)
    with torch.autocast("cpu", torch.bfloat16):
        within = pyramid(latents)
    assert torch.equal(plain.total, within.total)
    assert torch.equal(plain.loss, within.loss)


def test_nearest_is_the_brute_force_minimum():
    book = Codebook(50, 6, seeded())
    vectors = torch.randn(400, 6, generator=seeded(1)) * 0.01
    distance = (vectors[:, None].double() - book.codes[None].double()).square().sum(-1)
    assert torch.equal(book.nearest(vectors), distance.argmin(1))
    assert torch.equal(book.nearest(book.codes.detach()), torch.arange(50))


def test_nearest_gives_the_lowest_id_of_equal_codes():
    book = Codebook(4, 2)
    with torch.no_grad():
        book.codes.copy_(torch.tensor([[5.0, 5], [1, 0], [1, 0], [5, 5]]))
    assert book.nearest(torch.tensor([[1.0, 0], [5, 5]])).tolist() == [1, 0]


def test_k_means_finds_separate_clusters():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    vectors = centres.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=seeded())
    codes = k_means(vectors, 4, seeded(3), iterations=20)
    found = codes[torch.cdist(centres, codes).argmin(1)]
    assert (found - centres).abs().max() < 0.1


def test_k_means_with_more_codes_than_vectors_holds_every_vector():
    vectors = torch.randn(5, 3, generator=seeded())
    codes = k_means(vectors, 12, seeded(1), iterations=1)
    assert codes.shape == (12, 3)
    assert (torch.cdist(vectors, codes).min(1).values < 1e-5).all()


def test_k_means_repeats_with_its_seed():
    vectors = torch.randn(100, 3, generator=seeded())
    assert torch.equal(k_means(vectors, 8, seeded(1)), k_means(vectors, 8, seeded(1)))
    assert not torch.equal(k_means(vectors, 8, seeded(1)), k_means(vectors, 8, seeded(2)))


def test_fitting_the_codebook_explains_more_of_the_maps_and_uses_every_code():
    pyramid = Tokenizer(TOKENIZERS["tiny"], seeded()).pyramid
    latents = torch.randn(64, 8, 4, 4, generator=seeded())

    def unexplained() -> float:
        rest = latents - pyramid.decode(pyramid.encode(latents)).detach()
        return float(rest.square().mean() / latents.square().mean())

    def used() -> int:
        return int((count_codes(pyramid.encode(latents), 64).sum(0) > 0).sum())

    before, used_before = unexplained(), used()
    codes = fit_codebook(pyramid, latents, seeded(1))
    assert torch.equal(codes, pyramid.codebook.codes)
    assert unexplained() < 0.8 * before
    assert used() == 64 > used_before


def test_dead_codes_move_to_candidates_and_live_ones_stay():
    codes = torch.zeros(10, 2)
    hits = torch.tensor([[200] * 8 + [0, 1]])
    candidates = torch.arange(1.0, 41.0).view(20, 2)
    revival = revive(codes, hits, candidates, seeded())
    assert revival.dead.tolist() == [False] * 8 + [True, True]
    assert (revival.codes[:8] == 0).all()
    assert all((candidates == code).all(1).any() for code in revival.codes[8:])
    assert not torch.equal(revival.codes[8], revival.codes[9])


def test_the_threshold_of_death_does_not_depend_on_how_much_was_counted():
    hits = (torch.rand(2, 100, generator=seeded()).square() * 500).long()
    codes, candidates = torch.zeros(100, 2), torch.ones(100, 2)
    few = revive(codes, hits, candidates, seeded(), threshold=0.1)
    many = revive(codes, 1000 * hits, candidates, seeded(), threshold=0.1)
    assert torch.equal(few.dead, many.dead)
    assert few.dead.any()
    assert not few.dead.all()


def test_usage_of_uniform_and_of_single_use():
    counts = torch.stack([torch.full((16,), 10), torch.tensor([160] + [0] * 15)])
    result = usage(counts)
    assert result.share == pytest.approx((1.0, 1 / 16))
    assert result.perplexity == pytest.approx((16.0, 1.0))
    assert result.reachable == (1.0, 1.0)


@pytest.mark.parametrize("tokens", [100, 1_000, 20_000])
def test_uniform_use_is_what_random_tokens_use(tokens):
    drawn = torch.randint(512, (40, 1, tokens), generator=seeded())
    results = [usage(count_codes([ids], 512)) for ids in drawn]
    mean = sum(result.share[0] for result in results) / len(results)
    assert mean == pytest.approx(results[0].uniform[0], abs=0.005)


def test_usage_says_how_much_of_the_codebook_a_coarse_scale_can_reach():
    tokens = [torch.arange(4)[:, None], torch.arange(64).view(4, 16)]
    result = usage(count_codes(tokens, 64))
    assert result.share == result.reachable == (4 / 64, 1.0)
    assert result.perplexity == pytest.approx((4.0, 64.0))


def test_usage_of_nothing_is_refused():
    with pytest.raises(ConfigMismatch, match="no counted tokens"):
        usage(torch.zeros(2, 8, dtype=torch.int64))


def test_counts_are_those_of_each_scale():
    counts = count_codes([torch.tensor([[1], [1]]), torch.tensor([[0, 1, 2, 2], [2, 2, 2, 2]])], 4)
    assert counts.tolist() == [[0, 2, 0, 0], [1, 1, 6, 0]]
    assert math.isclose(counts.sum(), 10)
