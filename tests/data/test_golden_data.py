"""What must not drift: columns, reasons, pixels of a tiny set. `python tests/golden/rewrite_data.py` writes it anew."""

import json
from pathlib import Path

import pytest
from golden.rewrite_data import commands, reasons, schemas, tiny_shard

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_columns_of_every_table():
    assert schemas() == golden("schemas"), "columns changed: raise SCHEMA_VERSION, say so in the changelog, rewrite"


def test_reasons_only_grow():
    assert set(golden("reasons")) <= set(reasons()), "a reason that was once written may not vanish"
    assert reasons() == golden("reasons")


def test_commands_and_options():
    assert commands() == golden("data_cli")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict:
    return tiny_shard(tmp_path_factory.mktemp("tiny"))


def test_pixels_of_a_tiny_set(tiny):
    wanted = golden("tiny_shard")
    assert tiny["pixels"] == wanted["pixels"], (
        "pixels changed: raise PIPELINE_VERSION, say so in the changelog, rewrite"
    )
    assert tiny["digest"] == wanted["digest"]


def test_bytes_of_a_tiny_set_under_the_same_encoder(tiny):
    wanted = golden("tiny_shard")
    if tiny["encoder"] != wanted["encoder"]:
        pytest.skip("another encoder may write other bytes for the same pixels")
    assert tiny["tars"] == wanted["tars"]
