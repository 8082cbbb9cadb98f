"""The generator of noise: published vectors, its distribution, and what each number hangs on."""

import pytest
import torch

from medvar_model.sampling.noise import WORD, gumbel, keys, philox

# The known answers that the authors of Philox publish with their library (Random123, kat_vectors, philox4x32 with 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def word(value: int) -> torch.Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer):
    given = philox(tuple(map(word, counter)), tuple(map(word, key)))
    assert tuple(int(value) for value in given) == answer


def test_many_counters_at_once_give_what_each_gives_alone():
    blocks = torch.arange(7)
    nought = torch.zeros(7, dtype=torch.int64)
    together = philox((blocks, nought, nought, nought), (word(5), word(6)))
    for q in range(7):
        alone = philox((word(q), word(0), word(0), word(0)), (word(5), word(6)))
        assert [int(row[q]) for row in together] == [int(value) for value in alone]


def test_a_number_hangs_on_seed_position_and_code_alone():
    whole = gumbel(keys([7, 1 << 40, 3]), 0, 90, 50)
    assert torch.equal(whole[1:2, 60:75], gumbel(keys([1 << 40]), 60, 15, 50))
    assert torch.equal(whole[:, :, :10], gumbel(keys([7, 1 << 40, 3]), 0, 90, 10))
    assert torch.equal(whole[[2, 0]], gumbel(keys([3, 7]), 0, 90, 50))
    assert whole.flatten().unique().numel() > 0.999 * whole.numel()  # a float32 may come twice


def test_both_words_of_a_seed_count():
    first, second, third = (gumbel(keys([seed]), 0, 4, 8) for seed in (1, 1 << 32, (1 << 32) + 1))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_the_noise_has_gumbels_distribution():
    noise = gumbel(keys([0, 1]), 0, 500, 400).double().flatten()
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, abs=0.02)
    for level in (-1.0, 0.0, 2.0, 6.0):
        share = float((noise <= level).double().mean())
        assert share == pytest.approx(float(torch.exp(-torch.exp(torch.tensor(-level)))), abs=0.003)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_words():
    device = torch.device("cuda")
    words = [
        philox(tuple(word(c).to(at) for c in (3, 2, 1, 0)), (word(9).to(at), word(8).to(at))) for at in ("cpu", device)
    ]
    assert [int(value) for value in words[0]] == [int(value) for value in words[1]]
    assert (gumbel(keys([5], device), 0, 9, 64).cpu() - gumbel(keys([5]), 0, 9, 64)).abs().max() < 1e-5
