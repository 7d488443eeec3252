"""The machine that pickles are programs of, over bytes of a foreign file: it makes values, and what names stand for is
the caller's.

Python's own takes lengths, and places in its memo, as the file says them, and hashes whatever a dictionary is to have
as a key, however deep or often the same: a few bytes can fill the memory or never come to an end. Here every length is
held against the bytes that are there, and keys are values that keys are made of. The operations are those of Python's
pickletools, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import mmap
import pickle
import struct
from collections.abc import Callable, Hashable
from typing import Any

LONGEST = 4_000_000  # operations; a large checkpoint with its optimiser's state has less than a million
_KEY = 64  # values within values that a key is made of, at most

_MARK = object()


class Machine:
    """Runs one pickle.

    Args:
        data: bytes with the pickle in it.
        at: where it begins; after `load`, where it ended.
    """

    def __init__(self, data: bytes | mmap.mmap, at: int = 0) -> None:
        self._data, self.at = data, at
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        raise NotImplementedError

    def persistent_load(self, pid: Any) -> Any:
        """What stands for something outside the pickle."""
        raise NotImplementedError

    def reduce(self, make: Any, args: tuple[Any, ...]) -> Any:
        """What a call makes."""
        raise NotImplementedError

    def new(self, cls: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A new object of a class."""
        raise NotImplementedError

    def build(self, made: Any, state: Any) -> None:
        """Gives an object its state."""
        raise NotImplementedError

    def load(self) -> Any:
        """The value that the pickle makes.

        Raises:
            pickle.UnpicklingError, EOFError: it is damaged, or truncated. Whatever objects raise comes through.
        """
        data, end = self._data, len(self._data)
        for _ in range(LONGEST):
            if self.at >= end:
                raise EOFError("it ends within a pickle")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._pop()
            action = _BY_CODE[code]
            if action is None:
                raise pickle.UnpicklingError(f"{code:#04x} is no operation of a pickle")
            action(self)
        raise pickle.UnpicklingError(f"a pickle of more than {LONGEST:,} operations")

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self._data):
            raise EOFError(f"{count:,} bytes are to come at {self.at:,}, and {len(self._data) - self.at:,} are there")
        taken = bytes(self._data[self.at : end])
        self.at = end
        return taken

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.at)
        if end < 0:
            raise EOFError("it ends within a line of text")
        return self._take(end + 1 - self.at)[:-1]

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(value)

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise pickle.UnpicklingError("it takes a value where there is none")
        return self._stack.pop()

    @property
    def _top(self) -> Any:
        if not self._stack:
            raise pickle.UnpicklingError("it changes a value where there is none")
        return self._stack[-1]

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        """All above the last mark, which goes away."""
        if not self._below:
            raise pickle.UnpicklingError("it goes back to a mark that was not set")
        above, self._stack = self._stack, self._below.pop()
        return above

    def _put(self, place: int) -> None:
        self._memo[place] = self._top

    def _get(self, place: int) -> None:
        if place not in self._memo:
            raise pickle.UnpicklingError("it takes from its memo what was not put there")
        self._push(self._memo[place])

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _drop(self) -> None:
        self._marked()

    def _discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    # into containers

    def _append(self, values: list[Any]) -> None:
        made = self._top
        if isinstance(made, list | bytearray):
            made.extend(values)
        else:
            for value in values:
                made.append(value)

    def _add(self, values: list[Any]) -> None:
        made = self._top
        for value in values:
            made.add(as_key(value))

    def _set_items(self, values: list[Any]) -> None:
        made = self._top
        for name, value in zip(values[::2], values[1::2], strict=True):
            made[as_key(name)] = value

    def _one_item(self) -> None:
        value, name = self._pop(), self._pop()
        self._set_items([name, value])

    def _one_member(self) -> None:
        value = self._pop()
        self._append([value])

    def _dict(self, values: list[Any]) -> None:
        self._push({})
        self._set_items(values)

    # objects

    def _global(self) -> None:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        self._push(self.find_class(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("it names something by what is no text")
        self._push(self.find_class(module, name))

    def _reduce(self) -> None:
        args, make = self._pop(), self._pop()
        self._push(self.reduce(make, _arguments(args)))

    def _new(self) -> None:
        args, cls = self._pop(), self._pop()
        self._push(self.new(cls, _arguments(args), {}))

    def _new_named(self) -> None:
        named, args, cls = self._pop(), self._pop(), self._pop()
        if type(named) is not dict or not all(isinstance(name, str) for name in named):
            raise pickle.UnpicklingError("it calls something with what are no arguments")
        self._push(self.new(cls, _arguments(args), named))

    def _object(self) -> None:
        cls, *args = self._marked() or [_MARK]
        self._push(self.reduce(cls, tuple(args)))

    def _instance(self) -> None:
        self._global()
        cls = self._pop()
        self._push(self.reduce(cls, tuple(self._marked())))

    def _build(self) -> None:
        state = self._pop()
        self.build(self._top, state)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it needs something that is not in it")


def as_key(value: Any) -> Hashable:
    """A value that a dictionary may have as a key, or a set as a member.

    Raises:
        pickle.UnpicklingError: it is nested too deep, or in too many ways, to be one.
    """
    left, several = _KEY, [value]
    while several:
        one = several.pop()
        left -= 1
        if left < 0:
            raise pickle.UnpicklingError("a key of a dictionary is nested too deep")
        if isinstance(one, tuple | frozenset):
            if len(one) > _KEY:
                raise pickle.UnpicklingError("a key of a dictionary is too long")
            several.extend(one)
    made: Hashable = value
    return made


def _arguments(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, tuple):
        raise pickle.UnpicklingError("it calls something with what are no arguments")
    return args


def _python_2(content: bytes) -> str:
    """Python 2's text is bytes; every byte is a letter of latin-1, and ASCII is what it is."""
    return content.decode("latin-1")


def _quoted(line: bytes) -> str:
    line = line.rstrip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b'"', b"'"):
        raise pickle.UnpicklingError("a text in it has no quotation marks")
    return _python_2(codecs.escape_decode(line[1:-1])[0])


def _decimal(line: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line.rstrip(b"L"), 0)  # type: ignore[return-value]


def _little(content: bytes) -> int:
    return int.from_bytes(content, "little", signed=True)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


_Action = Callable[[Machine], None]


def _counted(form: str, made: Callable[[bytes], Any]) -> _Action:
    """What is made of as many bytes as a number before them says."""
    return lambda m: m._push(made(m._take(m._number(form))))


def _value(made: Callable[[], Any]) -> _Action:
    return lambda m: m._push(made())


_ACTIONS: dict[bytes, _Action] = {
    b"\x80": lambda m: _protocol(m._number("<B")),
    b"\x95": lambda m: _framed(m),
    # values
    b"N": _value(lambda: None),
    b"\x88": _value(lambda: True),
    b"\x89": _value(lambda: False),
    b"]": _value(list),
    b"}": _value(dict),
    b")": _value(tuple),
    b"\x8f": _value(set),
    b"I": lambda m: m._push(_decimal(m._line())),
    b"L": lambda m: m._push(_decimal(m._line())),
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"\x8a": _counted("<B", _little),
    b"\x8b": _counted("<i", _little),
    b"F": lambda m: m._push(float(m._line())),
    b"G": lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    b"S": lambda m: m._push(_quoted(m._line())),
    b"T": _counted("<i", _python_2),
    b"U": _counted("<B", _python_2),
    b"V": lambda m: m._push(m._line().decode("raw-unicode-escape")),
    b"X": _counted("<I", _text),
    b"\x8c": _counted("<B", _text),
    b"\x8d": _counted("<Q", _text),
    b"B": _counted("<I", bytes),
    b"C": _counted("<B", bytes),
    b"\x8e": _counted("<Q", bytes),
    b"\x96": _counted("<Q", bytearray),
    b"\x97": Machine._refuse,  # a buffer beside the pickle
    b"\x98": lambda m: None,  # it may not be written
    # the stack and the memo
    b"(": Machine._mark,
    b"0": Machine._discard,
    b"1": Machine._drop,
    b"2": lambda m: m._push(m._top),
    b"p": lambda m: m._put(int(m._line())),
    b"q": lambda m: m._put(m._number("<B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"g": lambda m: m._get(int(m._line())),
    b"h": lambda m: m._get(m._number("<B")),
    b"j": lambda m: m._get(m._number("<I")),
    # containers
    b"t": lambda m: m._push(tuple(m._marked())),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"l": lambda m: m._push(m._marked()),
    b"d": lambda m: m._dict(m._marked()),
    b"\x91": lambda m: m._push(frozenset(map(as_key, m._marked()))),
    b"a": Machine._one_member,
    b"e": lambda m: m._append(m._marked()),
    b"\x90": lambda m: m._add(m._marked()),
    b"s": Machine._one_item,
    b"u": lambda m: m._set_items(m._marked()),
    # objects
    b"c": Machine._global,
    b"\x93": Machine._stack_global,
    b"R": Machine._reduce,
    b"\x81": Machine._new,
    b"\x92": Machine._new_named,
    b"o": Machine._object,
    b"i": Machine._instance,
    b"b": Machine._build,
    b"P": lambda m: m._push(m.persistent_load(m._line().decode("ascii"))),
    b"Q": lambda m: m._push(m.persistent_load(m._pop())),
    # of copyreg's registry, which is a process's own
    b"\x82": Machine._refuse,
    b"\x83": Machine._refuse,
    b"\x84": Machine._refuse,
}

_STOP = ord(".")
_BY_CODE = [_ACTIONS.get(bytes([code])) for code in range(256)]


def _protocol(number: int) -> None:
    if number > pickle.HIGHEST_PROTOCOL:
        raise pickle.UnpicklingError(f"it is in protocol {number}, which is not known")


def _framed(machine: Machine) -> None:
    """A frame only says how many bytes may be read at once."""
    length = machine._number("<Q")
    if machine.at + length > len(machine._data):
        raise EOFError(f"a frame of {length:,} bytes, of which {len(machine._data) - machine.at:,} are there")
