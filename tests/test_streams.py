"""Streams: what was written is read, each row once an epoch; what is broken is refused."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfpvae import VAE, likelihoods, networks, posteriors, priors, streams

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "int32", "int64")
DTYPES += ("float16", "float32", "float64")
FORMATS = ("npy", "tfrecord")


def data(num, dtype="uint8", shape=(3,)):
    return np.random.default_rng(0).integers(0, 2**7, (num, *shape)).astype(dtype)


def rows_of(dataset):
    """All the batches, one after the other."""
    parts = [tf.nest.flatten(batch) for batch in dataset]
    columns = zip(*parts, strict=True)
    return [np.concatenate([part.numpy() for part in column]) for column in columns]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_comes_back_bit_for_bit(file_format, dtype, tmp_path):
    x, y, weight = data(11, dtype, (2, 3)), data(11, dtype, ()), np.linspace(0, 1, 11)
    streams.write(tmp_path / "new", x, y, weight, file_format=file_format, rows_per_file=4)
    found = streams.read(tmp_path / "new", batch_size=3, shuffle=False)
    spec = [(part.dtype.name, part.shape) for part in found.element_spec]
    assert spec == [(dtype, (None, 2, 3)), (dtype, (None,)), ("float64", (None,))]
    assert int(found.cardinality()) == 4
    for one, wanted in zip(rows_of(found), (x, y, weight), strict=True):
        np.testing.assert_array_equal(one, wanted, strict=True)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    rows_per_file=st.integers(1, 12),
    batch_size=st.integers(1, 8),
    drop_remainder=st.booleans(),
    shuffle=st.booleans(),
    file_format=st.sampled_from(FORMATS),
)
def test_pieces_of_any_lengths(
    sizes, rows_per_file, batch_size, drop_remainder, shuffle, file_format, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("data")
    x = np.arange(sum(sizes))
    pieces = np.split(x, np.cumsum(sizes)[:-1])
    options = {"file_format": file_format, "rows_per_file": rows_per_file}
    found = streams.write(folder, iter(pieces), **options)
    assert found == streams.manifest(folder)
    assert [shard.rows for shard in found.shards[:-1]] == [rows_per_file] * (len(found.shards) - 1)
    dataset = streams.read(folder, batch_size, drop_remainder=drop_remainder, shuffle=shuffle)
    batches = [batch.numpy() for batch in dataset]
    assert len(batches) == int(dataset.cardinality())
    rows = np.concatenate([np.zeros(0, int), *batches])
    if drop_remainder:
        assert len(rows) == len(x) // batch_size * batch_size
        assert len(np.unique(rows)) == len(rows)
    else:
        np.testing.assert_array_equal(np.sort(rows) if shuffle else rows, x)


@pytest.mark.parametrize("kind", ["dataset", "sequence", "memmap"])
def test_what_can_be_written(kind, tmp_path):
    x, y = data(10), data(10, "float32", ())
    if kind == "dataset":
        source = (tf.data.Dataset.from_tensor_slices((x, y)).batch(3),)
    elif kind == "sequence":

        class Halves(keras.utils.Sequence):
            def __len__(self):
                return 2

            def __getitem__(self, i):
                return x[5 * i : 5 * i + 5], y[5 * i : 5 * i + 5]

        source = (Halves(),)
    else:
        np.save(tmp_path / "x.npy", x)
        source = np.load(tmp_path / "x.npy", mmap_mode="r"), y
    streams.write(tmp_path / "new", *source, rows_per_file=4)
    found = rows_of(streams.read(tmp_path / "new", 4, shuffle=False))
    for one, wanted in zip(found, (x, y), strict=True):
        np.testing.assert_array_equal(one, wanted, strict=True)


def test_arrays_of_others(tmp_path):
    """All .npy files of a folder, of any lengths, in the order of their names."""
    x = data(9, "float32")
    for name, part in zip("abc", np.split(x, [2, 7]), strict=True):
        np.save(tmp_path / f"{name}.npy", part)
    np.testing.assert_array_equal(rows_of(streams.read(tmp_path, 4, shuffle=False))[0], x)


def epochs_of(dataset, num=3):
    return [rows_of(dataset)[0] for _ in range(num)]


@pytest.mark.parametrize("file_format", FORMATS)
def test_epochs_have_orders_of_their_own(file_format, tmp_path):
    x = np.arange(2000)
    streams.write(tmp_path, x, file_format=file_format, rows_per_file=200)
    one, same, other = (streams.read(tmp_path, 100, seed=seed) for seed in (1, 1, 2))
    first = epochs_of(one)
    np.testing.assert_array_equal(epochs_of(same), first)
    orders = [*first, *epochs_of(other), x]
    for i, order in enumerate(orders):
        np.testing.assert_array_equal(np.sort(order), x)
        # The rank correlation of two orders at random has the standard deviation 1 / sqrt(n - 1).
        for another in orders[:i]:
            assert abs(np.corrcoef(order, another)[0, 1]) < 4 / np.sqrt(len(x) - 1)


def test_a_buffer_of_one_row_leaves_rows_in_their_files(tmp_path):
    streams.write(tmp_path, np.arange(20), rows_per_file=20)
    found = streams.read(tmp_path, 5, buffer_size=1)
    np.testing.assert_array_equal(rows_of(found)[0], np.arange(20))


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_divide_the_files(num_workers, tmp_path):
    x = np.arange(70)
    streams.write(tmp_path, x, rows_per_file=10)
    parts = []
    for worker in range(num_workers):
        found = streams.read(tmp_path, 8, worker=worker, num_workers=num_workers)
        assert int(found.cardinality()) == tf.data.UNKNOWN_CARDINALITY
        parts.append(rows_of(found)[0])
    assert {part[0] // 10 for part in map(np.sort, parts)} == {*range(num_workers)}
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), x)


# Training.


def build(**kwargs):
    keras.utils.set_random_seed(0)
    posterior = posteriors.DiagonalNormal(2)
    vae = VAE(
        priors.StandardNormal(2),
        keras.Sequential([keras.layers.Dense(posterior.params_size), posterior]),
        keras.Sequential([keras.layers.Dense(6), likelihoods.Bernoulli(6)]),
        seed=0,
        **kwargs,
    )
    vae.compile("adam")
    return vae


@pytest.mark.parametrize(("file_format", "has_y"), [("npy", True), ("tfrecord", False)])
def test_training_is_that_on_arrays(file_format, has_y, tmp_path):
    x, weight = data(50, shape=(6,)), np.linspace(0, 2, 50).astype("float32")
    x = (x > 64).astype("float32")
    y = 1.0 - x if has_y else None
    streams.write(tmp_path, x, y, weight, file_format=file_format, rows_per_file=12)
    stream = streams.read(tmp_path, 16, shuffle=False)
    found = build().fit(stream, epochs=2, verbose=0, validation_data=stream)
    arrays = {"x": x, "y": y, "sample_weight": weight, "batch_size": 16, "shuffle": False}
    wanted = build().fit(**arrays, epochs=2, verbose=0, validation_data=(x, y, weight))
    assert found.history == wanted.history


class Kept(keras.layers.Layer):
    """Binarize, and a record of the sum of the bits of each batch."""

    def __init__(self):
        super().__init__()
        self.bits = networks.Binarize(255)
        self.count = self.add_weight("count", (), "int32", initializer="zeros", trainable=False)
        self.sums = self.add_weight("sums", (64,), initializer="zeros", trainable=False)

    def call(self, x):
        bits = self.bits(x)
        self.sums.scatter_nd_update([[self.count]], [tf.reduce_sum(bits)])
        self.count.assign_add(1)
        return bits


@pytest.mark.long
def test_bytes_are_binarized_afresh_in_each_epoch(tmp_path):
    """64 x 6 bits of probability 51 / 255: sums of mean 76.8 and variance 61.44."""
    streams.write(tmp_path, np.full((64, 6), 51, "uint8"))
    dataset = streams.read(tmp_path, 64)
    assert dataset.element_spec.dtype == tf.uint8
    kept = Kept()
    vae = build(preprocessing=kept)
    vae.build((None, 6))
    kept.count.assign(0)
    vae.fit(dataset, epochs=40, verbose=0)
    sums = kept.sums.numpy()[: kept.count.numpy()][-40:]
    assert len(sums) == 40
    assert abs(sums.mean() - 76.8) < 4 * np.sqrt(61.44 / 40)
    # (n - 1) s^2 / sigma^2 is chi-squared with 39 degrees of freedom: 95 in 10^-6 of cases.
    assert 10 < 39 * sums.var(ddof=1) / 61.44 < 95


# What is refused.


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"wanted one that streams\.write made"):
        streams.read(tmp_path, 2)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "npy"}))
    with pytest.raises(ValueError, match=r"no manifest of streams\.write"):
        streams.read(tmp_path, 2)
    with pytest.raises(FileExistsError, match="not empty"):
        streams.write(tmp_path, data(3))


@pytest.mark.parametrize("file_format", FORMATS)
def test_shards_that_are_missing_or_cut_short(file_format, tmp_path):
    streams.write(tmp_path, data(20), file_format=file_format, rows_per_file=5)
    shard = sorted(tmp_path.glob(f"00002*.{file_format}"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=rf"got {len(whole) - 7} bytes in .*wanted {len(whole)}"):
        streams.read(tmp_path, 2)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"shard .*{shard.name}' is missing"):
        streams.read(tmp_path, 2)


def test_records_that_were_changed(tmp_path):
    streams.write(tmp_path, data(20), file_format="tfrecord")
    (shard,) = tmp_path.glob("*.tfrecord")
    whole = bytearray(shard.read_bytes())
    whole[100] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
        rows_of(streams.read(tmp_path, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (data(4, "float64"), r"4 rows of float64 \[3\] in .*wanted 4 of uint8 \[3\]"),
        (data(4, shape=(2,)), r"4 rows of uint8 \[2\]"),
        (np.array([[1, "a", None]], object), "Python objects .* run any code"),
        (data(4).astype(">i4"), "got >i4 .* the least byte first"),
        (data(4).astype("complex64"), "got <c8"),
        (np.asfortranarray(data(4)), "columns one after the other"),
        (np.zeros((0, 3), "uint8"), r"got shape \(0, 3\)"),
    ],
)
def test_arrays_that_are_not_alike_or_not_numbers(values, message, tmp_path):
    np.save(tmp_path / "a.npy", data(4))
    np.save(tmp_path / "b.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        streams.read(tmp_path, 2)


def test_arrays_that_are_cut_short_or_none(tmp_path):
    np.save(tmp_path / "a.npy", data(4))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="as its header says: it was cut short"):
        streams.read(tmp_path, 2)
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"which is no \.npy file"):
        streams.read(tmp_path, 2)


@pytest.mark.parametrize(
    ("error", "message", "args", "kwargs"),
    [
        (ValueError, "file_format: got 'hdf5'", (data(3),), {"file_format": "hdf5"}),
        (ValueError, "rows_per_file: got 0", (data(3),), {"rows_per_file": 0}),
        (ValueError, r"y: got shape \(2, 3\), wanted 3 rows", (data(3), data(2)), {}),
        (ValueError, "x: got an empty stream", (iter([]),), {}),
        (ValueError, "y: got it beside a stream", (iter([data(3)]), data(3)), {}),
        (ValueError, "x: got a piece of .* after one of", (iter([data(3), data(3, "int8")]),), {}),
        (ValueError, "rows, wanted as many of each", (iter([(data(3), data(2))]),), {}),
        (TypeError, "x: got uint64, which TensorFlow does not read", (data(3, "uint64"),), {}),
        (TypeError, "x: got strings", (np.array(["a"]),), {}),
    ],
)
def test_what_cannot_be_written(error, message, args, kwargs, tmp_path):
    with pytest.raises(error, match=message):
        streams.write(tmp_path / "new", *args, **kwargs)
    with pytest.raises(FileNotFoundError):
        streams.manifest(tmp_path / "new")


@pytest.mark.parametrize(
    ("error", "message", "kwargs"),
    [
        (ValueError, "batch_size: got 0", {"batch_size": 0}),
        (ValueError, "num_workers: got 3 for 2 files", {"num_workers": 3}),
        (ValueError, "worker: got 2, wanted .* from 0 to 1", {"num_workers": 2, "worker": 2}),
        (ValueError, "buffer_size: got 0", {"buffer_size": 0}),
    ],
)
def test_what_cannot_be_read(error, message, kwargs, tmp_path):
    streams.write(tmp_path, data(6), rows_per_file=3)
    with pytest.raises(error, match=message):
        streams.read(tmp_path, **{"batch_size": 2} | kwargs)
