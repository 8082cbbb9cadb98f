"""The transformer: what it sees, how it starts, what it drops."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medvar_model.config import TOKENIZERS, TransformerConfig, transformer_config
from medvar_model.errors import ConfigMismatch, UnknownCondition
from medvar_model.networks.scales import ScaleSchedule
from medvar_model.networks.transformer import Transformer
from medvar_model.training.losses import next_scale_loss

TINY = TransformerConfig(
    depth=4, n_conditions=5, vocabulary=64, latent_channels=8, scale_sides=(1, 2, 3, 4), head_width=16
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(transformer: Transformer, images: int, seed: int) -> torch.Tensor:
    return torch.rand(images, transformer.draws_per_image, generator=seeded(seed))


def awake(config: TransformerConfig = TINY) -> Transformer:
    """A transformer whose gates are open and whose head is not shrunk, so that everything shows in the
    logits."""
    transformer = Transformer(config, seeded()).eval()
    with torch.no_grad():
        transformer.head.weight.mul_(50)
        for block in transformer.blocks:
            block.modulation.weight.normal_(0, 0.1, generator=seeded(1))
            block.attention.query_bias.normal_(0, 0.1, generator=seeded(2))
            block.attention.value_bias.normal_(0, 0.1, generator=seeded(3))
            block.attention.log_scale.normal_(1.5, 0.3, generator=seeded(4))
    return transformer


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(3, 29, 8, generator=seeded(7))


def test_cached_logits_are_those_of_the_masked_pass(inputs):
    transformer, condition = awake(), torch.tensor([0, 5, 0])
    full = transformer(condition, inputs)
    cache, logits = transformer.start(condition)
    parts = [logits]
    for k, features in enumerate(inputs.split([4, 9, 16], 1), start=1):
        parts.append(transformer.step(k, features, cache))
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_cached_logits_are_those_of_the_masked_pass_at_the_papers_scales():
    transformer = awake(transformer_config("d4", TOKENIZERS["paper"], n_conditions=3))
    inputs, condition = torch.randn(2, 679, 32, generator=seeded()), torch.tensor([2, 3])
    cache, logits = transformer.start(condition)
    parts = [logits]
    for k, features in enumerate(inputs.split(transformer.schedule.lengths[1:], 1), start=1):
        parts.append(transformer.step(k, features, cache))
    torch.testing.assert_close(torch.cat(parts, 1), transformer(condition, inputs), atol=1e-4, rtol=0)


def test_features_are_shown_to_every_branch(inputs):
    transformer = awake()
    both, _ = transformer.start(torch.tensor([1, 2, 3, 5, 5, 5]))
    only, _ = transformer.start(torch.tensor([1, 2, 3]))
    features = inputs[:, :4]
    torch.testing.assert_close(
        transformer.step(1, features, both)[:3], transformer.step(1, features, only), atol=1e-5, rtol=0
    )


def test_a_scale_sees_itself_and_the_coarser_ones_only(inputs):
    transformer, condition = awake(), torch.tensor([1, 2, 3])
    before = transformer(condition, inputs)
    schedule = ScaleSchedule(TINY.scale_sides)
    for k in range(1, 4):
        changed = inputs.clone()
        changed[:, schedule.starts[k]] += 1  # input i is position i + 1: the second position of scale k
        moved = (transformer(condition, changed) - before).abs().amax((0, 2)) > 1e-6
        assert not moved[: schedule.starts[k]].any()
        assert moved[schedule.starts[k] :].all()


def test_the_condition_reaches_every_position(inputs):
    transformer = awake()
    difference = transformer(torch.tensor([1, 1, 1]), inputs) - transformer(torch.tensor([1, 1, 4]), inputs)
    assert difference[:2].abs().max() < 1e-6
    assert (difference[2].abs().amax(1) > 1e-5).all()


def test_without_a_prefix_token_the_condition_acts_through_the_modulations_alone(inputs):
    config = replace(TINY, prefix_token=False)
    plain, shown = awake(config), awake()
    for transformer in (plain, shown):
        for block in transformer.blocks:
            block.modulation.weight.data.zero_()
            block.modulation.bias.data.normal_(generator=seeded(5))
        transformer.head_modulation.weight.data.zero_()
    one, other = torch.tensor([1, 1, 1]), torch.tensor([4, 4, 4])
    assert torch.equal(plain(one, inputs), plain(other, inputs))
    assert not torch.allclose(shown(one, inputs), shown(other, inputs), atol=1e-5)

    steered = awake(config)
    full = steered(torch.tensor([1, 2, 3]), inputs)
    assert (full - steered(torch.tensor([4, 4, 4]), inputs)).abs().amax() > 1e-5
    _, first = steered.start(torch.tensor([1, 2, 3]))
    torch.testing.assert_close(first, full[:, :1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", ["d2", "d8"])
def test_the_loss_starts_at_the_logarithm_of_4096(size):
    transformer = Transformer(transformer_config(size, TOKENIZERS["paper"], n_conditions=10), seeded()).eval()
    inputs = torch.randn(1, 679, 32, generator=seeded(1))
    tokens = ScaleSchedule(transformer.config.scale_sides).split(torch.randint(4096, (1, 680), generator=seeded(2)))
    with torch.no_grad():
        loss = next_scale_loss(transformer(torch.tensor([3]), inputs), tokens).mean
    assert float(loss) == pytest.approx(8.318, abs=0.01)
    assert float(loss) == pytest.approx(math.log(4096), abs=0.01)


def test_initial_weights_have_the_published_spread():
    config = transformer_config("d8", TOKENIZERS["paper"], n_conditions=1000)
    transformer, width = Transformer(config, seeded()), config.width
    std = (1 / (3 * width)) ** 0.5
    block = transformer.blocks[3]
    expected = {
        transformer.feature_projection.weight: std,
        transformer.condition_embedding.weight: std,
        transformer.position_embedding: std,
        transformer.head.weight: 0.02 * std,
        transformer.head_modulation.weight: 0.5 * std,
        block.attention.query_key_value.weight: std,
        block.attention.output.weight: std / 4,  # sqrt(2 * 8)
        block.feed_forward.widen.weight: std,
        block.feed_forward.narrow.weight: std / 4,
        block.modulation.weight[: 2 * width]: 1e-3 * std,
        block.modulation.weight[2 * width :]: 0.5 * std,
    }
    for weight, spread in expected.items():
        assert float(weight.detach().std()) == pytest.approx(spread, rel=0.02)
    for name, parameter in transformer.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        if name.endswith("log_scale"):
            torch.testing.assert_close(parameter.detach().exp(), torch.full((8,), 4.0))


def test_an_untrained_block_is_almost_the_identity():
    transformer = Transformer(transformer_config("d2", TOKENIZERS["tiny"], 3), seeded())
    x, condition = torch.randn(1, 30, 128, generator=seeded(1)), torch.randn(1, 128, generator=seeded(2))
    block = transformer.blocks[0]
    assert (block(x, block.modulate(condition)) - x).abs().max() < 0.01


def test_same_seed_same_weights_whatever_the_global_generator_says():
    torch.manual_seed(1)
    first = Transformer(TINY, seeded(4)).state_dict()
    torch.manual_seed(2)
    second = Transformer(TINY, seeded(4)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_parameter_learns(inputs):
    transformer = awake()
    tokens = ScaleSchedule(TINY.scale_sides).split(torch.randint(64, (3, 30), generator=seeded(2)))
    next_scale_loss(transformer(torch.tensor([0, 1, 2]), inputs), tokens).mean.backward()
    assert [name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_attention_in_pieces_is_attention_under_the_mask():
    config = replace(TINY, scale_sides=(1, 2, 8, 9), drop_path=0.0, condition_dropout=0.0)
    transformer, condition = awake(config), torch.tensor([1, 2])
    shown = torch.randn(2, config.n_tokens - 1, 8, generator=seeded(3))
    weigh = torch.randn(2, config.n_tokens, 64, generator=seeded(4))
    assert len(transformer.schedule.pieces()) == 3

    def outcome():
        logits = transformer(condition, shown)
        transformer.zero_grad()
        (logits * weigh).sum().backward()
        return [logits, *(parameter.grad.clone() for parameter in transformer.parameters())]

    masked = outcome()
    transformer.train()
    for ours, wanted in zip(outcome(), masked, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=1e-4)
    assert not torch.equal(transformer(condition, shown), masked[0]), "another kernel, so another rounding"


def test_training_mode_asks_for_random_numbers(inputs):
    transformer = Transformer(TINY, seeded()).train()
    with pytest.raises(ConfigMismatch, match="random numbers"):
        transformer(torch.tensor([0, 1, 2]), inputs)


def test_training_mode_repeats_with_its_numbers(inputs):
    transformer, condition = awake().train(), torch.tensor([0, 1, 2])
    first = transformer(condition, inputs, draws_BU=draws(transformer, 3, 1))
    assert torch.equal(first, transformer(condition, inputs, draws_BU=draws(transformer, 3, 1)))
    others = [transformer(condition, inputs, draws_BU=draws(transformer, 3, seed)) for seed in range(2, 12)]
    assert any(not torch.equal(first, other) for other in others)


def test_a_dropped_condition_is_no_condition(inputs):
    transformer, nobody = awake(), torch.tensor([5, 5, 5])
    dropped = transformer(torch.tensor([0, 1, 5]), inputs, drop_condition_B=torch.tensor([True, True, False]))
    assert torch.equal(dropped, transformer(nobody, inputs))


def test_conditions_are_dropped_as_often_as_configured():
    config = TransformerConfig(2, 3, 8, 4, (1, 2), condition_dropout=0.25, drop_path=0.0, head_width=4)
    transformer = Transformer(config, seeded()).train()
    with torch.no_grad():
        transformer.condition_embedding.weight[3] = 100.0
    logits = transformer(
        torch.zeros(4000, dtype=torch.int64), torch.zeros(4000, 4, 4), draws_BU=draws(transformer, 4000, 1)
    )
    nobody = transformer(torch.tensor([3]), torch.zeros(1, 4, 4), draws_BU=draws(transformer, 1, 1))
    share = (logits - nobody).abs().amax((1, 2)) < 1e-5
    assert float(share.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_drop_path_grows_with_depth_and_keeps_the_mean():
    transformer = Transformer(TransformerConfig(5, 3, drop_path=0.4, head_width=4), seeded()).train()
    keeps = list(transformer._drop_paths(draws(transformer, 20_000, 0), torch.device("cpu")))
    assert keeps[0] is None
    for index, keep in enumerate(keeps[1:], start=1):
        assert float((keep == 0).float().mean()) == pytest.approx(0.1 * index, abs=0.01)
        assert float(keep.mean()) == pytest.approx(1, abs=0.02)
        assert keep.shape == (2, 20_000)


def test_a_dropped_branch_adds_nothing():
    block = awake().blocks[1]
    x, condition = torch.randn(2, 30, 64, generator=seeded(1)), torch.randn(2, 64, generator=seeded(2))
    modulation = block.modulate(condition)
    neither = block(x, modulation, keep_2B=torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert torch.equal(neither[0], x[0])
    torch.testing.assert_close(neither[1], block(x, modulation)[1])


def test_nothing_is_dropped_when_both_chances_are_zero(inputs):
    config = TransformerConfig(2, 5, 64, 8, (1, 2, 3, 4), condition_dropout=0.0, drop_path=0.0)
    transformer, condition = awake(config), torch.tensor([0, 1, 2])
    assert torch.equal(transformer.train()(condition, inputs), transformer.eval()(condition, inputs))


def test_heads_cannot_be_hotter_than_a_hundred(inputs):
    transformer, condition = awake(), torch.tensor([0, 1, 2])
    outcomes = []
    for log_scale in (math.log(100), math.log(100) + 3):
        with torch.no_grad():
            for block in transformer.blocks:
                block.attention.log_scale.fill_(log_scale)
        outcomes.append(transformer(condition, inputs))
    assert torch.equal(*outcomes)


def test_attention_is_the_textbook_formula():
    attention = awake().blocks[0].attention
    x = torch.randn(1, 7, 64, generator=seeded(1))
    weight, heads = attention.query_key_value.weight, 4
    q, k, v = (x @ part.T for part in weight.chunk(3))
    q, v = q + attention.query_bias, v + attention.value_bias
    outputs = []
    for h in range(heads):
        part = slice(16 * h, 16 * (h + 1))
        cosine = F.normalize(q[..., part], dim=-1) @ F.normalize(k[..., part], dim=-1).mT
        outputs.append((cosine * attention.log_scale[h].exp()).softmax(-1) @ v[..., part])
    expected = attention.output(torch.cat(outputs, -1))
    torch.testing.assert_close(attention(x, None, None, 0), expected, atol=1e-5, rtol=0)


def normalise(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_a_block_is_the_published_formula_with_gates_then_scales_then_shifts():
    block = awake().blocks[2]
    x, condition = 1e-3 * torch.randn(2, 30, 64, generator=seeded(1)), torch.randn(2, 64, generator=seeded(2))
    rows = block.modulation.weight @ (condition * torch.sigmoid(condition)).T
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = (part.T[:, None] for part in rows.chunk(6))
    middle = x + gate_1 * block.attention(normalise(x) * (1 + scale_1) + shift_1, None, None, 0)
    expected = middle + gate_2 * block.feed_forward(normalise(middle) * (1 + scale_2) + shift_2)
    torch.testing.assert_close(block(x, block.modulate(condition)), expected, atol=1e-4, rtol=1e-4)


def test_the_head_scales_and_shifts_by_the_condition_in_that_order():
    transformer = awake(TransformerConfig(1, 3, 16, 8, (1, 2), head_width=8))
    for block in transformer.blocks:
        torch.nn.init.zeros_(block.modulation.weight)  # the stream passes unchanged
    with torch.no_grad():
        transformer.head_modulation.weight.normal_(0, 1, generator=seeded(1))
    condition = transformer.condition_embedding.weight[1]
    scale, shift = (transformer.head_modulation.weight @ F.silu(condition)).chunk(2)
    places = transformer.position_embedding[0] + transformer.level_embedding.weight[0]
    first = condition + transformer.start_embedding + places
    _, logits = transformer.start(torch.tensor([1]))
    expected = transformer.head.weight @ (normalise(first) * (1 + scale) + shift)
    torch.testing.assert_close(logits[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_stays_close_and_answers_in_float32(inputs):
    transformer, condition = awake(), torch.tensor([0, 1, 2])
    plain = transformer(condition, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        low = transformer(condition, inputs)
        cache, logits = transformer.start(condition)
        step = transformer.step(1, inputs[:, :4], cache)
    assert low.dtype == logits.dtype == step.dtype == torch.float32
    assert cache.memory.dtype == torch.bfloat16
    scale = plain.abs().max()
    assert (low - plain).abs().max() < 0.05 * scale
    assert (torch.cat([logits, step], 1) - plain[:, :5]).abs().max() < 0.05 * scale


def test_a_wrong_number_of_positions_is_refused(inputs):
    with pytest.raises(ConfigMismatch, match=r"30 positions.* need 29"):
        awake()(torch.tensor([0, 1, 2]), torch.cat([inputs, inputs[:, :1]], 1))


def test_scales_must_be_stepped_in_order(inputs):
    transformer = awake()
    cache, _ = transformer.start(torch.tensor([0, 1, 2]))
    with pytest.raises(ConfigMismatch, match="Scale 2 starts at 5, but 1 positions"):
        transformer.step(2, inputs[:, :9], cache)


@pytest.mark.parametrize("row", [-1, 6])
def test_unknown_conditions_are_refused(row):
    with pytest.raises(UnknownCondition, match=r"wanted rows in \[0, 5\]"):
        awake().start(torch.tensor([0, row]))
