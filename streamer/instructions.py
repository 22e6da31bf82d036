"""What compiled loops over pixels need: their three types, and instructions that numba has no name for."""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def _call_lz4(typing_context: Any, function: Any, source: Any, target: Any, packed: Any, room: Any) -> Any:
    """``LZ4_decompress_safe`` by the address ``function``: what is called so need not be known to numba's cache."""
    del typing_context, function, source, target, packed, room

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(number, [pointer, pointer, number, number])
        function, source, target, packed, room = arguments
        call = builder.inttoptr(function, kind.as_pointer())
        ends = [builder.inttoptr(each, pointer) for each in (source, target)]
        return builder.call(call, [*ends, packed, room])

    return types.int32(types.intp, types.intp, types.intp, types.int32, types.int32), generate


@intrinsic
def _lowest_bit(typing_context: Any, word: Any) -> Any:
    """The number of the lowest bit set of a 64-bit word, 64 where none is."""
    del typing_context, word

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def _bits_set(typing_context: Any, word: Any) -> Any:
    """How many bits of a 64-bit word are set."""
    del typing_context, word

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_WIDE = ir.VectorType(ir.IntType(64), 8)
WIDE_BYTES = 64


@intrinsic
def _put_past_caches(typing_context: Any, source: Any, target: Any) -> Any:
    """Copy ``WIDE_BYTES`` from one address to another, a multiple of so many, and leave no copy in a cache."""
    del typing_context, source, target

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature
        source, target = (builder.inttoptr(each, _WIDE.as_pointer()) for each in arguments)
        store = builder.store(builder.load(source, align=1), target, align=WIDE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _settle_stores(typing_context: Any) -> Any:
    """What was stored past the caches is there for others before anything that is stored from here on."""
    del typing_context

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del signature, arguments
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# To a type checker they take what compiled code gives them.
call_lz4: Any = _call_lz4
lowest_bit: Any = _lowest_bit
bits_set: Any = _bits_set
put_past_caches: Any = _put_past_caches
settle_stores: Any = _settle_stores


def compiled(*arguments: Any, returns: Any) -> Any:
    """Compile for the three pixel types; ``None`` among the arguments stands for the pixels."""
    kinds = (types.uint8, types.uint16, types.uint32)
    signatures = [
        returns(*(types.Array(kind, 1, "C") if argument is None else argument for argument in arguments))
        for kind in kinds
    ]
    return numba.njit(signatures, nogil=True, cache=True)
