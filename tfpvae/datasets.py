"""Handwritten digits as NumPy arrays: one function, no substitute for what was asked for."""

import difflib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

# The archive that keras.datasets.mnist loads, and its published checksum.
_MNIST_FILE = "mnist.npz"
_MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"

#: the data sets, and the largest level that a pixel can have, which need not occur
MAX_LEVELS = {"digits": 16, "mnist": 255}


class Dataset(NamedTuple):
    """Images and integer labels for training and testing.

    Attributes:
      x_train: training images, [N, H, W], or [N, H*W] when flattened.
      y_train: their class labels, int64 [N].
      x_test: test images, [M, H, W] or [M, H*W].
      y_test: their class labels, int64 [M].
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(
    name: str,
    path: str | os.PathLike[str] | None = None,
    *,
    scale: bool = False,
    flatten: bool = False,
) -> Dataset:
    """Load a data set by its name.

    "digits" is the set of 1,797 images of 8x8 pixels, levels 0 to 16, that scikit-learn ships. The
    first 1,437 are the training set and the last 360 the test set, always.

    "mnist" is the set of 60,000 training and 10,000 test images of 28x28 pixels, levels 0 to 255,
    in the .npz layout of Keras. The first of these sources that is given is used, and no other:

    1. `path`, the file or a folder that holds mnist.npz;
    2. the folder that the environment variable TFPVAE_DATA names (an empty value counts as unset);
    3. the Keras cache, datasets/mnist.npz in the folder KERAS_HOME or else ~/.keras;
    4. a download into that cache, which keeps the file only if its SHA-256 is the published one.

    Args:
      name: "digits" or "mnist".
      path: where the MNIST archive is; only for "mnist".
      scale: divide by the largest possible level; the images are then float32 in [0, 1].
      flatten: make each image one row of H*W pixels.

    Returns:
      A `Dataset`: x_train, y_train, x_test, y_test. Without `scale` the images are uint8.

    Raises:
      ValueError: unknown name, a path for "digits", or a file that is not the archive it should
        be: truncated, of another format, with other arrays, downloaded with a wrong checksum.
      TypeError: an argument of the wrong type.
      FileNotFoundError: `path` or TFPVAE_DATA is given and the file is not there.
      ConnectionError: the download failed.
      ImportError: "digits" without scikit-learn.

    Example:
      >>> digits = load("digits", scale=True, flatten=True)
      >>> digits.x_train.shape, digits.x_test.shape
      ((1437, 64), (360, 64))
      >>> float(digits.x_train.max())
      1.0
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    if name not in MAX_LEVELS:
        near = difflib.get_close_matches(name.lower(), MAX_LEVELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(map(repr, MAX_LEVELS))
        raise ValueError(f"name: got {name!r}, wanted one of {known}.{hint}")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a string or a path, not {type(path).__name__}")
    for option, value in (("scale", scale), ("flatten", flatten)):
        if not isinstance(value, bool):
            raise TypeError(f"{option} must be True or False, not {value!r}")
    if name == "digits":
        if path is not None:
            raise ValueError(f"'digits' comes with scikit-learn and takes no path, got {path!r}")
        data = _digits()
    else:
        data = _read_mnist(_find_mnist(path))

    def prepare(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1) if flatten else x
        return x.astype(np.float32) / np.float32(MAX_LEVELS[name]) if scale else x

    return data._replace(x_train=prepare(data.x_train), x_test=prepare(data.x_test))


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the data set 'digits' comes with scikit-learn, which cannot be imported "
            f"({error}): pip install 'tfpvae[data]'"
        ) from error
    source = load_digits()
    x, y = source.images.astype(np.uint8), source.target.astype(np.int64)
    # The images stand in the order of the people who wrote them. Cutting once, instead of drawing
    # at random, leaves hardly anybody's hand in both parts.
    return Dataset(x[:1437], y[:1437], x[1437:], y[1437:])


def _find_mnist(path: str | os.PathLike[str] | None) -> Path:
    folder = os.environ.get("TFPVAE_DATA")
    if path is not None:
        file = Path(path).expanduser()
        file = file / _MNIST_FILE if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(
                f"path={str(path)!r}: there is no file {file}. "
                f"path must be an .npz file or a folder that holds {_MNIST_FILE}."
            )
    elif folder:
        file = Path(folder).expanduser() / _MNIST_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"TFPVAE_DATA={folder!r}: there is no file {file}. TFPVAE_DATA must name a folder "
                f"that holds {_MNIST_FILE}; unset it to use the Keras cache or a download."
            )
    else:
        # Keras reads KERAS_HOME once, when imported; here a change counts at the next call.
        home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
        file = home / "datasets" / _MNIST_FILE
        if not file.exists():
            _download_mnist(file)
    return file


def _download_mnist(file: Path) -> None:
    """Download to `file`, which appears under its name complete and checked or not at all."""
    remedy = (
        f"Put {_MNIST_FILE} into {file.parent}, or set TFPVAE_DATA to a folder that holds it, "
        "or pass its place as path."
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a file can only be moved in one step within one file system.
        temporary = tempfile.TemporaryDirectory(prefix=".mnist-", dir=file.parent)
    except OSError as error:
        raise OSError(
            f"MNIST cannot be downloaded into {file.parent}: {error}. {remedy}"
        ) from error
    with temporary as folder:
        from tf_keras.utils import get_file

        try:
            part = get_file(
                _MNIST_FILE,
                origin=_MNIST_URL,
                file_hash=_MNIST_SHA256,
                hash_algorithm="sha256",
                cache_dir=folder,
                cache_subdir="",
            )
        except ValueError as error:
            raise ValueError(
                f"what {_MNIST_URL} sent is not MNIST and was not kept: {error} {remedy}"
            ) from error
        except Exception as error:  # get_file raises bare Exception when there is no connection
            raise ConnectionError(
                f"MNIST could not be downloaded from {_MNIST_URL}: {error}. {remedy}"
            ) from error
        os.replace(part, file)


def _read_mnist(file: Path) -> Dataset:
    def refusal(found: str) -> ValueError:
        return ValueError(
            f"{file} is not the MNIST archive of Keras, or not all of it: {found}. Wanted: an .npz "
            "file with uint8 images x_train and x_test [N, 28, 28] and integer labels 0 to 9 "
            "y_train and y_test [N]. Replace the file by a complete copy; one in the Keras cache "
            "can be deleted and is then downloaded again."
        )

    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise refusal(f"its {file.stat().st_size} bytes are no complete zip archive")
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as archive:
                # NumPy stops where it thinks an array ends, which can be short of the checksum.
                if damaged := archive.zip.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
                arrays = {key: archive[key] for key in Dataset._fields if key in archive}
                names = archive.files
        except Exception as error:  # a damaged archive can make zipfile and NumPy raise anything
            raise refusal(f"reading it ends in {type(error).__name__}: {error}") from error
    if len(arrays) < len(Dataset._fields):
        raise refusal(f"it holds {sorted(names)}")
    data = Dataset(**arrays)
    for part, x, y in (
        ("train", data.x_train, data.y_train),
        ("test", data.x_test, data.y_test),
    ):
        if x.dtype != np.uint8 or x.shape[1:] != (28, 28) or len(x) == 0:
            raise refusal(f"x_{part} is {x.dtype} {list(x.shape)}")
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            raise refusal(f"y_{part} is {y.dtype} {list(y.shape)} for {len(x)} images")
        if y.min() < 0 or y.max() > 9:
            raise refusal(f"y_{part} has labels from {y.min()} to {y.max()}")
    return data._replace(y_train=data.y_train.astype(np.int64), y_test=data.y_test.astype(np.int64))
