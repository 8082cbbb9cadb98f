"""Let commands share groups of options: a group is a frozen dataclass, and a command takes one instance of it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Result = TypeVar("Result")


@dataclass(frozen=True)
class Without:
    """Leave fields of a group out of a command's options, as in `Annotated[EngineOptions, Without(("memory",))]`.

    Args:
        names: of the fields; they keep their defaults.
    """

    names: tuple[str, ...]


def takes_options(command: Callable[..., Result]) -> Callable[..., Result]:
    """Replace every parameter that is a dataclass by the dataclass's fields, so that Typer sees plain options.

    The command itself is called with one instance of each dataclass. A field whose type is a dataclass is replaced in
    the same way. The options stand where the parameter stood, in the order of the fields.

    Raises:
        TypeError: two options of the command have the same name, a field has a default factory, or `Without` names a
            field that is not there.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: int = 2
    ...     height: int = 3
    >>> @takes_options
    ... def area(size: Size, scale: int = 1) -> int:
    ...     return size.width * size.height * scale
    >>> list(inspect.signature(area).parameters)
    ['width', 'height', 'scale']
    >>> area(width=4)
    12
    """
    given = list(inspect.signature(command, eval_str=True).parameters.values())
    flat = [parameter for group in given for parameter in _flattened(group)]
    twice = sorted({p.name for p in flat if [q.name for q in flat].count(p.name) > 1})
    if twice:
        raise TypeError(f"{command.__qualname__} has two options named {twice[0]!r}; wanted each name once.")

    @wraps(command)
    def flat_command(**values: Any) -> Result:
        return command(
            **{parameter.name: _value(parameter, values) for parameter in given if _given(parameter, values)}
        )

    flat_command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flat_command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flat_command


def _group(annotation: Any) -> tuple[type | None, frozenset[str]]:
    """Split an annotation into the dataclass that it names, if any, and the fields left out of it."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    left_out = frozenset(name for mark in marks if isinstance(mark, Without) for name in mark.names)
    return (kind if isinstance(kind, type) and is_dataclass(kind) else None), left_out


def _members(group: type, left_out: frozenset[str]) -> Iterator[inspect.Parameter]:
    """Give the fields of a group as parameters, groups in it included as they are."""
    hints: Mapping[str, Any] = get_type_hints(group, include_extras=True)
    unknown = sorted(left_out - set(hints))
    if unknown:
        raise TypeError(f"{group.__name__} has no field {unknown[0]!r} to leave out.")
    for field in fields(group):
        if field.default_factory is not MISSING:
            raise TypeError(f"{group.__name__}.{field.name} has a default factory; wanted a plain default.")
        if field.name not in left_out:
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            yield inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name])


def _flattened(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    group, left_out = _group(parameter.annotation)
    if group is None:
        yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    for member in _members(group, left_out):
        yield from _flattened(member)


def _given(parameter: inspect.Parameter, values: Mapping[str, Any]) -> bool:
    return _group(parameter.annotation)[0] is not None or parameter.name in values


def _value(parameter: inspect.Parameter, values: Mapping[str, Any]) -> Any:
    group, left_out = _group(parameter.annotation)
    if group is None:
        return values[parameter.name]
    members = _members(group, left_out)
    return group(**{member.name: _value(member, values) for member in members if _given(member, values)})


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
