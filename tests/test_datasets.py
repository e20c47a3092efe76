import doctest
import os
import random
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras

from tfpvae import datasets

REAL_MNIST = os.environ.get("TFPVAE_DATA")
PUBLISHED_URL = datasets._MNIST_URL


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No test touches the user's files or the network: the origin is a missing file."""
    monkeypatch.delenv("TFPVAE_DATA", raising=False)
    for home in ("HOME", "USERPROFILE"):  # not even when the loader is broken
        monkeypatch.setenv(home, str(tmp_path / "home"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(datasets, "_MNIST_URL", (tmp_path / "unplugged" / "mnist.npz").as_uri())


def arrays(seed=0):
    """Small arrays in the layout of MNIST, different for each seed."""
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, 6, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, 3, dtype=np.uint8),
    }


def archive(file, seed=0, **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    contents = {k: v for k, v in (arrays(seed) | changes).items() if v is not None}
    np.savez_compressed(file, **contents)
    return file


def holds(data, seed=0):
    return all(np.array_equal(getattr(data, key), value) for key, value in arrays(seed).items())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "keras" / "datasets" / "mnist.npz"


@pytest.fixture
def origin(monkeypatch, tmp_path):
    """An archive with its right checksum, to be downloaded."""
    file = archive(tmp_path / "origin" / "mnist.npz", seed=7)
    monkeypatch.setattr(datasets, "_MNIST_URL", file.as_uri())
    monkeypatch.setattr(datasets, "_MNIST_SHA256", sha256(file.read_bytes()).hexdigest())
    return file


def test_docstring_examples():
    failed, attempted = doctest.testmod(datasets)
    assert attempted
    assert not failed


class TestDigits:
    def test_images_and_labels_are_those_of_scikit_learn(self):
        from sklearn.datasets import load_digits

        images, labels = load_digits().images, load_digits().target
        data = datasets.load("digits")
        assert [len(part) for part in data] == [1437, 1437, 360, 360]
        np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test]), images)
        np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), labels)
        assert [part.dtype for part in data] == [np.uint8, np.int64, np.uint8, np.int64]

    def test_scaled_by_16_and_flat(self):
        raw = datasets.load("digits")
        data = datasets.load("digits", scale=True, flatten=True)
        for x, x_raw in ((data.x_train, raw.x_train), (data.x_test, raw.x_test)):
            assert x.dtype == np.float32
            assert x.max() == 1
            np.testing.assert_array_equal(x * 16, x_raw.reshape(-1, 64))

    def test_without_scikit_learn_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(ImportError, match=r"pip install 'tfpvae\[data\]'"):
            datasets.load("digits")

    def test_takes_no_path(self, tmp_path):
        with pytest.raises(ValueError, match=r"'digits' .* takes no path"):
            datasets.load("digits", tmp_path)


class TestSources:
    def test_raw(self, tmp_path):
        data = datasets.load("mnist", archive(tmp_path / "any name.npz"))
        assert holds(data)
        assert [part.dtype for part in data] == [np.uint8, np.int64, np.uint8, np.int64]

    def test_scaled_by_255_not_by_the_largest_level_found(self, tmp_path):
        x = np.full((6, 28, 28), 51, np.uint8)
        file = archive(tmp_path / "mnist.npz", x_train=x)
        data = datasets.load("mnist", file, scale=True)
        assert data.x_train.shape == (6, 28, 28)
        assert data.x_train.dtype == data.x_test.dtype == np.float32
        np.testing.assert_allclose(data.x_train, 0.2, rtol=1e-7)
        np.testing.assert_allclose(data.x_test, arrays()["x_test"] / 255, rtol=1e-7)
        assert datasets.load("mnist", file, flatten=True).x_test.shape == (3, 784)

    def test_path_then_variable_then_cache_then_download(
        self, monkeypatch, tmp_path, cache, origin
    ):
        assert holds(datasets.load("mnist"), seed=7)
        archive(cache, seed=1)
        assert holds(datasets.load("mnist"), seed=1)
        archive(tmp_path / "variable" / "mnist.npz", seed=2)
        monkeypatch.setenv("TFPVAE_DATA", str(tmp_path / "variable"))
        assert holds(datasets.load("mnist"), seed=2)
        file = archive(tmp_path / "path" / "mnist.npz", seed=3)
        assert holds(datasets.load("mnist", file), seed=3)
        assert holds(datasets.load("mnist", str(file.parent)), seed=3)
        monkeypatch.setenv("TFPVAE_DATA", "")
        assert holds(datasets.load("mnist"), seed=1)

    def test_home_is_where_keras_looks_without_a_variable(self, monkeypatch, tmp_path):
        monkeypatch.delenv("KERAS_HOME")
        archive(tmp_path / "home" / ".keras" / "datasets" / "mnist.npz", seed=4)
        assert holds(datasets.load("mnist"), seed=4)
        assert holds(datasets.load("mnist", "~/.keras/datasets"), seed=4)

    @pytest.mark.parametrize("place", ["missing.npz", "missing/mnist.npz", "empty"])
    def test_no_file_at_path_is_an_error_though_others_exist(self, tmp_path, cache, place):
        archive(cache)
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=rf"path=.*{place}.* there is no file"):
            datasets.load("mnist", tmp_path / place)

    @pytest.mark.parametrize("place", ["missing", "empty", "keras/datasets/mnist.npz"])
    def test_no_file_at_the_variable_is_an_error_though_others_exist(
        self, monkeypatch, tmp_path, cache, place
    ):
        archive(cache)
        (tmp_path / "empty").mkdir()
        monkeypatch.setenv("TFPVAE_DATA", str(tmp_path / place))
        with pytest.raises(FileNotFoundError, match=rf"TFPVAE_DATA=.*{place}.*mnist\.npz"):
            datasets.load("mnist")

    @pytest.mark.skipif(not REAL_MNIST, reason="TFPVAE_DATA names no folder")
    def test_the_real_set(self):
        data = datasets.load("mnist", REAL_MNIST)
        assert [part.shape for part in data] == [
            (60000, 28, 28),
            (60000,),
            (10000, 28, 28),
            (10000,),
        ]
        scaled = data.x_train / 255
        assert (scaled.mean(), scaled.std()) == pytest.approx((0.1307, 0.3081), abs=1e-4)


class TestDownload:
    def test_kept_in_the_cache_and_not_fetched_again(self, cache, origin):
        assert holds(datasets.load("mnist"), seed=7)
        assert cache.read_bytes() == origin.read_bytes()
        assert [file.name for file in cache.parent.iterdir()] == ["mnist.npz"]
        origin.unlink()
        assert holds(datasets.load("mnist"), seed=7)

    def test_the_origin_and_the_checksum_are_those_of_keras(self):
        source = Path(sys.modules[keras.datasets.mnist.load_data.__module__].__file__).read_text()
        folder, name = PUBLISHED_URL.rsplit("/", 1)
        assert f'"{folder}/"' in source
        assert f'"{name}"' in source
        assert f'"{datasets._MNIST_SHA256}"' in source

    def test_without_network_says_where_to_put_the_file(self, cache):
        with pytest.raises(ConnectionError, match="TFPVAE_DATA") as caught:
            datasets.load("mnist")
        assert str(cache.parent) in str(caught.value)
        assert datasets._MNIST_URL in str(caught.value)
        assert list(cache.parent.iterdir()) == []

    def test_wrong_checksum_is_refused_and_not_kept(self, monkeypatch, cache, origin):
        monkeypatch.setattr(datasets, "_MNIST_SHA256", "0" * 64)
        with pytest.raises(ValueError, match=r"not MNIST and was not kept.*TFPVAE_DATA"):
            datasets.load("mnist")
        assert list(cache.parent.iterdir()) == []

    def test_a_file_of_the_user_needs_no_checksum(self, tmp_path, cache):
        archive(cache)
        assert holds(datasets.load("mnist"))

    def test_cache_that_cannot_be_made(self, tmp_path):
        (tmp_path / "keras").write_text("a file where the folder should be")
        with pytest.raises(OSError, match=r"cannot be downloaded into .*TFPVAE_DATA"):
            datasets.load("mnist")

    @pytest.mark.parametrize(
        ("interruption", "error"),
        [
            (KeyboardInterrupt(), KeyboardInterrupt),
            (TimeoutError("timed out"), ConnectionError),
            (Exception("URL fetch failure"), ConnectionError),
        ],
    )
    def test_interrupted_half_way_leaves_nothing(
        self, monkeypatch, cache, origin, interruption, error
    ):
        def half(name, *, cache_dir, **_):
            Path(cache_dir, name).write_bytes(origin.read_bytes()[:1000])
            raise interruption

        with monkeypatch.context() as patch:
            patch.setattr("tf_keras.utils.get_file", half)
            with pytest.raises(error):
                datasets.load("mnist")
        assert list(cache.parent.iterdir()) == []
        assert holds(datasets.load("mnist"), seed=7)

    def test_interrupted_before_the_file_has_its_name_leaves_nothing(
        self, monkeypatch, cache, origin
    ):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            datasets.load("mnist")
        assert list(cache.parent.iterdir()) == []

    def test_killed_half_way_leaves_nothing_under_the_name(self, cache, origin):
        script = """
            import os
            from pathlib import Path

            import tf_keras as keras

            from tfpvae import datasets

            def half(name, *, cache_dir, **_):
                Path(cache_dir, name).write_bytes(b"half")
                os._exit(9)  # no clean-up of any kind

            keras.utils.get_file = half
            datasets.load("mnist")
        """
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
        assert run.returncode == 9
        assert list(cache.parent.iterdir()) != []  # the rest of it, under another name
        assert not cache.exists()
        assert holds(datasets.load("mnist"), seed=7)


class TestDamage:
    def refused(self, file, match):
        with pytest.raises(ValueError, match=match) as caught:
            datasets.load("mnist", file)
        message = str(caught.value)
        assert message.startswith(str(file))
        assert "Wanted: an .npz file with uint8 images" in message
        assert "Replace the file" in message

    def test_truncated_anywhere(self, tmp_path):
        file = archive(tmp_path / "mnist.npz")
        whole = file.read_bytes()
        cuts = {0, 1, 21, 22, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 150)}
        for cut in cuts:
            file.write_bytes(whole[:cut])
            self.refused(file, f"its {cut} bytes are no complete zip archive")

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_one_wrong_bit_anywhere_is_refused_or_harmless(self, tmp_path, save):
        file = tmp_path / "mnist.npz"
        save(file, **arrays())
        whole = file.read_bytes()
        refused = 0
        for place in random.Random(0).sample(range(8 * len(whole)), 300):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            file.write_bytes(damaged)
            try:
                assert holds(datasets.load("mnist", file))
            except ValueError:
                refused += 1
        assert refused > 200

    def test_header_that_shifts_the_pixels(self, tmp_path):
        # NumPy reads such an array to the end of its shape, not of its bytes: no checksum there.
        file = tmp_path / "mnist.npz"
        np.savez(file, **arrays())
        damaged = bytearray(file.read_bytes())
        damaged[damaged.index(b"\x93NUMPY") + 8] ^= 16
        file.write_bytes(damaged)
        self.refused(file, "x_train.npy is damaged")

    @pytest.mark.parametrize("contents", [b"", b"<html>please log in</html>", b"\x1f\x8b" * 99])
    def test_no_archive(self, tmp_path, contents):
        file = tmp_path / "mnist.npz"
        file.write_bytes(contents)
        self.refused(file, "no complete zip archive")

    def test_single_array(self, tmp_path):
        file = tmp_path / "mnist.npy"
        np.save(file, arrays()["x_train"])
        self.refused(file, "no complete zip archive")

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"y_test": None}, r"it holds \['x_test', 'x_train', 'y_train'\]"),
            ({"x_train": arrays()["x_train"] / 255}, r"x_train is float64 \[6, 28, 28\]"),
            ({"x_train": np.zeros((6, 784), np.uint8)}, r"x_train is uint8 \[6, 784\]"),
            ({"x_test": np.zeros((3, 28, 28, 1), np.uint8)}, r"x_test is uint8 \[3, 28, 28, 1\]"),
            ({"x_test": np.zeros((3, 32, 32), np.uint8)}, r"x_test is uint8 \[3, 32, 32\]"),
            ({"x_test": np.zeros((0, 28, 28), np.uint8)}, r"x_test is uint8 \[0, 28, 28\]"),
            ({"y_train": np.zeros(5, np.uint8)}, r"y_train is uint8 \[5\] for 6 images"),
            ({"y_train": np.eye(6, 10, dtype=np.uint8)}, r"y_train is uint8 \[6, 10\]"),
            ({"y_test": np.zeros(3)}, r"y_test is float64 \[3\]"),
            ({"y_test": np.array(["a", "b", "c"])}, r"y_test is <U1 \[3\]"),
            ({"y_test": np.array([1, 26, 3])}, "y_test has labels from 1 to 26"),
            ({"y_test": np.array([1, -1, 3])}, "y_test has labels from -1 to 3"),
        ],
    )
    def test_wrong_contents(self, tmp_path, changes, found):
        self.refused(archive(tmp_path / "mnist.npz", **changes), found)

    def test_pickled_objects_are_not_loaded(self, tmp_path):
        trace = tmp_path / "trace"
        objects = np.array([Touch(str(trace))] * 6, dtype=object)
        self.refused(archive(tmp_path / "mnist.npz", y_train=objects), "allow_pickle=False")
        assert not trace.exists()

    def test_broken_cache_is_not_silently_replaced(self, cache, origin):
        archive(cache, seed=1)
        cache.write_bytes(cache.read_bytes()[:-1])
        with pytest.raises(ValueError, match="can be deleted and is then downloaded again"):
            datasets.load("mnist")


class Touch:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [("minst", "'mnist'"), ("MNIST", "'mnist'"), ("digit", "'digits'")],
    )
    def test_unknown_name_suggests_the_nearest(self, name, hint):
        with pytest.raises(ValueError, match=f"{name}.*'digits', 'mnist'.*Did you mean {hint}"):
            datasets.load(name)

    def test_unknown_name_like_no_other(self):
        with pytest.raises(ValueError, match=r"name: got 'cifar10', wanted one of .*'mnist'\.$"):
            datasets.load("cifar10")

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((None,), {}, "name must be a string, not NoneType"),
            ((b"mnist",), {}, "name must be a string, not bytes"),
            (("mnist", 3), {}, "path must be a string or a path, not int"),
            (("mnist", b"x"), {}, "path must be a string or a path, not bytes"),
            (("digits",), {"scale": 255}, "scale must be True or False, not 255"),
            (("digits",), {"flatten": "yes"}, "flatten must be True or False, not 'yes'"),
        ],
    )
    def test_wrong_types(self, arguments, options, message):
        with pytest.raises(TypeError, match=message):
            datasets.load(*arguments, **options)
