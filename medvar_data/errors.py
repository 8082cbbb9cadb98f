"""Name everything that can go wrong: one tree of exceptions, one list of reasons for a rejected case.

    MedvarError                     every error this package raises on purpose
    ├── SpecError                   a TOML of ours or the user's says something it may not say
    ├── SourceError                 a folder or archive cannot be read at all
    ├── WorkspaceError              a workspace or shard set is not in the state the command needs
    ├── ShardSetError               a shard set is damaged or does not match its own tables
    └── CaseRejected                one case is bad; carries a `Reason`, becomes a row, never stops a run

A message is one sentence: what was found, what was wanted, what to do next. It never holds a path inside a
collection or a header value, since both can carry a person's name; only a folder that cannot be opened is named, and only
where the collection's names are published.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a case was left out; the values are the column `reason` of `rejects.parquet` and only ever grow.

    The comment on a value's line is its meaning in docs/formats.md (`make docs`).
    """

    FILE_MISSING = "file_missing"  # a list names it, the disk does not have it
    NOT_FETCHED = "not_fetched"  # a link to nowhere or a pointer: git-annex, datalad or Git LFS without the content
    NOT_PERMITTED = "not_permitted"  # a file or folder that this user may not open
    FILE_EMPTY = "file_empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # the content is not what the name says
    TRUNCATED = "truncated"  # the bytes end early
    UNREADABLE = "unreadable"  # the reader failed for another reason
    ARCHIVE_UNREADABLE = "archive_unreadable"  # the archive itself is damaged
    UNSAFE_ARCHIVE = "unsafe_archive"  # a member escapes, is a link, or inflates beyond all measure
    ARCHIVE_PASSWORD = "archive_password"  # it is encrypted, and no password given opens it
    SCRATCH_FULL = "scratch_full"  # it unpacks to more than the scratch folder may hold
    NAN_VOXELS = "nan_voxels"  # the image holds NaN or infinity
    VALUE_RANGE = "value_range"  # small differences on a large offset, which 32-bit floats cannot hold
    CONSTANT_IMAGE = "constant_image"  # one value everywhere
    DIMENSIONS = "dimensions"  # not three-dimensional (or not the channels the collection promises)
    SPACING_DISAGREES = "spacing_disagrees"  # affine and pixdim name different spacings and no quirk says which holds
    SPACING_IMPLAUSIBLE = "spacing_implausible"  # zero, negative or beyond 0.01-100 mm
    NONORTHONORMAL = "nonorthonormal"  # the axes are sheared or degenerate
    LABEL_WITHOUT_IMAGE = "label_without_image"  # there is a label, and no image that it belongs to
    LABEL_SHAPE = "label_shape"  # label and image have other shapes
    LABEL_VALUES = "label_values"  # a label value the collection does not define, or not an integer
    EMPTY_LABEL = "empty_label"  # no foreground voxel
    NO_FOREGROUND = "no_foreground"  # nothing left to keep after the cleanup
    MISSING_SLICE = "missing_slice"  # a gap in a DICOM stack
    DUPLICATE_POSITION = "duplicate_position"  # two slices at one place
    UNEVEN_SPACING = "uneven_spacing"  # slices at irregular distances
    MIXED_SERIES = "mixed_series"  # slices of several orientations, sizes or series in one stack
    TOO_FEW_SLICES = "too_few_slices"  # single images, or images that all lie at one or two places
    WRONG_MODALITY = "wrong_modality"  # neither CT nor MR, not what the collection says
    NOT_HU = "not_hu"  # a CT whose values cannot be Hounsfield units, and no [[repair]] says what they are
    LOCALIZER = "localizer"  # planning images in a few planes
    SECONDARY_CAPTURE = "secondary_capture"  # a picture of a screen: colour, burned-in text or no place in the patient
    DERIVED_MAP = "derived_map"  # computed from other images: ADC, FA, projections, reformats
    LABEL_GEOMETRY = "label_geometry"  # a segmentation or structure set that does not lie on its image's grid
    SLICE_COUNT = "slice_count"  # image and mask stacks of other lengths
    DUPLICATE_CASE = "duplicate_case"  # two files claim one case key
    SOURCE_ERROR = "source_error"  # disk or network did not give the file; tried again by the next run
    KNOWN_BAD = "known_bad"  # the collection's description leaves it out and says why
    UNLABELLED = "unlabelled"  # no label, and the recipe takes labelled cases alone
    NOT_SELECTED = "not_selected"  # no slice of it fulfils the condition that the set was made with
    LICENSE_OF_COPY = "license_of_copy"  # allowed by its own collection, not by another one that holds the same scan
    DUPLICATE_SCAN = "duplicate_scan"  # the set holds the same scan under another name, or in two splits
    WORKER_KILLED = "worker_killed"  # the process died on this case twice, the second time alone


class MedvarError(Exception):
    """Base of every error that medvar raises on purpose."""


class SpecError(MedvarError):
    """A collection, recipe or condition file is wrong."""


class SourceError(MedvarError):
    """A folder or archive that the user named cannot be read."""


class WorkspaceError(MedvarError):
    """A workspace or an output folder is missing something or holds something else."""


class ShardSetError(MedvarError):
    """A shard set is damaged or disagrees with its own tables."""


class CaseRejected(MedvarError):
    """One case cannot be used.

    Args:
        reason: the machine-readable reason.
        detail: one sentence for people; no path of a file, no header text.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["CaseRejected"], tuple[Reason, str]]:
        """Survive the trip between processes."""
        return type(self), (self.reason, self.detail)
