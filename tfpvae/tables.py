"""Files of data as arrays: `.npy`, `.npz`, `.csv` and `.parquet`, numbers only."""

import difflib
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tfpvae import saving

#: the ends of the names of files that can be read and written
SUFFIXES = (".npy", ".npz", ".csv", ".parquet")

_FRAMES = (".csv", ".parquet")


class Table(NamedTuple):
    """What a file holds.

    Attributes:
      x: the numbers, [N, D] or of arrays [N, ...]; NaN is missing.
      columns: the names of the D columns, None for arrays.
      labels: the label of each row [N], numbers or strings, or None.
    """

    x: np.ndarray
    columns: tuple[str, ...] | None = None
    labels: np.ndarray | None = None


def read(
    path: Any,
    *,
    columns: Iterable[str] | None = None,
    drop: Iterable[str] = (),
    label: str | None = None,
    key: str | None = None,
    needs_label: bool = True,
) -> Table:
    r"""Read a file of numbers.

    Args:
      path: the file. A `.csv` has the names of its columns in the first line; an empty cell is
        missing.
      columns: the columns to take, in this order; None for all of them.
      drop: columns to leave out.
      label: a column that is no part of x, but its labels; of an `.npz` file an array [N].
      key: which array of an `.npz` file, if it has several.
      needs_label: whether it is an error if there is no such label; the labels are None otherwise.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: for tables without pandas.
      ValueError: for another kind of file, a damaged one, an unknown column, and what is no number:
        naming the column, a row (the first one is 1) and the remedy.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "flowers.csv")
      >>> _ = path.write_text("width,height,kind\n1,2.5,rose\n3,,tulip\n")
      >>> x, columns, labels = read(path, label="kind")
      >>> x.tolist(), columns, labels.tolist()
      ([[1.0, 2.5], [3.0, nan]], ('width', 'height'), ['rose', 'tulip'])
    """
    path = pathlib.Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    columns, drop = None if columns is None else tuple(columns), tuple(drop)
    if path.suffix.lower() in _FRAMES:
        if key is not None:
            raise ValueError(f"key: got {key!r}, wanted none: {path} is a table with columns")
        frame = _read_frame(path).rename(columns=str)
        label = label if needs_label or label in frame.columns else None
        return _of_frame(path, frame, columns, drop, label)
    if columns is not None or drop:
        raise ValueError(f"columns: got names for {path}, whose columns have none")
    return _read_arrays(path, key, label, needs_label)


def write(path: Any, x: np.ndarray, columns: Iterable[str] | None = None) -> None:
    r"""Write an array as a file, whole or not at all.

    Args:
      path: the file; the end of its name says of which kind it is.
      x: the array [N, ...]; for tables [N, D].
      columns: the names of the columns of a table; None for x0, x1, ...

    Raises:
      ImportError: for tables without pandas.
      ValueError: for another kind of file, or images as a table.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "counts.csv")
      >>> write(path, np.array([[1, 2], [3, 4]]), ["a", "b"])
      >>> path.read_text()
      'a,b\n1,2\n3,4\n'
    """
    path = pathlib.Path(path)
    _check_suffix(path)
    suffix = path.suffix.lower()
    if suffix in _FRAMES and x.ndim != 2:
        raise ValueError(f"{path}: got an array of shape {list(x.shape)}, wanted .npy or .npz")
    pandas: Any = _pandas(path) if suffix in _FRAMES else None
    with saving.atomic(path) as whole:
        if suffix in (".npy", ".npz"):
            with whole.open("wb") as stream:  # To a name NumPy may add its own ending.
                np.save(stream, x) if suffix == ".npy" else np.savez_compressed(stream, x=x)
        else:
            names = [f"x{i}" for i in range(x.shape[1])] if columns is None else list(columns)
            frame = pandas.DataFrame(x, columns=names)
            if suffix == ".csv":
                frame.to_csv(whole, index=False)
            else:
                frame.to_parquet(whole, index=False)


def _check_suffix(path: pathlib.Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: got a name of another kind, wanted one of {', '.join(SUFFIXES)}")


# Arrays.


def _read_arrays(
    path: pathlib.Path, key: str | None, label: str | None, needs_label: bool
) -> Table:
    try:
        loaded: Any = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        hint = (
            " (objects are not loaded: pickled data can run code)" if "pickle" in str(error) else ""
        )
        raise ValueError(
            f"{path}: got a file that cannot be read ({_first_line(error)}){hint}, wanted arrays "
            "of numbers as numpy.save and numpy.savez write them"
        ) from error
    label = label if needs_label or label in arrays else None
    if path.suffix.lower() == ".npy" and (key or label):
        raise ValueError(
            f"{'key' if key else 'label'}: got {key or label!r}, but {path} has one array"
        )
    labels = None if label is None else _array_labels(path, arrays, label)
    if key is None:
        others = [name for name in arrays if name != label]
        if len(others) != 1:
            raise ValueError(
                f"key: got none, wanted the name of one of the arrays of {path}: "
                f"{', '.join(others) or 'there is none'}"
            )
        key = others[0]
    x = _named(path, "key", "arrays", arrays, key)
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        raise ValueError(
            f"{path}: got an array of {x.dtype} of shape {list(x.shape)}, wanted numbers [N, D] or "
            "[N, H, W]"
        )
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"label: got {len(labels)} labels of {len(x)} rows")
    return Table(x, None, labels)


def _array_labels(path: pathlib.Path, arrays: dict[str, Any], label: str) -> np.ndarray:
    labels = _named(path, "label", "arrays", arrays, label)
    if labels.ndim != 1 or labels.dtype.kind not in "biufU":
        raise ValueError(
            f"label: got {label!r}, an array of {labels.dtype} of shape {list(labels.shape)}, "
            "wanted one number or word for each row"
        )
    return labels


# Tables.


def _pandas(path: pathlib.Path) -> Any:
    try:
        import pandas

        if path.suffix.lower() == ".parquet":
            import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{path}: tables need pandas and pyarrow ({error}): pip install 'tfpvae[tables]'"
        ) from error
    return pandas


def _read_frame(path: pathlib.Path) -> Any:
    pandas = _pandas(path)
    try:
        if path.suffix.lower() == ".parquet":
            return pandas.read_parquet(path)
        frame = pandas.read_csv(path, encoding="utf-8-sig", low_memory=False)
    except Exception as error:  # pandas and pyarrow raise what they like for a damaged file.
        raise ValueError(
            f"{path}: got a file that cannot be read ({_first_line(error)}), wanted a table: it is "
            "damaged, or of another kind than its name says"
        ) from error
    if len(frame.columns) and all(_is_number(str(name)) for name in frame.columns):
        raise ValueError(
            f"{path}: got numbers in the first line, wanted the names of the columns there: put a "
            "line with names before it"
        )
    return frame


def _of_frame(
    path: pathlib.Path,
    frame: Any,
    columns: tuple[str, ...] | None,
    drop: tuple[str, ...],
    label: str | None,
) -> Table:
    """The columns that are wanted, as numbers."""
    everything = dict.fromkeys(frame.columns)
    if len(everything) < len(frame.columns):
        raise ValueError(f"{path}: got two columns of one name, wanted different names")
    for argument, wanted in (("columns", columns or ()), ("drop", drop), ("label", (label,))):
        for name in wanted:
            if name is not None:
                _named(path, argument, "columns", everything, name)
    taken = [name for name in columns or everything if name not in drop and name != label]
    if not taken or not len(frame):
        raise ValueError(
            f"{path}: got {len(frame)} rows of {len(taken)} columns that are left, wanted one at "
            "least"
        )
    parts = [_numbers(path, name, frame[name]) for name in taken]
    labels = None if label is None else _labels(frame[label])
    return Table(np.stack(parts, axis=1), tuple(taken), labels)


def _numbers(path: pathlib.Path, name: str, column: Any) -> np.ndarray:
    """A column as numbers; ValueError that names it and a row if it has something else."""
    import pandas

    if name.startswith("Unnamed: "):
        raise ValueError(
            f"{path}: got a column without a name, the numbers of the rows perhaps, wanted names: "
            f"leave it out with --drop {name!r}"
        )
    if column.isna().all():
        raise ValueError(
            f"{path}: got no number in the column {name!r}, wanted it left out: --drop {name!r}"
        )
    types = pandas.api.types
    if types.is_numeric_dtype(column) and not types.is_complex_dtype(column):
        missing = bool(column.isna().any())
        return column.to_numpy("float64", na_value=np.nan) if missing else column.to_numpy()
    if not (types.is_object_dtype(column) or types.is_string_dtype(column)):
        raise _no_numbers(path, name, f"{column.dtype}", column.iloc[0], 0)
    found = pandas.to_numeric(column, errors="coerce")
    bad = np.flatnonzero(found.isna() & column.notna())
    if len(bad):
        raise _no_numbers(path, name, "text", column.iloc[bad[0]], bad[0])
    return found.to_numpy("float64", na_value=np.nan)


def _no_numbers(path: pathlib.Path, name: str, kind: str, value: Any, row: Any) -> ValueError:
    return ValueError(
        f"{path}: got {kind} in the column {name!r} ({str(value)!r:.40} in row {int(row) + 1}), "
        f"wanted numbers: leave the column out with --drop {name!r}, or take it for --label "
        f"{name!r}, or write its classes as 0, 1, 2, ... (an empty cell is missing)"
    )


def _labels(column: Any) -> np.ndarray:
    """Labels as an array of numbers or of strings."""
    import pandas

    types = pandas.api.types
    if types.is_numeric_dtype(column) and not column.isna().any():
        return column.to_numpy()
    return column.astype(object).where(column.notna(), "missing").astype(str).to_numpy("U")


def _named(path: pathlib.Path, argument: str, what: str, known: Any, name: str) -> Any:
    """The item of this name; ValueError with the nearest one if there is none."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(list(known)[:12]) + (", ..." if len(known) > 12 else "")
    raise ValueError(
        f"{argument}: got {name!r}, wanted one of the {what} of {path}: {listed}{hint}"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.120}" if lines else type(error).__name__
