"""The adversary: when it takes part, whom its losses teach, and that neither the cut of a batch nor a stop changes the training."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.runs import run, same_files, tokenizer_spec
from support.shard_sets import write_shard_set

from medvar_model.checkpoints.checkpoint import read_checkpoint
from medvar_model.errors import ConfigMismatch
from medvar_model.networks.critic import Critic
from medvar_model.training.adversary import LEAST_WEIGHT, AdversarySettings, Balance, critic_loss, opinion

EARLY = AdversarySettings(weight=0.4, start=0.25, warmup=0.25)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shard_set(tmp_path_factory.mktemp("set"), {"train": 22, "val": 7})


def contested(shards, out, **loop):
    return replace(tokenizer_spec(shards, out, **loop), adversary=EARLY, rotate=True, scale_dropout=0.5)


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_its_weight_comes_in_over_the_warm_up():
    shares = [EARLY.share(seen, 100) for seen in (0, 25, 30, 50, 100)]
    assert shares == pytest.approx([0, 0, 0.2, 1, 1])
    with pytest.raises(ConfigMismatch, match=r"start 1\.5"):
        AdversarySettings(start=1.5)


def test_the_opinion_teaches_images_and_the_critics_loss_the_critic():
    critic, drawn = Critic(1, 16), pictures(1).requires_grad_()
    opinion(critic, drawn).backward()
    assert drawn.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())
    drawn.grad = None
    critic_loss(critic, pictures(2), drawn).backward()
    assert drawn.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_a_score_does_not_depend_on_the_images_beside_it():
    critic = Critic(1, 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(critic(pictures(1))[:1], critic(pictures(1)[:1]))


def test_the_critic_learns_to_tell_pictures_from_noise():
    critic = Critic(1, 16, torch.Generator().manual_seed(0))
    optimizer, smooth = torch.optim.Adam(critic.parameters(), 1e-3), torch.linspace(-1, 1, 32).expand(3, 1, 32, 32)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        loss = critic_loss(critic, smooth, pictures(step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_balance_is_the_ratio_of_the_whole_batchs_gradients():
    weight = torch.ones(2, requires_grad=True)
    balance = Balance(weight)
    assert float(balance.ratio) == 0
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    balance.see((weight * x).sum(), (weight * y).sum(), 1)
    balance.see((weight * x).sum(), (weight * y).sum(), 3)
    balance.settle()
    assert float(balance.ratio) == pytest.approx(5 / 2)
    balance.see((weight * y).sum() * 0, (weight * y).sum(), 1)
    balance.settle()
    assert float(balance.ratio) == pytest.approx(LEAST_WEIGHT)


@pytest.mark.slow
def test_a_run_with_an_adversary_goes_on_bit_for_bit(shards, tmp_path):
    run(contested(shards, tmp_path / "whole"))
    steps = []

    def stop() -> bool:
        return len(steps) >= 4

    run(contested(shards, tmp_path / "cut"), steps.append, stop)
    logs = []
    run(contested(shards, tmp_path / "cut"), logs.append)
    assert logs[-1].numbers["critic"] > 0
    assert logs[-1].numbers["opinion_weight"] > 0
    for file in ("model.safetensors", "state/training.safetensors"):
        assert same_files(tmp_path / "whole" / "last" / file, tmp_path / "cut" / "last" / file)
    state = load_file(tmp_path / "whole" / "last" / "state" / "training.safetensors")
    assert any(name.startswith("memory/critic/") for name in state)


def test_the_cut_of_a_batch_changes_nothing_but_rounding(shards, tmp_path):
    for name, micro in (("whole", 0), ("cut", 1)):
        run(contested(shards, tmp_path / name, samples=12, micro_batch=micro, validate_every=0))
    whole, cut = (read_checkpoint(tmp_path / name, "tokenizer").weights for name in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, atol=2e-3, rtol=2e-2, msg=name)


def test_a_run_begun_without_an_adversary_does_not_go_on_with_one(shards, tmp_path):
    spec = tokenizer_spec(shards, tmp_path / "run", samples=8)
    run(spec)
    with pytest.raises(ConfigMismatch, match=r"--adversary was 0\.0, now 0\.4"):
        run(replace(spec, adversary=replace(spec.adversary, weight=0.4)))
