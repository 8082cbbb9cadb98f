"""What each tissue measures: HU on CT, relative signal on each MR sequence, with the strength of its texture.

In: a generator. Out: a table for one patient, since enhancement and relaxation differ from patient to patient. MR
signals are relative to the brightest common tissue of the sequence (about 1); the textures are HU for CT, fractions for MR.
"""

from collections.abc import Mapping

import numpy as np

from medvar_data.demo.phantoms.scanner import Tissue

Table = dict[str, Tissue]

#            value  texture
CT_HU: Mapping[str, tuple[float, float]] = {
    "background": (-1000, 0), "foam": (-920, 4), "cushion": (-960, 6), "table": (40, 20),
    "skin": (20, 10), "fat": (-100, 6), "muscle": (56, 9), "cortex": (620, 120), "marrow": (170, 60),
    "disc": (85, 10), "canal": (18, 5), "cord": (42, 4), "cartilage": (110, 20),
    "liver": (100, 5), "spleen": (118, 6), "kidney": (168, 9), "medulla": (112, 9), "urine": (8, 3), "pancreas": (88, 16),
    "gland": (62, 8), "bowel": (70, 14), "chyme": (22, 14), "faeces": (-20, 130), "gas": (-960, 8), "wall": (62, 10),
    "bile": (8, 3), "cyst": (6, 3), "tumour": (92, 24), "necrosis": (30, 12),
    "lung": (-850, 22), "airway": (-985, 4), "fissure": (-720, 10), "smoke": (-560, 80), "vessel": (40, 20),
    "nodule": (48, 26),
    "blood": (44, 4), "aorta": (215, 5), "vein": (165, 5), "artery": (190, 6), "calcium": (900, 60),
    "myocardium": (96, 7), "left_heart": (330, 7), "right_heart": (210, 22), "pericardium": (30, 8),
    "gullet": (45, 8), "thyroid": (140, 10),
}  # fmt: skip


def ct_table(rng: np.random.Generator) -> Table:
    """Draw one patient's HU: enhancement of the vessels and organs varies, fat and water hardly do."""
    contrast = {name: rng.uniform(0.75, 1.3) for name in ("aorta", "vein", "left_heart", "right_heart", "artery")}
    steady = {"background", "gas", "airway", "foam", "cushion"}
    table = {}
    for name, (value, texture) in CT_HU.items():
        shift = 0.0 if name in steady else float(rng.normal(0, 4 if value < 0 else 3 + 0.03 * value))
        table[name] = Tissue(value * contrast.get(name, 1.0) + shift, texture * rng.uniform(0.7, 1.3))
    return table


MR_TEXTURE: Mapping[str, float] = {
    "fat": 0.05, "muscle": 0.10, "liver": 0.05, "spleen": 0.04, "kidney": 0.05, "pancreas": 0.13, "bowel": 0.25, "chyme": 0.25,
    "faeces": 0.45, "tumour": 0.18, "necrosis": 0.18, "lung": 0.35, "myocardium": 0.08, "blood": 0.05, "marrow": 0.07,
    "oedema": 0.07, "grey": 0.05, "white": 0.035, "enhancing": 0.15, "transition": 0.30, "peripheral": 0.16, "disc": 0.10,
    "nucleus": 0.10, "csf": 0.04, "cauda": 0.10, "left_heart": 0.06, "right_heart": 0.07,
}  # fmt: skip

MR_SIGNAL: Mapping[str, Mapping[str, float]] = {
    # T1 gradient echo, in phase: fat bright, water dark, no contrast agent.
    "abdomen-t1": {
        "background": 0.0, "skin": 0.4, "fat": 1.0, "muscle": 0.36, "cortex": 0.05, "marrow": 0.58, "disc": 0.38, "canal": 0.20,
        "cord": 0.34, "liver": 0.56, "spleen": 0.34, "kidney": 0.46, "medulla": 0.34, "urine": 0.16, "pancreas": 0.58,
        "gland": 0.42, "bowel": 0.40, "chyme": 0.30, "faeces": 0.50, "gas": 0.02, "wall": 0.40, "bile": 0.22, "cyst": 0.15,
        "lung": 0.05, "aorta": 0.14, "vein": 0.18, "calcium": 0.05,
    },
    # T1 with fat suppression, portal venous phase: vessels and organs bright, fat grey.
    "abdomen-t1-portal": {
        "background": 0.0, "skin": 0.5, "fat": 0.20, "muscle": 0.38, "cortex": 0.05, "marrow": 0.32, "disc": 0.24, "canal": 0.12,
        "cord": 0.30, "liver": 0.72, "spleen": 0.78, "kidney": 0.98, "medulla": 0.88, "urine": 0.15, "pancreas": 0.68,
        "gland": 0.62, "bowel": 0.62, "chyme": 0.20, "faeces": 0.28, "gas": 0.02, "wall": 0.62, "bile": 0.12, "cyst": 0.10,
        "lung": 0.04, "aorta": 1.00, "vein": 0.98, "calcium": 0.1,
    },
    # T2 single-shot spin echo: water bright, flowing blood black, liver dark.
    "abdomen-t2": {
        "background": 0.0, "skin": 0.4, "fat": 0.74, "muscle": 0.16, "cortex": 0.04, "marrow": 0.36, "disc": 0.40, "canal": 1.05,
        "cord": 0.42, "liver": 0.30, "spleen": 0.60, "kidney": 0.62, "medulla": 0.76, "urine": 1.10, "pancreas": 0.44,
        "gland": 0.36, "bowel": 0.36, "chyme": 0.80, "faeces": 0.34, "gas": 0.02, "wall": 0.34, "bile": 1.15, "cyst": 1.2,
        "lung": 0.05, "aorta": 0.05, "vein": 0.08, "calcium": 0.03,
    },
    # Balanced steady-state free precession, cine of the heart: blood and fat bright, muscle dark.
    "cine": {
        "background": 0.0, "skin": 0.4, "fat": 0.88, "muscle": 0.25, "cortex": 0.06, "marrow": 0.40, "disc": 0.30, "canal": 0.85,
        "cord": 0.45, "liver": 0.34, "spleen": 0.48, "lung": 0.07, "vessel": 0.62, "left_heart": 1.0, "right_heart": 0.92,
        "myocardium": 0.27, "pericardium": 0.12, "aorta": 0.98, "vein": 0.70, "wall": 0.36, "chyme": 0.55, "gas": 0.03,
        "gullet": 0.35, "bowel": 0.4,
    },
    "t1n": {
        "background": 0.0, "white": 0.94, "grey": 0.63, "csf": 0.26, "deep": 0.76, "stem": 0.86, "vessel": 0.55,
        "oedema": 0.62, "enhancing": 0.60, "necrosis": 0.42, "choroid": 0.5,
    },
    "t1c": {
        "background": 0.0, "white": 0.88, "grey": 0.62, "csf": 0.25, "deep": 0.74, "stem": 0.80, "vessel": 1.35,
        "oedema": 0.58, "enhancing": 1.40, "necrosis": 0.40, "choroid": 1.2,
    },
    "t2w": {
        "background": 0.0, "white": 0.38, "grey": 0.60, "csf": 1.10, "deep": 0.48, "stem": 0.42, "vessel": 0.25,
        "oedema": 0.84, "enhancing": 0.66, "necrosis": 0.96, "choroid": 0.9,
    },
    "t2f": {
        "background": 0.0, "white": 0.48, "grey": 0.68, "csf": 0.16, "deep": 0.62, "stem": 0.54, "vessel": 0.30,
        "oedema": 1.12, "enhancing": 0.88, "necrosis": 0.52, "choroid": 0.6,
    },
    "spine-t1": {
        "background": 0.0, "skin": 0.6, "fat": 1.0, "muscle": 0.30, "cortex": 0.06, "marrow": 0.56, "disc": 0.30, "nucleus": 0.34,
        "csf": 0.16, "cord": 0.36, "cauda": 0.30, "ligament": 0.06, "aorta": 0.08, "vein": 0.14, "bowel": 0.40, "chyme": 0.34,
        "gas": 0.03, "faeces": 0.5, "liver": 0.5, "wall": 0.4,
    },
    "spine-t2": {
        "background": 0.0, "skin": 0.5, "fat": 0.84, "muscle": 0.17, "cortex": 0.05, "marrow": 0.40, "disc": 0.15, "nucleus": 0.66,
        "csf": 1.08, "cord": 0.36, "cauda": 0.48, "ligament": 0.05, "aorta": 0.06, "vein": 0.10, "bowel": 0.30, "chyme": 0.62,
        "gas": 0.03, "faeces": 0.35, "liver": 0.28, "wall": 0.3,
    },
    "pelvis-t2": {
        "background": 0.0, "skin": 0.4, "fat": 0.78, "muscle": 0.15, "cortex": 0.05, "marrow": 0.52, "peripheral": 0.86,
        "transition": 0.44, "stroma": 0.30, "capsule": 0.14, "urine": 1.12, "wall": 0.22, "gas": 0.03, "faeces": 0.32,
        "vesicle": 0.95, "vein": 0.72, "artery": 0.06, "cartilage": 0.30, "lesion": 0.26, "urethra": 0.62, "bowel": 0.3,
    },
    "pelvis-adc": {
        "background": 0.0, "skin": 0.05, "fat": 0.05, "muscle": 0.42, "cortex": 0.03, "marrow": 0.12, "peripheral": 0.62,
        "transition": 0.46, "stroma": 0.38, "capsule": 0.36, "urine": 1.05, "wall": 0.46, "gas": 0.0, "faeces": 0.25,
        "vesicle": 0.66, "vein": 0.45, "artery": 0.3, "cartilage": 0.2, "lesion": 0.26, "urethra": 0.55, "bowel": 0.4,
    },
}  # fmt: skip


def mr_table(sequence: str, rng: np.random.Generator) -> Table:
    """Draw one patient's signals for a sequence: every tissue a little off, the order of tissues kept."""
    signal = MR_SIGNAL[sequence]
    table = {}
    for name, value in signal.items():
        factor = float(np.exp(np.clip(rng.normal(0, 0.06), -0.12, 0.12)))
        table[name] = Tissue(value * factor, MR_TEXTURE.get(name, 0.05) * rng.uniform(0.7, 1.4))
    return table
