"""Check cases by the headers of their files alone: channels, shapes, sizes. No voxel is read."""

from collections.abc import Iterable

from medvar_data.catalog.collection import CollectionSpec
from medvar_data.errors import CaseRejected, Reason
from medvar_data.readers.expected_size import sized
from medvar_data.readers.scan import Header, check_same_shape
from medvar_data.readers.volume_scan import read_volume_header
from medvar_data.records import Case, Reject


def check_headers(spec: CollectionSpec, candidates: Iterable[Case]) -> Iterable[tuple[Case, Reject | None]]:
    """Check each case by its headers alone."""
    headers: dict[str, Header | CaseRejected | None] = {}
    for case in candidates:
        try:
            _check_case(spec, case, headers)
            yield sized(case, headers), None
        except CaseRejected as error:
            yield case, Reject(spec.name, case.case, "ingest", error.reason, error.detail, (*case.image, *case.label))


def _check_case(spec: CollectionSpec, case: Case, headers: dict[str, Header | CaseRejected | None]) -> None:
    if case.reader != "volume":
        if case.reader == "dicom_png" and case.label and len(case.label) != len(case.image):
            detail = f"{len(case.image)} slices but {len(case.label)} masks; wanted one mask a slice"
            raise CaseRejected(Reason.SLICE_COUNT, detail)
        return
    image = _header(case.root, case.image[0], spec.spacing_from, headers)
    if image and case.channel >= image.n_channels:
        raise CaseRejected(
            Reason.DIMENSIONS, f"the image has {image.n_channels} channels; wanted number {case.channel + 1}"
        )
    if image and case.channel < 0 and image.n_channels > 1:
        raise CaseRejected(Reason.DIMENSIONS, f"the image has {image.n_channels} channels; the collection names none")
    for path in case.label:
        label = _header(case.root, path, "affine", headers)
        if label and label.n_channels > 1 and case.channel >= label.n_channels:
            detail = f"the label has {label.n_channels} channels; wanted number {case.channel + 1}"
            raise CaseRejected(Reason.DIMENSIONS, detail)
        turned = image and label and sorted(image.shape) == sorted(label.shape)  # by which axes, the affines tell later
        if image and label and spec.label_grid == "image" and not turned:
            check_same_shape(image.shape, label.shape)


def _header(root: str, path: str, spacing_from: str, headers: dict[str, Header | CaseRejected | None]) -> Header | None:
    """Read a header once, however many channels or sequences share the file."""
    if path not in headers:
        try:
            headers[path] = read_volume_header(root, path, spacing_from)
        except CaseRejected as error:
            headers[path] = error
    header = headers[path]
    if isinstance(header, CaseRejected):
        raise CaseRejected(header.reason, header.detail)
    return header
