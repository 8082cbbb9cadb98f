"""What the sampler keeps between calls changes no number: each shortcut against the plain way."""

import pytest
import torch

from medvar_model.config import TOKENIZERS, TransformerConfig
from medvar_model.errors import ConfigMismatch, UnknownCondition
from medvar_model.networks.fast_decoder import FastDecoder
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import image_seeds, to_uint8
from medvar_model.sampling.sampler import Kept, Sampler, in_bfloat16
from medvar_model.sampling.settings import SampleSettings, load_settings

CONFIG = TransformerConfig(2, 4, vocabulary=64, latent_channels=8, scale_sides=(1, 2, 3, 4), head_width=16)
SETTINGS = SampleSettings(guidance=2.0, top_k=30, top_p=0.9)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(TOKENIZERS["tiny"], seeded(1)).eval()
    with torch.no_grad():
        tokenizer.pyramid.codebook.codes.normal_(0, 1, generator=seeded(2))
    return tokenizer


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    """Weights that make the logits depend on condition and features."""
    transformer = Transformer(CONFIG, seeded()).eval()
    with torch.no_grad():
        transformer.head.weight.mul_(100)
        transformer.condition_embedding.weight.mul_(4)
        for block in transformer.blocks:
            block.modulation.weight.normal_(0, 0.1, generator=seeded(1))
    return transformer


@pytest.fixture
def sampler(transformer, tokenizer) -> Sampler:
    return Sampler(transformer, tokenizer)


def joined(tokens) -> torch.Tensor:
    return torch.cat(tokens, 1)


def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order(sampler):
    rows, seeds = [0, 1, 2, 3, 4, 1, 0], image_seeds(42, 0, 7)
    together = sampler.draw(rows, SETTINGS, seeds)
    order = [5, 0, 6, 2, 4, 1, 3]
    shuffled = sampler.draw([rows[n] for n in order], SETTINGS, [seeds[n] for n in order])
    assert torch.equal(joined(shuffled.tokens), joined(together.tokens)[order])
    for n in range(7):
        alone = sampler.draw([rows[n]], SETTINGS, [seeds[n]])
        assert torch.equal(joined(alone.tokens)[0], joined(together.tokens)[n])
        assert (alone.images[0].int() - together.images[n].int()).abs().max() <= 1  # convolutions may round differently


def test_a_sampler_that_has_drawn_before_draws_as_a_new_one(sampler, transformer, tokenizer):
    """Tables and room for keys and values are used again; nothing of an earlier image is left in them."""
    for rows in ([3, 3], [1], [2, 0]):
        sampler.draw(rows, SETTINGS, range(9, 9 + len(rows)))
    again, fresh = (one.draw([0, 1], SETTINGS, [5, 6]) for one in (sampler, Sampler(transformer, tokenizer)))
    assert torch.equal(joined(again.tokens), joined(fresh.tokens))
    assert torch.equal(again.images, fresh.images)


def test_the_table_of_a_condition_holds_what_the_masked_pass_computes(transformer):
    inputs = torch.zeros(5, 29, 8)
    with torch.no_grad():
        logits = transformer(torch.arange(5), inputs)
    for row in range(5):
        told = transformer.tell(row)
        torch.testing.assert_close(told.logits[0], logits[row, :1], atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            condition = transformer.condition_embedding(torch.tensor([row]))
            wanted = torch.stack([block.modulate(condition) for block in transformer.blocks], 1)
        assert torch.equal(told.modulations, wanted)


def test_keys_and_values_in_a_room_that_is_used_again_equal_those_of_the_masked_pass(transformer):
    """Scale by scale with memory written in place, against all scales at once without any memory."""
    inputs = torch.randn(3, 29, 8, generator=seeded(3))
    rows = torch.tensor([0, 2, 4])
    with torch.no_grad():
        wanted = transformer(rows, inputs)
    room = transformer.room(3).fill_(7.0)  # what an earlier pass left
    told = [transformer.tell(row) for row in rows.tolist()]
    cache = transformer.open(type(told[0]).joined(told), room)
    parts = [torch.cat([one.logits for one in told])]
    for k, part in enumerate(inputs.split((4, 9, 16), dim=1), start=1):
        parts.append(transformer.step(k, part, cache))
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=2e-5, rtol=1e-5)
    assert cache.memory.data_ptr() == room.data_ptr()


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_the_fast_decoder_draws_the_tokenizers_images(name):
    tokenizer = Tokenizer(TOKENIZERS[name], seeded(4)).eval()
    side, channels = tokenizer.config.latent_side, tokenizer.config.latent_channels
    total = 3 * torch.randn(2, channels, side, side, generator=seeded(5))
    with torch.no_grad():
        plain = tokenizer.render(total)
        fast = FastDecoder(tokenizer)(total)
    assert plain.abs().max() > 0.1
    assert (fast - plain).abs().max() < 1e-5 * plain.abs().max()
    assert [name for name, _ in tokenizer.named_parameters()] == [
        name for name, _ in Tokenizer(TOKENIZERS[name]).named_parameters()
    ]


def test_weights_cast_once_give_what_autocast_gives_by_casting_at_every_call(transformer):
    half, told = in_bfloat16(transformer), {}
    inputs = torch.randn(2, 4, 8, generator=seeded(6))
    for name, network in (("autocast", transformer), ("cast", half)):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            cache, first = network.start(torch.tensor([0, 3]))
            told[name] = torch.cat([first, network.step(1, inputs, cache)], 1)
    assert torch.equal(told["autocast"], told["cast"])
    assert half.blocks[0].feed_forward.widen.weight.dtype == torch.bfloat16
    assert half.blocks[0].modulation.weight.dtype == half.feature_projection.weight.dtype == torch.float32


def test_in_bfloat16_most_tokens_stay_what_they_are(transformer, tokenizer):
    full, half = (Sampler(transformer, tokenizer, precision) for precision in ("float32", "bfloat16"))
    rows, seeds = [n % 5 for n in range(16)], range(16)
    drawn = full.draw(rows, SETTINGS, seeds)
    low = half.draw(rows, SETTINGS, seeds)
    assert (drawn.tokens[0] == low.tokens[0]).double().mean() > 0.9
    given = Kept(drawn.tokens, [torch.ones_like(ids, dtype=torch.bool) for ids in drawn.tokens])
    drawn_again = half.draw(rows, SETTINGS, seeds, given)
    assert torch.equal(joined(drawn_again.tokens), joined(drawn.tokens))
    assert (drawn_again.images.int() - drawn.images.int()).abs().float().mean() < 2  # the decoder alone in bfloat16


def test_kept_tokens_stay_and_the_others_follow_from_them(sampler):
    rows, seeds = [0, 1], [5, 6]
    first, other = sampler.draw(rows, SETTINGS, seeds), sampler.draw(rows, SETTINGS, [7, 8])
    where = [torch.rand(ids.shape, generator=seeded(9)) < 0.5 for ids in first.tokens]
    mixed = sampler.draw(rows, SETTINGS, [7, 8], Kept(first.tokens, where))
    for ids, kept, place in zip(mixed.tokens, first.tokens, where, strict=True):
        assert torch.equal(ids[place], kept[place])
    nothing = Kept(first.tokens, [torch.zeros_like(place) for place in where])
    assert torch.equal(joined(sampler.draw(rows, SETTINGS, [7, 8], nothing).tokens), joined(other.tokens))
    assert torch.equal(mixed.images, to_uint8(sampler.decoder(sampler.pyramid.decode(mixed.tokens))))


def test_scales_without_guidance_are_those_of_no_guidance_given_the_coarser_ones(transformer, tokenizer, sampler):
    rows, seeds = [0, 3], [1, 2]
    guided, partly = (sampler.draw(rows, SampleSettings(3.0, 30, 0.9, 0, n), seeds) for n in (0, 2))
    assert torch.equal(joined(guided.tokens[:2]), joined(partly.tokens[:2]))
    where = [torch.full_like(ids, k < 2, dtype=torch.bool) for k, ids in enumerate(partly.tokens)]
    plain = sampler.draw(rows, SampleSettings(0.0, 30, 0.9), seeds, Kept(partly.tokens, where))
    assert torch.equal(joined(plain.tokens), joined(partly.tokens))
    assert not torch.equal(joined(guided.tokens), joined(partly.tokens))


def test_an_unknown_condition_and_an_unknown_precision_are_refused(sampler, transformer, tokenizer):
    with pytest.raises(UnknownCondition, match="row 5"):
        sampler.draw([5], SETTINGS, [1])
    with pytest.raises(ConfigMismatch, match="float16"):
        Sampler(transformer, tokenizer, "float16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_pass_draws_what_the_plain_one_draws(transformer, tokenizer):
    device = torch.device("cuda")
    plain, recorded = (Sampler(transformer.to(device), tokenizer.to(device), graphs=graphs) for graphs in (False, True))
    for seeds in ([1, 2], [3, 4]):
        one, other = (sampler.draw([0, 1], SETTINGS, seeds) for sampler in (plain, recorded))
        assert torch.equal(joined(one.tokens), joined(other.tokens))
        assert torch.equal(one.images, other.images)
    transformer.to("cpu"), tokenizer.to("cpu")


def test_settings_are_read_from_a_file_and_mistakes_are_named(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[mine]\nguidance = 2\nunguided_scales = 1\n")
    assert load_settings(file) == {"mine": SampleSettings(guidance=2.0, unguided_scales=1)}
    for text, said in (
        ("[mine]\ntop = 1\n", "no key 'top'"),
        ("guidance = 2\n", "wanted tables"),
        ("[", "not valid TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigMismatch, match=said):
            load_settings(file)
    with pytest.raises(ConfigMismatch, match="cannot be read"):
        load_settings(tmp_path / "none.toml")
