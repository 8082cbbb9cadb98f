"""The numbers of a tiny configuration stay what they were (`python tests/golden/rewrite_model.py` writes them
anew)."""

import json
import runpy
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def now() -> dict:
    return runpy.run_path(str(GOLDEN / "rewrite_model.py"))["numbers"]()


@pytest.fixture(scope="module")
def then() -> dict:
    return json.loads((GOLDEN / "model_tiny.json").read_text())


def test_the_same_things_are_measured(now, then):
    assert set(now) == set(then)


@pytest.mark.parametrize(
    "name", ["tokenizer_parameters", "transformer_parameters", "coarse_tokens_after_fitting", "sampled_tokens"]
)
def test_whole_numbers_are_the_same(now, then, name):
    assert now[name] == then[name]


@pytest.mark.parametrize("name", ["tokenizer_losses", "transformer_losses", "perplexity", "sampled_image_means"])
def test_other_numbers_agree_to_a_thousandth(now, then, name):
    assert now[name] == pytest.approx(then[name], rel=1e-3)


def test_both_models_learn(then):
    for name in ("tokenizer_losses", "transformer_losses"):
        assert then[name][-1] < 0.9 * then[name][0]
