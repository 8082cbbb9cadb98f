"""Name the scan that a case belongs to: what publishers, and the paper's figure of data sets, count as one volume.

Channels of one file, and frames cut from one, are one volume. So are sequences and frames in files of their own where the
collection's description says so (`volume` of a layout).
"""

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.catalog.patterns import search
from medvar_data.records import Case


def volume_name(case: Case, spec: CollectionSpec) -> str:
    """Name a case's volume, unsalted; unique within the collection. A DICOM volume is one by itself.

    Args:
        case: as ingested.
        spec: its collection.

    Raises:
        SpecError: a pattern of the description takes too long.
    """
    layout = next((layout for layout in spec.layouts if layout.id == case.layout), None)
    if layout is None or case.reader == "dicom" or not (template := layout.volume or layout.case):
        return case.case
    match = search(layout.image, case.image[0])
    return template.format_map({k: v or "" for k, v in match.groupdict().items()}) if match else case.case
