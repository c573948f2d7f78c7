"""Loops over numbers in memory, from which `omni.native` makes what layers do with a token; and the function that goes
through a list of them. numba makes them into the processor's own code.

What its language lacks is written in LLVM's: numbers at an address, and rows of codes times a vector of integers at the
pace of memory: products of integers of 16 bits are added up in pairs, and what comes next is fetched meanwhile. All is
in one file, by which the code that is kept on disk is known to be fresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import reduce
from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

WORDS = 20  # of an instruction: what it does, then its operands
FLOAT32, FLOAT16, BFLOAT16, BYTE_CODE, WORD = range(5)  # kinds of weights; words are `omni.words`
LARGEST = 2**15 - 1  # of a vector's integers
SUM = 2**30  # of their products; half of what 32 bits hold, so that rounding up all of them is safe
LEAST = np.float32(1.2e-38)  # that has an inverse
CODES = 8  # of four bits in a word of 32
STREAMS = 4  # rows that are read side by side: one does not fill what memory can give
# sums in any order; that numbers may be infinite or none is not forgotten
LOOP: dict[str, Any] = {
    "fastmath": {"reassoc", "nsz", "arcp", "contract", "afn"},
    "error_model": "numpy",
    "cache": True,
}
FINITE: dict[str, Any] = LOOP | {"fastmath": True}
BYTE, SHORT, INT, LONG = map(ir.IntType, (8, 16, 32, 64))
HALF, FLOAT, PLACE = ir.HalfType(), ir.FloatType(), ir.PointerType()
BYTES = {FLOAT: 4, HALF: 2}
MIDDLE = 8  # the code of four bits that stands for a group's zero
LANES, EIGHT = 32, 8  # numbers at a time
BYTES_AHEAD, WORDS_AHEAD, SCALES_AHEAD = 512, 512, 64  # bytes that are fetched meanwhile
LINE = 64  # bytes of memory that come together
KEYS = 32  # of an attention at a time: they stay in the nearest cache for all heads that share them
READY = 64  # groups whose scales are made ready at a time
FUSED = ("contract",)  # a product and a sum in one instruction
FAST = ("reassoc", "nsz", "contract")


@no_type_check
def _numbers_at(kind: Any) -> Any:
    """An address as that of numbers of a kind."""

    @intrinsic
    def at(context, address):
        def code(context, builder, signature, given):
            return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return at


floats_at, shorts_at, longs_at = map(_numbers_at, (types.float32, types.int16, types.int64))


@no_type_check
def _rows_times(write: Callable[..., list[Any]], result: Any) -> tuple[Any, Any]:
    """Of what writes them, loops over one row and over several side by side, for the places of each row's weights,
    scales, vector, steps and sums, and for how many parts a row has of what size.
    """

    def of(count: int) -> Any:
        @intrinsic
        def times(context, rows, parts, size):
            kind = types.UniTuple(result, count)

            def code(context, builder, signature, given):
                rows, parts, size = given
                places = [cgutils.unpack_tuple(builder, row, 5) for row in cgutils.unpack_tuple(builder, rows, count)]
                return context.make_tuple(builder, kind, write(builder, places, parts, size))

            return kind(types.UniTuple(types.UniTuple(types.int64, 5), count), types.int64, types.int64), code

        return times

    return of(1), of(STREAMS)


def _of_floats(size: int, widen: Callable[[Any, Any], Any], stored: Any) -> Callable[..., list[Any]]:
    """Sums of products of weights, so many bytes each, with float32."""

    def write(b: Any, rows: Sequence[Sequence[Any]], width: Any, _: Any) -> list[Any]:
        lanes = LANES // len(rows)
        main = b.and_(width, _long(-lanes))
        kinds = ir.VectorType(stored, lanes), ir.VectorType(FLOAT, lanes)
        totals, rest = [_Sum(b, kinds[1]) for _ in rows], [_Sum(b, FLOAT) for _ in rows]
        loops = (totals, kinds, _long(0), main, lanes), (rest, (stored, FLOAT), main, width, 1)
        for sums, (kind, other), start, stop, by in loops:
            with cgutils.for_range_slice(b, start, stop, _long(by)) as (at, _):
                for total, (weights, _, vector, _, _) in zip(sums, rows, strict=True):
                    weight = widen(b, _load(b, kind, b.add(weights, b.mul(at, _long(size)))))
                    total.add(b.fmul(weight, _entry(b, other, vector, at), FUSED))
        return [b.fadd(_whole(b, one.value()), other.value()) for one, other in zip(totals, rest, strict=True)]

    return write


def _from_bfloat16(b: Any, bits: Any) -> Any:
    """One or a vector of them."""
    many = isinstance(bits.type, ir.VectorType)
    whole, kind = (ir.VectorType(kind, bits.type.count) if many else kind for kind in (INT, FLOAT))
    by = ir.Constant(whole, [16] * bits.type.count if many else 16)
    return b.bitcast(b.shl(b.zext(bits, whole), by), kind)


def _from_half(b: Any, halves: Any) -> Any:
    return b.fpext(halves, ir.VectorType(FLOAT, halves.type.count) if isinstance(halves.type, ir.VectorType) else FLOAT)


def _of_bytes(b: Any, rows: Sequence[Sequence[Any]], width: Any, _: Any) -> list[Any]:
    """Sums of products of codes of eight bits with int16, in int32."""
    main = b.and_(width, _long(-LANES))
    totals, rest = [_Sum(b, ir.VectorType(INT, LANES // 2)) for _ in rows], [_Sum(b, INT) for _ in rows]
    with cgutils.for_range_slice(b, _long(0), main, _long(LANES)) as (at, _):
        for total, (codes, _, vector, _, _) in zip(totals, rows, strict=True):
            _fetch(b, b.add(codes, at), BYTES_AHEAD)
            found = _load(b, ir.VectorType(BYTE, LANES), b.add(codes, at))
            times = _load(b, ir.VectorType(SHORT, LANES), b.add(vector, b.mul(at, _long(2))))
            total.add(_pairs(b, b.sext(found, times.type), times))
    with cgutils.for_range_slice(b, main, width, _long(1)) as (at, _):
        for total, (codes, _, vector, _, _) in zip(rest, rows, strict=True):
            found, times = _load(b, BYTE, b.add(codes, at)), _load(b, SHORT, b.add(vector, b.mul(at, _long(2))))
            total.add(b.mul(b.sext(found, INT), b.sext(times, INT)))
    return [b.add(_whole(b, one.value()), other.value()) for one, other in zip(totals, rest, strict=True)]


def _of_words(b: Any, rows: Sequence[Sequence[Any]], groups: Any, size: Any) -> list[Any]:
    """Sums of (code - 8) * scale + zero times a vector, of which each group has a step and a sum: codes of four bits in
    so many words a group, as in `omni.words`, times int16 in their order.
    """
    results = [cgutils.alloca_once(b, FLOAT) for _ in rows]
    with b.if_else(b.icmp_signed("==", size, _long(8))) as branches:
        for branch, words in zip(branches, (8, 4), strict=True):
            with branch:
                for result, value in zip(results, _of_groups(b, rows, groups, words), strict=True):
                    b.store(value, result)
    return [b.load(result, typ=FLOAT) for result in results]


def _of_groups(b: Any, rows: Sequence[Sequence[Any]], groups: Any, size: int) -> list[Any]:
    """Scales are made ready for some groups, eight at a time, and then spread out from memory."""
    halves, kind = ir.VectorType(SHORT, 2 * size), ir.VectorType(FLOAT, size)
    totals = [(_Sum(b, kind), _Sum(b, ir.VectorType(FLOAT, 8)), _Sum(b, FLOAT)) for _ in rows]
    ready = [b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(FLOAT, READY)), LONG) for _ in rows]
    with cgutils.for_range_slice(b, _long(0), groups, _long(READY)) as (base, _):
        left = b.sub(groups, base)
        count = b.select(b.icmp_signed("<", left, _long(READY)), left, _long(READY))
        eights = b.and_(count, _long(-8))
        for kinds, start, stop, by in (
            ((ir.VectorType(INT, 8), ir.VectorType(FLOAT, 8)), _long(0), eights, 8),
            ((INT, FLOAT), eights, count, 1),
        ):
            with cgutils.for_range_slice(b, start, stop, _long(by)) as (index, _):
                at = b.add(base, index)
                for (_, *sums), prepared, (_, scales, _, steps, of_groups) in zip(totals, ready, rows, strict=True):
                    if by > 1:
                        _fetch(b, b.add(scales, b.mul(at, _long(4))), SCALES_AHEAD)
                    begins, scale = _ready(b, kinds, scales, at)
                    sums[by == 1].add(b.fmul(begins, _entry(b, kinds[1], of_groups, at), FAST))
                    _store(b, b.fmul(scale, _entry(b, kinds[1], steps, at)), b.add(prepared, b.mul(index, _long(4))))
        with cgutils.for_range(b, count) as loop:
            at = b.add(base, loop.index)
            for (total, _, _), prepared, (words, _, vector, _, _) in zip(totals, ready, rows, strict=True):
                place = b.add(words, b.mul(at, _long(4 * size)))
                _fetch(b, place, WORDS_AHEAD)
                found, parts = _load(b, halves, place), b.add(vector, b.mul(at, _long(16 * size)))
                dots = None
                for number in range(4):
                    codes = b.and_(b.lshr(found, _same(4 * number, halves)), _same(15, halves))
                    products = _pairs(b, codes, _load(b, halves, b.add(parts, _long(4 * size * number))))
                    dots = b.add(dots, products) if dots else products
                scale = _spread(b, _entry(b, FLOAT, prepared, loop.index), size)
                total.add(b.fmul(b.sitofp(dots, kind), scale, FUSED))
    results = []
    for total, eights, rest in totals:
        vectors = [total.value(), eights.value()]
        vectors = [b.fadd(*vectors)] if size == 8 else vectors
        results.append(reduce(b.fadd, [_whole(b, vector) for vector in vectors], rest.value()))
    return results


def _ready(b: Any, kinds: tuple[Any, Any], scales: Any, at: Any) -> tuple[Any, Any]:
    """Where a group's codes begin, at 0, and its scale; of one group, or of eight."""
    ints, floats = kinds
    both = _entry(b, ints, scales, at)
    scale = b.bitcast(b.shl(both, _same(16, ints)), floats)
    zero = b.bitcast(b.and_(both, _same(-(1 << 16), ints)), floats)
    return b.fsub(zero, b.fmul(scale, _same(float(MIDDLE), floats), FAST), FAST), scale


class _Sum:
    """What a loop adds up, in any order."""

    def __init__(self, builder: Any, kind: Any) -> None:
        self.builder, self.kind = builder, kind
        self.slot = cgutils.alloca_once(builder, kind)
        builder.store(ir.Constant(kind, None), self.slot)

    def add(self, value: Any) -> None:
        b, floats = self.builder, getattr(self.kind, "element", self.kind) == FLOAT
        b.store(b.fadd(self.value(), value, FAST) if floats else b.add(self.value(), value), self.slot)

    def value(self) -> Any:
        return self.builder.load(self.slot, typ=self.kind)


def _load(b: Any, kind: Any, place: Any) -> Any:
    """What lies at an address, which is one for a single number."""
    single = getattr(kind, "element", kind)
    return b.load(b.inttoptr(place, PLACE), typ=kind, align=BYTES.get(single) or single.width // 8)


def _store(b: Any, value: Any, place: Any) -> None:
    b.store(value, b.inttoptr(place, PLACE), align=4)


def _entry(b: Any, kind: Any, place: Any, index: Any) -> Any:
    """Of entries of four bytes."""
    return _load(b, kind, b.add(place, b.mul(index, _long(4))))


def _fetch(b: Any, place: Any, ahead: int, near: int = 3) -> None:
    """Into a cache, the nearest unless told, for reading; beyond what a process may read this does nothing."""
    fetch = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [PLACE, INT, INT, INT]), "llvm.prefetch.p0"
    )
    flags = [ir.Constant(INT, flag) for flag in (0, near, 1)]
    b.call(fetch, [b.inttoptr(b.add(place, _long(ahead)), PLACE), *flags])


def _pairs(b: Any, codes: Any, vector: Any) -> Any:
    """Products of int16, each two neighbours' added up: one instruction."""
    size = codes.type.count
    wide = ir.VectorType(INT, size)
    products = b.mul(b.sext(codes, wide), b.sext(vector, wide), flags=("nsw",))
    return b.add(*(_shuffled(b, products, range(first, size, 2)) for first in range(2)))


def _shuffled(b: Any, vector: Any, order: Sequence[int]) -> Any:
    places = ir.Constant(ir.VectorType(INT, len(order)), list(order))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), places)


def _spread(b: Any, value: Any, size: int) -> Any:
    """A vector of the same everywhere."""
    one = b.insert_element(ir.Constant(ir.VectorType(value.type, size), ir.Undefined), value, ir.Constant(INT, 0))
    return _shuffled(b, one, [0] * size)


def _whole(b: Any, vector: Any) -> Any:
    """The sum of a vector's parts."""
    kind, count = vector.type.element, vector.type.count
    if kind == FLOAT:
        add = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(FLOAT, [FLOAT, vector.type]), f"llvm.vector.reduce.fadd.v{count}f32"
        )
        return b.call(add, [ir.Constant(FLOAT, 0.0), vector], fastmath=FAST)
    add = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(INT, [vector.type]), f"llvm.vector.reduce.add.v{count}i32"
    )
    return b.call(add, [vector])


def _long(value: int) -> ir.Constant:
    return ir.Constant(LONG, value)


def _same(value: int | float, kind: Any) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


@no_type_check
def _made_of(result: Any, given: Any, write: Callable[[Any, Any], Any]) -> Any:
    """One number of another, in a few instructions that are written here."""

    @intrinsic
    def made(context, number):
        return result(given), lambda context, builder, signature, given: write(builder, given[0])

    return made


def _rounded(b: Any, number: Any) -> Any:
    """The bits of a bfloat16, the nearest or even; what is no number stays none."""
    bits = b.bitcast(number, INT)
    odd = b.and_(b.lshr(bits, _same(16, INT)), _same(1, INT))
    near = b.add(bits, b.add(odd, _same(0x7FFF, INT)))
    whole = b.select(b.fcmp_unordered("uno", number, number), _same(0x7FC00000, INT), near)
    return b.trunc(b.lshr(whole, _same(16, INT)), SHORT)


def _power(b: Any, exponent: Any) -> Any:
    """2 to an integer between -126 and 127."""
    return b.bitcast(b.shl(b.add(exponent, _same(127, INT)), _same(23, INT)), FLOAT)


bfloat16 = _made_of(types.float32, types.int16, _from_bfloat16)
half = _made_of(types.float32, types.int16, lambda b, bits: _from_half(b, b.bitcast(bits, HALF)))
to_bfloat16 = _made_of(types.int16, types.float32, _rounded)
to_half = _made_of(types.int16, types.float32, lambda b, number: b.bitcast(b.fptrunc(number, HALF), SHORT))
power_of_two = _made_of(types.float32, types.int32, _power)
as_float = _made_of(  # an operand's number
    types.float32, types.int64, lambda b, bits: b.fptrunc(b.bitcast(bits, ir.DoubleType()), FLOAT)
)


@intrinsic
@no_type_check
def fetch(context, place):
    """A line of memory that is read soon, into the second nearest cache."""

    def code(context, builder, signature, given):
        _fetch(builder, given[0], 0, near=2)
        return context.get_dummy_value()

    return types.void(types.int64), code


@no_type_check
def _tiles(size: int, widen: Callable[[Any, Any], Any], stored: Any) -> tuple[Any, Any]:
    """For an attention's keys and values, of so many bytes a number: two queries times four keys; and four values, each
    times its weights, added to what two queries found. A head has eights of numbers, its scores lie KEYS apart.
    """
    kinds = ir.VectorType(stored, EIGHT), ir.VectorType(FLOAT, EIGHT)

    def places(b: Any, at: Any, row: Any) -> list[Any]:
        return [b.add(at, b.mul(row, _long(number))) for number in range(STREAMS)]

    def loaded(b: Any, place: Any, at: Any) -> Any:
        return widen(b, _load(b, kinds[0], b.add(place, b.mul(at, _long(size)))))

    @intrinsic
    def score(context, keys, row, query, dim, scores, scale):
        def code(context, builder, signature, given):
            b, (keys, row, query, dim, scores, scale) = builder, given
            keys, queries = places(b, keys, row), (query, b.add(query, b.mul(dim, _long(4))))
            totals = [[_Sum(b, kinds[1]) for _ in keys] for _ in queries]
            with cgutils.for_range_slice(b, _long(0), dim, _long(EIGHT)) as (at, _):
                found = [loaded(b, key, at) for key in keys]
                for mine, query in zip(totals, queries, strict=True):
                    times = _entry(b, kinds[1], query, at)
                    for total, key in zip(mine, found, strict=True):
                        total.add(b.fmul(key, times, FUSED))
            for which, mine in enumerate(totals):
                for number, total in enumerate(mine):
                    value = b.fmul(_whole(b, total.value()), scale)
                    _store(b, value, b.add(scores, _long(4 * (which * KEYS + number))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5, types.float32), code

    @intrinsic
    def gather(context, values, row, weights, dim, first, second):
        def code(context, builder, signature, given):
            b, (values, row, weights, dim, *out) = builder, given
            values = places(b, values, row)
            first = [[_long(start + number) for number in range(STREAMS)] for start in (0, KEYS)]
            shares = [[_spread(b, _entry(b, FLOAT, weights, at), EIGHT) for at in mine] for mine in first]
            with cgutils.for_range_slice(b, _long(0), dim, _long(EIGHT)) as (at, _):
                found = [loaded(b, value, at) for value in values]
                for mine, place in zip(shares, out, strict=True):
                    total = _entry(b, kinds[1], place, at)
                    for share, value in zip(mine, found, strict=True):
                        total = b.fadd(total, b.fmul(share, value, FUSED), FUSED)
                    _store(b, total, b.add(place, b.mul(at, _long(4))))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), code

    return score, gather


score_floats, gather_floats = _tiles(4, lambda _, floats: floats, FLOAT)
score_halves, gather_halves = _tiles(2, _from_half, HALF)
score_bfloat16s, gather_bfloat16s = _tiles(2, _from_bfloat16, SHORT)
float_times, floats_times = _rows_times(_of_floats(4, lambda _, floats: floats, FLOAT), types.float32)
half_times, halves_times = _rows_times(_of_floats(2, _from_half, HALF), types.float32)
bfloat16_times, bfloat16s_times = _rows_times(_of_floats(2, _from_bfloat16, SHORT), types.float32)
byte_times, bytes_times = _rows_times(_of_bytes, types.int32)
word_times, words_times = _rows_times(_of_words, types.float32)


class Does(IntEnum):
    """What an instruction does; the loop of that name says or takes its operands."""

    END = 0
    NORM = 1
    INTEGERS = 2
    TIMES = 3
    ACTIVATE = 4
    CHOOSE = 5
    MIX = 6
    CONVOLVE = 7
    SCAN = 8
    GROUP_NORM = 9
    ATTEND = 10
    JOIN = 11
    KEEP = 12


END, NORM, INTEGERS, TIMES, ACTIVATE, CHOOSE, MIX, CONVOLVE, SCAN, GROUP_NORM, ATTEND, JOIN, KEEP = map(int, Does)


_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_count = types.ExternalFunction("omp_get_num_threads", types.int32())
_wait = types.ExternalFunction("GOMP_barrier", types.void())


@no_type_check
def go(place):
    """Instructions one after the other, each by all threads, which wait for one another behind it."""
    code, thread, count = longs_at(place), _thread(), _count()
    at = 0
    while code[at] != END:
        _do(place + 8 * at, thread, count)
        _wait()
        at += WORDS


@njit(**LOOP)
@no_type_check
def _do(place, thread, count):
    o = longs_at(place)
    does = o[0]
    if does == TIMES:
        _times(place, thread, count)
    elif does == INTEGERS:
        _integers(o[1], o[2], o[3], o[4], o[5], o[6], o[7], thread, count)
    elif does == ACTIVATE:
        _activate(o[1], o[2], o[3], o[4], o[5], thread, count)
    elif does == SCAN:
        _scan(place, thread, count)
    elif does == CONVOLVE:
        _convolve(o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], thread, count)
    elif does == GROUP_NORM:
        _group_norm(o[1], o[2], o[3], o[4], o[5], o[6], thread, count)
    elif does == ATTEND:
        _attend(place, thread, count)
    elif does == JOIN:
        _join(o[1], o[2], o[3], o[4], thread, count)
    elif does == MIX:
        _mix(o[1], o[2], o[3], o[4], o[5], o[6], thread, count)
    elif thread == 0:
        if does == NORM:
            _norm(o[1], o[2], o[3], o[4], o[5])
        elif does == CHOOSE:
            _choose(place)
        elif does == KEEP:
            _keep(o[1], o[2], o[3], o[4], o[5], o[6], o[7])


@njit(**LOOP)
@no_type_check
def _norm(x, weight, out, size, eps):
    """Root mean square of a row."""
    x, weight, out = floats_at(x), floats_at(weight), floats_at(out)
    total = np.float32(0)
    for i in range(size):
        total += x[i] * x[i]
    factor = np.float32(1) / math.sqrt(total / np.float32(size) + as_float(eps))
    for i in range(size):
        out[i] = x[i] * factor * weight[i]


@njit(**LOOP)
@no_type_check
def _group_norm(x, weight, out, groups, size, eps, thread, count):
    """Root mean square of each group of a row."""
    for group in range(groups * thread // count, groups * (thread + 1) // count):
        at = 4 * group * size
        _norm(x + at, weight + at, out + at, size, eps)


@njit(**LOOP)
@no_type_check
def _integers(x, codes, steps, sums, groups, size, words, thread, count):
    """Groups of vectors in steps: int16, a step for each, and its sum; words: in the order of these, if
    so many hold a group. No sum of products with codes leaves 32 bits.
    """
    most = np.float32(15 if words else 127)
    for group in range(groups * thread // count, groups * (thread + 1) // count):
        mine, out = floats_at(x + 4 * group * size), shorts_at(codes + 2 * group * size)
        total, of_sizes = np.float32(0), np.float32(0)
        for i in range(size):
            of_sizes += abs(mine[i])
            total += mine[i]
        step = max(_largest(x + 4 * group * size, size) / np.float32(LARGEST), LEAST)
        for_sums = of_sizes * (most / np.float32(SUM))
        step = step if for_sums <= step else for_sums  # also where that is no number
        factor = np.float32(1) / step
        if words:
            for part in range(CODES):
                for i in range(words):
                    to = (part % 4) * 2 * words + 2 * i + part // 4
                    out[to] = np.int16(np.int32(np.rint(mine[part * words + i] * factor)))
        else:
            for i in range(size):
                out[i] = np.int16(np.int32(np.rint(mine[i] * factor)))
        floats_at(steps)[group] = step
        floats_at(sums)[group] = total


@njit(**FINITE)
@no_type_check
def _largest(x, size):
    x, largest = floats_at(x), np.float32(0)
    for i in range(size):
        largest = max(largest, abs(x[i]))
    return largest


@njit(**LOOP)
@no_type_check
def _times(place, thread, count):
    """Rows of a matrix times a vector, or of chosen ones of a stack times theirs, several rows side by side.

    Operands: kind, weight, scales, vectors, steps, sums, bias, out, rows, width, words of a group, groups, matrices,
    matrices that share a vector, chosen, whether results are added to what is there.
    """
    everything = longs_at(place)[9] * longs_at(place)[13]
    first, last = everything * thread // count, everything * (thread + 1) // count
    part = (last - first) // STREAMS
    for at in range(first, first + part):
        second, third, fourth = at + part, at + 2 * part, at + 3 * part
        rows = _row(place, at), _row(place, second), _row(place, third), _row(place, fourth)
        one, two, three, four = _products(place, rows)
        _put(place, at, one)
        _put(place, second, two)
        _put(place, third, three)
        _put(place, fourth, four)
    for at in range(first + STREAMS * part, last):
        _put(place, at, _product(place, (_row(place, at),))[0])


@njit(**LOOP)
@no_type_check
def _row(place, at):
    """Places of weights, scales, vector, steps and sums, of a row of all matrices."""
    o = longs_at(place)
    kind, weight, scales, vectors, steps, sums = o[1], o[2], o[3], o[4], o[5], o[6]
    rows, width, groups, sharing, chosen = o[9], o[10], o[12], o[14], o[15]
    vector, row = 0, at
    if chosen:
        number = at // rows
        vector, row = number // sharing, longs_at(chosen)[number] * rows + at - number * rows
    if kind == WORD:
        of_groups = 4 * vector * groups
        return (
            weight + row * (width // 2), scales + 4 * row * groups, vectors + 2 * vector * width, steps + of_groups,
            sums + of_groups,
        )  # fmt: skip
    if kind == BYTE_CODE:
        return weight + row * width, scales + 2 * row, vectors + 2 * vector * width, steps + 4 * vector, sums
    return weight + row * width * (4 if kind == FLOAT32 else 2), scales, vectors + 4 * vector * width, steps, sums


@njit(**LOOP)
@no_type_check
def _product(place, row):
    o = longs_at(place)
    kind, width, words, groups = o[1], o[10], o[11], o[12]
    if kind == WORD:
        return word_times(row, groups, words)
    if kind == BYTE_CODE:
        return (_scaled(byte_times(row, width, 0)[0], row[0]),)
    if kind == BFLOAT16:
        return bfloat16_times(row, width, 0)
    if kind == FLOAT16:
        return half_times(row, width, 0)
    return float_times(row, width, 0)


@njit(**LOOP)
@no_type_check
def _products(place, rows):
    o = longs_at(place)
    kind, width, words, groups = o[1], o[10], o[11], o[12]
    if kind == WORD:
        return words_times(rows, groups, words)
    if kind == BYTE_CODE:
        one, two, three, four = bytes_times(rows, width, 0)
        first, second, third, fourth = rows
        return _scaled(one, first), _scaled(two, second), _scaled(three, third), _scaled(four, fourth)
    if kind == BFLOAT16:
        return bfloat16s_times(rows, width, 0)
    if kind == FLOAT16:
        return halves_times(rows, width, 0)
    return floats_times(rows, width, 0)


@njit(**LOOP)
@no_type_check
def _scaled(value, row):
    """A sum of integers' products."""
    return np.float32(value) * (bfloat16(shorts_at(row[1])[0]) * floats_at(row[3])[0])


@njit(**LOOP)
@no_type_check
def _put(place, at, value):
    """A result, with its bias."""
    o = longs_at(place)
    bias, out, add = o[7], floats_at(o[8]), o[16]
    if bias:
        value += floats_at(bias)[at % o[9]]
    out[at] = out[at] + value if add else value


@njit(**LOOP)
@no_type_check
def _silu(x):
    return x / (np.float32(1) + math.exp(-x))


@njit(**LOOP)
@no_type_check
def _activate(hidden, gate, size, gated, clamp, thread, count):
    """Squared ReLU in place, or what a gate makes of it: SiLU, or with a clamp gpt-oss's."""
    hidden, gate, most = floats_at(hidden), floats_at(gate), as_float(clamp)
    one = np.float32(1)
    for i in range(size * thread // count, size * (thread + 1) // count):
        if not gated:
            value = max(hidden[i], np.float32(0))
            hidden[i] = value * value
        elif clamp == 0:
            hidden[i] = _silu(gate[i]) * hidden[i]
        else:
            opened, value = min(gate[i], most), max(min(hidden[i], most), -most)
            hidden[i] = opened / (one + math.exp(np.float32(-1.702) * opened)) * (value + one)


@njit(**LOOP)
@no_type_check
def _choose(place):
    """The best experts and their weights; see `ops.choose_experts`.

    Operands: logits, selection bias, scratch for as many scores, chosen, weights, experts, top_k, groups, top_groups,
    softmax, normalize, scale.
    """
    o = longs_at(place)
    logits, bias, ranks = floats_at(o[1]), floats_at(o[2]), floats_at(o[3])
    chosen, weights = longs_at(o[4]), floats_at(o[5])
    experts, top_k, groups, top_groups = o[6], o[7], o[8], o[9]
    least = np.float32(-np.inf)
    if o[10]:
        largest, total = logits[0], np.float32(0)
        for i in range(experts):
            largest = max(largest, logits[i])
        for i in range(experts):
            logits[i] = math.exp(logits[i] - largest)
            total += logits[i]
        for i in range(experts):
            logits[i] /= total
    else:
        for i in range(experts):
            logits[i] = np.float32(1) / (np.float32(1) + math.exp(-logits[i]))
    for i in range(experts):
        ranks[i] = logits[i] + bias[i] if o[2] else logits[i]
    size = experts // groups
    for _ in range(groups - top_groups):
        worst, lowest = 0, np.float32(np.inf)
        for group in range(groups):
            first, second, open_ = least, least, False
            for i in range(group * size, (group + 1) * size):
                open_ = open_ or ranks[i] != least
                if ranks[i] > first:
                    first, second = ranks[i], first
                elif ranks[i] > second:
                    second = ranks[i]
            score = first + second if size > 1 else first
            if open_ and score <= lowest:
                worst, lowest = group, score
        for i in range(worst * size, (worst + 1) * size):
            ranks[i] = least
    total = np.float32(1e-20)
    for place_ in range(top_k):
        best = 0
        for i in range(experts):
            if ranks[i] > ranks[best]:
                best = i
        chosen[place_], weights[place_] = best, logits[best]
        total += logits[best]
        ranks[best] = least
    factor = as_float(o[12]) / (total if o[11] else np.float32(1))
    for place_ in range(top_k):
        weights[place_] *= factor


@njit(**LOOP)
@no_type_check
def _mix(parts, weights, out, experts, size, add, thread, count):
    """The weighted sum of experts' results, added or not to what is there."""
    parts, weights, out = floats_at(parts), floats_at(weights), floats_at(out)
    for i in range(size * thread // count, size * (thread + 1) // count):
        total = out[i] if add else np.float32(0)
        for expert in range(experts):
            total += weights[expert] * parts[expert * size + i]
        out[i] = total


@njit(**LOOP)
@no_type_check
def _convolve(history, x, weight, bias, out, after, taps, channels, thread, count):
    """A causal convolution's next step and SiLU, and the inputs that the one after it needs."""
    history, x, weight, out, after = (
        floats_at(history), floats_at(x), floats_at(weight), floats_at(out), floats_at(after)
    )  # fmt: skip
    begin, past = floats_at(bias), taps - 1
    for i in range(channels * thread // count, channels * (thread + 1) // count):
        total = x[i] * weight[past * channels + i]
        for tap in range(past):
            total += history[tap * channels + i] * weight[tap * channels + i]
        out[i] = _silu(total + begin[i] if bias else total)
        for tap in range(1, past):
            after[(tap - 1) * channels + i] = history[tap * channels + i]
        after[(past - 1) * channels + i] = x[i]


@njit(**LOOP)
@no_type_check
def _scan(place, thread, count):
    """A state-space memory's next step, and what it says times SiLU of a gate.

    Operands: memory, mixed (x, B and C in a row), steps in time before their bias, that bias, A, D for each channel,
    gate, memory after it, out, heads, channels of one, size of a state, groups of heads.
    """
    o = longs_at(place)
    memory, mixed, times, bias, rates = o[1], floats_at(o[2]), floats_at(o[3]), floats_at(o[4]), floats_at(o[5])
    skip, gate, after, out = floats_at(o[6]), floats_at(o[7]), o[8], floats_at(o[9])
    heads, channels, size, groups = o[10], o[11], o[12], o[13]
    for head in range(heads * thread // count, heads * (thread + 1) // count):
        time = times[head] + bias[head]
        time = time if time > np.float32(20) else math.log1p(math.exp(time))
        fall = math.exp(time * rates[head])
        keys = o[2] + 4 * (heads * channels + head // (heads // groups) * size)
        for channel in range(head * channels, (head + 1) * channels):
            said = _remember(
                memory + 4 * channel * size, keys, keys + 4 * groups * size, after + 4 * channel * size, size, fall,
                mixed[channel] * time,
            )  # fmt: skip
            out[channel] = (said + mixed[channel] * skip[channel]) * _silu(gate[channel])


@njit(**LOOP)
@no_type_check
def _remember(memory, keys, queries, after, size, fall, added):
    memory, keys, queries, after = floats_at(memory), floats_at(keys), floats_at(queries), floats_at(after)
    total = np.float32(0)
    for i in range(size):
        value = memory[i] * fall + added * keys[i]
        after[i] = value
        total += value * queries[i]
    return total


@njit(**LOOP)
@no_type_check
def _keep(kind, x, cache, heads, dim, at, stride):
    """A token's keys or values into their cache (heads, capacity, dim): so many bytes from one head to the next."""
    for head in range(heads):
        mine, size = floats_at(x + 4 * head * dim), 4 if kind == FLOAT32 else 2
        to = cache + head * stride + at * dim * size
        for i in range(dim):
            if kind == FLOAT32:
                floats_at(to)[i] = mine[i]
            elif kind == BFLOAT16:
                shorts_at(to)[i] = to_bfloat16(mine[i])
            else:
                shorts_at(to)[i] = to_half(mine[i])


@njit(**LOOP)
@no_type_check
def _attend(place, thread, count):
    """One query of each head over this thread's share of the keys, some at a time. What it finds of a head is the
    largest score, the sum of all scores' exponentials below that, and the sum of values, each times its own.

    Operands: kind of keys and values, queries, keys, values, what is found (threads, heads, 2 + dim), scratch (threads,
    2, KEYS), heads, heads that share keys, dim, keys, bytes from one head of keys or values to the next, scale.
    """
    o = longs_at(place)
    kind, heads, each, dim, total, scale = o[1], o[7], o[8], o[9], o[10], as_float(o[12])
    first, last = total * thread // count, total * (thread + 1) // count
    scores, row = o[6] + 8 * thread * KEYS, dim * (4 if kind == FLOAT32 else 2)
    of_mine = o[5] + 4 * thread * heads * (dim + 2)
    for i in range(heads * (dim + 2)):
        floats_at(of_mine)[i] = np.float32(0)
    for head in range(heads):
        floats_at(of_mine)[head * (dim + 2)] = np.float32(-np.inf)
    for start in range(first, last, KEYS):
        size = min(KEYS, last - start)
        for head in range(0, heads, each):
            behind = head // each * o[11] + start * row
            pairs = each // 2 if dim % EIGHT == 0 else 0
            for pair in range(head, head + 2 * pairs, 2):
                found = of_mine + 4 * pair * (dim + 2)
                _score_two(kind, o[2] + 4 * pair * dim, o[3] + behind, scores, size, dim, row, scale)
                _weigh(scores, found, size, dim)
                _weigh(scores + 4 * KEYS, found + 4 * (dim + 2), size, dim)
                if start + KEYS < last:
                    part, lines = (pair - head) // 2, KEYS * row // LINE
                    for line in range(lines * part // pairs, lines * (part + 1) // pairs):
                        fetch(o[3] + behind + KEYS * row + LINE * line)
                        fetch(o[4] + behind + KEYS * row + LINE * line)
                _gather_two(kind, found + 8, o[4] + behind, scores, size, dim, row)
            for single in range(head + 2 * pairs, head + each):
                found = of_mine + 4 * single * (dim + 2)
                _score(kind, o[2] + 4 * single * dim, o[3] + behind, scores, 0, size, dim, row, scale)
                _weigh(scores, found, size, dim)
                _gather(kind, found + 8, o[4] + behind, scores, 0, size, dim, row)


@njit(**LOOP)
@no_type_check
def _score_two(kind, query, key, scores, size, dim, row, scale):
    """Products of two heads' queries with keys."""
    fours = size - size % 4
    for i in range(0, fours, 4):
        if kind == FLOAT32:
            score_floats(key + i * row, row, query, dim, scores + 4 * i, scale)
        elif kind == BFLOAT16:
            score_bfloat16s(key + i * row, row, query, dim, scores + 4 * i, scale)
        else:
            score_halves(key + i * row, row, query, dim, scores + 4 * i, scale)
    _score(kind, query, key, scores, fours, size, dim, row, scale)
    _score(kind, query + 4 * dim, key, scores + 4 * KEYS, fours, size, dim, row, scale)


@njit(**LOOP)
@no_type_check
def _gather_two(kind, out, value, weights, size, dim, row):
    """Values, each times its weights, added to what two heads found."""
    fours, second = size - size % 4, out + 4 * (dim + 2)
    for i in range(0, fours, 4):
        if kind == FLOAT32:
            gather_floats(value + i * row, row, weights + 4 * i, dim, out, second)
        elif kind == BFLOAT16:
            gather_bfloat16s(value + i * row, row, weights + 4 * i, dim, out, second)
        else:
            gather_halves(value + i * row, row, weights + 4 * i, dim, out, second)
    _gather(kind, out, value, weights, fours, size, dim, row)
    _gather(kind, second, value, weights + 4 * KEYS, fours, size, dim, row)


@njit(**LOOP)
@no_type_check
def _weigh(scores, found, size, dim):
    """Scores to weights below the largest so far, by which what was found before is made smaller."""
    largest = _most(scores, size, floats_at(found)[0])
    scores, found = floats_at(scores), floats_at(found)
    fall, total = math.exp(found[0] - largest), np.float32(0)
    for i in range(size):
        scores[i] = _exponential(scores[i] - largest)
    for i in range(size):
        total += scores[i]
    for i in range(1, dim + 2):
        found[i] *= fall
    found[0] = largest
    found[1] += total


@njit(**LOOP)
@no_type_check
def _exponential(x):
    """Of a number below 0, to 2e-7 of it: its power of two, times a polynomial of the rest."""
    x *= np.float32(1.4426950408889634)
    x = np.float32(-126) if x < np.float32(-126) else x
    whole = np.floor(x + np.float32(0.5))
    rest = x - whole
    value = np.float32(1.5403530e-4)
    value = value * rest + np.float32(1.3333558e-3)
    value = value * rest + np.float32(9.6181291e-3)
    value = value * rest + np.float32(5.5504109e-2)
    value = value * rest + np.float32(2.4022651e-1)
    value = value * rest + np.float32(6.9314718e-1)
    return (value * rest + np.float32(1)) * power_of_two(np.int32(whole))


@njit(**FINITE)
@no_type_check
def _most(x, size, most):
    x = floats_at(x)
    for i in range(size):
        most = max(most, x[i])
    return most


@njit(**LOOP)
@no_type_check
def _score(kind, query, key, scores, start, stop, dim, row, scale):
    """Products of a query with some keys, one by one."""
    for i in range(start, stop):
        rows = ((key + i * row, 0, query, 0, 0),)
        if kind == FLOAT32:
            (one,) = float_times(rows, dim, 0)
        elif kind == BFLOAT16:
            (one,) = bfloat16_times(rows, dim, 0)
        else:
            (one,) = half_times(rows, dim, 0)
        floats_at(scores)[i] = one * scale


@njit(**LOOP)
@no_type_check
def _gather(kind, out, value, weights, start, stop, dim, row):
    """Some values, each times its weight, added to what is there, one by one."""
    out = floats_at(out)
    for i in range(start, stop):
        at, weight = value + i * row, floats_at(weights)[i]
        for j in range(dim):
            if kind == FLOAT32:
                out[j] += weight * floats_at(at)[j]
            elif kind == BFLOAT16:
                out[j] += weight * bfloat16(shorts_at(at)[j])
            else:
                out[j] += weight * half(shorts_at(at)[j])


@njit(**LOOP)
@no_type_check
def _join(found, out, heads, dim, thread, count):
    """The mean of values, from what all threads found of each head."""
    for head in range(heads * thread // count, heads * (thread + 1) // count):
        largest, total, mine = np.float32(-np.inf), np.float32(0), floats_at(out + 4 * head * dim)
        for other in range(count):
            largest = max(largest, floats_at(found + 4 * (other * heads + head) * (dim + 2))[0])
        for i in range(dim):
            mine[i] = np.float32(0)
        for other in range(count):
            theirs = floats_at(found + 4 * (other * heads + head) * (dim + 2))
            fall = math.exp(theirs[0] - largest)
            total += theirs[1] * fall
            for i in range(dim):
                mine[i] += theirs[2 + i] * fall
        for i in range(dim):
            mine[i] /= total
