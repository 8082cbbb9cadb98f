"""Copy the scans of an ACDC tree under other names, as somebody's own collection: byte for byte, or packed anew."""

import gzip
import shutil
from collections.abc import Iterable
from pathlib import Path

COPIES = """name = "copies"
title = "Scans under other names"
region = "heart"
modality = "MR"
slice_axis = "native"
spacing_from = "pixdim"
case_names = "published"

[[layout]]
id = "all"
image = '(?:^|/)(?P<who>x\\d+)(?P<frame>f\\d+)\\.nii\\.gz$'
label = '(?:^|/)(?P<who>x\\d+)(?P<frame>f\\d+)_gt\\.nii\\.gz$'
pair_on = ["who", "frame"]
case = "{who}{frame}"
group = "{who}"

[[label]]
value = 1
id = 1
name = "one"

[[label]]
value = 2
id = 2
name = "two"

[[label]]
value = 3
id = 3
name = "three"
"""


def copy_scans(acdc: Path, folder: Path, patients: Iterable[int]) -> Path:
    """Copy frames and labels of some patients; of even ones the bytes differ, the voxels do not."""
    folder.mkdir(parents=True, exist_ok=True)
    for patient in patients:
        for source in sorted(acdc.glob(f"database/training/patient{patient:03d}/*_frame*.nii.gz")):
            stem = source.name.removesuffix(".nii.gz").partition("_frame")[2]
            target = folder / f"x{patient}f{stem}.nii.gz"
            if patient % 2:
                shutil.copyfile(source, target)
            else:
                target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1, mtime=7))
    return folder


def copies_toml(path: Path, *overlaps: tuple[str, str]) -> Path:
    """Write the description of the copies, with overlaps: our case, ACDC's case."""
    rows = (f'\n[[overlap]]\ncollection = "acdc"\ncases = "{ours}"\ntheirs = "{theirs}"\n' for ours, theirs in overlaps)
    path.write_text(COPIES + "".join(rows))
    return path
