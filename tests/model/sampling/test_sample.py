"""Sampling: filters, guidance, seeds."""

import pytest
import torch

from medvar_model.config import TOKENIZERS, TransformerConfig
from medvar_model.errors import ConfigMismatch, ModelError, UnknownCondition
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.choose import choose, guide, least_kept
from medvar_model.sampling.noise import gumbel, keys
from medvar_model.sampling.sample import PAPER, SampleSettings, image_seeds, sample, to_uint8

CONFIG = TransformerConfig(2, 4, vocabulary=64, latent_channels=8, scale_sides=(1, 2, 3, 4), head_width=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(TOKENIZERS["tiny"], seeded(1))
    with torch.no_grad():
        tokenizer.pyramid.codebook.codes.normal_(0, 1, generator=seeded(2))
    return tokenizer


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    """Weights that make the logits depend on condition and features."""
    transformer = Transformer(CONFIG, seeded())
    with torch.no_grad():
        transformer.head.weight.mul_(100)
        transformer.condition_embedding.weight.mul_(4)
        for block in transformer.blocks:
            block.modulation.weight.normal_(0, 0.1, generator=seeded(1))
    return transformer


def joined(tokens) -> torch.Tensor:
    return torch.cat(tokens, 1)


def test_image_n_is_the_same_at_any_batch_size(transformer, tokenizer):
    seeds, condition = image_seeds(42, 0, 6), torch.tensor([0, 1, 2, 3, -1, 1])
    together = sample(transformer, tokenizer, condition, PAPER, seeds)
    for batch in (1, 2, 3):
        parts = [
            sample(transformer, tokenizer, condition[i : i + batch], PAPER, seeds[i : i + batch])
            for i in range(0, 6, batch)
        ]
        assert torch.equal(torch.cat([joined(part.tokens) for part in parts]), joined(together.tokens))
        images = torch.cat([part.images for part in parts])
        assert (images.int() - together.images.int()).abs().max() <= 1  # convolutions may round differently


def test_same_seeds_same_images_other_seeds_other_images(transformer, tokenizer):
    condition = torch.tensor([0, 1])
    first = sample(transformer, tokenizer, condition, PAPER, [5, 6])
    assert torch.equal(first.images, sample(transformer, tokenizer, condition, PAPER, [5, 6]).images)
    assert not torch.equal(first.images, sample(transformer, tokenizer, condition, PAPER, [6, 5]).images)


def test_the_images_are_the_decoded_tokens(transformer, tokenizer):
    drawn = sample(transformer, tokenizer, torch.tensor([0, 1]), PAPER, [5, 6])
    assert drawn.images.shape == (2, 32, 32)
    assert drawn.images.dtype == torch.uint8
    assert torch.equal(drawn.images, to_uint8(tokenizer.decode(drawn.tokens)))
    assert [ids.shape[1] for ids in drawn.tokens] == [1, 4, 9, 16]


def test_every_token_is_chosen_from_the_logits_of_the_masked_pass(transformer, tokenizer):
    settings = SampleSettings(guidance=2.0, top_k=20, top_p=0.9)
    seeds, condition = [3, 4, 5], torch.tensor([0, 1, 2])
    drawn = sample(transformer, tokenizer, condition, settings, seeds)
    inputs = torch.cat(tokenizer.pyramid.inputs(drawn.tokens), 1)
    transformer.eval()
    with torch.no_grad():
        logits = transformer(torch.cat([condition, torch.full((3,), 4)]), inputs.repeat(2, 1, 1))
    noise = gumbel(keys(seeds), 0, 30, 64)
    start = 0
    for k, ids in enumerate(drawn.tokens):
        part = slice(start, start + ids.shape[1])
        expected = choose(guide(logits[:, part], 2.0 * k / 3), noise[:, part], 20, 0.9)
        assert torch.equal(ids, expected)
        start = part.stop


def test_no_condition_is_the_row_of_nobody_not_a_random_class(transformer, tokenizer):
    none = sample(transformer, tokenizer, None, PAPER, [1, 2])
    minus = sample(transformer, tokenizer, torch.tensor([-1, -1]), PAPER, [1, 2])
    classes = [sample(transformer, tokenizer, torch.full((2,), c), PAPER, [1, 2]) for c in range(4)]
    assert torch.equal(joined(none.tokens), joined(minus.tokens))
    assert all(not torch.equal(joined(none.tokens), joined(other.tokens)) for other in classes)


def test_without_guidance_and_filters_the_logits_are_used_as_they_are(transformer, tokenizer):
    plain = SampleSettings(guidance=0.0, top_k=0, top_p=0.0)
    tiny = SampleSettings(guidance=1e-9, top_k=64, top_p=1.0)
    seeds, condition = list(range(8)), torch.arange(8) % 4
    first = sample(transformer, tokenizer, condition, plain, seeds)
    assert torch.equal(joined(first.tokens), joined(sample(transformer, tokenizer, condition, tiny, seeds).tokens))


def test_guidance_grows_from_nothing_at_the_first_scale(transformer, tokenizer):
    seeds, condition = list(range(8)), torch.arange(8) % 4
    weak = sample(transformer, tokenizer, condition, SampleSettings(guidance=0.0), seeds)
    strong = sample(transformer, tokenizer, condition, SampleSettings(guidance=50.0), seeds)
    assert torch.equal(weak.tokens[0], strong.tokens[0])
    assert not torch.equal(weak.tokens[-1], strong.tokens[-1])


def test_sampling_leaves_the_models_as_they_were_in_either_mode(transformer, tokenizer):
    results = []
    for training in (True, False):
        transformer.train(training)
        results.append(sample(transformer, tokenizer, None, PAPER, [1]))
        assert transformer.training == training
    assert torch.equal(results[0].images, results[1].images)


def test_guide_is_the_published_formula():
    c, u = torch.randn(2, 3, 5, generator=seeded()), torch.randn(2, 3, 5, generator=seeded(1))
    torch.testing.assert_close(guide(torch.cat([c, u]), 3.0), 4 * c - 3 * u)
    assert torch.equal(guide(torch.cat([c, u]), 0.0), c)


def reference_probabilities(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The two filters, one code at a time, as described by their authors."""
    kept = logits.double().clone()
    if top_k:
        kept[kept < kept.sort(descending=True).values[top_k - 1]] = -torch.inf
    if top_p:
        chance = kept.softmax(0)
        for code in range(len(kept)):
            likelier = chance[(chance > chance[code])].sum()
            if likelier >= top_p:
                kept[code] = -torch.inf
    return kept.softmax(0)


FILTERS = [(0, 0.0), (5, 0.0), (0, 0.7), (8, 0.8), (1, 0.0), (0, 1e-6), (99, 1.0)]


@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_codes_are_chosen_with_the_probabilities_the_filters_leave(top_k, top_p):
    logits, n = torch.randn(20, generator=seeded(3)), 60_000
    expected = reference_probabilities(logits, min(top_k, 20), top_p)
    chosen = choose(logits.expand(1, n, 20), gumbel(keys([11]), 0, n, 20), top_k, top_p)
    count = chosen[0].bincount(minlength=20).double()
    assert ((count - n * expected).abs() < 5 * (n * expected).sqrt() + 1e-9).all()
    assert set(chosen.unique().tolist()) == set(torch.nonzero(expected)[:, 0].tolist())


@pytest.mark.parametrize(("top_k", "top_p"), [*FILTERS, (300, 0.95), (40, 0.5), (0, 0.98)])
def test_the_filters_without_a_full_sort_keep_what_a_full_sort_keeps(top_k, top_p):
    logits = (4 * torch.randn(3, 7, 512, generator=seeded(5))).round(decimals=1)  # rounded, so that many are equal
    least = least_kept(logits, top_k, top_p)
    kept = torch.ones_like(logits, dtype=torch.bool) if least is None else logits >= least
    wanted = [reference_probabilities(row, min(top_k, 512), top_p) > 0 for row in logits.flatten(0, 1)]
    assert torch.equal(kept.flatten(0, 1), torch.stack(wanted))


def test_codes_as_likely_as_the_last_kept_one_are_kept():
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]).expand(1, 1000, 5)
    chosen = choose(logits, gumbel(keys([1]), 0, 1000, 5), 2, 0.0)
    assert set(chosen.unique().tolist()) == {0, 1, 2, 3}


def test_a_position_is_chosen_independently_of_its_neighbours():
    logits, noise = torch.randn(2, 6, 30, generator=seeded()), gumbel(keys([1, 2]), 0, 6, 30)
    together = choose(logits, noise, 10, 0.9)
    for b in range(2):
        for n in range(6):
            assert choose(logits[b : b + 1, n : n + 1], noise[b : b + 1, n : n + 1], 10, 0.9) == together[b, n]


def test_rounding_moves_few_tokens_and_fewer_than_the_inverse_of_the_cumulative_distribution():
    """Logits a 256th off, as bfloat16 leaves them: the old rule changed a token of eight."""
    logits = 1.5 * torch.randn(1, 2000, 512, generator=seeded(7))
    noise, rounded = gumbel(keys([3]), 0, 2000, 512), logits.bfloat16().float()
    agreed = (choose(logits, noise, 0, 0.95) == choose(rounded, noise, 0, 0.95)).double().mean()
    uniform = torch.rand(1, 2000, 1, generator=seeded(8), dtype=torch.float64)

    def inverse(values):
        falling, order = values.sort(dim=-1, descending=True, stable=True)
        rank = (falling.double().softmax(-1).cumsum(-1) <= uniform).sum(-1, keepdim=True).clamp(max=511)
        return order.gather(-1, rank)[..., 0]

    assert agreed > 0.99 > (inverse(logits) == inverse(rounded)).double().mean()


def test_seeds_do_not_depend_on_how_a_run_is_cut():
    assert image_seeds(42, 0, 10) == [seed for n in range(10) for seed in image_seeds(42, n, 1)]
    assert len(set(image_seeds(42, 0, 500)) | set(image_seeds(43, 0, 500))) == 1000


def test_grey_levels():
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5)
    assert to_uint8(image).flatten().tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(image.expand(1, 3, 1, 5)).shape == (1, 1, 5)


def test_the_papers_settings():
    assert (PAPER.guidance, PAPER.top_k, PAPER.top_p, PAPER.seed) == (4.0, 900, 0.95, 42)


@pytest.mark.parametrize("row", [-2, 4])
def test_unknown_conditions_are_refused(transformer, tokenizer, row):
    with pytest.raises(UnknownCondition, match="knows 0 to 3"):
        sample(transformer, tokenizer, torch.tensor([row]), PAPER, [1])


def test_as_many_conditions_as_seeds(transformer, tokenizer):
    with pytest.raises(ConfigMismatch, match="2 conditions for 1 seeds"):
        sample(transformer, tokenizer, torch.tensor([0, 1]), PAPER, [1])


def test_a_diverged_transformer_is_named(tokenizer):
    broken = Transformer(CONFIG, seeded())
    with torch.no_grad():
        broken.head.weight[3, 3] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        sample(broken, tokenizer, None, PAPER, [1, 2])


def test_a_transformer_of_another_tokenizer_is_refused(tokenizer):
    other = Transformer(TransformerConfig(2, 4, vocabulary=65, latent_channels=8, scale_sides=(1, 2, 3, 4)), seeded())
    with pytest.raises(ConfigMismatch, match="vocabulary is 65, the tokenizer's 64"):
        sample(other, tokenizer, None, PAPER, [1])
