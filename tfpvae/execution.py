"""Many batches in one program: what Keras's loop calls in place of one batch after another."""

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

logger = logging.getLogger(__name__)

#: Steps of a run from which XLA saves more time than the second or two that it compiles.
WORTHWHILE_STEPS = 1000

# The batches of one call: enough that starting the program costs nothing beside running it, few
# enough that memory stays small and the progress bar moves.
_CALLS_PER_EPOCH = 8
_MIN_BATCHES, _MAX_BATCHES = 32, 1024
_MAX_BYTES = 2**24
_MAX_BYTES_INFERENCE = 2**28
_NUMBER = tf.TensorSpec([], tf.int32)
_EAGER_CONTEXT = tf.__internal__.autograph.control_status_ctx()
_PATIENCE_SECONDS = 2.0
_SAME_MEMORY = ("Reshape", "EnsureShape", "Identity", "ExpandDims", "Squeeze", "StopGradient")

# What speaks against XLA, by the beginnings of the operations' names. On CPUs it runs convolutions
# and recurrent networks (loops that keep what their gradients need in lists) ten times slower than
# TensorFlow does (tests/benchmarks/choice.py), and its stateful generators ignore the user's seed.
_SLOW_IN_XLA = ("Conv", "DepthwiseConv", "TensorList")
_STATEFUL_DRAWS = ("Random", "TruncatedNormal", "ParameterizedTruncatedNormal", "Multinomial")


def batches_per_call(steps: int, batch_bytes: float) -> int:
    """How many batches a program runs in one call; a power of two, so that few programs are made.

    Args:
      steps: batches of an epoch.
      batch_bytes: size of one.

    Example:
      >>> batches_per_call(600, batch_bytes=100 * 784 * 4)
      32
    """
    wanted = min(max(steps // _CALLS_PER_EPOCH, _MIN_BATCHES), _MAX_BATCHES)
    return 2 ** int(np.log2(min(wanted, max_batches(batch_bytes))))


def max_batches(batch_bytes: float) -> int:
    """How many batches may be in memory at once."""
    return max(1, int(_MAX_BYTES / max(batch_bytes, 1)))


def place(*arrays: np.ndarray | None, dtype: str | None = None) -> tuple[Any, ...]:
    """The arrays as tensors: integers as they come, so that bytes stay bytes, the rest in one type.

    Args:
      *arrays: arrays, or lists of them.
      dtype: of numbers in floating point, floatx if None.

    Example:
      >>> [tensor.dtype.name for tensor in place(np.zeros(3, "uint8"), np.zeros(3, "float64"))]
      ['uint8', 'float32']
    """
    with tf.device("CPU:0"):
        return _map(functools.partial(_tensor, dtype or keras.backend.floatx()), arrays)


def _tensor(dtype: str, values: np.ndarray) -> Any:
    floating = np.issubdtype(values.dtype, np.floating)
    return tf.convert_to_tensor(values, dtype if floating else None)


class Program:
    """Runs a step of a model on the next batches of an iterator, many of them in one call.

    Keras's `fit` and `evaluate` call it as they call their own `train_function`. The batches are
    joined into chunks `[n, B, ...]`, and one TensorFlow program runs over each: by XLA where that
    pays, see `uses_xla`. Batches of another size than the first, as a ragged last one, run without
    XLA, which would have to compile anew for them.

    Args:
      step: takes a batch, as `keras.Model.train_step`.
      results: the logs after the last step.
      counter: a variable that counts the steps.
      num_batches: how many batches to run in a call, the variable of Keras's loop.
      jit_compile: True or False; None leaves the choice to `uses_xla`.
      guard: a `guards.Guard` of what a step leaves behind, None for none.
    """

    def __init__(
        self,
        step: Callable[[Any], Any],
        results: Callable[[], dict[str, Any]],
        counter: Any,
        num_batches: Any,
        jit_compile: bool | None,
        guard: Any = None,
    ) -> None:
        self._step, self._results = step, results
        self._counter, self._num_batches = counter, num_batches
        self._jit_compile, self._guard = jit_compile, guard
        # Traced by hand: TensorFlow warns of functions that are traced often, as for many models.
        self._take = Traced(_take)
        self._plain = Traced(self._run)
        self._by_xla = Traced(self._run, jit_compile=True)
        self._verdicts: dict[Any, bool] = {}
        self._rows: Any = None
        self._batch_size: int | None = None
        #: how often it was called since the run began
        self.calls = 0
        #: batches to hold in memory at once, and steps that the whole run will take
        self.chunk, self.steps = 1, 0

    @contextlib.contextmanager
    def running(self, rows: Any, chunk: int, steps: int) -> Iterator[None]:
        """Prepare for a run.

        Args:
          rows: the data, if the batches are indices of their rows; None takes them as they are.
          chunk: how many batches to hold in memory at once.
          steps: how many steps the whole run will take.
        """
        outer = self._rows, self._batch_size, self.calls, self.chunk, self.steps
        self._rows, self._batch_size, self.calls = rows, None, 0
        self.chunk, self.steps = chunk, steps
        try:
            yield
        finally:
            self._rows, self._batch_size, self.calls, self.chunk, self.steps = outer

    def __call__(self, iterator: Any) -> dict[str, Any]:
        """Run the next batches, as many as there are; the logs.

        Raises:
          tf.errors.OutOfRangeError: if there are none, or, but for the first call of a run, fewer
            than Keras wants; those have then been run.
        """
        logs: dict[str, Any] = {}
        left = int(self._num_batches)
        while left > 0:
            wanted = min(left, self.chunk)
            try:
                rows = _map(lambda rows: of_any_length(rows, 1), self._rows)
                specs = (_of_any_batch_size(iterator), rows, _NUMBER)
                joined, taken = self._take.of(
                    iterator, self._rows, tf.constant(wanted), specs=specs
                )
            except tf.errors.OutOfRangeError:
                if not logs or self.calls:
                    raise
                break
            sizes = taken.numpy().tolist()
            start = 0
            for size, same in itertools.groupby(sizes):
                count = len(list(same))
                logs = self._guarded(_cut(joined, start, count, size), count, size)
                start += count * size
                self._counter.assign_add(count)
            left -= len(sizes)
            if self.calls and len(sizes) < wanted:
                raise tf.errors.OutOfRangeError(None, None, "no batch is left")
        self.calls += 1
        return logs

    def uses_xla(self, chunk: Any, batch_size: int) -> bool:
        """Whether to run a chunk by XLA: as the user says, or else where it is known to pay.

        It pays in long runs of networks that neither convolve nor recur. The rule depends on the
        model and on the arguments of `fit` alone, not on a clock, because XLA and TensorFlow draw
        different numbers from one seed, and a run must repeat bit for bit.
        """
        if self._jit_compile is not None:
            return self._jit_compile
        if self.steps < WORTHWHILE_STEPS or batch_size != self._batch_size:
            return False
        padded = self._padded(chunk)
        signature = str(_map(_spec, padded))
        if signature not in self._verdicts:
            # What stands in the way of one shape stands in the way of all.
            refused = False in self._verdicts.values()
            self._verdicts[signature] = not refused and self._can_use_xla(padded)
        return self._verdicts[signature]

    def _can_use_xla(self, chunk: Any) -> bool:
        none = tf.constant(0)
        obstacle = _obstacle(self._by_xla.concrete(chunk, none).graph)
        if obstacle is not None:
            logger.info("training without XLA, because of %s", obstacle)
            return False
        try:
            self._by_xla.of(chunk, none)  # Compiles, and takes no step.
        except tf.errors.OpError as error:
            reason = error.message.split("\n")[0]
            logger.warning("training without XLA, which cannot compile the model: %s", reason)
            return False
        return True

    def _guarded(self, chunk: Any, num: int, batch_size: int) -> dict[str, Any]:
        run = functools.partial(self._run_chunk, batch_size=batch_size)
        return run(chunk, num) if self._guard is None else self._guard.chunk(run, chunk, num)

    def _run_chunk(self, chunk: Any, num: int, batch_size: int) -> dict[str, Any]:
        if self._batch_size is None:
            self._batch_size = batch_size
        if self.uses_xla(chunk, batch_size):
            return self._by_xla.of(self._padded(chunk), tf.constant(num))
        # One program for batches of any number and size.
        specs = _map(lambda rows: of_any_length(rows, 2), chunk)
        return self._plain.of(chunk, tf.constant(num), specs=(specs, _NUMBER))

    def _padded(self, chunk: Any) -> Any:
        """The chunk with as many batches as all have, so that one shape is compiled."""
        return _map(lambda rows: _pad(rows, self.chunk), chunk)

    def _run(self, chunk: Any, num: Any) -> dict[str, Any]:
        """The steps on the first `num` batches of a chunk."""

        def body(i: Any) -> Any:
            self._step(_map(lambda rows: tf.gather(rows, i), chunk))
            return i + 1

        tf.while_loop(lambda i: i < num, body, [tf.constant(0)], parallel_iterations=1)
        return self._results()


class Traced:
    """A function, traced once for each signature.

    It is traced as it is, without AutoGraph, which would spend seconds on reading all our code for
    nothing. Users' layers may branch on tensors all the same: Keras converts them.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool | None = None) -> None:
        def traced(*arguments: Any) -> Any:
            with _EAGER_CONTEXT:  # In that of an unconverted function Keras would not.
                return function(*arguments)

        self._function = tf.function(traced, jit_compile=jit_compile, autograph=False)
        self._concrete: dict[str, Any] = {}

    def of(self, *arguments: Any, specs: Any = None) -> Any:
        """The result of the arguments."""
        return self.concrete(*(specs or arguments))(*arguments)

    def concrete(self, *arguments: Any) -> Any:
        """The traced function for these arguments or specs."""
        signature = str([_map(_spec, argument) for argument in arguments])
        if signature not in self._concrete:
            self._concrete[signature] = self._function.get_concrete_function(*arguments)
        return self._concrete[signature]


def of_any_length(rows: Any, ndims: int) -> Any:
    """The spec of rows whose first axes may be of any length."""
    return tf.TensorSpec([None] * ndims + rows.shape[ndims:], rows.dtype)


def _of_any_batch_size(iterator: Any) -> Any:
    """The spec of an iterator whose batches may be of any size: one trace serves them all."""
    spec = _map(lambda leaf: of_any_length(leaf, 1), iterator.element_spec)
    return tf.data.IteratorSpec(spec)


def length(rows: Any) -> int:
    """How many rows an array has, or each of a list of arrays."""
    return tf.nest.flatten(rows)[0].shape[0]


def take(rows: Any, which: Any) -> Any:
    """The rows of an array that an index picks, or those of each of a list of arrays."""
    return _map(lambda values: values[which], rows)


def _spec(value: Any) -> Any:
    return value if isinstance(value, tf.TypeSpec) else tf.type_spec_from_value(value)


class Batched:
    """A function of rows, compiled once, that runs over any number of them in batches.

    The batches, and for many draws those too, are as large as a bound on memory allows: the
    compiled graph tells what one draw for one row takes.

    Args:
      function: `(rows [B, ...], num_samples, seed) -> tensor`, which is `[B, ...]`, or without
        `merge` `[num_samples, B, ...]`. The rows may also be a list of tensors.
      merge: makes one result of those of two pieces of the draws, as `tf.add` does of sums; None
        keeps the results of all draws.
    """

    def __init__(
        self, function: Callable[[Any, Any, Any], Any], merge: Callable[[Any, Any], Any] | None
    ) -> None:
        self._function, self._merge = function, merge
        self._compiled: dict[Any, tuple[Any, int]] = {}

    def __call__(self, rows: Any, seed: Any, num_samples: int = 1, verbose: Any = "auto") -> Any:
        """The results of all rows, a tensor.

        Args:
          rows: tensor `[N, ...]`, or a list of them.
          seed: int32 tensor `[2]`; each batch draws from a seed of its own, made from it.
          num_samples: draws for each row.
          verbose: 1 shows progress, 0 does not, "auto" does after a few seconds.
        """
        function, pair_bytes = self._compile(rows)
        pairs = max(1, _MAX_BYTES_INFERENCE // pair_bytes)
        draws = math.ceil(num_samples / math.ceil(num_samples / pairs))  # All pieces alike.
        size = max(1, pairs // num_samples)
        num_rows = length(rows)
        progress = Progress(num_rows, verbose)
        results, count = [], itertools.count()
        for start in range(0, num_rows, size):
            part = take(rows, slice(start, start + size))
            pieces = (
                function(part, tf.constant(num), tf.random.fold_in(seed, next(count)))
                for num in _pieces(num_samples, draws)
            )
            merge = self._merge  # One piece at a time is in memory.
            results.append(functools.reduce(merge, pieces) if merge else tf.concat([*pieces], 0))
            progress.update(min(start + size, num_rows))
        return tf.concat(results, axis=0 if self._merge else 1)

    def _compile(self, rows: Any) -> tuple[Any, int]:
        """The function for rows of this type, and the memory it takes for one draw of one row."""
        specs = _map(lambda values: of_any_length(values, 1), rows)
        signature = str(specs)
        if signature not in self._compiled:
            concrete = Traced(self._function).concrete(
                specs, tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32)
            )
            self._compiled[signature] = concrete, _bytes(concrete.graph)
        return self._compiled[signature]


class Progress:
    """A progress bar for what takes long.

    Args:
      target: how many examples there are.
      verbose: 1 shows it, 0 does not, "auto" does after a few seconds.
    """

    def __init__(self, target: int, verbose: Any) -> None:
        self._bar = keras.utils.Progbar(target, interval=0.2, unit_name="example")
        shown, auto = isinstance(verbose, int) and verbose == 1, isinstance(verbose, str)
        self._target, self._shown, self._auto = target, shown, auto and verbose == "auto"
        self._start = time.monotonic()

    def update(self, current: int) -> None:
        """Show that so many examples are done."""
        late = time.monotonic() - self._start > _PATIENCE_SECONDS
        self._shown = self._shown or (self._auto and late and current < self._target)
        if self._shown:
            self._bar.update(current)


def _pieces(total: int, size: int) -> list[int]:
    """`total` in pieces of `size` and a rest."""
    return [min(size, total - start) for start in range(0, total, size)]


def _bytes(graph: Any) -> int:
    """Bytes of what a graph computes for one row: its tensors of unknown length, added up.

    Of the functions that it calls, as the bodies of loops, one runs at a time: the largest counts.
    XLA keeps next to nothing of what is inside a function of its own.
    """
    operations = graph.get_operations()
    shapes = [
        (tensor.shape, tensor.dtype)
        for operation in operations
        for tensor in operation.outputs
        if tensor.shape.rank and not tensor.shape.is_fully_defined()
        if operation.type not in _SAME_MEMORY
    ]
    own = sum(
        dtype.size * math.prod(size for size in shape if size is not None)
        for shape, dtype in shapes
    )
    names = {
        value.func.name
        for operation in operations
        if not operation.node_def.attr["_XlaMustCompile"].b
        for value in operation.node_def.attr.values()
        if value.HasField("func")
    }
    called = (_bytes(graph._get_function(name).graph) for name in names)
    return 1 + own + max(called, default=0)


def _take(iterator: Any, rows: Any, num: Any) -> tuple[Any, Any]:
    """The next batches of an iterator, at most `num`, joined along their first axis; their sizes.

    With `rows`, the batches are of indices, and their rows are what is taken.
    """
    spec = iterator.element_spec
    arrays = [
        tf.TensorArray(leaf.dtype, 0, True, element_shape=leaf.shape, infer_shape=False)
        for leaf in tf.nest.flatten(spec)
    ]

    def write(batch: Any, i: Any, arrays: Any, sizes: Any) -> Any:
        leaves = tf.nest.flatten(batch)
        written = [array.write(i, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
        return i + 1, True, written, sizes.write(i, tf.shape(leaves[0])[0])

    def body(i: Any, _: Any, arrays: Any, sizes: Any) -> Any:
        batch = iterator.get_next_as_optional()
        return tf.cond(
            batch.has_value(),
            lambda: write(batch.get_value(), i, arrays, sizes),
            lambda: (i, False, arrays, sizes),
        )

    # The first one raises OutOfRangeError if the iterator is at its end.
    first = write(iterator.get_next(), 0, arrays, tf.TensorArray(tf.int32, 0, True))
    _, _, arrays, sizes = tf.while_loop(lambda i, more, *_: more & (i < num), body, first)
    joined = tf.nest.pack_sequence_as(spec, [array.concat() for array in arrays])
    if rows is not None:
        (indices,) = tf.nest.flatten(joined)
        joined = _map(lambda values: tf.gather(values, indices), rows)
    return joined, sizes.stack()


def _cut(joined: Any, start: int, num: int, size: int) -> Any:
    """`num` batches of one size from joined ones, `[num, size, ...]`."""
    return _map(
        lambda rows: tf.reshape(rows[start : start + num * size], (num, size, *rows.shape[1:])),
        joined,
    )


def _pad(rows: Any, num: int) -> Any:
    """Rows with zeros after them, `num` in all."""
    missing = num - rows.shape[0]
    return rows if missing <= 0 else tf.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))


def _map(function: Callable[[Any], Any], structure: Any) -> Any:
    return tf.nest.map_structure(lambda x: None if x is None else function(x), structure)


def _obstacle(graph: Any) -> str | None:
    """What speaks against XLA in a graph, None if nothing does."""
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    operations = sorted({node.op for node in itertools.chain(*nodes)})
    for operation in operations:
        if operation.startswith(_SLOW_IN_XLA):
            return f"{operation}, which it runs slowly"
        if operation.startswith(_STATEFUL_DRAWS):
            return f"{operation}, which would not follow the seed"
    return None
