"""Screen single images by their headers: which of them can be a slice of a CT or MR volume, and why the others cannot.

In: an `Instance`. Out: a reason and the rest of a sentence, or None.
"""

from collections.abc import Mapping

from medvar_data.errors import Reason
from medvar_data.readers.dicom.headers import Instance

IMAGE_CLASSES: Mapping[str, tuple[str, ...]] = {
    "CT": tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "2.1", "2.2")),  # classic, enhanced, converted
    "MR": tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("4", "4.1", "4.4")),
}
IMAGES = tuple(one for classes in IMAGE_CLASSES.values() for one in classes)
SECONDARY_CLASS = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds, 7.1 to 7.4
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
SCREEN_WORDS = {"SCREEN SAVE", "SCREENSAVE", "SECONDARY CAPTURE", "FILM"}
MAP_WORDS = {
    "ADC", "EADC", "FA", "PERFUSION", "TTP", "MTT", "RCBV", "RCBF", "T1 MAP", "T2 MAP", "T2_STAR MAP", "R2 MAP", "R2_STAR MAP",
    "FIELD_MAP", "FF", "MIP", "MIN IP", "MINIP", "PROJECTION IMAGE", "SUBTRACTION",
}  # fmt: skip
DERIVED_WORDS = {"MPR", "REFORMATTED", "CPR", "VRT", "3D", "RESAMPLED", "CURVED"}  # where the first word is DERIVED


def why_unfit(instance: Instance, modality: str, derived: bool) -> tuple[Reason, str] | None:
    """Why an image is no slice of a volume; None where it may be one."""
    words = {word for frame in instance.frames for word in frame.kinds}
    first = instance.frames[0].kinds[:1]
    if instance.sop_class.startswith(SECONDARY_CLASS) and instance.sop_class[len(SECONDARY_CLASS) :][:1] in ("", "."):
        return Reason.SECONDARY_CAPTURE, "of a screen or another picture; wanted the scanner's own"
    if instance.modality != modality or instance.sop_class not in IMAGE_CLASSES[modality]:
        return Reason.WRONG_MODALITY, f"of another modality than {modality}, which the collection says"
    if not instance.is_grey or instance.is_burned_in or words & SCREEN_WORDS:
        return Reason.SECONDARY_CAPTURE, "in colour or with text burned in; wanted plain grey values"
    if words & LOCALIZER_WORDS:
        return Reason.LOCALIZER, "to plan the scan by; wanted the scan"
    if "MOSAIC" in words:
        return Reason.DIMENSIONS, "with many slices side by side (mosaic); export them as single or enhanced images"
    if not derived and (words & MAP_WORDS or (first == ("DERIVED",) and words & DERIVED_WORDS)):
        return Reason.DERIVED_MAP, "computed from other images; `derived = true` in the layout takes them too"
    return None
