"""Trees of frozen dataclasses, tuples, numbers and arrays as bytes, and back. Reading runs nothing that they contain.

The bytes are a safetensors file: the arrays by their numbers, and as JSON the tree in which these stand.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

_TREE = "tree"
_ARRAY = get_origin(npt.NDArray[np.float64])  # an alias of its own in newer NumPy
_Arrays = dict[str, npt.NDArray[Any]]
_Upgrade = Callable[[str, dict[str, Any]], dict[str, Any]]


def pack(tree: Any) -> bytes:
    """A tree of dataclasses, tuples, numbers, strings, None, arrays of numbers and errors; one array is kept once."""
    arrays: dict[int, tuple[str, npt.NDArray[Any]]] = {}
    text = json.dumps(_plain(tree, arrays))
    found = {name: np.ascontiguousarray(array.transpose(_axes(array))) for name, array in arrays.values()}
    return save({_TREE: np.frombuffer(text.encode(), np.uint8), **found})


def unpack(data: bytes, kinds: Sequence[type], upgrade: _Upgrade = lambda _, fields: fields) -> Any:
    """Read the tree that `pack` made bytes of.

    Parameters
    ----------
    data : bytes
    kinds : sequence of type
        Dataclasses and errors that may be in it.
    upgrade : callable
        Turns the fields of a dataclass, given its name, as an earlier version wrote them into those of today.

    Raises
    ------
    ValueError
        These are not such bytes, or a field of a dataclass is not what its annotation says.
    """
    try:
        arrays = load(data)
        tree = json.loads(arrays.pop(_TREE).tobytes())
        return _tree(tree, arrays, {kind.__name__: kind for kind in kinds}, upgrade)
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a record ({type(error).__name__}: {error})") from error


def _axes(array: npt.NDArray[Any]) -> list[int]:
    """The axes from the slowest to the fastest in memory: the last bits of products follow from how factors lie."""
    return np.argsort([-stride for stride in array.strides], kind="stable").tolist()


def _plain(value: Any, arrays: dict[int, tuple[str, npt.NDArray[Any]]]) -> Any:
    """What JSON knows, with numbers for arrays."""
    if isinstance(value, np.ndarray):
        name, _ = arrays.setdefault(id(value), (str(len(arrays)), value))
        return {"array": name, "axes": _axes(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(each, arrays) for each in value]
    if isinstance(value, Exception):
        return {"error": type(value).__name__, "text": str(value)}
    if is_dataclass(value):
        return {
            "is": type(value).__name__,
            "fields": {field.name: _plain(getattr(value, field.name), arrays) for field in fields(value)},
        }
    return value


def _tree(value: Any, arrays: _Arrays, kinds: dict[str, type], upgrade: _Upgrade) -> Any:
    if isinstance(value, list):
        return tuple(_tree(each, arrays, kinds, upgrade) for each in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]].transpose(np.argsort(value["axes"])).copy(order="K")
    if "error" in value:
        return kinds.get(value["error"], ValueError)(str(value["text"]))
    kind = kinds[value["is"]]
    found = {name: _tree(each, arrays, kinds, upgrade) for name, each in value["fields"].items()}
    found = upgrade(value["is"], found)
    for name, hint in _hints(kind).items():
        if not _fits(found[name], hint):
            raise ValueError(f"not a record: {name} of {kind.__name__} is {type(found[name]).__name__}, not {hint}")
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Is the value what an annotation says, as far as it says something of what a record holds?"""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(each, args[0]) for each in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if origin is _ARRAY:
        number = (get_args(args[-1]) or args)[0]
        return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, number)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Any or getattr(hint, "_is_protocol", False):
        return is_dataclass(value)
    return isinstance(value, hint)
