"""Read one case: voxels in physical units, geometry, label on the image's grid.

`READERS` maps the word in a collection's TOML to the function that reads its cases.
"""

from collections.abc import Callable
from dataclasses import replace

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.errors import CaseRejected, MedvarError, Reason
from medvar_data.readers.dicom.headers import quiet
from medvar_data.readers.dicom_scan import read_dicom, read_dicom_png
from medvar_data.readers.repair import repair_intensities
from medvar_data.readers.scan import Scan
from medvar_data.readers.volume_scan import read_volume_scan
from medvar_data.records import Case

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
    try:
        with quiet():
            scan = READERS[case.reader](case, spec)
    except (MedvarError, MemoryError):
        raise
    except Exception as error:  # the text of a library's error can hold what a header says: it is dropped
        detail = (
            f"the reader met what it does not know ({type(error).__name__}); open the file with another program: "
            "where that fails too, download it again, else report this"
        )
        raise CaseRejected(Reason.UNREADABLE, detail) from None
    image = repair_intensities(scan.image, case, spec)
    known = tuple(quirk.step for quirk in spec.quirks if quirk.step and quirk.holds_for(case.case))
    return replace(scan, image=replace(image, steps=(*image.steps, *known)))
