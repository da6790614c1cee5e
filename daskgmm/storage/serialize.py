"""Convert trees of frozen dataclasses, tuples, numbers and arrays to bytes and back. Reading runs nothing in them.

The bytes are a safetensors file: the arrays by their numbers, and the tree that refers to them as JSON.
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
    """Convert a tree of dataclasses, tuples, numbers, strings, None, arrays and errors, with each array saved once."""
    arrays: dict[int, tuple[str, npt.NDArray[Any]]] = {}
    text = json.dumps(_to_json(tree, arrays))
    saved = {name: np.ascontiguousarray(array.transpose(_axes(array))) for name, array in arrays.values()}
    return save({_TREE: np.frombuffer(text.encode(), np.uint8), **saved})


def unpack(data: bytes, kinds: Sequence[type], upgrade: _Upgrade = lambda _, fields: fields) -> Any:
    """Read a tree from the bytes that `pack` returned.

    Parameters
    ----------
    data : bytes
    kinds : sequence of type
        Dataclasses and errors that may be in it.
    upgrade : callable
        Converts the fields of a dataclass, given its name, from those of an earlier version to the current ones.

    Raises
    ------
    ValueError
        These are not such bytes, or a field of a dataclass does not match its annotation.
    """
    try:
        arrays = load(data)
        tree = json.loads(arrays.pop(_TREE).tobytes())
        return _from_json(tree, arrays, {kind.__name__: kind for kind in kinds}, upgrade)
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a record ({type(error).__name__}: {error})") from error


def _axes(array: npt.NDArray[Any]) -> list[int]:
    """Return the axes from slowest to fastest in memory: the last bits of a product depend on its factors' layout."""
    return np.argsort([-stride for stride in array.strides], kind="stable").tolist()


def _to_json(value: Any, arrays: dict[int, tuple[str, npt.NDArray[Any]]]) -> Any:
    """Convert a tree to values of JSON, with references to arrays, which are collected by identity."""
    if isinstance(value, np.ndarray):
        name, _ = arrays.setdefault(id(value), (str(len(arrays)), value))
        return {"array": name, "axes": _axes(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [_to_json(each, arrays) for each in value]
    if isinstance(value, Exception):
        return {"error": type(value).__name__, "text": str(value)}
    if is_dataclass(value):
        converted = {field.name: _to_json(getattr(value, field.name), arrays) for field in fields(value)}
        return {"is": type(value).__name__, "fields": converted}
    return value


def _from_json(value: Any, arrays: _Arrays, kinds: dict[str, type], upgrade: _Upgrade) -> Any:
    """Convert values of JSON back to a tree, of which dataclasses and errors are of the given kinds only."""
    if isinstance(value, list):
        return tuple(_from_json(each, arrays, kinds, upgrade) for each in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]].transpose(np.argsort(value["axes"])).copy(order="K")
    if "error" in value:
        return kinds.get(value["error"], ValueError)(str(value["text"]))
    kind = kinds[value["is"]]
    found = {name: _from_json(each, arrays, kinds, upgrade) for name, each in value["fields"].items()}
    found = upgrade(value["is"], found)
    for name, hint in _hints(kind).items():
        if not _matches(found[name], hint):
            raise ValueError(f"not a record: {name} of {kind.__name__} is {type(found[name]).__name__}, not {hint}")
    return kind(**found)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _matches(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; of a protocol, whether it is a dataclass."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_matches(value, each) for each in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_matches(each, args[0]) for each in value)
        return len(value) == len(args) and all(map(_matches, value, args))
    if origin is _ARRAY:
        number = (get_args(args[-1]) or args)[0]
        return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, number)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint is Any or getattr(hint, "_is_protocol", False):
        return is_dataclass(value)
    return isinstance(value, hint)
