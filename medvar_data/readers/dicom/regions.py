"""Take the region of the body from a DICOM header, in a closed vocabulary; what is not in it is not known, and never guessed."""

import re
from collections.abc import Mapping

from pydicom.dataset import Dataset

FROM_HEADER = "header"  # the word by which a description asks for it
UNKNOWN = "unknown"

# BodyPartExamined (PS3.16 annex L) without spaces and punctuation, and vendors' usual spellings.
WORDS: Mapping[str, tuple[str, ...]] = {
    "abdomen": ("ABDOMEN", "ABD", "ABDOMENPELVIS", "ABDPELVIS", "LIVER", "KIDNEY", "PANCREAS", "SPLEEN", "STOMACH", "COLON", "ADRENAL",
                "GALLBLADDER", "BILEDUCT"),
    "brain": ("BRAIN", "CEREBRUM", "CEREBELLUM"),
    "head": ("HEAD", "SKULL", "ORBIT", "EYE", "SINUS", "PARANASALSINUS", "FACE", "JAW", "MAXILLA", "MANDIBLE", "IAC", "TMJ", "SELLA"),
    "head-neck": ("HEADNECK", "NECK", "THYROID", "LARYNX", "PHARYNX"),
    "chest": ("CHEST", "THORAX", "LUNG", "MEDIASTINUM"),
    "heart": ("HEART", "CARDIAC", "CORONARYARTERY", "AORTICVALVE", "MITRALVALVE"),
    "breast": ("BREAST",),
    "spine": ("SPINE", "CSPINE", "TSPINE", "LSPINE", "SSPINE", "CTSPINE", "TLSPINE", "LSSPINE", "COCCYX", "SACRUM", "WHOLESPINE"),
    "pelvis": ("PELVIS", "HIP", "BLADDER", "UTERUS", "RECTUM", "OVARY"),
    "prostate": ("PROSTATE",),
    "limb": ("KNEE", "SHOULDER", "ELBOW", "WRIST", "HAND", "FINGER", "ANKLE", "FOOT", "TOE", "LEG", "THIGH", "CALF", "ARM", "FOREARM",
             "FEMUR", "TIBIA", "HUMERUS", "EXTREMITY", "UPPERLIMB", "LOWERLIMB"),
    "body": ("WHOLEBODY", "BODY", "TRUNK", "CHESTABDOMEN", "CHESTABDPELVIS", "CHESTABDOMENPELVIS", "NECKCHESTABDPELV",
             "NECKCHESTABDOMENPELVIS", "NECKCHEST"),
}  # fmt: skip
BY_WORD = {word: region for region, words in WORDS.items() for word in words}

# AnatomicRegionSequence: SNOMED CT codes, and the older SRT codes beside them (PS3.16 CID 4031).
BY_CODE: Mapping[str, str] = {
    "818981001": "abdomen", "113345001": "abdomen", "T-D4000": "abdomen", "12738006": "brain", "T-A0100": "brain", "69536005": "head",
    "T-D1100": "head", "45048000": "head-neck", "T-D1600": "head-neck", "51185008": "chest", "T-D3000": "chest", "80891009": "heart",
    "T-32000": "heart", "76752008": "breast", "T-04000": "breast", "421060004": "spine", "T-11500": "spine", "12921003": "pelvis",
    "T-D6000": "pelvis", "41216001": "prostate", "T-92000": "prostate", "10200004": "abdomen", "T-62000": "abdomen",
}  # fmt: skip


def region_of(dataset: Dataset) -> str:
    """The region that a header names by word, else by code; `unknown` where it names none of the vocabulary."""
    word = re.sub(r"[^A-Z]", "", str(dataset.get("BodyPartExamined") or "").upper())
    if word in BY_WORD:
        return BY_WORD[word]
    places = [dataset]
    for groups in (dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")):
        places += [anatomy for group in (groups or ())[:1] for anatomy in group.get("FrameAnatomySequence") or ()]
    codes = (str(item.get("CodeValue") or "") for place in places for item in place.get("AnatomicRegionSequence") or ())
    return next((BY_CODE[code] for code in codes if code in BY_CODE), UNKNOWN)


def region_of_volume(regions: set[str]) -> str:
    """The region of a volume from those of its files; `unknown` where they differ."""
    return regions.pop() if len(regions) == 1 else UNKNOWN
