"""Flags under headings: a class of flags that others inherit is a group of its own in --help if it has a ``HEADING``.

tyro groups the flags of a dataclass inside another one. So what it is given is such a nest, made of a flat class of
flags; what it returns becomes the flat one again.
"""

import ast
import dataclasses
import inspect
import textwrap
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

Flags = TypeVar("Flags")


def nested(flags: type) -> type:
    """A dataclass with the flags of ``flags`` that are of no heading, and one for those of each heading."""
    kinds = [kind for kind in reversed(flags.__mro__) if dataclasses.is_dataclass(kind)]
    owners: dict[str, type] = {}
    texts: dict[str, str] = {}
    for kind in kinds:
        owners = {name: kind for name in vars(kind).get("__annotations__", {})} | owners
        texts |= _texts(kind)
    hints, groups = (
        get_type_hints(flags, include_extras=True),
        {"": []} | {h: [] for h in map(_heading, reversed(kinds)) if h},
    )
    for field in dataclasses.fields(flags):
        kept = {k: v for k in ("default", "default_factory") if (v := getattr(field, k)) is not dataclasses.MISSING}
        kind = _with_help(hints[field.name], texts.get(field.name, ""))
        groups[_heading(owners[field.name])].append((field.name, kind, dataclasses.field(**kept, kw_only=True)))
    inner = [(heading, _made(heading, fields, kinds)) for heading, fields in groups.items() if heading]
    whole = [
        (f"under_{heading}", Annotated[kind, tyro.conf.arg(name=heading)], dataclasses.field(default_factory=kind))
        for heading, kind in inner
    ]
    return dataclasses.make_dataclass(flags.__name__, [*groups[""], *whole], frozen=True)


def flat(flags: type[Flags], found: Any) -> Flags:
    """The flags, from what ``nested`` holds."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    own = {field.name for field in dataclasses.fields(flags)}  # pyright: ignore[reportArgumentType]
    inner = [vars(value) for name, value in values.items() if name not in own]
    return flags(**{name: value for group in (values, *inner) for name, value in group.items() if name in own})


def _heading(kind: type) -> str:
    return vars(kind).get("HEADING", "")


def _made(heading: str, fields: list[Any], kinds: list[type]) -> Any:
    """The dataclass of a heading, with the docstring of its class, which --help shows below it."""
    made = dataclasses.make_dataclass(heading, fields, frozen=True)
    made.__doc__ = next(kind.__doc__ for kind in kinds if _heading(kind) == heading)
    return made


def _with_help(kind: Any, text: str) -> Any:
    """The annotation of a flag with its text for --help."""
    base, *settings = getattr(kind, "__metadata__", None) and (kind.__origin__, *kind.__metadata__) or (kind,)
    told = [dataclasses.replace(s, help=text) if hasattr(s, "metavar") else s for s in settings]
    return (
        Annotated[(base, *told)]
        if any(hasattr(s, "metavar") for s in told)
        else Annotated[(base, *told, tyro.conf.arg(help=text))]
    )


def _texts(kind: type) -> dict[str, str]:
    """The strings below the fields of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value)).replace("\n", " ")
    return found
