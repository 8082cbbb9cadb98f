"""Screen single images by their headers: which of them can be a slice of a CT or MR volume, and why the others cannot.

In: an `Instance`. Out: a reason and the rest of a sentence, or None.
"""

from collections.abc import Collection, Mapping

from medvar_data.errors import Reason
from medvar_data.readers.dicom.headers import Instance

IMAGE_CLASSES: Mapping[str, tuple[str, ...]] = {
    "CT": tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "2.1", "2.2")),  # classic, enhanced, converted
    "MR": tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("4", "4.1", "4.4")),
}
IMAGES = tuple(one for classes in IMAGE_CLASSES.values() for one in classes)
MODALITIES = (
    "CT",
    "MR",
    "PT",
    "NM",
    "US",
    "CR",
    "DX",
    "MG",
    "XA",
    "RF",
    "OT",
    "SC",
    "SR",
    "ECG",
    "OPT",
)  # of PS3.3 C.7.3.1.1.1
SECONDARY_CLASS = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, 7.1 to 7.4
MAP_CLASS = "1.2.840.10008.5.1.4.1.1.30"  # Parametric Map
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
SCREEN_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SECONDARY CAPTURE", "FILM"}
MAP_WORDS = {
    "ADC", "EADC", "FA", "PERFUSION", "TTP", "MTT", "TMAX", "CBV", "CBF", "RCBV", "RCBF", "T1 MAP", "T2 MAP", "T2_STAR MAP",
    "R2 MAP", "R2_STAR MAP", "FIELD_MAP", "FF", "MIP", "MIN IP", "MINIP", "PROJECTION IMAGE", "SUBTRACTION",
}  # fmt: skip
DERIVED_WORDS = {"MPR", "REFORMATTED", "CPR", "VRT", "3D", "RESAMPLED", "CURVED"}  # where the first word is DERIVED
DERIVED_SCANS = {  # what a derived image may say of itself in its third word and still be a scan; other words name a quantity
    "", "NONE", "OTHER", "MIXED", "AXIAL", "VOLUME", "M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "W", "WATER",
    "F", "FAT", "IP", "IN_PHASE", "OP", "OPP_PHASE", "OUT_PHASE", "T1", "T2", "T2_STAR", "PROTON_DENSITY", "DIFFUSION", "TRACE",
    "TRACEW", "CDWI", "FLUID_ATTENUATED", "ANGIO", "CARDIAC", "FUNCTIONAL", "TOF", "MPR", "COMPOSED", "ND", "NORM", "DIS2D",
    "DIS3D", "FM", "FIL", "FILTERED", "MEAN", "ADDITION", "AVERAGE", "SE", "FFE", "IR", "STIR", "EPI",
}  # fmt: skip
SCAN_PREFIXES = ("M_", "CT_SOM")  # Philips' magnitude images (M_SE, M_FFE, …), Siemens' CT


def is_secondary(instance: Instance) -> bool:
    """Tell pictures of screens and of other pictures by their class."""
    head, tail = instance.sop_class[: len(SECONDARY_CLASS)], instance.sop_class[len(SECONDARY_CLASS) :]
    return head == SECONDARY_CLASS and tail[:1] in ("", ".")


def is_derived(instance: Instance) -> bool:
    """Tell images that were made from others, by their class or by their first word."""
    made = bool(instance.frames) and instance.frames[0].kinds[:1] == ("DERIVED",)
    return made or is_secondary(instance) or instance.sop_class == MAP_CLASS


def is_map(instance: Instance) -> bool:
    """Tell maps of a quantity and reformatted images from scans: by their class, their unit, and the words of ImageType."""
    kinds = [frame.kinds for frame in instance.frames]
    words = {word for one in kinds for word in one}
    if instance.sop_class == MAP_CLASS or instance.is_quantity or words & MAP_WORDS:
        return True
    if kinds[0][:1] != ("DERIVED",):
        return False
    third = {word for one in kinds for word in one[2:3] if not word.startswith(SCAN_PREFIXES)}
    return bool(words & DERIVED_WORDS or third - DERIVED_SCANS)


def why_unfit(
    instance: Instance, modality: str, derived: bool, wanted: Collection[str] = ()
) -> tuple[Reason, str] | None:
    """Why an image is no slice of a volume; None where it may be one.

    Args:
        instance: an image.
        modality: that the layout wants, CT or MR.
        derived: the layout takes derived images too, of whatever class, where their pictures say where they lie.
        wanted: modalities that any layout of the collection wants of this file.
    """
    words = {word for frame in instance.frames for word in frame.kinds}
    is_placed = all(frame.position_mm and frame.orientation and frame.pixel_mm for frame in instance.frames)
    takes_class = derived and is_placed and (is_secondary(instance) or instance.sop_class == MAP_CLASS)
    if is_secondary(instance) and not takes_class:
        return Reason.SECONDARY_CAPTURE, (
            "of a screen or another picture; wanted the scanner's own (where they are masks or maps that say where they lie, "
            "`derived = true` in the layout takes them; a `roi` that fits their SeriesDescription makes them labels)"
        )
    if instance.modality != modality:
        named = f"of modality {instance.modality}" if instance.modality in MODALITIES else "of another modality"
        hint = "; masks want a `roi` that fits their SeriesDescription" if takes_class else ""
        return Reason.WRONG_MODALITY, f"{named}; the collection wants {' or '.join(sorted({modality, *wanted}))}{hint}"
    if not takes_class and instance.sop_class not in (*IMAGE_CLASSES[modality], MAP_CLASS):
        return Reason.WRONG_MODALITY, f"stored as another kind of object than {modality} images"
    if not instance.is_grey or instance.is_burned_in or words & SCREEN_WORDS:
        return Reason.SECONDARY_CAPTURE, "in colour or with text burned in; wanted plain grey values"
    if words & LOCALIZER_WORDS:
        return Reason.LOCALIZER, "to plan the scan by; wanted the scan"
    if "MOSAIC" in words:
        return Reason.DIMENSIONS, "with many slices side by side (mosaic); export them as single or enhanced images"
    if not derived and is_map(instance):
        return Reason.DERIVED_MAP, "computed from other images; `derived = true` in the layout takes them too"
    return None
