"""Whole Parquet files of tokens in which something is other than it should be: values, types, columns, marks.

Left out: damaged bytes (mutators.py).
"""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Change = Callable[[pa.Table, random.Random], pa.Table]


def broken_table(table: pa.Table, rng: random.Random) -> pa.Table:
    """`table` with one or two changes."""
    for _ in range(rng.choice((1, 1, 2))):
        if not len(table) or len(set(table.column_names)) < len(table.column_names):
            break
        try:
            changed = rng.choice(CHANGES)(table, rng)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            break  # after the first change the second may make no sense to pyarrow
        table = changed.replace_schema_metadata(changed.schema.metadata or table.schema.metadata)
    return table


def rewrite(path: Path, table: pa.Table, rng: random.Random) -> None:
    pq.write_table(
        table,
        path,
        compression=rng.choice(("snappy", "none", "gzip", "zstd", "brotli", "lz4")),
        use_dictionary=rng.random() < 0.5,
        write_statistics=rng.random() < 0.5,
        data_page_version=rng.choice(("1.0", "2.0")),
        row_group_size=rng.choice((1, 3, 1000)),
        store_schema=rng.random() < 0.9,
    )


def _values(table: pa.Table, rng: random.Random) -> pa.Table:
    """Other values in a column: some out of range, some null."""
    name = rng.choice([n for n in ("codes", "label", "view") if n in table.column_names])
    column = table[name].to_pylist()
    row = rng.randrange(len(column))
    if name == "codes" and column[row]:
        column[row][rng.randrange(len(column[row]))] = rng.choice((0, 49, 50, 65535, None))
    else:
        column[row] = rng.choice((-2, -1, 0, 1, 2, 2**15, None))
    kind = table.schema.field(name).type
    try:
        return replaced(table, name, pa.array(column, kind))
    except (pa.ArrowException, OverflowError):
        return replaced(table, name, pa.array(column))


def _types(table: pa.Table, rng: random.Random) -> pa.Table:
    name = rng.choice(table.column_names)
    values = pa.list_(
        rng.choice((pa.uint16(), pa.uint32(), pa.int16(), pa.int64(), pa.float32(), pa.string()))
    )
    kinds = (
        pa.int8(),
        pa.int64(),
        pa.uint64(),
        pa.float64(),
        pa.string(),
        pa.bool_(),
        pa.binary(),
        pa.date32(),
    )
    kind = values if name == "codes" else rng.choice(kinds)
    try:
        return replaced(table, name, table[name].cast(kind))
    except pa.ArrowException:
        return replaced(table, name, pa.nulls(len(table), kind))


def _lists(table: pa.Table, rng: random.Random) -> pa.Table:
    """Lists of other lengths."""
    if "codes" not in table.column_names:
        return table
    column = [list(row or []) for row in table["codes"].to_pylist()]
    row = rng.randrange(len(column))
    column[row] = rng.choice(
        (column[row][1:], [], column[row] * 2, column[row] + column[row][:1], [7] * 100_000)
    )
    inner = table.schema.field("codes").type.value_type
    return replaced(table, "codes", pa.array(column, rng.choice((pa.list_, pa.large_list))(inner)))


def _columns(table: pa.Table, rng: random.Random) -> pa.Table:
    name = rng.choice(table.column_names)
    column = table.schema.field(name)
    return rng.choice(
        (
            lambda: table.drop_columns([name]),
            lambda: table.rename_columns(
                [rng.choice((n, n + "x", "codes", "label")) for n in table.column_names]
            ),
            lambda: table.append_column(column, table[name]),
            lambda: table.append_column("more", table[name]),
            lambda: table.select(table.column_names[::-1]),
        )
    )()


def _rows(table: pa.Table, rng: random.Random) -> pa.Table:
    return rng.choice((table[1:], table[:0], table[:-1], pa.concat_tables([table] * 50), table[2:]))


def _marks(table: pa.Table, rng: random.Random) -> pa.Table:
    marks = dict(table.schema.metadata or {})
    if marks:
        name = rng.choice(list(marks))
        marks[name] = rng.choice((b"", b"\xff\xfe", b"../../x", b"x" * 100_000, marks[name] + b"x"))
    return table.replace_schema_metadata(marks or {b"a": b"b"})


CHANGES: tuple[Change, ...] = (_values, _values, _types, _lists, _columns, _rows, _marks)


def replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
