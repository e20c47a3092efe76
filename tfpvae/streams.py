"""Data larger than memory: folders of shards, written once and read by `tf.data` in any order."""

import json
import math
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import checks, inputs, saving

MANIFEST = "manifest.json"

_FORMATS = ("npy", "tfrecord")
_PARTS = ("x", "y", "weight")
_BUFFER_BYTES = 64 * 2**20  # of rows that are shuffled,
_BUFFER_ROWS = 10_000  # and how many they are at most.
_AHEAD_BYTES = 16 * 2**20  # of batches that wait: what a program of `fit` takes at once.
_OPEN_FILES = 8
_PATIENCE_SECONDS = 3  # before "auto" shows a progress bar

#: Types that TensorFlow reads from bytes.
_DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


class Part(NamedTuple):
    """What x, y or the weights are.

    Attributes:
      dtype: the name of the type, as in numpy.
      shape: that of a row.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class Shard(NamedTuple):
    """A piece of the data: rows that stand in one file, or in one for each part.

    Attributes:
      rows: how many.
      files: names and sizes in bytes.
    """

    rows: int
    files: dict[str, int]


class Manifest(NamedTuple):
    """What a folder holds.

    Attributes:
      format: "npy" or "tfrecord".
      parts: what x, y and weight are, by name; those that there are.
      shards: the pieces in their order.
    """

    format: str
    parts: dict[str, Part]
    shards: list[Shard]

    @property
    def num_rows(self) -> int:
        """How many examples there are."""
        return sum(shard.rows for shard in self.shards)


def write(
    folder: Any,
    x: Any,
    y: Any = None,
    weight: Any = None,
    *,
    file_format: str = "npy",
    rows_per_file: int = 10_000,
    verbose: Any = "auto",
) -> Manifest:
    """Write data to a new folder, in shards, of which one is in memory at a time.

    Values are written as they are: bytes stay bytes. The manifest, a JSON file, is written last, so
    a folder that was not finished is not taken for a whole one.

    Args:
      folder: where to; it is made.
      x: array `[N, ...]`, also a `np.memmap`, or a stream of pieces `x`, `(x, y)` or
        `(x, y, weight)`: a generator, a `tf.data.Dataset` or a `keras.utils.Sequence`.
      y: array of targets `[N, ...]`, None for those of x.
      weight: array `[N]` of the weights of the examples, None for ones.
      file_format: "npy", a numpy array a shard and part; or "tfrecord", records of
        `tf.train.Example` whose features x, y and weight are the bytes of a row.
      rows_per_file: rows of a shard. Several files for each worker, and 10 to 200 MB each, are
        read well.
      verbose: 1 shows progress, 0 does not, "auto" does when it takes long.

    Returns:
      The `Manifest`.

    Raises:
      FileExistsError: for a folder that holds something.
      TypeError: for data that are no numbers, or of a type that TensorFlow cannot read back.
      ValueError: for pieces that differ in shape or type, no data, an unknown format.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> x = np.arange(12, dtype="uint8").reshape(6, 2)
      >>> write(folder, x, rows_per_file=4).num_rows
      6
      >>> sorted(file.name for file in pathlib.Path(folder).iterdir())
      ['00000.x.npy', '00001.x.npy', 'manifest.json']
      >>> [batch.shape for batch in read(folder, batch_size=4)]
      [TensorShape([4, 2]), TensorShape([2, 2])]
    """
    folder = checks.path("folder", folder)
    if file_format not in _FORMATS:
        raise ValueError(f"file_format: got {file_format!r}, wanted one of {', '.join(_FORMATS)}")
    rows_per_file = checks.positive_integer("rows_per_file", rows_per_file)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"folder: got {str(folder)!r}, which is not empty, wanted a new one")
    write_shard = _write_npy if file_format == "npy" else _write_records
    target = None if inputs.is_stream(x) else len(x)
    progress, start = keras.utils.Progbar(target, unit_name="example"), time.monotonic()
    parts: dict[str, Part] = {}
    shards: list[Shard] = []
    for i, rows in enumerate(_shards(_pieces(x, y, weight, rows_per_file), rows_per_file)):
        parts = parts or {name: _part(name, values) for name, values in rows.items()}
        files = write_shard(folder, i, rows)
        shards.append(Shard(len(rows["x"]), {path.name: path.stat().st_size for path in files}))
        late = time.monotonic() - start > _PATIENCE_SECONDS
        if verbose == 1 or (verbose == "auto" and late):
            progress.update(sum(shard.rows for shard in shards))
    if not shards:
        raise ValueError("x: got an empty stream, wanted examples")
    found = Manifest(file_format, parts, shards)
    text = {
        "format": file_format,
        "parts": {name: part._asdict() for name, part in parts.items()},
        "shards": [shard._asdict() for shard in shards],
    }
    with saving.atomic(folder / MANIFEST) as whole:
        whole.write_text(json.dumps(text, indent=1))
    return found


def manifest(folder: Any) -> Manifest:
    """What a folder holds, once all of its files have been found to be whole.

    Args:
      folder: one that `write` made, or one of `.npy` files without a manifest: all of them are x,
        in the order of their names.

    Raises:
      FileNotFoundError: if there is no such folder, or a shard is missing.
      ValueError: for files that are not what the manifest says: cut short, of another type or
        shape; for arrays of Python objects, which only pickle reads, or in Fortran's order.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> np.save(f"{folder}/images.npy", np.zeros([5, 28, 28], "uint8"))
      >>> manifest(folder).parts
      {'x': Part(dtype='uint8', shape=(28, 28))}
    """
    folder = checks.path("folder", folder)
    if (folder / MANIFEST).is_file():
        found = _from_json(folder / MANIFEST)
        for shard in found.shards:
            for name, size in shard.files.items():
                _check_size(folder / name, size)
    else:
        found = _of_arrays(folder)
    if found.format == "npy":
        for shard in found.shards:
            for (name, part), file in zip(found.parts.items(), shard.files, strict=True):
                rows, own, _ = _header(folder / file)
                if (rows, own) != (shard.rows, part):
                    raise ValueError(
                        f"folder: got {rows} rows of {_title(own)} in {str(folder / file)!r}, "
                        f"wanted {shard.rows} of {_title(part)}, as all of {name} is"
                    )
    return found


def read(
    folder: Any,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    buffer_size: int | None = None,
    drop_remainder: bool = False,
    worker: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """The data of a folder as batches, for `fit`, `evaluate` and loops of your own.

    Files are read while the model trains, a few batches ahead. With `shuffle` each epoch has an
    order of its own: that of the files, of which eight are read in turns, and then that of the rows
    within a buffer. The same seed gives the same orders, with the same seed of
    `keras.utils.set_random_seed`.

    The number of batches is known, so `fit` runs many in a call. A strategy of several workers
    gives each of them its part of each batch, for which every worker reads all files. With
    `num_workers` a worker reads only its own files, each `num_workers`-th: for large data. Then
    the number of batches is not known in advance, because workers may have different ones.

    Args:
      folder: as `manifest` takes it.
      batch_size: examples a batch: of all workers.
      shuffle: whether to shuffle; otherwise the rows come as they were written.
      seed: of the orders, an integer; all workers need the same.
      buffer_size: how many rows are shuffled at a time; None for at most 10,000 or 64 MB of them.
      drop_remainder: whether a last batch that is not full is left out.
      worker: which of the workers this one is, from 0.
      num_workers: how many divide the files among themselves.

    Returns:
      A `tf.data.Dataset` of batches `x`, `(x, y)` or `(x, y, weight)`, of the types that were
      written; of weights without y `{"x": x, "sample_weight": weight}`, because Keras drops them
      from `(x, None, weight)`.

    Raises:
      FileNotFoundError, ValueError: as `manifest`; for fewer files than workers.
      TypeError: for numbers that are no integers.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> _ = write(folder, np.arange(5), np.arange(5) ** 2, file_format="tfrecord")
      >>> for x, y in read(folder, batch_size=3, shuffle=False):
      ...     print(x.numpy(), y.numpy())
      [0 1 2] [0 1 4]
      [3 4] [ 9 16]
    """
    batch_size = checks.positive_integer("batch_size", batch_size)
    num_workers = checks.positive_integer("num_workers", num_workers)
    if worker not in range(num_workers):
        raise ValueError(f"worker: got {worker!r}, wanted an integer from 0 to {num_workers - 1}")
    found = manifest(folder)
    if num_workers > len(found.shards):
        raise ValueError(
            f"num_workers: got {num_workers} for {len(found.shards)} files, wanted at most as many "
            "workers as files: write them with a smaller rows_per_file"
        )
    shards = found.shards[worker::num_workers]
    data = tf.data.Dataset.from_tensor_slices(_paths(pathlib.Path(folder), found.format, shards))
    if shuffle:
        data = data.shuffle(len(shards), seed=seed)
    data = data.interleave(
        _opener(found),
        cycle_length=min(_OPEN_FILES, len(shards)) if shuffle else 1,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    row_bytes = sum(part.row_bytes for part in found.parts.values())
    if shuffle:
        most = max(1, min(_BUFFER_ROWS, _BUFFER_BYTES // row_bytes))
        size = most if buffer_size is None else checks.positive_integer("buffer_size", buffer_size)
        data = data.shuffle(size, seed=seed)
    data = data.batch(batch_size, drop_remainder=drop_remainder)
    data = data.map(_decoder(found), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options, policies = tf.data.Options(), tf.data.experimental.AutoShardPolicy
    if num_workers == 1:
        full, rest = divmod(found.num_rows, batch_size)
        steps = full + (rest > 0 and not drop_remainder)
        data = data.apply(tf.data.experimental.assert_cardinality(steps))
        # The count is that of whole batches, which the workers divide.
        options.experimental_distribute.auto_shard_policy = policies.DATA
    else:
        options.experimental_distribute.auto_shard_policy = policies.OFF
    ahead = _AHEAD_BYTES // (row_bytes * batch_size)
    return data.with_options(options).prefetch(min(max(2, ahead), 1024))


def _pieces(x: Any, y: Any, weight: Any, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The data in pieces that fit into memory, the parts by name."""
    if not inputs.is_stream(x):
        whole = dict(zip(_PARTS, (x, y, weight), strict=True))
        present = {name: values for name, values in whole.items() if values is not None}
        for name, values in present.items():
            if np.shape(values)[:1] != np.shape(x)[:1]:
                raise ValueError(
                    f"{name}: got shape {np.shape(values)}, wanted {len(x)} rows, as many as x has"
                )
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            yield {name: _array(name, values[rows]) for name, values in present.items()}
        return
    if y is not None or weight is not None:
        raise ValueError("y: got it beside a stream, wanted a stream of (x, y) or (x, y, weight)")
    for piece in _finite(x):
        values = dict(zip(_PARTS, inputs.unpack(piece), strict=True))
        present = {name: _array(name, part) for name, part in values.items() if part is not None}
        lengths = {name: len(part) for name, part in present.items()}
        if len({*lengths.values()}) > 1:
            raise ValueError(f"x: got a piece of {lengths} rows, wanted as many of each")
        for start in range(0, lengths["x"], size):
            yield {name: part[start : start + size] for name, part in present.items()}


def _finite(stream: Any) -> Iterable[Any]:
    """The pieces of a stream, of which a Keras Sequence has a number."""
    is_sequence = isinstance(stream, keras.utils.Sequence)
    return (stream[i] for i in range(len(stream))) if is_sequence else stream


def _array(name: str, values: Any) -> np.ndarray:
    array = checks.as_array(name, values)
    if array.dtype.name not in _DTYPES:
        raise TypeError(
            f"{name}: got {array.dtype.name}, which TensorFlow does not read from files, wanted "
            f"one of {', '.join(_DTYPES)}: convert it by astype"
        )
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _part(name: str, values: np.ndarray) -> Part:
    return Part(values.dtype.name, values.shape[1:])


def _shards(pieces: Iterator[Any], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Pieces of any lengths as ones of `size` rows, and a rest."""
    held: list[dict[str, np.ndarray]] = []
    count = 0
    for piece in pieces:
        first = held[0] if held else piece
        kinds = [{name: _part(name, v) for name, v in one.items()} for one in (piece, first)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"x: got a piece of {kinds[0]} after one of {kinds[1]}, wanted alike")
        held.append(piece)
        count += len(piece["x"])
        while count >= size:
            whole = _joined(held)
            yield {name: values[:size] for name, values in whole.items()}
            count -= size
            # At least an empty one, which tells what the next has to be like.
            held = [{name: values[size:] for name, values in whole.items()}]
    if count:
        yield _joined(held)


def _joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _write_npy(folder: pathlib.Path, i: int, rows: dict[str, np.ndarray]) -> list[pathlib.Path]:
    files = [folder / f"{i:05d}.{name}.npy" for name in rows]
    for file, values in zip(files, rows.values(), strict=True):
        np.save(file, values, allow_pickle=False)
    return files


def _write_records(folder: pathlib.Path, i: int, rows: dict[str, np.ndarray]) -> list[pathlib.Path]:
    file = folder / f"{i:05d}.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for row in zip(*rows.values(), strict=True):
            features = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[values.tobytes()]))
                for name, values in zip(rows, row, strict=True)
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return [file]


def _from_json(file: pathlib.Path) -> Manifest:
    """The manifest that `write` wrote; ValueError if it is something else."""
    try:
        text = json.loads(file.read_text())
        parts = {
            name: Part(str(np.dtype(part["dtype"])), tuple(map(int, part["shape"])))
            for name, part in text["parts"].items()
        }
        shards = [Shard(int(shard["rows"]), dict(shard["files"])) for shard in text["shards"]]
        in_order = [*parts] == [name for name in _PARTS if name in parts]
        if not (text["format"] in _FORMATS and in_order and "x" in parts and shards):
            raise ValueError("its format, parts or shards are unknown")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"folder: got {str(file)!r}, which is no manifest of streams.write: {error}"
        ) from None
    return Manifest(text["format"], parts, shards)


def _of_arrays(folder: pathlib.Path) -> Manifest:
    """The manifest of a folder of arrays that has none."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise FileNotFoundError(
            f"folder: got {str(folder)!r}, wanted one that streams.write made and finished, with a "
            f"{MANIFEST}, or one of .npy files"
        )
    headers = [_header(file) for file in files]
    sizes = [{file.name: file.stat().st_size} for file in files]
    shards = [Shard(header[0], size) for header, size in zip(headers, sizes, strict=True)]
    return Manifest("npy", {"x": headers[0][1]}, shards)


def _check_size(file: pathlib.Path, size: int) -> None:
    if not file.is_file():
        raise FileNotFoundError(
            f"folder: the shard {str(file)!r} is missing, wanted all that {MANIFEST} lists: copy "
            "the folder again, or write the data again"
        )
    if file.stat().st_size != size:
        raise ValueError(
            f"folder: got {file.stat().st_size:,} bytes in {str(file)!r}, wanted {size:,}, as "
            f"{MANIFEST} says: copy the folder again, or write the data again"
        )


def _header(file: pathlib.Path) -> tuple[int, Part, int]:
    """The rows of a .npy file, what they are, and where they begin; ValueError if not whole."""
    try:
        with file.open("rb") as opened:
            version = np.lib.format.read_magic(opened)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(opened)
            start = opened.tell()
    except ValueError as error:
        raise ValueError(f"folder: got {str(file)!r}, which is no .npy file: {error}") from None
    hint = "save it again by np.save(file, np.ascontiguousarray(values, dtype))"
    if dtype.hasobject:
        raise ValueError(
            f"folder: got Python objects in {str(file)!r}, which only pickle reads, and that can "
            f"run any code, wanted numbers: {hint}"
        )
    if dtype.name not in _DTYPES or dtype.newbyteorder("<") != dtype:
        raise ValueError(
            f"folder: got {dtype.str} in {str(file)!r}, wanted one of {', '.join(_DTYPES)}, the "
            f"least byte first: {hint}"
        )
    if not shape or 0 in shape:
        raise ValueError(f"folder: got shape {shape} in {str(file)!r}, wanted rows [N, ...]")
    if fortran and len(shape) > 1:
        raise ValueError(
            f"folder: got columns one after the other in {str(file)!r}, wanted rows: {hint}"
        )
    part = Part(dtype.name, tuple(shape[1:]))
    _check_whole(file, start + shape[0] * part.row_bytes)
    return shape[0], part, start


def _check_whole(file: pathlib.Path, size: int) -> None:
    if file.stat().st_size != size:
        raise ValueError(
            f"folder: got {file.stat().st_size:,} bytes in {str(file)!r}, wanted {size:,}, as its "
            "header says: it was cut short, copy or write it again"
        )


def _title(part: Part) -> str:
    return f"{part.dtype} {list(part.shape)}"


def _paths(folder: pathlib.Path, kind: str, shards: list[Shard]) -> Any:
    """The files of each shard `[shards, parts]`, and where the rows in them begin."""
    files = [[str(folder / name) for name in shard.files] for shard in shards]
    if kind == "tfrecord":
        return files, np.zeros((len(files), 1), np.int64)
    return files, np.array([[_header(pathlib.Path(file))[2] for file in row] for row in files])


def _opener(found: Manifest) -> Any:
    """A function from the files of a shard to a dataset of their rows, as bytes."""
    if found.format == "tfrecord":
        return lambda files, _: tf.data.TFRecordDataset(files[0])

    def columns(files: Any, starts: Any) -> Any:
        parts = tuple(
            tf.data.FixedLengthRecordDataset(files[i], part.row_bytes, header_bytes=starts[i])
            for i, part in enumerate(found.parts.values())
        )
        return tf.data.Dataset.zip(parts)

    return columns


def _decoder(found: Manifest) -> Any:
    """A function from the bytes of many rows to a batch."""

    def decode(*columns: Any) -> Any:
        if found.format == "tfrecord":
            feature = tf.io.FixedLenFeature((), tf.string)
            parsed = tf.io.parse_example(columns[0], dict.fromkeys(found.parts, feature))
            columns = tuple(parsed[name] for name in found.parts)
        decoded = {
            name: tf.ensure_shape(
                tf.reshape(tf.io.decode_raw(column, part.dtype), (-1, *part.shape)),
                (*column.shape, *part.shape),
            )
            for column, (name, part) in zip(columns, found.parts.items(), strict=True)
        }
        return inputs.pack(*map(decoded.get, _PARTS))

    return decode
