"""Work is bounded by the file: whatever a small file claims of itself, no reader takes more memory or time than it is worth."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.builders import nifti_bytes, write_files

ROOT = Path(__file__).parents[2]
MOST_MIB, MOST_SECONDS = 600, 60.0
READ = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.builders import pairs_spec
from support.fuzz import peak_mib
from medvar_data.errors import CaseRejected
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.sources.tree import open_tree

spec = pairs_spec(suffix=r"(?:nii\\.gz|nii|mgz|nrrd|mha|mhd)")
found = ingest(spec, open_tree(Path(sys.argv[1])), b"salt")
ends = [reject.reason.value for reject in found.rejects]
for case in found.cases:
    try:
        read_scan(case, spec)
        ends.append("read")
    except CaseRejected as error:
        ends.append(error.reason.value)
print(json.dumps([ends, peak_mib()]))
"""


def nifti(shape: tuple[int, ...], voxels: bytes = bytes(64)) -> bytes:
    """A header that claims a shape, and few voxels."""
    data = bytearray(nifti_bytes(np.zeros((2, 2, 2), dtype=np.int16)))
    data[40:56] = np.array([3, *shape, 1, 1, 1, 1], dtype="<i2").tobytes()[:16]
    return bytes(data[:352]) + voxels


def mgh(behind: bytes) -> bytes:
    """A sound file of 20 x 20 x 20 voxels, and what stands behind them."""
    return nib.MGHImage(np.zeros((20, 20, 20), dtype=np.int16), np.eye(4)).to_bytes() + behind


def text(lines: list[str]) -> bytes:
    return "\n".join(lines).encode()


NRRD = [
    "NRRD0005",
    "type: short",
    "dimension: 3",
    "sizes: 20000 20000 20000",
    "endian: little",
    "encoding: {kind}",
    "",
    "",
]
META = [
    "ObjectType = Image",
    "NDims = 3",
    "DimSize = 20000 20000 20000",
    "ElementType = MET_SHORT",
    "ElementDataFile = {place}",
    "",
]
LIES = {
    "nii": {"a_image.nii": nifti((30_000, 30_000, 30_000))},
    "nii.gz": {"a_image.nii.gz": gzip.compress(nifti((30_000, 30_000, 30_000)))},
    "nii.gz of zeros beyond its shape": {"a_image.nii.gz": gzip.compress(nifti((4, 4, 4), bytes(1 << 29)), 1)},
    "mgz of zeros beyond its shape": {"a_image.mgz": gzip.compress(mgh(bytes(1 << 30)), 1)},
    "nrrd": {"a_image.nrrd": text([line.format(kind="raw") for line in NRRD])},
    "nrrd, packed": {"a_image.nrrd": text([line.format(kind="gzip") for line in NRRD]) + gzip.compress(bytes(1 << 20))},
    "mha": {"a_image.mha": text([line.format(place="LOCAL") for line in META]) + bytes(64)},
    "mhd": {"a_image.mhd": text([line.format(place="a.raw") for line in META]), "a.raw": bytes(64)},
}


@pytest.mark.parametrize("name", LIES)
def test_a_small_file_that_claims_to_be_large(tmp_path, name):
    started = time.monotonic()
    command = [sys.executable, "-c", READ, str(write_files(tmp_path, LIES[name]))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ends, peak_mib = json.loads(done.stdout.splitlines()[-1])
    assert len(ends) == 1
    assert ends != ["read"] or "zeros" in name
    assert peak_mib < MOST_MIB
    assert time.monotonic() - started < MOST_SECONDS
