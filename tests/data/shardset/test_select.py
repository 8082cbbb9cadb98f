"""A condition in SQL chooses rows, and nothing else."""

import pyarrow as pa
import pytest

from medvar_data.errors import SpecError
from medvar_data.shardset.select import rows_where

SLICES = pa.table({
    "collection": ["a", "a", "b", "b"], "case": ["1", "2", "1", "1"], "modality": ["CT", "MR", "MR", None], "z": [0, 1, 2, 3],
})  # fmt: skip
CASES = pa.table({"collection": ["a", "a", "b"], "case": ["1", "2", "1"], "mean": [1.0, 2.0, 3.0], "z": [9, 9, 9]})
TERMS = pa.table({"collection": ["a", "b"], "commercial": ["yes", "no"], "share_alike": ["unknown", "no"]})
OTHERS = {("collection", "case"): CASES, ("collection",): TERMS}


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("modality = 'MR'", [1, 2]),
        ("modality = 'MR' AND z < 2", [1]),
        ("mean >= 2", [1, 2, 3]),
        ("commercial = 'yes'", [0, 1]),
        ("commercial", [0, 1]),
        ("modality = 'MR' and commercial", [1]),
        ("NOT share_alike", [2, 3]),
        ("share_alike IS NULL", [0, 1]),
        ("z = 9", []),
        ("modality <> 'CT'", [1, 2]),
        ("\"case\" = '1'", [0, 2, 3]),
        ("true", [0, 1, 2, 3]),
        ("z IN (SELECT max(z) FROM s)", [3]),
        ("z = 1 -- a remark", [1]),
    ],
)
def test_conditions(where, wanted):
    assert rows_where(where, SLICES, OTHERS).nonzero()[0].tolist() == wanted


@pytest.mark.parametrize(
    "where",
    [
        "", "modality", "colour = 'MR'", "modality = ", "z > 1) OR (", "true); DROP TABLE s; SELECT (1",
        "z IN (SELECT z FROM read_csv('/etc/passwd'))", "z = (SELECT count(*) FROM '/etc/passwd')",
    ],
)  # fmt: skip
def test_no_condition(where):
    with pytest.raises(SpecError, match="--where"):
        rows_where(where, SLICES, OTHERS)
