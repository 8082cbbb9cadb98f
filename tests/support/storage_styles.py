"""How each collection stores its scans: grid, axis codes, voxel types, header styles. One short row a collection.

Phantoms at the collection's published paths are stored so (`collection_phantoms` writes them). What only single files do stands
behind their paths in the listing (tests/listings). Steps and oddities are those that the publishers, or loaders of the files,
tell; where nobody tells the axis codes, `MIXED` takes turns, so that none is relied on. Codes, form codes, types and origins of
ACDC, AMOS labels, BraTS 2023, KiTS23, WORD, VerSe and the hippocampus are those of original files.
"""

from dataclasses import dataclass, fields, replace

MIXED = ("LPS", "RAS", "LAS")  # axis codes as they are met in CT and MR of all kinds
TURNED = ("PIR", "LPS", "RAS", "ASR", "LAS", "IPL")  # VerSe: every orientation occurs


@dataclass(frozen=True)
class StorageStyle:
    """How a collection (or one file of it) is stored.

    Attributes:
        region: part of the body.
        modality: "CT" or "MR".
        spacing_mm: two steps in the acquired plane, then the step between slices.
        codes: stored axis codes, used in turn.
        plane: how slices were acquired: axial, coronal or sagittal.
        native: slices are cut as acquired, not axially.
        n_slices: in the stack.
        dtype: of stored image voxels.
        label_dtype: of stored label voxels.
        sform: code in the NIfTI header, 0 for none; `qform` likewise.
        origin_mm: where the first stored voxel lies (R, A, S).
        tilt_deg: how far the stack is turned about the patient's left-right axis.
        shear: cosine between the first two axes, where directions are not orthonormal.
        one_mm: the affine claims steps of 1 mm, pixdim holds the true ones.
        identity: the header knows no geometry: steps of 1 mm, origin 0.
        padding: value outside the circle of reconstruction (CT), or of the background (MR).
        brightness: what 1 becomes (MR).
        gain: stored values are physical values times this (CT) …
        offset: … plus this.
        nan_slope: scl_slope and scl_inter are NaN.
        label_affine: "image": the label lies where the image does; "none": its header has no affine; "shifted": a little off.
        compressed: MetaImage or NRRD voxels are packed.
        cine: the fourth axis is time, and the case's last word says which frame it is.
    """

    region: str
    modality: str
    spacing_mm: tuple[float, ...]
    codes: tuple[str, ...] = MIXED
    plane: str = "axial"
    native: bool = False
    n_slices: int = 10
    dtype: str = "int16"
    label_dtype: str = "uint8"
    sform: int = 1
    qform: int = 1
    origin_mm: tuple[float, ...] = (12.5, -31.25, -402.5)
    tilt_deg: float = 0.0
    shear: float = 0.0
    one_mm: bool = False
    identity: bool = False
    padding: float = -1024.0
    brightness: float = 1.0
    gain: float = 1.0
    offset: float = 0.0
    nan_slope: bool = False
    label_affine: str = "image"
    compressed: bool = True
    cine: bool = False

    def override(self, about: dict[str, str]) -> "StorageStyle":
        """Take what a listing's line says of one file: `key=value` with spaces between numbers or words."""
        changes = {}
        for f in fields(self):
            if f.name in about:
                text, now = about[f.name], getattr(self, f.name)
                if isinstance(now, tuple):
                    changes[f.name] = tuple(type(now[0])(part) for part in text.split())
                else:
                    changes[f.name] = text == "yes" if isinstance(now, bool) else type(now)(text)
        return replace(self, **changes)


def brain(**more: object) -> StorageStyle:
    """BraTS: registered to an atlas at 1 mm, skull-stripped to exact zeros, L P S with the first voxel at (0, 239, 0)."""
    return StorageStyle("brain", "MR", (1, 1, 1), ("LPS",), origin_mm=(0, 239, 0), padding=0, **more)


def msd(region: str, modality: str, *spacing_mm: float, **more: object) -> StorageStyle:
    """Decathlon: sizes and steps as published for each task, orientation by the file."""
    return StorageStyle(
        region, modality, spacing_mm, ("RAS", "LAS", "LPS"), padding=0 if modality == "MR" else -1024, **more
    )


# A second row `name/MR` serves the MR half of a collection that has both.
STYLES = {
    "abdomenct1k": StorageStyle("abdomen", "CT", (0.79, 0.79, 2.5)),
    "acdc": StorageStyle("heart", "MR", (1.5, 1.5, 10), ("LPS",), native=True, sform=2, qform=0, one_mm=True, origin_mm=(0, 0, 0)),
    "amos": StorageStyle("abdomen", "CT", (0.69, 0.69, 5), ("LAS", "LPS", "RAS"), label_dtype="uint16", sform=0, padding=-2048),
    "amos/MR": StorageStyle("abdomen", "MR", (1.19, 1.19, 2), dtype="float32", sform=0, brightness=3500),  # values reach 3e6
    "atlas-liver": StorageStyle("abdomen", "MR", (1.0, 1.0, 3)),
    "atlas-stroke": StorageStyle("brain", "MR", (1, 1, 1), ("RAS", "LAS"), dtype="float32", padding=0),  # MNI space
    "brats": brain(),
    "brats2023": brain(),
    "brats2023-men": brain(),
    "brats2023-met": brain(),
    "brats2023-ped": brain(),
    "brats2023-ssa": brain(),
    "btcv": StorageStyle("abdomen", "CT", (0.76, 0.76, 3), ("LAS", "LPS")),
    "chaos": StorageStyle("abdomen", "CT", (0.69, 0.69, 2), ("LPS",), padding=-1000),  # intercept -1000, thickness 3.2
    "chaos/MR": StorageStyle("abdomen", "MR", (1.68, 1.68, 9), ("LPS",), padding=0),
    "covid19-20": StorageStyle("chest", "CT", (0.742, 0.742, 5)),
    "covid19-ct-seg": StorageStyle("chest", "CT", (0.72, 0.72, 1.25)),
    "ctspine1k": StorageStyle("spine", "CT", (0.8, 0.8, 1)),
    "kipa22": StorageStyle("abdomen", "CT", (0.63, 0.63, 0.63), dtype="uint16", padding=-1000, offset=1000, nan_slope=True),
    "kits19": StorageStyle("abdomen", "CT", (0.78, 0.78, 3), ("IPL",), dtype="float64", sform=2, qform=0, origin_mm=(0, 0, 0)),
    "kits23": StorageStyle("abdomen", "CT", (0.78, 0.78, 3), ("IPL",), dtype="float64", sform=2, qform=0, origin_mm=(0, 0, 0)),
    "lasc2013": StorageStyle("heart", "MR", (1.25, 1.25, 1.37), compressed=False),
    "lasc2018": StorageStyle("heart", "MR", (0.625, 0.625, 0.625), ("LPS",), dtype="uint8", brightness=0.25, identity=True),
    "lascarqs": StorageStyle("heart", "MR", (1, 1, 2.5), label_dtype="int16"),
    "lits": StorageStyle("abdomen", "CT", (0.77, 0.77, 1), ("LPS", "RAS", "RAI", "LAS"), dtype="float32", label_dtype="float32"),
    "mms": StorageStyle("heart", "MR", (1.2, 1.2, 10), native=True, tilt_deg=25, cine=True),
    "mms2": StorageStyle("heart", "MR", (1.3, 1.3, 10), native=True, tilt_deg=25),
    "mmwhs": StorageStyle("heart", "CT", (0.5, 0.5, 0.6), ("LPS", "RAS"), label_dtype="int16"),
    "mmwhs/MR": StorageStyle("heart", "MR", (1.0, 1.0, 1.2), ("ASR", "PIR", "LIP"), label_dtype="int16"),
    "mrspineseg": StorageStyle("spine", "MR", (0.7, 0.7, 4.4), ("PSR", "LPS"), "sagittal", native=True, label_affine="shifted"),
    "msd-brain-tumour": msd("brain", "MR", 1, 1, 1),
    "msd-colon": msd("abdomen", "CT", 0.78, 0.78, 5),
    "msd-heart": msd("heart", "MR", 1.25, 1.25, 1.37, dtype="float32"),
    "msd-hepatic-vessel": msd("abdomen", "CT", 0.8, 0.8, 5),
    "msd-hippocampus": msd("brain", "MR", 1, 1, 1, dtype="float32", origin_mm=(1, 1, 1)),
    "msd-liver": msd("abdomen", "CT", 0.77, 0.77, 1),
    "msd-lung": msd("chest", "CT", 0.79, 0.79, 1.25),
    "msd-pancreas": msd("abdomen", "CT", 0.8, 0.8, 2.5),
    "msd-prostate": msd("prostate", "MR", 0.65, 0.65, 3.6, dtype="float32"),
    "msd-spleen": msd("abdomen", "CT", 0.79, 0.79, 5),
    "promise12": StorageStyle("prostate", "MR", (0.6, 0.6, 3.6), compressed=False, tilt_deg=4),
    "prostate-multisite": StorageStyle("prostate", "MR", (0.62, 0.62, 3.6)),
    "scgm": StorageStyle("spine", "MR", (0.5, 0.5, 5), native=True, tilt_deg=10),
    "segthor": StorageStyle("chest", "CT", (0.98, 0.98, 2.5)),
    "spider": StorageStyle("spine", "MR", (0.7, 0.7, 4), ("RAS", "LPS", "PSR", "AIL"), "sagittal", native=True, tilt_deg=3),
    "verse": StorageStyle("spine", "CT", (1, 1, 2), TURNED, sform=2, qform=0),
    "word": StorageStyle("abdomen", "CT", (0.977, 0.977, 3), ("LPS",), sform=0, qform=1, padding=-3024),
    "xvertseg": StorageStyle("spine", "CT", (0.5, 0.5, 1), offset=1000, compressed=False),
}  # fmt: skip
