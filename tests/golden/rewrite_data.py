"""Rewrite the golden files of the data side: `python tests/golden/rewrite_data.py`. Read the difference before you commit."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def schemas() -> dict[str, dict[str, str]]:
    from medvar_data.shardset import schema
    from medvar_data.workspace import case_file, tables

    found = {
        "slices.parquet": schema.SLICES_SCHEMA,
        "cases.parquet": schema.CASES_SCHEMA,
        "rejects.parquet": schema.REJECTS_SCHEMA,
        "stats.parquet": schema.STATS_SCHEMA,
        "collections.parquet": schema.COLLECTIONS_SCHEMA,
        "edges.parquet": schema.EDGES_SCHEMA,
        "ingest": tables.CASE_SCHEMA,
        "case file": case_file.SLICE_SCHEMA,
    }
    return {
        "version": {"schema": str(schema.SCHEMA_VERSION)},
        **{name: {field.name: str(field.type) for field in schema} for name, schema in found.items()},
    }


def reasons() -> list[str]:
    from medvar_data.errors import Reason

    return sorted(Reason)


def commands() -> dict[str, dict[str, Any]]:
    """Every command with its arguments, options and defaults."""
    import typer

    from medvar_cli.data_commands import app

    group = typer.main.get_command(app)
    found = {}
    for name, command in sorted(group.commands.items()):
        found[name] = {
            (parameter.opts[0] if parameter.param_type_name == "option" else f"<{parameter.name}>"): {
                "names": sorted([*parameter.opts, *parameter.secondary_opts]),
                "required": parameter.required,
                "default": None if parameter.required else str(parameter.default),
            }
            for parameter in command.params
            if parameter.name != "help"
        }
    return found


def tiny_shard(folder: Path) -> dict[str, Any]:
    """Content of a tiny set: pixels and masks hold on every machine, bytes of a tar under one encoder alone."""
    import pyarrow.parquet as pq
    from support.builders import acdc_tree, small_recipe

    from medvar_data.harmonize.run import run_harmonize
    from medvar_data.ingest.run import run_ingest
    from medvar_data.shard.plan import ShardSpec
    from medvar_data.shard.run import write_shards
    from medvar_data.storage.codec import PNG
    from medvar_data.storage.store import Store, file_digest
    from medvar_data.workspace.workspace import Workspace

    workspace, recipe = Workspace(folder / "work"), small_recipe(folder)
    workspace.set_salt(bytes(32))
    list(run_ingest({"acdc": acdc_tree(folder / "acdc", patients=3, shape=(24, 20, 3))}, workspace))
    run_harmonize(workspace, recipe, 1, lambda _: None)
    summary = write_shards(workspace, Store(str(folder / "shards")), ShardSpec(recipe), 1, lambda _: None)
    rows = pq.read_table(folder / "shards" / "slices.parquet").to_pylist()
    return {
        "digest": summary.digest,
        "pixels": {row["key"]: [row["image_sha256"], row["mask_sha256"]] for row in rows},
        "encoder": PNG.version,
        "tars": {path.name: file_digest(path) for path in sorted((folder / "shards").glob("*.tar"))},
    }


def main() -> None:
    from medvar_data.catalog.load import load_conditions

    with tempfile.TemporaryDirectory() as folder:
        values = {
            "conditions": load_conditions(),
            "schemas": schemas(),
            "reasons": reasons(),
            "data_cli": commands(),
            "tiny_shard": tiny_shard(Path(folder)),
        }
    for name, value in values.items():
        (HERE / f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
