"""Known bugs of the reference implementation, each with a test that we do not share it.

They were found by reading and running FoundationVision/VAR at 78b9539; the numbers only tell them apart, and those
that are missing concern training loops, data and commands.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from medvar_model.config import TOKENIZERS, TransformerConfig
from medvar_model.errors import UnknownCondition
from medvar_model.networks.codebook import Codebook, count_codes, usage
from medvar_model.networks.scales import ScaleSchedule
from medvar_model.networks.tokenizer import Tokenizer
from medvar_model.networks.transformer import Transformer
from medvar_model.sampling.sample import PAPER, sample
from medvar_model.training.losses import next_scale_loss

CONFIG = TransformerConfig(3, 4, vocabulary=64, latent_channels=8, scale_sides=(1, 2, 3, 4), head_width=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(TOKENIZERS["tiny"], seeded(1))
    with torch.no_grad():
        tokenizer.pyramid.codebook.codes.normal_(0, 0.5, generator=seeded(2))
    return tokenizer


@pytest.fixture
def transformer() -> Transformer:
    transformer = Transformer(CONFIG, seeded())
    with torch.no_grad():
        transformer.head.weight.mul_(100)
        for block in transformer.blocks:
            block.modulation.weight.normal_(0, 0.1, generator=seeded(1))
    return transformer


def test_1_no_condition_is_dropped_in_evaluation(transformer):
    """There, one validation label in ten silently became "no condition"."""
    inputs, condition = torch.zeros(400, 29, 8), torch.zeros(400, dtype=torch.int64)
    logits = transformer.eval()(condition, inputs)
    nobody = transformer(torch.tensor([4]), inputs[:1])
    assert ((logits - nobody).abs().amax((1, 2)) > 1e-4).all()
    assert (logits - logits[:1]).abs().max() < 1e-5


def test_2_the_training_pass_and_its_counts_need_no_process_group(tokenizer):
    """There, the quantizer's training pass failed, and usage was never recorded, without one."""
    assert not torch.distributed.is_initialized()
    result = tokenizer.train()(torch.zeros(2, 1, 32, 32))
    assert result.counts.sum(1).tolist() == [2, 8, 18, 32]


def test_3_every_scale_is_counted_at_every_step_and_scored_by_its_own_margin():
    """There, the counter of steps ran once a scale, and the finest scale's margin held for all."""
    schedule = ScaleSchedule((1, 2, 3, 4))
    total = torch.zeros(4, 64, dtype=torch.int64)
    for step in range(256):
        # Codes in turn: every scale uses all codes alike.
        tokens = [(torch.arange(n)[None] + step * n) % 64 for n in schedule.lengths]
        total += count_codes(tokens, 64)
    assert total.sum(1).tolist() == [256 * n for n in schedule.lengths]
    assert usage(total).share == (1.0, 1.0, 1.0, 1.0)
    finest_margin = 0.08 * 256 * 16 / 64
    assert float((total[0] >= finest_margin).float().mean()) == 0  # what one margin for all would say


@pytest.mark.parametrize("n_conditions", [1, 3, 1500])
def test_6_the_row_of_nobody_follows_the_number_of_conditions(n_conditions):
    """There, it was row 1000 whatever the data, and a label above crashed the device."""
    config = TransformerConfig(1, n_conditions, 64, 8, (1, 2, 3, 4), head_width=16)
    transformer = Transformer(config, seeded())
    transformer.start(torch.tensor([n_conditions]))
    with pytest.raises(UnknownCondition):
        transformer.start(torch.tensor([n_conditions + 1]))


def test_9_tokens_do_not_depend_on_the_precision_of_matrix_products():
    """There, TF32 was on for the distances too, whose terms nearly cancel."""
    book = Codebook(512, 32)
    with torch.no_grad():
        book.codes.normal_(0, 1, generator=seeded())
    vectors = torch.randn(2000, 32, generator=seeded(1))
    exact = (vectors.double()[:, None] - book.codes.double()[None]).square().sum(-1).argmin(1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            ids = book.nearest(vectors)
            coarse = (book.codes.square().sum(1) - 2 * vectors @ book.codes.T).argmin(1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(ids, exact)
    assert (coarse != exact).any()  # the precision around does change a plain product


def test_9_inputs_are_the_same_whether_built_for_training_or_while_sampling(tokenizer):
    """There, the smoothers ran in half precision when sampling and in full when training."""
    tokens = tokenizer.encode(torch.rand(2, 1, 32, 32, generator=seeded()))
    plain = torch.cat(tokenizer.pyramid.inputs(tokens), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.cat(tokenizer.pyramid.inputs(tokens), 1), plain)


def test_10_models_copy_pickle_and_move_whole(transformer, tokenizer):
    """There, a generator and a tensor were plain attributes, and the tokenizer hid in a tuple."""
    for model in (transformer, tokenizer):
        copied = copy.deepcopy(model)
        pickled = pickle.loads(pickle.dumps(model))
        for other in (copied, pickled):
            for name, value in model.state_dict().items():
                assert torch.equal(other.state_dict()[name], value)
        moved = copied.to("meta")
        for module in moved.modules():
            for value in vars(module).values():
                assert not isinstance(value, torch.Tensor | torch.Generator)
        assert all(tensor.is_meta for tensor in [*moved.parameters(), *moved.buffers()])
    assert not any(isinstance(module, Tokenizer) for module in transformer.modules())


def test_10_building_a_model_leaves_torchs_own_layers_alone():
    """There, building a model switched off the initialisation of torch's layers for the whole process."""
    Transformer(CONFIG, seeded())
    for kind in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d):
        assert kind.reset_parameters.__module__.startswith("torch.")
    layer = nn.Linear(64, 64)
    spread = float(layer.weight.detach().std())
    assert 0.05 < spread < 0.1


def test_10_the_state_dict_holds_weights_only(transformer, tokenizer):
    """There, masks and indices were saved with the weights."""
    for model in (transformer, tokenizer):
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        model.load_state_dict(torch.load(file, weights_only=True))


def test_11_an_image_does_not_depend_on_its_neighbours(transformer, tokenizer):
    """There, one generator served the whole batch."""
    both = sample(transformer, tokenizer, torch.tensor([0, 1]), PAPER, [10, 11])
    swapped = sample(transformer, tokenizer, torch.tensor([1, 0]), PAPER, [11, 10])
    alone = sample(transformer, tokenizer, torch.tensor([1]), PAPER, [11])
    assert torch.equal(torch.cat(both.tokens, 1)[1], torch.cat(alone.tokens, 1)[0])
    assert torch.equal(torch.cat(both.tokens, 1).flip(0), torch.cat(swapped.tokens, 1))


def test_11_sampling_neither_reads_nor_moves_the_global_generator(transformer, tokenizer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample(transformer, tokenizer, None, PAPER, [1])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first.images, sample(transformer, tokenizer, None, PAPER, [1]).images)


def test_12_every_parameter_takes_part_in_every_step(transformer):
    """There, unused parameters were kept alive by adding zero times them to a logit."""
    config = TransformerConfig(3, 4, 64, 8, (1, 2, 3, 4), head_width=16, drop_path=0.9)
    transformer = Transformer(config, seeded()).train()
    tokens = ScaleSchedule(config.scale_sides).split(torch.zeros(1, 30, dtype=torch.int64))
    for seed in range(5):
        transformer.zero_grad()
        draws = torch.rand(1, transformer.draws_per_image, generator=seeded(seed))
        logits = transformer(torch.tensor([0]), torch.zeros(1, 29, 8), draws_BU=draws)
        next_scale_loss(logits, tokens).mean.backward()
        assert all(parameter.grad is not None for parameter in transformer.parameters())


def test_no_condition_is_not_a_random_class(transformer, tokenizer):
    """There, leaving the label out drew a class at random."""
    images = [sample(transformer, tokenizer, None, PAPER, [3]).images for _ in range(3)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[0], sample(transformer, tokenizer, torch.tensor([-1]), PAPER, [3]).images)


def test_remembered_keys_keep_the_precision_of_the_pass(transformer):
    """There, keys were remembered in float32 under autocast and cast again at every scale."""
    with torch.autocast("cpu", torch.bfloat16):
        cache, _ = transformer.start(torch.tensor([0, 4]))
    assert cache.memory.dtype == torch.bfloat16
    assert cache.memory.shape == (3, 2, 2, 3, 30, 16)
