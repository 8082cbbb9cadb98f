"""What the tests of the command line share: ACDC taken through the commands of `medvar-data` alone."""

import pytest
from support.builders import acdc_tree, recipe_file
from typer.testing import CliRunner


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> dict[str, str]:
    """A download of three patients with one truncated image, its workspace, its shard set, and the recipe."""
    from medvar_cli.data_commands import app

    folder = tmp_path_factory.mktemp("cli")
    source = acdc_tree(folder / "download", patients=3)
    broken = source / "database/training/patient002/patient002_frame10.nii.gz"
    broken.write_bytes(broken.read_bytes()[:700])
    work, shards, recipe = str(folder / "work"), str(folder / "shards"), str(recipe_file(folder))
    for arguments in (
        ["ingest", f"acdc={source}", "-w", work],
        ["harmonize", "-w", work, "--recipe", recipe, "--workers", "1"],
        ["shard", "-w", work, shards, "--recipe", recipe, "--workers", "1"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    return {"source": str(source), "work": work, "shards": shards, "recipe": recipe, "folder": str(folder)}
