"""Read one case: voxels in physical units, geometry, label on the image's grid.

`READERS` maps the word in a collection's TOML to the function that reads its cases.
"""

from collections.abc import Callable
from dataclasses import replace

from medvar_data.catalog import CollectionSpec
from medvar_data.readers.dicom import read_dicom, read_dicom_png
from medvar_data.readers.repair import repair_intensities
from medvar_data.readers.scan import Header, Scan
from medvar_data.readers.volume import read_volume_header, read_volume_scan
from medvar_data.records import Case

__all__ = ["READERS", "Header", "Scan", "read_scan", "read_volume_header"]

READERS: dict[str, Callable[[Case, CollectionSpec], Scan]] = {
    "volume": read_volume_scan,
    "dicom": read_dicom,
    "dicom_png": read_dicom_png,
}


def read_scan(case: Case, spec: CollectionSpec) -> Scan:
    """Read image and label of a case with the reader that its collection names, CT in HU whatever is stored.

    Raises:
        CaseRejected: with the reason; never a reader's own exception.
    """
    scan = READERS[case.reader](case, spec)
    image = repair_intensities(scan.image, case, spec)
    known = tuple(quirk.step for quirk in spec.quirks if quirk.step and quirk.holds_for(case.case))
    return replace(scan, image=replace(image, steps=(*image.steps, *known)))
