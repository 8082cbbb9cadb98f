"""Cures of codebook collapse: rotated gradients, a matrix over fixed codes, scale dropout, deaths by relative use."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvar_model.config import TOKENIZERS, tokenizer_parameters
from medvar_model.loader import DataSpec, Examples
from medvar_model.machine.processes import Process
from medvar_model.networks.codebook import LEAST_EXPECTED, Codebook, count_codes, relative_use, revive
from medvar_model.networks.pyramid import fit_codebook, rotated
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.training.losses import TokenizerLossWeights
from medvar_model.training.tokenizer_objective import TokenizerObjective
from medvar_model.training.tokenizer_settings import TrainTokenizer

TINY = TOKENIZERS["tiny"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(e: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """s R of the rotation trick, as a matrix, for one pair of vectors."""
    a, b = F.normalize(e, dim=0), F.normalize(q, dim=0)
    r = F.normalize(a + b, dim=0)
    return (torch.eye(len(e)) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)) * q.norm() / e.norm()


def test_rotation_gives_the_sums_and_turns_the_gradients():
    maps = torch.randn(2, 5, 3, 3, generator=seeded(1)).requires_grad_()
    sums = torch.randn(2, 5, 3, 3, generator=seeded(2))
    passed = rotated(maps, sums)
    torch.testing.assert_close(passed, sums, atol=1e-6, rtol=1e-6)
    upstream = torch.randn(sums.shape, generator=seeded(3))
    passed.backward(upstream)
    for b, i, j in ((0, 0, 0), (1, 2, 1)):
        matrix = rotation(maps[b, :, i, j].detach(), sums[b, :, i, j])
        torch.testing.assert_close(matrix @ maps[b, :, i, j].detach(), sums[b, :, i, j], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(maps.grad[b, :, i, j], matrix.T @ upstream[b, :, i, j], atol=1e-5, rtol=1e-4)


def test_rotation_lets_gradients_pass_where_there_is_nothing_to_turn():
    maps = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 2.0]])[:, :, None, None].requires_grad_()
    sums = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])[:, :, None, None]  # opposite; of no length; to nothing
    rotated(maps, sums).sum().backward()
    torch.testing.assert_close(maps.grad, torch.ones_like(maps))


def test_a_layer_moves_all_codes_by_a_gradient_of_one():
    book = Codebook(16, 4, seeded(), layer=True)
    assert not book.codes.requires_grad
    torch.testing.assert_close(book.vectors, book.codes)
    book.lookup(torch.tensor([3])).sum().backward()
    with torch.no_grad():
        before = book.vectors.clone()
        book.layer -= 0.1 * book.layer.grad
    assert ((book.vectors - before).abs().sum(1) > 0).all()


def test_codes_under_a_layer_are_placed_where_they_are_wanted():
    book = Codebook(16, 4, seeded(), layer=True)
    with torch.no_grad():
        book.layer += 0.3 * torch.randn(4, 4, generator=seeded(1))
    wanted, before = torch.randn(16, 4, generator=seeded(2)), book.vectors.detach().clone()
    rows = torch.arange(16) < 5
    book.place(wanted, rows)
    torch.testing.assert_close(book.vectors[:5], wanted[:5], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(book.vectors[5:], before[5:])
    assert torch.equal(book.nearest(book.vectors.detach()), torch.arange(16))


def test_a_layers_parameters_are_counted():
    config = replace(TINY, code_layer=True)
    assert tokenizer_parameters(config) == sum(p.numel() for p in Tokenizer(config).parameters())


OWN = replace(TINY, codes_per_scale=True)


def test_each_scale_looks_into_its_own_book():
    tokenizer = Tokenizer(OWN, seeded())
    pyramid, book = tokenizer.pyramid, tokenizer.pyramid.codebook
    with torch.no_grad():
        book.codes.normal_(0, 0.5, generator=seeded(2))
    latents = torch.randn(2, OWN.latent_channels, OWN.latent_side, OWN.latent_side, generator=seeded(3))
    tokens = pyramid.encode(latents)
    assert len(book.codes) == len(OWN.scale_sides) * OWN.vocabulary
    assert tokenizer_parameters(OWN) == sum(p.numel() for p in tokenizer.parameters())
    for k, (wanted, ids) in enumerate(zip(pyramid.wanted(latents), tokens, strict=True)):
        codes = book.vectors[k * OWN.vocabulary : (k + 1) * OWN.vocabulary]
        assert torch.equal(torch.cdist(wanted.flatten(0, 1), codes).argmin(1), ids.flatten())
    with torch.no_grad():
        book.codes[: OWN.vocabulary] = 0  # the coarsest scale's alone
    assert pyramid.codebook.lookup(tokens[0], pyramid.book(0)).abs().max() == 0
    assert pyramid.codebook.lookup(tokens[1], pyramid.book(1)).abs().max() > 0


@torch.no_grad()
def test_books_found_for_each_scale_code_the_latents_better_than_one_for_all():
    latents = torch.randn(64, TINY.latent_channels, TINY.latent_side, TINY.latent_side, generator=seeded(3))
    left = []
    for config in (TINY, OWN):
        pyramid = Tokenizer(config, seeded()).pyramid
        fit_codebook(pyramid, latents, seeded(1))
        left.append(float(F.mse_loss(pyramid.decode(pyramid.encode(latents)), latents)))
        counts = count_codes(pyramid.encode(latents), config.vocabulary)
    assert left[1] < left[0]
    assert (counts > 0).double().mean() > 0.9


def test_a_dead_code_of_one_scale_is_moved_in_its_own_book(tmp_path):
    weights = TokenizerLossWeights(perceptual=0.0)
    spec = TrainTokenizer(str(tmp_path), DataSpec("unread"), OWN, weights=weights, unquantized=0.0, perceptual="none")
    objective = TokenizerObjective(spec, Process.alone())
    book, forgotten = objective.network.pyramid.codebook, []
    before = book.codes.detach().clone()
    objective.counts_KV += 100
    objective.counts_KV[2, 5] = 0
    images = torch.rand(4, 1, OWN.image_side, OWN.image_side, generator=seeded(4)) * 2 - 1
    objective._revive(
        100,
        Examples(1, images, torch.zeros(4, dtype=torch.int64), ("a", "b", "c", "d")),
        lambda _, rows: forgotten.append(rows),
    )
    moved = (book.codes != before).any(1).nonzero().flatten().tolist()
    assert moved == forgotten[0].nonzero().flatten().tolist() == [2 * OWN.vocabulary + 5]
    assert not objective.counts_KV.any()
    objective.counts_KV[0, 7] = 2 * OWN.vocabulary  # too few for a judgement, so they are counted on
    objective._revive(
        200, Examples(2, images, torch.zeros(4, dtype=torch.int64), ("a", "b", "c", "d")), lambda *_: None
    )
    assert objective.counts_KV[0, 7] == 2 * OWN.vocabulary
    assert sorted(objective.numbers()) == [
        "perplexity/scale_01",
        "usage/scale_01",
    ]  # the other scales' hits started anew


def test_an_image_of_fewer_scales_is_drawn_from_their_sum():
    tokenizer = Tokenizer(TINY, seeded())
    with torch.no_grad():
        tokenizer.pyramid.codebook.codes.normal_(0, 0.5, generator=seeded(2))
    images = torch.rand(3, 1, 32, 32, generator=seeded(1)) * 2 - 1
    whole, part = tokenizer(images), tokenizer(images, torch.tensor([4, 2, 3]))
    sums = list(tokenizer.progressive(whole.tokens))
    torch.testing.assert_close(part.vq_loss, whole.vq_loss)
    for n, kept in enumerate((4, 2, 3)):
        torch.testing.assert_close(part.images[n].clamp(-1, 1), sums[kept - 1][n], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(part.images[1], whole.images[1], atol=1e-3)


def test_relative_use_does_not_depend_on_how_much_was_counted_and_has_mean_one():
    hits = (torch.rand(3, 20, generator=seeded()) * 100).long()
    torch.testing.assert_close(relative_use(hits), relative_use(7 * hits))
    assert float(relative_use(hits).mean()) == pytest.approx(1)


def test_a_code_that_a_coarse_scale_alone_uses_is_no_dead_one():
    hits = torch.zeros(2, 100, dtype=torch.int64)
    hits[0, :10], hits[1, 10:99] = 1, 1000  # by the sum over scales, the first ten have a thousandth of the mean use
    revival = revive(torch.zeros(100, 3), hits, torch.ones(5, 3), seeded(), threshold=0.01)
    assert revival.dead.tolist() == [False] * 99 + [True]


def test_no_two_codes_move_onto_one_vector():
    """Of two equal codes the lower id wins every tie: the other would stay dead."""
    hits = torch.zeros(1, 100, dtype=torch.int64)
    hits[0, 90:] = 1000
    candidates = torch.arange(8.0)[:, None].expand(8, 3) + 1
    revival = revive(torch.zeros(100, 3), hits, candidates, seeded(), threshold=0.05)
    moved = revival.codes[revival.dead]
    assert len(moved) == len(moved.unique(dim=0)) == 90
    distance = torch.cdist(moved, candidates).min(1).values
    assert (distance == 0).sum() == 8
    assert 0 < distance[distance > 0].median() < 0.1 * candidates.std() * 3**0.5 * 1.5


def test_no_code_is_called_dead_on_little_evidence():
    hits = torch.zeros(1, 10, dtype=torch.int64)
    hits[0, 0] = int(LEAST_EXPECTED * 10) - 1
    assert not revive(torch.zeros(10, 2), hits, torch.ones(3, 2), seeded()).dead.any()
    hits[0, 0] += 1
    assert revive(torch.zeros(10, 2), hits, torch.ones(20, 2), seeded()).dead.sum() == 9
