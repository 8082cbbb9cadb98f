"""The commands medvar-data and medvar-model: thin Typer apps over the two packages."""
