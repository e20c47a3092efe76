"""Model files: written whole or not at all, and read without running anything that they name.

A `.keras` file is a ZIP archive of the configuration (JSON), the weights (HDF5) and metadata.
Keras looks up whatever the configuration names, some of which runs code: `load_model` reads the
file first and hands it to Keras only if it is made of what is known to be harmless.
"""

import contextlib
import errno
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import checks, serialization

#: of the files that `save` writes; a later one may hold what this version does not know
FORMAT = 1

_METADATA, _CONFIG, _WEIGHTS = _MEMBERS = ("metadata.json", "config.json", "model.weights.h5")

_MAX_JSON = 2**26  # bytes
_MAX_DEPTH = 200
_MAX_RATIO = 100  # of compression
_MAX_ELEMENTS = 2**27  # of an input, an event, ...
_MAX_INTEGER = 2**31
_MAX_OBJECTS = 10**6  # in a weights file
_MEMORY = 2**32  # bytes, beside those for the weights
_SLACK = 2**24  # bytes of variables that a file need not hold

_FULL = {getattr(errno, name, 0) for name in ("ENOSPC", "EDQUOT", "EFBIG")}

_one_at_a_time = threading.RLock()  # The limit of memory belongs to the process.


class InvalidModelFile(ValueError):  # noqa: N818  # It names what is wrong: the file.
    """A model file that is damaged, of a later version, or asks for what is not loaded."""


# Writing.


@contextlib.contextmanager
def atomic(path: Any) -> Iterator[pathlib.Path]:
    """Write a file or folder whole or not at all, also if the disk is full or the process dies.

    What is written to the path that it yields takes the place of the old file when the block has
    ended, and has reached the disk by then. After an exception the old file is as it was.

    Args:
      path: the file, or the folder; a link is followed.

    Yields:
      A path of the same name in a folder of its own on the same disk.

    Raises:
      FileNotFoundError: if there is no folder for it.
      OSError: if the disk is full.

    Example:
      >>> path = pathlib.Path(tempfile.mkdtemp(), "numbers.json")
      >>> with atomic(path) as whole:
      ...     whole.write_text("[1, 2]")
      6
      >>> path.read_text()
      '[1, 2]'
    """
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder: make it before you write to it", str(target.parent)
        )
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
            whole = pathlib.Path(folder, target.name)
            yield whole
            for made in (*whole.rglob("*"), whole) if whole.is_dir() else (whole,):
                _flush(made)
            if target.is_file() and whole.is_file():
                shutil.copymode(target, whole)
            if target.is_dir():  # One folder cannot be renamed to another that has files in it.
                target.rename(pathlib.Path(folder, "old"))
            try:
                whole.replace(target)
            except OSError:
                if pathlib.Path(folder, "old").exists():
                    pathlib.Path(folder, "old").rename(target)
                raise
            _flush(target.parent)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}: nothing was written, what was there is unchanged; make room",
            str(path),
        ) from error


def _flush(path: pathlib.Path) -> None:
    """Have the disk hold what was written."""
    if os.name == "nt" and path.is_dir():  # Windows has no such thing for folders.
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(model: Any, path: Any, *, notes: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
    """Write a model to a `.keras` file, whole or not at all, with what tells damage later.

    It is Keras's own file, which `keras.models.load_model` reads too; its metadata hold besides the
    version of tfpvae, that of the format, and the SHA-256 of configuration and weights.
    `ProbabilisticModel.save` calls it; for other Keras models call it yourself.

    Args:
      model: a tf_keras model.
      path: the file, with a name that ends in .keras.
      notes: what else to write down in the file, for people and programs: JSON. `read_notes` reads
        it; a loaded model does not have it.
      **kwargs: of `keras.Model.save`.

    Raises:
      ValueError: for another name.
      TypeError: for notes that are no JSON.
      OSError: if the disk is full; a file that was there is as it was.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
      >>> save(model, path)
      >>> load_model(path).output_shape
      (None, 1)
    """
    if pathlib.Path(path).suffix != ".keras":
        raise ValueError(f"path: got {str(path)!r}, wanted a name that ends in .keras")
    notes = checks.mapping("notes", notes)
    try:
        json.dumps(notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes: got what is no JSON ({error}), wanted numbers and text") from error
    with atomic(path) as whole:
        plain = whole.with_name(f"plain-{whole.name}")
        keras.Model.save(model, plain, **kwargs)
        _sign(plain, whole, notes)


def _sign(plain: pathlib.Path, whole: pathlib.Path, notes: dict[str, Any]) -> None:
    """Copy an archive, with its versions, its digests and the notes in the metadata."""
    digests = {}
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(whole, "w") as target:
        for name in source.namelist():
            if name == _METADATA:
                continue
            digest = hashlib.sha256()
            with source.open(name) as member, target.open(name, "w", force_zip64=True) as copy:
                while piece := member.read(2**20):
                    digest.update(piece)
                    copy.write(piece)
            digests[name] = digest.hexdigest()
        metadata = json.loads(source.read(_METADATA)) | {
            "tfpvae_version": importlib.import_module("tfpvae").__version__,
            "tfpvae_format": FORMAT,
            "sha256": digests,
        }
        metadata |= {"notes": notes} if notes else {}
        target.writestr(_METADATA, json.dumps(metadata))


# Reading.


def load_model(path: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Load a model from a `.keras` file, also from somebody else's: nothing in it is run.

    The model goes on as the saved one would have: objective, schedules, optimizer and noise are
    loaded too. The file may hold models and blocks of tfpvae, and models of Keras that are made of
    them and of Keras's layers. Refused, before Keras sees the file: damage, members that do not
    belong there, classes and functions that are not known to be harmless (`Lambda`, lookups that
    read files, most of the functions of TensorFlow), weights that refer to other files, and shapes
    for which the file has no weights.

    Args:
      path: the file.
      custom_objects: what else it may name: classes and functions of yours, by the name that they
        are registered under, as `{"package>name": function}`.

    Returns:
      The model.

    Raises:
      FileNotFoundError: if there is no such file.
      InvalidModelFile: a ValueError, if the file is refused.

    Example:
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> x = np.eye(3, dtype="float32")
      >>> vae.build(x.shape)
      >>> path = os.path.join(tempfile.mkdtemp(), "vae.keras")
      >>> vae.save(path)
      >>> bool((load_model(path).elbo(x, seed=1) == vae.elbo(x, seed=1)).all())
      True
    """
    path = _checked_path(path)
    with _one_at_a_time:
        config, weights = _read(path)
        _Checker(path, custom_objects or {}).check(config)
        try:
            with _memory_limit(_MEMORY + 16 * weights.num_bytes), _variable_limit(path, weights):
                model = keras.models.load_model(str(path), custom_objects=custom_objects)
        except InvalidModelFile:
            raise
        except Exception as error:  # Whatever Keras stumbles over: the file made it do so.
            raise InvalidModelFile(
                f"{path}: got a file of which no model can be made ({_first_line(error)}), wanted "
                "configuration and weights that fit each other; is it damaged?"
            ) from error
    if not isinstance(model, keras.Model):
        raise InvalidModelFile(f"{path}: got a {type(model).__name__} in {_CONFIG}, wanted a model")
    _check_optimizer(path, model, weights)
    return model


def read_notes(path: Any) -> dict[str, Any]:
    """The notes in a `.keras` file, as `save` was given them; empty if there are none.

    Args:
      path: the file. The notes are what somebody wrote: no digest protects them.

    Raises:
      FileNotFoundError: if there is no such file.
      InvalidModelFile: a ValueError, if the file cannot be read.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
      >>> save(model, path, notes={"columns": ["age", "dose"]})
      >>> read_notes(path)
      {'columns': ['age', 'dose']}
    """
    path = _checked_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            metadata = _json(path, _METADATA, archive.read(_METADATA))
    except InvalidModelFile:
        raise
    except Exception as error:  # Whatever a damaged archive makes zipfile raise.
        raise _damaged(path, error) from error
    notes = metadata.get("notes", {})
    return notes if isinstance(notes, dict) else {}


def _checked_path(path: Any) -> pathlib.Path:
    """The path of a model file; an error if there is none."""
    path = checks.path("path", path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such model file", str(path))
    if not path.is_file() or path.suffix != ".keras":
        raise InvalidModelFile(
            f"path: got {path}, {'a folder' if path.is_dir() else 'another name'}, wanted a file "
            "that ends in .keras; keras.models.load_model reads other formats, if you trust them"
        )
    return path


class _Weights:
    """What a weights file holds.

    Args:
      num_bytes: of all arrays.
      steps: of the optimizer.
      slots: how many arrays the optimizer has.
    """

    def __init__(self, num_bytes: int, steps: int, slots: int) -> None:
        self.num_bytes, self.steps, self.slots = num_bytes, steps, slots


def _read(path: pathlib.Path) -> tuple[Any, _Weights]:
    """The configuration, and what the weights are, once the archive has been checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            metadata = _json(path, _METADATA, archive.read(_METADATA))
            _check_version(path, metadata)
            members = {name: archive.read(name) for name in (_CONFIG, _WEIGHTS)}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError) as error:
        raise _damaged(path, error) from error
    except (KeyError, ValueError, NotImplementedError, RuntimeError, MemoryError) as error:
        if isinstance(error, InvalidModelFile):
            raise
        raise _damaged(path, error) from error
    except Exception as error:  # zlib.error, struct.error: of a damaged archive.
        raise _damaged(path, error) from error
    if "tfpvae_format" in metadata or "sha256" in metadata:
        _check_digests(path, metadata.get("sha256"), members)
    return _json(path, _CONFIG, members[_CONFIG]), _check_weights(path, members[_WEIGHTS])


def _damaged(path: pathlib.Path, error: BaseException) -> InvalidModelFile:
    return InvalidModelFile(
        f"{path}: got no readable archive ({_first_line(error)}), wanted a .keras file; it is "
        "damaged or of another kind: copy it again"
    )


def _check_members(path: pathlib.Path, archive: zipfile.ZipFile) -> None:
    """Raise InvalidModelFile unless the archive has the three files and nothing else."""
    members = archive.infolist()
    if sorted(member.filename for member in members) != sorted(_MEMBERS):
        names = [member.filename for member in members][:9]
        raise InvalidModelFile(
            f"{path}: got an archive of {', '.join(map(repr, names)) or 'nothing'}, wanted "
            f"{', '.join(_MEMBERS)}, each once; layers with files of their own, as vocabularies, "
            "are not loaded"
        )
    room = path.stat().st_size
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
            raise InvalidModelFile(
                f"{path}: got a link or an encrypted file as {member.filename}, wanted a plain one"
            )
        known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        most = _MAX_RATIO * member.compress_size
        room -= member.compress_size
        if not known or member.file_size > most or room < 0:
            raise InvalidModelFile(
                f"{path}: got {member.filename} packed from {member.file_size} to "
                f"{member.compress_size} bytes, wanted files that are not compressed, as Keras "
                "writes them, or by no more than a factor of 100"
            )
        if member.filename != _WEIGHTS and member.file_size > _MAX_JSON:
            raise InvalidModelFile(
                f"{path}: got {member.file_size} bytes of {member.filename}, wanted at most "
                f"{_MAX_JSON}"
            )


def _json(path: pathlib.Path, name: str, text: bytes) -> dict[str, Any]:
    """The object that a member describes."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(
            f"{path}: got {name} that is no JSON ({_first_line(error)}); the file is damaged"
        ) from error
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{path}: got {type(value).__name__} in {name}, wanted an object")
    return value


def _check_version(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    """Raise InvalidModelFile for a file of a later version."""
    written = metadata.get("tfpvae_format")
    if written is None or (type(written) is int and 1 <= written <= FORMAT):
        return
    version = importlib.import_module("tfpvae").__version__
    raise InvalidModelFile(
        f"{path}: got format {written!r:.20}, written by tfpvae "
        f"{metadata.get('tfpvae_version')!s:.20}, wanted at most format {FORMAT}, that of "
        f"tfpvae {version}: install a later tfpvae"
    )


def _check_digests(path: pathlib.Path, digests: Any, members: Mapping[str, bytes]) -> None:
    """Raise InvalidModelFile unless the members are what was written."""
    for name, content in members.items():
        wanted = digests.get(name) if isinstance(digests, dict) else None
        if hashlib.sha256(content).hexdigest() != wanted:
            raise InvalidModelFile(
                f"{path}: got {name} that is not what was saved (its SHA-256 differs from that in "
                f"{_METADATA}): the file was damaged or changed; copy it again"
            )


def _check_weights(path: pathlib.Path, content: bytes) -> _Weights:
    """What a weights file holds: arrays that are all there, and nothing that leads elsewhere."""
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            arrays = dict(_arrays(path, file))
            num_bytes = sum(array.nbytes for array in arrays.values())
            if num_bytes > len(content):
                raise InvalidModelFile(f"{path}: got arrays that share their place in {_WEIGHTS}")
            for name, array in arrays.items():
                if array.dtype.kind == "f" and np.isnan(np.sum(array[()], dtype="float64")):
                    if not np.isnan(array[()]).any():  # inf - inf
                        continue
                    raise InvalidModelFile(
                        f"{path}: got NaN in the weights {name}, wanted numbers: the training had "
                        "failed when it was saved; keras.models.load_model loads it nonetheless"
                    )
            slots = {n: a for n, a in arrays.items() if n.startswith("/optimizer/vars/")}
            first = slots.get("/optimizer/vars/0")
            steps = int(first[()]) if first is not None and first.shape == () else 0
            return _Weights(num_bytes, steps, len(slots))
    except InvalidModelFile:
        raise
    except Exception as error:  # h5py raises whatever comes.
        raise InvalidModelFile(
            f"{path}: got {_WEIGHTS} that cannot be read ({_first_line(error)}), wanted an HDF5 "
            "file; it is damaged"
        ) from error


def _arrays(path: pathlib.Path, file: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of an HDF5 file by name; InvalidModelFile for all that is not simply an array."""
    seen: set[Any] = set()
    groups = [("", file)]
    while groups:
        prefix, group = groups.pop()
        for key in group:
            name = f"{prefix}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise _foreign(path, name, "a link")
            item = group[key]
            where = h5py.h5o.get_info(item.id).addr
            if where in seen or len(seen) > _MAX_OBJECTS:
                raise _foreign(path, name, "what is there already")
            seen.add(where)
            if isinstance(item, h5py.Group):
                groups.append((name, item))
            elif isinstance(item, h5py.Dataset):
                _check_array(path, name, item)
                yield name, item
            else:
                raise _foreign(path, name, type(item).__name__)


def _check_array(path: pathlib.Path, name: str, array: Any) -> None:
    """Raise InvalidModelFile unless the file holds every number of an array."""
    made = array.id.get_create_plist()
    if made.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or made.get_nfilters():
        raise _foreign(path, name, "an array in pieces, compressed or virtual")
    if made.get_external_count():
        raise _foreign(path, name, "an array in another file")
    if array.dtype.kind not in "biuf":
        raise _foreign(path, name, f"an array of {array.dtype!s:.30}")
    if array.shape is None or array.id.get_storage_size() != array.nbytes:
        raise _foreign(path, name, f"shape {array.shape} without its numbers")


def _foreign(path: pathlib.Path, name: str, got: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"{path}: got {got} at {name[:80]} of {_WEIGHTS}, wanted plain arrays of numbers, as Keras "
        "writes them"
    )


def _check_optimizer(path: pathlib.Path, model: Any, weights: _Weights) -> None:
    """Raise InvalidModelFile if Keras has left out the optimizer's state, which it only logs."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not weights.steps:
        return
    wanted = getattr(optimizer, "variables", ())
    wanted = len(wanted() if callable(wanted) else wanted)
    if weights.slots != wanted:
        raise InvalidModelFile(
            f"{path}: got {weights.slots} arrays of the optimizer, wanted {wanted}: training could "
            "not go on from there"
        )


@contextlib.contextmanager
def _variable_limit(path: pathlib.Path, weights: _Weights) -> Iterator[None]:
    """Refuse variables that the file has no weights for, before they take memory."""
    most = 8 * weights.num_bytes + _SLACK
    total = 0

    def create(next_creator: Any, **kwargs: Any) -> Any:
        nonlocal total
        shape = kwargs.get("shape")
        value: Any = kwargs.get("initial_value")
        if shape is None and not callable(value):
            shape = np.shape(value)
        if shape is not None:
            size = math.prod(tf.TensorShape(shape).as_list())
            total += size * tf.as_dtype(kwargs.get("dtype") or "float32").size
        if total > most:
            raise InvalidModelFile(
                f"{path}: got a configuration with more than {most} bytes of variables, wanted no "
                f"more than the {weights.num_bytes} bytes of its weights explain"
            )
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        yield


@contextlib.contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    """Give the process so many bytes more: what asks for all of the machine's gets an error.

    Only Linux can do that. Threads may be started meanwhile, which take room of their own.
    """
    try:
        resource: Any = importlib.import_module("resource")
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[5])
        old, most = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, ValueError, IndexError):
        yield
        return
    wanted = pages * resource.getpagesize() + num_bytes + 2**25 * (os.cpu_count() or 1)
    bounds = [bound for bound in (old, most) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *bounds]), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (old, most))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__


# What a configuration may name.

_LAYERS = (  # Packages of Keras's layers that are arithmetic alone.
    "activation",
    "attention",
    "convolutional",
    "locally_connected",
    "merging",
    "normalization",
    "pooling",
    "regularization",
    "reshaping",
    "rnn",
)
_MORE_LAYERS = (
    "Activation",
    "CategoryEncoding",
    "CenterCrop",
    "Dense",
    "Discretization",
    "EinsumDense",
    "Embedding",
    "Functional",
    "Identity",
    "InputLayer",
    "Masking",
    "Model",
    "Normalization",
    "Rescaling",
    "Resizing",
    "Sequential",
    "SlicingOpLambda",
    "TFOpLambda",
)
_OTHERS = (  # Modules of Keras of which every class is harmless.
    "constraints",
    "initializers",
    "losses",
    "metrics",
    "mixed_precision",
    "optimizers",
    "optimizers.legacy",
    "optimizers.schedules",
    "regularizers",
)
_FUNCTIONS = ("activations", "losses", "metrics")
_RESOLVERS = {"get", "serialize", "deserialize"}  # What looks up a name in turn.

# TFOpLambda calls a function of TensorFlow by name, and some of them read and write files.
_OPS = ("math.", "nn.", "linalg.", "__operators__.", "bitwise.")
_MORE_OPS = {
    "cast",
    "clip_by_value",
    "concat",
    "convert_to_tensor",
    "expand_dims",
    "gather",
    "identity",
    "one_hot",
    "ones_like",
    "rank",
    "reshape",
    "reverse",
    "roll",
    "shape",
    "sort",
    "split",
    "squeeze",
    "stack",
    "stop_gradient",
    "tile",
    "transpose",
    "unstack",
    "where",
    "zeros_like",
}

_NODE = {
    "module",
    "class_name",
    "config",
    "registered_name",
    "build_config",
    "compile_config",
    "shared_object_id",
    "name",
    "inbound_nodes",
}
_VALUES = ("__tensor__", "__numpy__")

# Keys of a configuration under which a string is the name of an object.
_NAMING = ("activation", "initializer", "regularizer", "constraint")
_NAMING_KEYS = {"optimizer", "inner_optimizer", "loss", "metrics", "weighted_metrics", "fn"}
_NAMING_KEYS |= {"layers", "layer", "backward_layer", "cell", "cells"}


class _Checker:
    """Goes through a configuration and raises InvalidModelFile for what may run code.

    Keras finds a class by the registered name, by module and name, or by the name alone, depending
    on where it stands. So all three have to say the same, and it has to be harmless.

    Args:
      path: the file, for errors.
      custom_objects: what the user allows, by name.
    """

    def __init__(self, path: pathlib.Path, custom_objects: Mapping[str, Any]) -> None:
        self._path, self._custom = path, dict(custom_objects)
        self._classes, self._names = _harmless()

    def check(self, config: Any) -> None:
        """Check a whole configuration."""
        self._import_ours(config)
        self._registered = keras.saving.get_custom_objects()
        self._walk(config, "", 0)

    def _import_ours(self, config: Any) -> None:
        """Import the modules of tfpvae whose classes it names: they register them."""
        ours = importlib.import_module("tfpvae")
        known = {f"tfpvae.{name}" for name in ours._MODULES}
        items = [config]
        while items:
            item = items.pop()
            if isinstance(item, dict):
                module = item.get("module")
                if isinstance(module, str) and module in known:
                    importlib.import_module(module)
                items.extend(item.values())
            elif isinstance(item, list):
                items.extend(item)

    def _walk(self, value: Any, key: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise self._refused(f"a configuration nested deeper than {_MAX_DEPTH}", "a flat one")
        if isinstance(value, str):
            self._check_string(value, key)
        elif isinstance(value, int) and abs(value) > _MAX_INTEGER and "seed" not in key:
            if key != "shared_object_id":
                raise self._refused(f"{key}={value:.3e}", f"numbers up to {_MAX_INTEGER}")
        elif isinstance(value, list):
            self._check_shape(value, key)
            for item in value:
                self._walk(item, key, depth + 1)
        elif isinstance(value, dict):
            if "class_name" in value:
                self._check_object(value)
            if "tfpvae" in value or "dtype" in value:
                self._check_dtype(value)
            plain = "class_name" not in value and key in _NAMING_KEYS  # Metrics of each output.
            for name, item in value.items():
                if not ("class_name" in value and name in ("class_name", "registered_name")):
                    self._walk(item, key if plain else name, depth + 1)

    def _check_string(self, value: str, key: str) -> None:
        if value in self._registered and not self._is_ours(value, self._registered[value]):
            raise self._unknown(value, value)
        is_name = key.endswith(_NAMING) or key in _NAMING_KEYS
        if is_name and not any(value in of for of in (self._names, self._custom, self._registered)):
            raise self._unknown(value, value)

    def _check_shape(self, sizes: list[Any], key: str) -> None:
        if "shape" in key and all(size is None or type(size) is int for size in sizes):
            num = math.prod(abs(size) for size in sizes if size)
            if num > _MAX_ELEMENTS:
                raise self._refused(f"{key}={sizes}", f"at most {_MAX_ELEMENTS} elements")

    def _check_dtype(self, value: dict[str, Any]) -> None:
        """No array of strings of a gigabyte each."""
        dtype = value.get("dtype")
        if (value.get("tfpvae") == "array" or "value" in value) and not _is_number(dtype):
            raise self._refused(f"an array of dtype {dtype!r:.40}", "numbers")

    def _check_object(self, node: dict[str, Any]) -> None:
        name, config = node["class_name"], node.get("config")
        strings = [name, node.get("registered_name") or "", node.get("module") or ""]
        if not all(isinstance(text, str) for text in strings) or not {*node} <= _NODE:
            raise self._refused(f"a description of {str(name)[:40]!r}", "one as Keras writes it")
        if not {"module", "config", "registered_name"} <= {*node} and name not in _VALUES:
            raise self._refused(f"a {name!r} of an older format of Keras", "one of `.keras` files")
        if name in _VALUES:
            if not isinstance(config, dict) or not _is_number(config.get("dtype")):
                raise self._refused(f"a {name} of dtype {str(config)[:40]}", "numbers")
        elif name == "function":
            self._check_function(node)
        elif not isinstance(config, dict):
            raise self._refused(f"{name!r} with the configuration {config!r:.40}", "an object")
        else:
            made = getattr(self._check_class(node), "__name__", "")
            if {name, made} & {"TFOpLambda", "SlicingOpLambda"}:
                self._check_op(config.get("function"))

    def _check_function(self, node: dict[str, Any]) -> None:
        name, registered = node["config"], node["registered_name"]
        if not isinstance(name, str) or registered not in (None, "function", name):
            raise self._refused(f"{name!r:.40} registered as {registered!r:.40}", "one name")
        if self._lookup(name) is not None:
            return
        modules = ("builtins", *(f"keras.{module}" for module in _FUNCTIONS))
        if node["module"] not in modules or name not in self._names:
            raise self._unknown(name, name)

    def _check_class(self, node: dict[str, Any]) -> Any:
        name, registered = node["class_name"], node["registered_name"]
        found = self._lookup(registered) if registered else None
        if found is None:
            self._lookup(name)  # By the name alone.
            found = _attribute(node["module"], name)
            if not inspect.isclass(found) or found not in self._classes:
                raise self._unknown(name, registered or name)
        # Some classes of Keras have two names.
        known = name in self._custom or (found in self._classes and name in self._names)
        if getattr(found, "__name__", name) != name and not known:
            raise self._refused(f"{name!r} registered as {registered!r}", "one name for one class")
        return found

    def _lookup(self, name: str) -> Any:
        """What is registered under a name, or allowed by the user; None if nothing is."""
        if name in self._registered:
            found = self._registered[name]
            if not self._is_ours(name, found):
                raise self._unknown(name, name)
            return found
        return self._custom.get(name)

    def _is_ours(self, name: str, found: Any) -> bool:
        module = getattr(found, "__module__", None) or ""
        is_ours = module.startswith("tfpvae.") or module == "tfpvae"
        allowed = any(found is value for value in (*self._custom.values(), *self._classes))
        return is_ours or allowed

    def _check_op(self, symbol: Any) -> None:
        known = isinstance(symbol, str) and (symbol in _MORE_OPS or symbol.startswith(_OPS))
        if not known or symbol.count(".") > 1:
            raise self._refused(
                f"a call of the function tf.{symbol}"[:80],
                "arithmetic alone; keras.models.load_model calls whatever the file says",
            )

    def _unknown(self, name: str, registered: str) -> InvalidModelFile:
        return self._refused(
            f"{name[:80]!r}",
            "what is known to be harmless: tfpvae's classes, and Keras's layers, losses, "
            "optimizers and the like. If it is yours or you trust it, pass "
            f"custom_objects={{{registered[:80]!r}: ...}}",
        )

    def _refused(self, got: str, wanted: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self._path}: got {got} in {_CONFIG}, wanted {wanted}")


def _harmless() -> tuple[set[Any], set[str]]:
    """Keras's classes that a file may name, and all names that may stand under `activation`..."""
    layers = {
        value
        for value in vars(keras.layers).values()
        if inspect.isclass(value) and value.__module__.startswith(_LAYER_PACKAGES)
    }
    layers |= {
        found
        for module in _LAYER_MODULES
        for name in _MORE_LAYERS
        if inspect.isclass(found := _attribute(module, name))
    }
    modules = [_attribute(f"keras.{name}", "") for name in _OTHERS]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("tf_keras.")
    }
    names = {name for module in modules for name in vars(module) if not name.startswith("_")}
    names |= {name for name in dir(keras.activations) if not name.startswith("_")}
    names |= {value.__name__ for value in layers | classes}
    names |= {value.__name__.lower() for value in classes}
    names |= {"acc", "accuracy", "ce", "crossentropy"}
    return layers | classes, names - _RESOLVERS


_LAYER_PACKAGES = tuple(f"tf_keras.src.layers.{name}." for name in _LAYERS)
_LAYER_MODULES = (
    "keras",
    "keras.layers",
    "tf_keras.src.engine.functional",
    "tf_keras.src.layers.core.tf_op_layer",
)


def _is_number(dtype: Any) -> bool:
    return isinstance(dtype, str) and dtype in serialization.DTYPES


def _attribute(module: Any, name: str) -> Any:
    """An attribute of a module of Keras, None if there is none: nothing is imported."""
    if not isinstance(module, str):
        return None
    first, *parts = module.split(".")
    if first not in ("keras", "tf_keras"):
        return None
    found: Any = sys.modules.get(f"tf_keras.{'.'.join(parts)}")
    if found is None or "src" not in parts:
        found = keras
        for part in parts:
            found = None if part.startswith("_") else getattr(found, part, None)
    return getattr(found, name, None) if name else found
