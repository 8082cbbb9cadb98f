"""Say how to sample: guidance, filters, seed. Presets are the tables of `sampling.toml` in the package `medvar_manifests`.

In: a preset's name, or a user's TOML of the same form. Out: `SampleSettings`.
"""

import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from medvar_model.config import from_dict
from medvar_model.errors import ConfigMismatch


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        guidance: strength g of classifier-free guidance; scale k of K uses t = g k / (K - 1). 0 is off.
        top_k: codes kept at each position, the likeliest; 0 keeps all. Codes as likely as the last one kept
            stay, too.
        top_p: of those, the likeliest codes whose probabilities reach this sum are kept; 0 keeps all.
        seed: image n of a run is drawn from `image_seeds(seed, ...)`'s n-th.
        unguided_scales: so many of the finest scales are drawn without guidance, which halves their work.
    """

    guidance: float = 4.0
    top_k: int = 900
    top_p: float = 0.95
    seed: int = 42
    unguided_scales: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:  # NaN is refused, too
            raise ConfigMismatch(f"--guidance is {self.guidance}; wanted a number from 0 (off) on, such as 4.")
        if self.top_k < 0:
            raise ConfigMismatch(f"--top-k is {self.top_k}; wanted 0 (keep all) or more.")
        if not 0 <= self.top_p <= 1:
            raise ConfigMismatch(f"--top-p is {self.top_p}; wanted a probability from 0 (keep all) to 1.")
        if self.seed < 0:
            raise ConfigMismatch(f"--seed is {self.seed}; wanted 0 or more.")
        if self.unguided_scales < 0:
            raise ConfigMismatch(f"--unguided-scales is {self.unguided_scales}; wanted 0 (guide all) or more.")


def read_settings(text: str, where: str) -> dict[str, SampleSettings]:
    """Read a TOML whose tables are settings, each by its name.

    Raises:
        ConfigMismatch: it is no TOML, holds no table, or a key or value is not understood; says where.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ConfigMismatch(f"{where}: not valid TOML ({error}).") from None
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigMismatch(f"{where}: wanted tables only, such as [mine] with guidance = 2.0 below it.")
    try:
        return {name: from_dict(SampleSettings, table) for name, table in tables.items()}
    except ConfigMismatch as error:
        raise ConfigMismatch(f"{where}: {error}") from None


def load_settings(path: Path) -> dict[str, SampleSettings]:
    """Read a user's file of settings.

    Raises:
        ConfigMismatch: it is missing or not understood.
    """
    try:
        return read_settings(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        raise ConfigMismatch(f"{path} cannot be read; wanted a TOML of settings (--settings).") from None


SAMPLINGS = read_settings(
    resources.files("medvar_manifests").joinpath("sampling.toml").read_text(encoding="utf-8"), "sampling.toml"
)
PAPER = SAMPLINGS["paper"]
