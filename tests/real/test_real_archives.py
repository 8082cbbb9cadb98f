"""Real downloads packed anew: the rows of the published zip are those of the folder, of a tar.gz and of a 7z."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.packing import files_below, pack

from medvar_data.catalog.load import load_collection
from medvar_data.ingest.find_cases import ingest
from medvar_data.readers.read import read_scan
from medvar_data.sources.archives import AccessSpec, open_access
from medvar_data.sources.tree import open_tree

CHAOS = Path(__file__).resolve().parents[3] / "shared" / "real" / "chaos" / "CHAOS_Train_Sets.zip"


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not CHAOS.exists(), reason="the real scans are not here")
def test_chaos_in_every_packing(tmp_path):
    with zipfile.ZipFile(CHAOS) as archive:
        archive.extractall(tmp_path / "folder")
    files = files_below(tmp_path / "folder")
    packed = [pack(tmp_path / f"x{suffix}", files) for suffix in (".tar", ".tar.gz", ".7z")]
    found = []
    spec = load_collection("chaos")
    with open_access(AccessSpec(scratch_parent=tmp_path / "scratch")):
        for path in (CHAOS, tmp_path / "folder", *packed):
            (case,) = ingest(spec, open_tree(path), b"").cases
            scan = read_scan(case, spec)
            row = replace(case, root="", image=(), label=(), modified_ns=0)
            found.append((row, scan.image.digest, scan.label.digest, scan.image.geometry.affine.tobytes()))
    assert all(one == found[0] for one in found)
