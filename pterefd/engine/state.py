"""The state of a host as kernels are passed it: one pointer, and tables behind it.

Passing a dozen numpy arrays to every kernel costs a microsecond a call and minutes of compiling, so
numba is taught a type of its own: `State` is the address of a header that holds the address of each
table; `s.mm[m, M_PID]` is a load. All numbers are int64 inside kernels, whatever a table stores.
Python sees the same tables as numpy arrays, under the same names.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

from pterefd.engine import layout as lo

Array = npt.NDArray[Any]

# name -> (dtype, columns); columns 0: one number a record. The order is that of the header.
TABLES: dict[str, tuple[type, int]] = {
    "g": (np.int64, 0),
    "mm": (np.int64, lo.MM_COLUMNS),
    "vma": (np.int64, lo.VMA_COLUMNS),
    "pmd": (np.int32, lo.PMD_COLUMNS),
    "pte": (np.int32, lo.PTE_COLUMNS),
    "ent": (np.uint8, lo.ENTRIES_PER_TABLE),
    "entref": (np.int32, 0),
    "entfol": (np.int32, 0),
    "fol": (np.int64, lo.FOLIO_COLUMNS),
    "frow": (np.int32, lo.FROW_COLUMNS),
    "shp": (np.int32, lo.SH_COLUMNS),
    "away": (np.int32, lo.AWAY_COLUMNS),
    "grp": (np.int64, lo.GRP_COLUMNS),
    "obj": (np.int64, lo.OBJ_COLUMNS),
    "key": (np.int64, 0),
    "val": (np.int64, 0),
    "pids": (np.int32, 0),
    "dirty": (np.int32, 0),
    "near": (np.int64, lo.NEAR_COLUMNS),
    "tmp": (np.int64, 0),
}


@dataclass(slots=True)
class State:
    """A host's tables. Index 0 of mm, vma, pmd, pte, ent, fol, frow, shp, away and obj is no record: 0 is none.

    g       int64[G_COLUMNS]: numbers of the whole host
    mm      int64[mms, MM_COLUMNS]          vma  int64[mappings, VMA_COLUMNS]
    pmd     int32[PMD pages, PMD_COLUMNS]   pte  int32[PTE pages, PTE_COLUMNS]
    ent     uint8[n, 512]: entries of PTE pages that are not uniform
    entref  int32[n]: PTE pages that share the row of ent; next free one where unused
    entfol  int32[n]: the row of frow beside the row of ent; 0 where no entry maps a large folio or a shared page
    fol     int64[folios, FOLIO_COLUMNS]    frow  int32[n, FROW_COLUMNS]
    shp     int32[shared pages, SH_COLUMNS] away  int32[n, AWAY_COLUMNS]
    grp     int64[groups, GRP_COLUMNS]: what the mms of a group hold; 0 is the host
    obj     int64[files, OBJ_COLUMNS]
    key     int64[blocks]: sorted keys ...  val  int64[blocks]: ... and their values
    pids    int32[pid_max]: pid -> mm, 0 none
    dirty   int32[mms]: mms that changed since the last publication
    near    int64[NEAR, NEAR_COLUMNS]: a cache of PMD pages; what it says is so
    tmp     int64[64]: scratch of one kernel
    """

    g: Array
    mm: Array
    vma: Array
    pmd: Array
    pte: Array
    ent: Array
    entref: Array
    entfol: Array
    fol: Array
    frow: Array
    shp: Array
    away: Array
    grp: Array
    obj: Array
    key: Array
    val: Array
    pids: Array
    dirty: Array
    near: Array
    tmp: Array
    _header: Array = field(init=False)
    header: int = field(init=False)

    def __post_init__(self) -> None:
        for name, (dtype, _) in TABLES.items():
            table = getattr(self, name)
            if table.dtype != dtype or not table.flags.c_contiguous:
                raise TypeError(f"table {name}: {table.dtype}, not a contiguous {np.dtype(dtype)}")
        self._header = np.array([getattr(self, name).ctypes.data for name in TABLES], dtype=np.int64)
        self.header = int(self._header.ctypes.data)


# ---- the types, for numba ---------------------------------------------------------------------


class StateType(types.Type):
    """`State` inside kernels: the header's address."""

    def __init__(self) -> None:
        super().__init__(name="pterefd.State")


class TableType(types.Type):
    """One table inside kernels: its address; element type and columns belong to the type."""

    def __init__(self, element: types.Integer, columns: int) -> None:
        super().__init__(name=f"pterefd.Table({element}, {columns})")
        self.element = element
        self.columns = columns


_STATE = StateType()
_TABLE_TYPES = {
    name: TableType(getattr(types, np.dtype(dtype).name), columns) for name, (dtype, columns) in TABLES.items()
}
_TABLE_INDEX = {name: index for index, name in enumerate(TABLES)}


@register_model(StateType)
@register_model(TableType)
class _AddressModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.IntType(64))


@typeof_impl.register(State)
def _typeof_state(_value: State, _context: Any) -> StateType:
    return _STATE


@unbox(StateType)
def _unbox_state(_typ: Any, obj: Any, c: Any) -> NativeValue:
    number = c.pyapi.object_getattr_string(obj, "header")
    address = c.pyapi.long_as_longlong(number)
    c.pyapi.decref(number)
    return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _StateAttribute(AttributeTemplate):
    key = StateType

    def generic_resolve(self, _typ: Any, attr: str) -> TableType | None:
        return _TABLE_TYPES.get(attr)


@lower_getattr_generic(StateType)
def _load_table(_context: Any, builder: Any, _typ: Any, value: Any, attr: str) -> Any:
    place = builder.add(value, ir.Constant(ir.IntType(64), 8 * _TABLE_INDEX[attr]))
    return builder.load(builder.inttoptr(place, ir.IntType(64).as_pointer()))


@infer_global(operator.getitem)
class _TableGet(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        table, index = args
        return signature(types.int64, table, index) if isinstance(table, TableType) else None


@infer_global(operator.setitem)
class _TableSet(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        table, index, _value = args
        return signature(types.none, table, index, types.int64) if isinstance(table, TableType) else None


def _element(context: Any, builder: Any, table: TableType, address: Any, index_type: Any, index: Any) -> Any:
    """Pointer to table[row] or table[row, column]."""
    word = ir.IntType(64)
    if isinstance(index_type, types.BaseTuple):
        row, column = (
            context.cast(builder, builder.extract_value(index, k), index_type.types[k], types.int64) for k in (0, 1)
        )
        place = builder.add(builder.mul(row, ir.Constant(word, table.columns)), column)
    else:
        place = context.cast(builder, index, index_type, types.int64)
    size = table.element.bitwidth // 8
    place = builder.add(address, builder.mul(place, ir.Constant(word, size)))
    return builder.inttoptr(place, ir.IntType(table.element.bitwidth).as_pointer())


def _get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    table, index_type = sig.args
    value = builder.load(_element(context, builder, table, args[0], index_type, args[1]))
    return context.cast(builder, value, table.element, types.int64)


def _set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    table, index_type, value_type = sig.args
    value = context.cast(builder, args[2], value_type, table.element)
    builder.store(value, _element(context, builder, table, args[0], index_type, args[1]))
    return context.get_dummy_value()


for _index in (types.Integer, types.BaseTuple):
    lower_builtin(operator.getitem, TableType, _index)(_get)
    lower_builtin(operator.setitem, TableType, _index, types.Any)(_set)


@intrinsic
def prefetch(_typing: Any, table: Any, row: Any, column: Any) -> Any:
    """Begin to bring table[row, column] into the cache, to be read or written soon; nothing waits for it."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        index = types.UniTuple(types.int64, 2)
        place = [context.cast(builder, args[k], sig.args[k], types.int64) for k in (1, 2)]
        pair = context.make_tuple(builder, index, place)
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(_element(context, builder, table, args[0], index, pair), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for_write, every_level, data = 1, 3, 1
        builder.call(function, [address, *(ir.Constant(word, value) for value in (for_write, every_level, data))])
        return context.get_dummy_value()

    return types.none(table, row, column), generate
