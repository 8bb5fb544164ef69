"""Numeric tables: .csv, .csv.gz (comma, semicolon or tab; one header row at most) and parquet.

A continuous density needs columns without atoms. A column that takes few values, or one value often, has none: its
likelihood grows without bound, so that it is refused until it is left out or explicitly kept. A table of whole numbers
alone is a table of levels and has no such difficulty.
"""

import csv
import gzip
import math
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cli.errors import InputError
from experiments.data.arrays import Options, Raw, checked, existing, reading, required
from experiments.data.statistics import is_whole

FEW_VALUES, OFTEN = 50, 0.1
MISSING = ("", "nan", "na", "n/a", "null")


def read_csv(name: str, options: Options) -> Raw:
    """A numeric table, .csv or .csv.gz."""
    path = existing(name)
    values, header = read_cells(path, _masked(options), lambda names: _left_out(path, names, options))
    return _raw(path, values, header, options)


def read_parquet(name: str, options: Options) -> Raw:
    """The columns of a parquet file."""
    path, masked = existing(name), _masked(options)
    parquet = required("pyarrow.parquet", "reading parquet files")
    with reading(path):
        table = parquet.read_table(path)
        names, columns = list(table.column_names), []
        out = _left_out(path, names, options)
        for j, column in enumerate(table.columns):
            values = column.to_numpy() if j not in out else np.full(len(column), np.nan)
            if values.dtype.kind not in "buif":
                raise InputError(
                    f"{path}: column {j + 1} ({names[j]}) holds {column.type} values; encode it, or leave it out with "
                    "--drop-columns"
                )
            bad = ~np.isfinite(values.astype(np.float64))
            if bad.any() and not masked and j not in out:
                row = int(np.argmax(bad))
                raise InputError(
                    f"{path} row {row} (from 0): column {j + 1} ({names[j]}) holds {values[row]}; "
                    "remove or fill it, or use --missing mask"
                )
            columns.append(values.astype(np.float64))
    return _raw(path, np.stack(columns, 1) if columns else np.empty((0, 0)), names, options)


def _masked(options: Options) -> bool:
    if options.missing not in ("error", "mask"):
        raise InputError(f"--missing must be error or mask, got {options.missing!r}")
    return options.missing == "mask"


def read_cells(
    path: Path, masked: bool = False, left_out: Callable[[list[str]], set[int]] = lambda names: set()
) -> tuple[np.ndarray, list[str]]:
    """The numbers (rows, columns) of a text table and its header or []; NaN where `masked` allows a missing one, and in
    the columns that `left_out` says of their names, which may hold anything."""
    columns, header, flat, out = 0, [], array("d"), set()
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        line = file.readline()
        delimiter = max(",;\t", key=line.count)
        rows = csv.reader(_again(line, file), delimiter=delimiter)
        for row in rows:
            if not row:
                continue
            if not columns:
                columns, header = len(row), _header(row, masked)
                out = left_out(header or _numbered(columns))
                if header:
                    continue
            if len(row) != columns:
                raise InputError(f"{path} line {rows.line_num}: {len(row)} columns, expected {columns}")
            numbers = [math.nan if j in out else _number(cell, masked) for j, cell in enumerate(row)]
            if None not in numbers:
                flat.extend(n for n in numbers if n is not None)
            else:
                j = numbers.index(None)
                named = f"column {j + 1}" + (f" ({header[j]})" if header else "")
                what = f"the text {row[j].strip()[:40]!r}" if row[j].strip() else "an empty cell"
                mask = ", use --missing mask" if row[j].strip().lower() in MISSING else ""
                raise InputError(
                    f"{path} line {rows.line_num}: {named} holds {what}; numbers only: remove, fill or encode "
                    f"it{mask}, or leave the column out with --drop-columns"
                )
    if not flat:
        raise InputError(f"{path} holds no rows of numbers")
    return np.frombuffer(flat, np.float64).reshape(-1, columns), header


def _header(row: list[str], masked: bool) -> list[str]:
    """The names in the first row if it holds no number, else []."""
    return [cell.strip() for cell in row] if all(_number(cell, masked) is None for cell in row) else []


def _numbered(count: int) -> list[str]:
    return [str(j + 1) for j in range(count)]


def _again(line: str, file: Any) -> Iterator[str]:
    yield line
    yield from file


def _number(cell: str, masked: bool) -> float | None:
    """The finite number that a cell holds, if it does; NaN for a missing one."""
    if masked and cell.strip().lower() in MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _raw(path: Path, values: np.ndarray, header: list[str], options: Options) -> Raw:
    """The chosen columns, checked, with the mask of what was observed and the test part where it is given."""
    names = header or _numbered(values.shape[1])
    keep, notes = _chosen(path, values, names, options)
    values, names, masked = values[:, keep], [names[j] for j in keep], options.missing == "mask"
    seen = ~np.isnan(values) if masked else np.ones(values.shape, bool)
    if values.size and not seen.any(axis=0).all():
        raise InputError(f"{path}: column {names[int(np.argmin(seen.any(axis=0)))]} is missing in every row; drop it")
    if masked and not seen.all():
        notes.append(f"{100 * (1 - seen.mean()):.3g} % of the cells missing")
    raw = Raw(checked(np.where(seen, values, 0.0), str(path)), train_mask=None if seen.all() else seen)
    test, note = _test_rows(path, len(values), options)
    if test is not None:
        mask = raw.train_mask
        raw = raw._replace(train=raw.train[~test], held_out=raw.train[test])
        if mask is not None:
            raw = raw._replace(train_mask=mask[~test], held_out_mask=mask[test])
    return raw._replace(note=", ".join([*notes, *note]))


def _chosen(path: Path, values: np.ndarray, names: list[str], options: Options) -> tuple[list[int], list[str]]:
    """The columns to keep, and notes on what was left out or kept in spite of its few values."""
    everything, wanted, dropped = range(values.shape[1]), options.columns, options.drop_columns
    explicit = wanted is not None
    keep = list(everything) if wanted in (None, "all") else _indices(path, wanted, names, "columns")
    few = [j for j in keep if _few(values[:, j])] if not is_whole(np.nan_to_num(values[:, keep])) else []
    out = few if dropped == "few" else [] if dropped is None else _indices(path, dropped, names, "drop-columns")
    keep, few = [j for j in keep if j not in out], [j for j in few if j not in out]
    if not keep:
        raise InputError(f"{path}: no column is left of {', '.join(names)}; choose other --columns or --drop-columns")

    def listed(columns: list[int]) -> str:
        return ", ".join(names[j] if names[j] == str(j + 1) else f"{j + 1} ({names[j]})" for j in columns)

    if few and not explicit:
        raise InputError(
            f"{path}: column(s) {listed(few)} take few values, or one value often, so that their density is unbounded; "
            f"leave them out with --drop-columns few, choose with --columns, or keep them with --columns all"
        )
    notes = [f"without column(s) {listed(out)}"] if out else []
    return keep, notes + ([f"column(s) {listed(few)} take few values: their density is unbounded"] if few else [])


def _left_out(path: Path, names: list[str], options: Options) -> set[int]:
    """The columns that the flags leave out by name, which need not be numbers."""
    wanted, dropped, out = options.columns, options.drop_columns, set()
    if wanted not in (None, "all"):
        out |= set(range(len(names))) - set(_indices(path, wanted, names, "columns"))
    return out if dropped in (None, "few") else out | set(_indices(path, dropped, names, "drop-columns"))


def _few(column: np.ndarray) -> bool:
    """Whether a column is discrete, or has an atom."""
    counts = np.unique(column[~np.isnan(column)], return_counts=True)[1]
    n = counts.sum()
    return bool(n and ((len(counts) <= FEW_VALUES and 2 * len(counts) < n) or counts.max() > max(OFTEN * n, 5)))


def _indices(path: Path, text: str, names: list[str], flag: str) -> list[int]:
    """Columns by name or by number from 1."""
    found = []
    for word in (w.strip() for w in text.split(",")):
        if word in names:
            found.append(names.index(word))
        elif word.isdigit() and 1 <= int(word) <= len(names):
            found.append(int(word) - 1)
        else:
            raise InputError(f"--{flag}: {path} has no column {word!r}; it has {len(names)}: {', '.join(names)[:200]}")
    return found


def _test_rows(path: Path, n: int, options: Options) -> tuple[np.ndarray | None, list[str]]:
    """True for the rows of the test part, from the mask file that is given or lies beside the table."""
    stem = path.name.partition(".data.")[0] if ".data." in path.name else path.name.partition(".")[0]
    beside = (path.with_name(stem + ".test_mask.csv" + packed) for packed in ("", ".gz"))
    file = existing(options.test_mask) if options.test_mask else next((p for p in beside if p.is_file()), None)
    if file is None:
        if options.split:
            raise InputError(f"--split {options.split} chooses a column of a test mask; give one with --test-mask")
        return None, []
    mask, _ = read_cells(file)
    if len(mask) != n or not np.isin(mask, (0, 1)).all():
        raise InputError(f"{file} has {len(mask)} rows for the {n} of {path}; expected 0 or 1 for each row")
    if not 0 <= options.split < mask.shape[1]:
        raise InputError(f"--split must be in 0..{mask.shape[1] - 1}, the columns of {file}; got {options.split}")
    test = mask[:, options.split] == 1
    if not 2 <= test.sum() <= n - 2:
        raise InputError(f"{file}: split {options.split} takes {test.sum()} of {n} rows; both parts need some")
    return test, [f"test part from {file.name}, split {options.split}"]
