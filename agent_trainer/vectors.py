"""Vectors of 8 numbers for numba: a kernel says itself what the processor's registers hold.

numba finds vectors in loops by guessing, and keeps no block of a matrix in registers; a kernel that names its vectors
runs two to four times as fast. Where a processor has other registers, LLVM cuts or joins them. Places are those of
flat arrays, and nobody checks them.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8
FLOATS = ir.VectorType(ir.FloatType(), LANES)
Generate = Callable[[Any, Any, Any, Any], Any]  # (context, builder, signature, arguments) -> value, as numba wants it


class Vector(types.Type):
    """8 float32."""

    def __init__(self) -> None:
        super().__init__(name="Vector")


VECTOR = Vector()
_UniTuple: Any = vars(types)["UniTuple"]


@register_model(Vector)
class _InRegister(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, FLOATS)


def _at(context: Any, builder: Any, kind: Any, array: Any, place: Any, of: ir.Type = FLOATS) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), of.as_pointer())


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    once = ("contract",)  # rounded once where the processor can
    return builder.fadd(builder.fmul(a, b, flags=once), c, flags=once)


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, place: Any) -> tuple[Any, Generate]:
    """Return the 8 numbers of an array from a place on."""
    del typing, place

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place = arguments
        return builder.load(_at(context, builder, signature.args[0], array, place), align=4)

    return VECTOR(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_one(typing: Any, array: Any, place: Any) -> tuple[Any, Generate]:
    """Return one number of an array 8 times."""
    del typing, place

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place = arguments
        return _splat(builder, builder.load(_at(context, builder, signature.args[0], array, place, ir.FloatType())))

    return VECTOR(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, place: Any, vector: Any) -> tuple[Any, Generate]:
    """Write 8 numbers into an array, from a place on."""
    del typing, place, vector

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, vector = arguments
        builder.store(vector, _at(context, builder, signature.args[0], array, place), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_bytes(typing: Any, array: Any, place: Any, vector: Any) -> tuple[Any, Generate]:
    """Write 8 numbers from 0 to 255 into a uint8 array, from a place on."""
    del typing, place, vector
    wide, narrow = (ir.VectorType(ir.IntType(bits), LANES) for bits in (32, 8))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, vector = arguments
        whole = builder.trunc(builder.fptosi(vector, wide), narrow)
        builder.store(whole, _at(context, builder, signature.args[0], array, place, narrow), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing: Any, number: Any) -> tuple[Any, Generate]:
    """Return a number 8 times."""
    del typing, number

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return _splat(builder, arguments[0])

    return VECTOR(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Generate]:
    """Return a·b + c."""
    del typing, a, b, c

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return _multiply_add(builder, *arguments)

    return VECTOR(VECTOR, VECTOR, VECTOR), generate


@intrinsic  # type: ignore[untyped-decorator]
def where_larger(typing: Any, a: Any, b: Any, x: Any, y: Any) -> tuple[Any, Generate]:
    """Return x where a > b, else y."""
    del typing, a, b, x, y

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        a, b, x, y = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), x, y)

    return VECTOR(VECTOR, VECTOR, VECTOR, VECTOR), generate


def _operator(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class _Typed(ConcreteTemplate):  # type: ignore[misc]
        cases: ClassVar = [signature(VECTOR, VECTOR, VECTOR)]

    @lower_builtin(function, VECTOR, VECTOR)  # type: ignore[untyped-decorator]
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return getattr(builder, instruction)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


# ---- blocks: some lines of some vectors, all in registers


def _lines(builder: Any, pointer: Any, stride: Any, lines: int, vectors: int) -> Iterator[Any]:
    """Yield where each vector of a block lies, line after line."""
    start = builder.bitcast(pointer, ir.FloatType().as_pointer())
    for _ in range(lines):
        for v in range(vectors):
            yield builder.bitcast(builder.gep(start, [ir.Constant(stride.type, v * LANES)]), FLOATS.as_pointer())
        start = builder.gep(start, [stride])


def _shape(block: Any) -> tuple[int, int]:
    return len(block), len(block[0])


def _unpacked(builder: Any, block: Any, kind: Any) -> list[Any]:
    lines, vectors = _shape(kind)
    parts = [cgutils.unpack_tuple(builder, line, vectors) for line in cgutils.unpack_tuple(builder, block, lines)]
    return [vector for line in parts for vector in line]


def _packed(context: Any, builder: Any, kind: Any, vectors: list[Any]) -> Any:
    count, line = _shape(kind)[1], kind[0]
    of_lines = [context.make_tuple(builder, line, vectors[i : i + count]) for i in range(0, len(vectors), count)]
    return context.make_tuple(builder, kind, of_lines)


@intrinsic  # type: ignore[untyped-decorator]
def zeros(typing: Any, shape: Any) -> tuple[Any, Generate]:
    """Return a block of zeros with as many lines and vectors as the tuple of tuples of numbers that is given."""
    del typing
    lines, vectors = _shape(shape)
    kind = _UniTuple(_UniTuple(VECTOR, vectors), lines)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        return _packed(context, builder, kind, [ir.Constant(FLOATS, None)] * (lines * vectors))

    return kind(shape), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_scaled(typing: Any, block: Any, gain: Any, array: Any, place: Any, stride: Any) -> tuple[Any, Generate]:
    """Return a block plus gain times another, which lies in an array; its lines begin `stride` numbers apart."""
    del typing, gain, place, stride

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block, gain, array, place, stride = arguments
        at = _lines(builder, _at(context, builder, signature.args[2], array, place), stride, *_shape(signature.args[0]))
        before = _unpacked(builder, block, signature.args[0])
        added = [
            _multiply_add(builder, gain, builder.load(pointer, align=4), old)
            for pointer, old in zip(at, before, strict=True)
        ]
        return _packed(context, builder, signature.args[0], added)

    return block(block, VECTOR, array, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_to(typing: Any, array: Any, place: Any, stride: Any, block: Any) -> tuple[Any, Generate]:
    """Add a block to another, which lies in an array; its lines begin `stride` numbers apart."""
    del typing, place, stride

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, stride, block = arguments
        kind = signature.args[3]
        at = _lines(builder, _at(context, builder, signature.args[0], array, place), stride, *_shape(kind))
        for pointer, vector in zip(at, _unpacked(builder, block, kind), strict=True):
            builder.store(builder.fadd(builder.load(pointer, align=4), vector), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, block), generate
