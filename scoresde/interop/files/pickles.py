"""Pickles read without executing anything: a stack machine of its own over the opcodes.

A pickle is a program for a small stack machine; Python's own lets it import and call any function. This one knows no
import. A name in the stream (GLOBAL) stays a name, and must be in the literal table ``builders`` that the caller gives:

    module.name -> function of this library that makes plain data from the arguments (REDUCE, NEWOBJ).

Everything else is built of None, bool, int, float, str, bytes, tuple, list, set and dict, and whatever the table or the
list of opcodes does not hold is refused by name. Keys are plain scalars, since hashing nested tuples can take
exponentially long; the number of operations is bounded, and so is then the memory: bytes and texts lie in the file.

Objects whose class is not executed come as a ``Record``: its class's name and its attributes.

Reference: the opcodes are documented in Python's ``pickletools``, whose parser of arguments is used here.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MOST_OPERATIONS = 1_000_000
MOST_LONG = 255  # bytes of an integer

Builders = Mapping[str, Callable[..., Any]]


class Name(NamedTuple):
    """A name that the stream mentions; nothing is imported for it."""

    full: str


@dataclasses.dataclass
class Record:
    """An object as plain data: the name of its class, what that was called with, and the state set afterwards."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


def read_pickle(stream: Any, builders: Builders, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object at ``stream``'s position, which is left behind its end.

    Args:
        stream: with ``read``, ``readline`` and ``tell``, whose ``read(n)`` allocates no more than there is: ``mmap`` or
            ``io.BytesIO``.
        builders: what each name may be called as.
        persistent: what a persistent id, such as a storage of PyTorch, stands for; None to refuse them.

    Raises:
        ValueError: the stream is malformed, or asks for what is not in ``builders``; the line names it.
    """
    machine = _Machine(builders, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name == "STOP":
            return machine.pop()
        if count >= MOST_OPERATIONS:
            raise ValueError(f"the pickle has more than {MOST_OPERATIONS} operations, far above those of a network")
        if opcode.name not in _OPERATIONS:
            raise ValueError(f"the pickle uses the operation {opcode.name}, which tensors and plain values do not need")
        _OPERATIONS[opcode.name](machine, argument)
    raise ValueError("the pickle does not end")


class _Machine:
    """The stack of the innermost mark, the stacks below it, and the memo."""

    def __init__(self, builders: Builders, persistent: Callable[[Any], Any] | None):
        self.builders, self.persistent = builders, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, kind: Any = object) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise ValueError(
                f"malformed pickle: expected {getattr(kind, '__name__', kind)} on its stack, found {found}"
            )
        return self.stack.pop()

    def top(self, kind: Any) -> Any:
        value = self.pop(kind)
        self.push(value)
        return value

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """What lies above the last mark, taken with it."""
        if not self.below:
            raise ValueError("malformed pickle: a mark is missing")
        found, self.stack = self.stack, self.below.pop()
        return found

    def last(self, n: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(n)][::-1])

    def put(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.top(object)

    def get(self, place: int) -> None:
        if place not in self.memo:
            raise ValueError(f"malformed pickle: memo {place} is empty")
        self.push(self.memo[place])

    def name(self, full: str) -> None:
        if full not in self.builders:
            raise ValueError(
                f"the pickle asks for {full}, which is not executed: only tensors and plain values are read from it"
            )
        self.push(Name(full))

    def stack_name(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("malformed pickle: a name that is no text")
        self.name(f"{module}.{name}")

    def call(self) -> None:
        arguments, name = self.pop(tuple), self.pop(Name)
        try:
            self.push(self.builders[name.full](*arguments))
        except TypeError:
            raise ValueError(f"the pickle gives {name.full} arguments that it does not take") from None

    def build(self) -> None:
        """The state of a record; attributes of a dict, such as a state's version numbers, are left out."""
        state, target = self.pop(), self.top(Record | dict)
        if isinstance(target, Record):
            target.state = state

    def identity(self) -> None:
        if self.persistent is None:
            raise ValueError("the pickle refers to something outside itself, which only PyTorch's own files may")
        self.push(self.persistent(self.pop()))

    def append(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add(self, items: list[Any]) -> None:
        self.top(set).update(map(plain, items))

    def dictionary(self) -> None:
        pairs = self.items()
        self.push({})
        self.set_items(pairs)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            raise ValueError("malformed pickle: a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[plain(key)] = value


def plain(key: Any) -> Any:
    """``key`` if it may be one: text, a number or None."""
    if key is not None and not isinstance(key, bool | int | float | str | bytes):
        raise ValueError(f"the pickle has a key that is a {type(key).__name__}; expected text or a number")
    return key


def _integer(machine: _Machine, value: int) -> None:
    if value.bit_length() > 8 * MOST_LONG:
        raise ValueError(f"the pickle has an integer of more than {MOST_LONG} bytes")
    machine.push(value)


def _constant(value: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value())


_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"), _integer),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.items(),
    "DUP": lambda machine, _: machine.push(machine.top(object)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.items())),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "LIST": lambda machine, _: machine.push(machine.items()),
    "DICT": lambda machine, _: machine.dictionary(),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.items()),
    "ADDITEMS": lambda machine, _: machine.add(machine.items()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.last(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.items()),
    "GLOBAL": lambda machine, full: machine.name(full.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.identity(),
}
