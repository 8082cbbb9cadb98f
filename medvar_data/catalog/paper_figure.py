"""The paper's figure of data sets (arXiv:2602.14512): volumes by region and modality, and our nearest reading of each cell.

The names and the volumes are the authors'. Which collection a name means, and which of its parts were counted, is our inference;
docs/parity.md argues each.
"""

from dataclasses import dataclass

from medvar_data.catalog.load import load_collection


@dataclass(frozen=True)
class Part:
    """A collection that a cell of the figure is read as.

    Attributes:
        collection: its name.
        layouts: those counted; all that are no variants where empty.
        cases_per_volume: cases of ours that make one volume of theirs.
    """

    collection: str
    layouts: tuple[str, ...] = ()
    cases_per_volume: int = 1

    def expected(self) -> int:
        """Volumes that the publisher counts, in the figure's unit."""
        spec = load_collection(self.collection)
        named = sum(layout.expected for layout in spec.layouts if layout.id in self.layouts)
        return (named if self.layouts else spec.n_expected) // self.cases_per_volume


@dataclass(frozen=True)
class Cell:
    """One region and modality of the figure: names and volumes as printed, and what we read them as."""

    region: str
    modality: str
    names: str
    volumes: int
    parts: tuple[Part, ...]


PAPER_CELLS = (
    Cell("abdomen", "CT", "AbdomenCT-1K, AMOS, BTCV, CHAOS, KiTS2023, LiTS2017, MSD-Colon, MSD-Spleen, WORD", 2701, (
        Part("abdomenct1k"), Part("amos", ("ct", "ct-test")), Part("btcv"), Part("chaos", ("ct-train", "ct-test")), Part("kits23"),
        Part("lits"), Part("msd-colon"), Part("msd-spleen"), Part("word", ("train", "validation", "test")))),
    Cell("chest", "CT", "COVID19, SegTHOR", 290, (Part("covid19-20"), Part("segthor"))),
    Cell("heart", "CT", "MMWHS", 60, (Part("mmwhs", ("ct-train", "ct-test")),)),
    Cell("spine", "CT", "Spine, VerSe2019", 95, (Part("xvertseg"), Part("verse"))),
    Cell("abdomen", "MR", "AMOS, ATLAS, CHAOS, Multi-center HCC*", 3410, (
        Part("amos", ("mr", "mr-test")), Part("atlas-liver"),
        Part("chaos", ("mr-t1-in-train", "mr-t1-out-train", "mr-t2-train"), 3))),
    Cell("brain", "MR", "BraTS", 1251, (Part("brats", ("training-2021",), 4),)),
    Cell("heart", "MR", "ACDC, Cardic, MMWHS, MSD-Cardiac", 270, (
        Part("acdc", (), 2), Part("lasc2013"), Part("mmwhs", ("mr-train", "mr-test")), Part("msd-heart"))),
    Cell("spine", "MR", "Spine", 80, (Part("scgm"),)),
    Cell("prostate", "MR", "MSD-Prostate, Multi-center Prostate", 168, (Part("msd-prostate", (), 2), Part("prostate-multisite"))),
)  # fmt: skip
