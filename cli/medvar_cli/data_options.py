"""The options that commands of `medvar-data` share, and the library's values that are made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medvar_data.catalog.recipe import load_recipe
from medvar_data.engine.engine import Engine, default_workers, parse_part
from medvar_data.engine.memory import default_budget, parse_size
from medvar_data.shard.choose import REQUIREMENTS, required
from medvar_data.shard.plan import ShardSpec
from medvar_data.shard.reshard import ReshardSpec
from medvar_data.shard.splits import SplitSpec
from medvar_data.sources.archives import AccessSpec, read_passwords

WorkspaceOption = Annotated[Path, typer.Option("-w", "--workspace", help="Private folder W that holds the work.")]
RecipeOption = Annotated[str, typer.Option(help="Recipe name, or the path of your own TOML.")]
WorkersOption = Annotated[int, typer.Option(help="Processes; 0 takes one a processor.", min=0)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the resolved configuration and stop.")]
ShardsArgument = Annotated[str, typer.Argument(help="Shard set S.")]
WhereOption = Annotated[
    str,
    typer.Option(
        help="Take only slices that fulfil this condition in SQL over the columns of slices, cases and licences, such as "
        "\"modality = 'MR' AND commercial\"."
    ),
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Take only collections whose terms allow it for certain: {', '.join(REQUIREMENTS)}. Repeat; unknown is no."
    ),
]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Who does the work."""

    workers: WorkersOption = 0
    memory: Annotated[str, typer.Option(help="For all processes together, such as 8GB; 80 % where absent.")] = ""
    scheduler: Annotated[
        str, typer.Option(help="Dask scheduler that does the work: its address or scheduler file.")
    ] = ""
    part: Annotated[str, typer.Option(help="Do only part I of N, as in 3/8; the others are other jobs'.")] = "1/1"

    def engine(self) -> Engine:
        """Make the library's value.

        Raises:
            WorkspaceError: `memory` or `part` is not understood.
        """
        n_bytes = parse_size(self.memory) if self.memory else default_budget()
        return Engine(self.workers or default_workers(), n_bytes, self.scheduler, parse_part(self.part))


@dataclass(frozen=True, kw_only=True)
class SourceEngineOptions(EngineOptions):
    """Who does the work where one source is one piece of it."""

    workers: Annotated[int, typer.Option(help="Processes, a source each; 0 takes one a processor.", min=0)] = 1


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """How archives are opened."""

    password_file: Annotated[
        Path | None,
        typer.Option(help="Text file with the passwords of encrypted archives, one a line. Stored nowhere."),
    ] = None
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Where to unpack .tar.gz, .7z and nested archives for the run; the temporary folder where absent."
        ),
    ] = None
    scratch_limit: Annotated[
        float | None,
        typer.Option(help="GB that may be unpacked at one time; the free space but 1 GB where absent.", min=0),
    ] = None

    def access(self) -> AccessSpec:
        """Make the library's value.

        Raises:
            SourceError: the password file cannot be read.
        """
        passwords = read_passwords(self.password_file) if self.password_file else ()
        return AccessSpec(
            passwords, self.scratch, None if self.scratch_limit is None else int(self.scratch_limit * 1e9)
        )


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What a shard set is made of."""

    recipe: RecipeOption = "paper"
    val: Annotated[float, typer.Option(help="Fraction of patients for validation.", min=0, max=1)] = 0.1
    test: Annotated[float, typer.Option(help="Fraction of patients for test.", min=0, max=1)] = 0.1
    seed: Annotated[int, typer.Option(help="Of the split and of the order of slices.")] = 0
    slices_per_shard: Annotated[int, typer.Option(help="Upper bound.", min=1)] = 1024
    codec: Annotated[
        str, typer.Option(help="Of the pictures: png, which everything reads, or zstd, which decodes fastest.")
    ] = "png"
    where: WhereOption = ""
    require: RequireOption = None
    respect_official_splits: Annotated[
        bool, typer.Option("--respect-official-splits", help="Patients whose publisher gives a split keep it.")
    ] = False
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Of scans that are exact copies, take the first alone.")
    ] = False

    def spec(self) -> ShardSpec:
        """Make the library's value.

        Raises:
            MedvarError: there is no such recipe or requirement, or the fractions leave nothing to train on.
        """
        split = SplitSpec(self.val, self.test, self.seed, self.respect_official_splits)
        recipe, where = load_recipe(self.recipe), required(self.require or (), self.where)
        return ShardSpec(recipe, split, self.seed, self.slices_per_shard, self.codec, where, self.drop_duplicates)


@dataclass(frozen=True, kw_only=True)
class ReshardOptions:
    """What a shard set that is made from another one is made of."""

    codec: Annotated[str, typer.Option(help="Of the pictures: png or zstd; that of the first set where absent.")] = ""
    seed: Annotated[int | None, typer.Option(help="Of the order of slices; that of the first set where absent.")] = None
    slices_per_shard: Annotated[int, typer.Option(help="Upper bound.", min=1)] = 1024
    where: WhereOption = ""
    require: RequireOption = None

    def spec(self) -> ReshardSpec:
        """Make the library's value.

        Raises:
            SpecError: there is no such codec, or no such requirement.
        """
        where = required(self.require or (), self.where)
        return ReshardSpec(self.codec, self.slices_per_shard, self.seed, where)
