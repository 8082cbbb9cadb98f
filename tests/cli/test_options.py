"""Groups of options: they stand flat in a command's signature, and the command is handed one value of each."""

import inspect
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from medvar_cli.option_groups import Without, takes_options


@dataclass(frozen=True, kw_only=True)
class Inner:
    low: Annotated[int, typer.Option(help="Lowest.", min=0)] = 1
    high: int = 9


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: Annotated[str, typer.Option("-n", "--name", help="Who.")]
    inner: Inner
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Repeat.")] = None


SEEN: list[object] = []
app = typer.Typer()


@app.command()
@takes_options
def show(first: str, group: Outer, last: bool = False) -> None:
    """Keep what came."""
    SEEN.append((first, group, last))


def test_the_options_stand_where_the_group_stood():
    assert list(inspect.signature(show).parameters) == ["first", "name", "low", "high", "tags", "last"]
    assert show.__doc__ == "Keep what came."


def test_a_command_is_handed_one_value_of_each_group():
    SEEN.clear()
    typed = ["a", "-n", "b", "--high", "4", "--tag", "x", "--tag", "y", "--last"]
    assert CliRunner().invoke(app, typed).exit_code == 0
    assert CliRunner().invoke(app, ["a", "--name", "b"]).exit_code == 0
    assert [
        ("a", Outer(name="b", inner=Inner(high=4), tags=["x", "y"]), True),
        ("a", Outer(name="b", inner=Inner(), tags=SEEN[1][1].tags), False),
    ] == SEEN
    assert not SEEN[1][1].tags


def test_limits_and_required_options_hold():
    assert CliRunner().invoke(app, ["a", "-n", "b", "--low", "-1"]).exit_code == 2
    assert CliRunner().invoke(app, ["a"]).exit_code == 2


def test_without_leaves_fields_at_their_defaults():
    @takes_options
    def command(inner: Annotated[Inner, Without(("low",))]) -> Inner:
        return inner

    assert list(inspect.signature(command).parameters) == ["high"]
    assert command(high=3) == Inner(low=1, high=3)


def test_what_cannot_work_fails_at_import():
    @dataclass(frozen=True)
    class Lists:
        names: list[str] = field(default_factory=list)

    def twice(low: int, inner: Inner) -> None: ...

    def unknown(inner: Annotated[Inner, Without(("middle",))]) -> None: ...

    def factory(lists: Lists) -> None: ...

    for command, says in (
        (twice, "two options named 'low'"),
        (unknown, "no field 'middle'"),
        (factory, "default factory"),
    ):
        with pytest.raises(TypeError, match=says):
            takes_options(command)
