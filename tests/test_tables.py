"""Files of data: what is read is what pandas and NumPy wrote, and what is no number is refused."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfpvae import tables

FRAME = pd.DataFrame(
    {
        "age": [40, 31, 7],
        "dose": [0.5, np.nan, 1e-3],
        "sick": [True, False, True],
        "kind": ["rose", "tulip", "rose"],
    }
)
SAVE = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


@pytest.fixture(params=SAVE)
def frame(request, tmp_path):
    """A file of a table, of both kinds."""
    path = tmp_path / f"table{request.param}"
    SAVE[request.param](FRAME, path)
    return path


def test_a_table_is_its_numbers_names_and_labels(frame):
    x, columns, labels = tables.read(frame, label="kind")
    assert columns == ("age", "dose", "sick")
    np.testing.assert_array_equal(x, [[40, 0.5, 1], [31, np.nan, 0], [7, 1e-3, 1]])
    assert labels.tolist() == ["rose", "tulip", "rose"]


def test_columns_are_taken_in_the_order_asked_for(frame):
    assert tables.read(frame, columns=["sick", "age"]).x.tolist() == [[1, 40], [0, 31], [1, 7]]
    found = tables.read(frame, drop=["kind", "dose"])
    assert found.columns == ("age", "sick")
    assert found.x.dtype.kind == "i"
    assert found.labels is None


def test_numbers_as_labels(frame):
    assert tables.read(frame, label="age", drop=["kind"]).labels.tolist() == [40, 31, 7]
    missing = tables.read(frame, label="dose", drop=["kind"]).labels
    assert missing.tolist() == ["0.5", "missing", "0.001"]


def test_a_label_that_need_not_be_there(frame):
    assert tables.read(frame, label="nothing", drop=["kind"], needs_label=False).labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"got text in the column 'kind' \('rose' in row 1\), wanted numbers.*--drop 'kind'"),
        ({"columns": ["agee"]}, "columns: got 'agee', wanted one of.*; did you mean 'age'"),
        ({"drop": ["x"]}, "drop: got 'x', wanted one of the columns of .*: age, dose, sick, kind"),
        ({"label": "kid"}, "label: got 'kid'.*did you mean 'kind'"),
        ({"key": "x"}, "key: got 'x', wanted none"),
        ({"drop": ["age", "dose", "sick", "kind"]}, "got 3 rows of 0 columns"),
    ],
)
def test_what_is_no_such_table(frame, options, message):
    with pytest.raises(ValueError, match=message):
        tables.read(frame, **options)


def test_text_among_numbers_is_found_by_its_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n3,4\n5,n.a.\n")
    with pytest.raises(ValueError, match=r"column 'b' \('n\.a\.' in row 3\)"):
        tables.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "got numbers in the first line, wanted the names"),
        (",a\n0,1\n1,2\n", "a column without a name.*--drop 'Unnamed: 0'"),
        ("a,b\n1,\n2,\n", "no number in the column 'b'"),
        ("a,b\n", "got 0 rows"),
        ("", "cannot be read"),
        ("a,b\n1,2\n1,2,3,4\n", "cannot be read"),
        ("a\n2020-01-01\n", "got text in the column 'a'"),
    ],
)
def test_odd_csv_files(text, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        tables.read(path)


@pytest.mark.parametrize("column", [pd.to_datetime(["2020-01-01"]), [1j], [[1, 2]]])
def test_odd_columns_of_parquet_files(column, tmp_path):
    path = tmp_path / "x.parquet"
    frame = pd.DataFrame({"a": [1], "b": list(map(str, column)) if column == [1j] else column})
    frame.to_parquet(path)
    with pytest.raises(ValueError, match="in the column 'b'"):
        tables.read(path)


@pytest.mark.parametrize("dtype", ["Int64", "Float32", "boolean", "int8", "float64[pyarrow]"])
def test_types_of_pandas_with_missing_numbers(dtype, tmp_path):
    values = [1, 0, 1] if dtype == "int8" else [1, None, 1]
    path = tmp_path / "x.parquet"
    pd.DataFrame({"a": pd.array(values, dtype=dtype)}).to_parquet(path)
    found = tables.read(path).x[:, 0].astype(float)
    np.testing.assert_array_equal(found, [np.nan if v is None else v for v in values])


@settings(deadline=None, max_examples=60)
@given(
    x=hnp.arrays(
        st.sampled_from(["float64", "int64", "bool"]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=4),
        elements={"allow_infinity": False},
    ),
    suffix=st.sampled_from(tables.SUFFIXES),
)
def test_what_is_written_is_read(x, suffix, tmp_path_factory):
    x = np.where(np.isnan(x).all(axis=0), 0.0, x) if x.dtype.kind == "f" else x
    path = tmp_path_factory.mktemp("tables") / f"x{suffix}"
    tables.write(path, x)
    np.testing.assert_array_equal(tables.read(path).x, x)


def test_images_are_arrays(tmp_path):
    images, labels = np.arange(24, dtype="uint8").reshape(2, 3, 4), np.array(["a", "b"])
    np.savez(tmp_path / "a.npz", images=images, y=labels)
    found = tables.read(tmp_path / "a.npz", label="y")
    assert found.x.dtype == np.uint8
    np.testing.assert_array_equal(found.x, images)
    assert found.labels.tolist() == ["a", "b"]
    assert tables.read(tmp_path / "a.npz", key="images").labels is None
    tables.write(tmp_path / "b.NPY", images)
    np.testing.assert_array_equal(tables.read(tmp_path / "b.NPY").x, images)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 4\], wanted \.npy or \.npz"):
        tables.write(tmp_path / "c.csv", images)


class Evil:
    def __reduce__(self):
        return print, ("run",)


ARRAYS = [
    ({"x": np.eye(3), "y": np.eye(3)}, {}, "key: got none, wanted the name of one .*: x, y"),
    ({"x": np.eye(3)}, {"key": "z"}, "key: got 'z', wanted one of the arrays of .*: x"),
    ({"x": np.eye(3)}, {"label": "z"}, "label: got 'z', wanted one of the arrays"),
    ({"x": np.eye(3), "y": np.eye(3)}, {"label": "y"}, "wanted one number or word for each row"),
    ({"x": np.eye(3), "y": np.arange(2)}, {"label": "y"}, "got 2 labels of 3 rows"),
    ({"x": np.arange(3)}, {}, r"an array of int64 of shape \[3\], wanted numbers \[N, D\]"),
    ({"x": np.zeros((0, 3))}, {}, r"shape \[0, 3\], wanted numbers"),
    ({"x": np.array([["a"]])}, {}, "got an array of <U1"),
    ({"x": np.array([[1j]])}, {}, "got an array of complex128"),
    ({"x": np.array([[Evil()]])}, {}, "cannot be read.*pickled data can run code"),
    ({}, {}, "there is none"),
    ({"x": np.eye(3)}, {"columns": ["a"]}, "whose columns have none"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), ARRAYS)
def test_odd_arrays(arrays, options, message, tmp_path, capsys):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        tables.read(path, **options)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_files_that_are_damaged_or_not_there(suffix, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        tables.read(tmp_path / f"x{suffix}")
    path = tmp_path / f"y{suffix}"
    path.write_bytes(b"\x00\xff\x00\xff")
    with pytest.raises(ValueError, match=r"cannot be read|got"):
        tables.read(path)


def test_other_kinds_of_files(tmp_path):
    with pytest.raises(ValueError, match=r"wanted one of \.npy, \.npz, \.csv, \.parquet"):
        tables.read(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match="another kind"):
        tables.write(tmp_path / "x.txt", np.eye(2))


def test_without_pandas(monkeypatch, tmp_path):
    import sys

    path = tmp_path / "x.csv"
    path.write_text("a\n1\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = re.escape("pip install 'tfpvae[tables]'")
    with pytest.raises(ImportError, match=message):
        tables.read(path)
    with pytest.raises(ImportError, match=message):
        tables.write(tmp_path / "y.csv", np.eye(2))
    assert not (tmp_path / "y.csv").exists()
