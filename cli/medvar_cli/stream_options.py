"""The options that say which slices a stream yields, and in what mixture: of `medvar-data plan` and of training."""

from dataclasses import dataclass
from typing import Annotated

import typer

from medvar_data.errors import SpecError

WHERE_HELP = "Take the slices that fulfil a condition in SQL, such as \"modality = 'MR' AND has_label\"."


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """Which slices, and in what mixture."""

    where: Annotated[str, typer.Option(help=WHERE_HELP)] = ""
    mix: Annotated[list[str] | None, typer.Option("--mix", help="VALUE=WEIGHT; others are left out. Repeat.")] = None
    mix_by: Annotated[str, typer.Option(help="Column that the values of --mix stand in.")] = "condition"
    temperature: Annotated[
        float | None, typer.Option(help="Mix all values of --mix-by, each weighing its number of slices to this power.")
    ] = None
    window_shards: Annotated[int, typer.Option(help="Mix only so many shards at a time; 0 mixes all.", min=0)] = 0

    def mixture(self) -> tuple[tuple[str, float], ...]:
        """Pairs of value and weight.

        Raises:
            SpecError: --mix is not understood.
        """
        return tuple(_weight(item) for item in self.mix or [])


def _weight(item: str) -> tuple[str, float]:
    name, _, weight = item.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise SpecError(f"--mix {item} is not understood; wanted VALUE=WEIGHT, such as acdc-mr=0.5.") from None
