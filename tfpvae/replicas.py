"""What the replicas of `tf.distribute` share: every row of their batches counts the same."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf


class _Scope(threading.local):  # The replicas of one process are threads.
    rows: Any = None
    total: Any = None


_scope = _Scope()


@contextlib.contextmanager
def batch(x: Any, y: Any = None, weight: Any = None) -> Iterator[tuple[Any, Any, Any]]:
    """The part of a batch that this replica has; inside, all the functions here know its share.

    Parts differ in size where rows do not divide evenly, and a part may be empty: at the end of an
    epoch, or where one worker has more data than another. An empty part gets a row of zeros of
    weight 0, for networks that nothing can be passed through, and counts for nothing.

    Without a strategy of several replicas it is the batch as it is.

    Args:
      x: tensor `[B, ...]`, or a structure of them.
      y: the same, or None.
      weight: tensor `[B]` or None.

    Yields:
      `(x, y, weight)`.
    """
    context = _context()
    if context is None:
        yield x, y, weight
        return
    outer = _scope.rows, _scope.total
    rows = tf.shape(tf.nest.flatten(x)[0])[0]
    _scope.rows = tf.cast(rows, tf.float32)
    _scope.total = context.all_reduce(tf.distribute.ReduceOp.SUM, _scope.rows)
    weight = tf.ones([rows]) if weight is None else weight
    missing = tf.cast(rows < 1, tf.int32)
    try:
        # Counters wait for the data, or they would count the step that finds that there are none.
        with tf.control_dependencies([_scope.total]):
            yield tf.nest.map_structure(
                lambda values: values if values is None else _pad(values, missing), (x, y, weight)
            )
    finally:
        _scope.rows, _scope.total = outer


def rows(values: Any) -> Any:
    """How many of the rows of values `[B, ...]` are data of this replica: int32."""
    return tf.shape(values)[0] if _scope.rows is None else tf.cast(_scope.rows, tf.int32)


def mean(values: Any, axis: int = 0) -> Any:
    r"""The mean over the rows of all replicas, where an axis is that of the rows. No gradient.

    $$ \frac1B \sum_r \sum_{b \in B_r} v_b, \qquad B = \sum_r |B_r| $$

    Args:
      values: tensor `[..., B, ...]` of this replica's part of a batch.
      axis: which one is that of the rows.

    Example:
      >>> float(mean(tf.constant([1.0, 2.0, 6.0])))
      3.0
    """
    own = tf.stop_gradient(tf.reduce_mean(values, axis=axis))
    context = None if _scope.rows is None else _context()
    if context is None:
        return own
    return context.all_reduce(tf.distribute.ReduceOp.SUM, _shared(own))


def known(value: Any) -> Any:
    """The value of this replica's part of a batch, 0 if that is empty."""
    return value if _scope.rows is None else tf.where(_scope.rows > 0, value, tf.zeros_like(value))


class Tape(tf.GradientTape):
    r"""A tape for the mean over the rows of a batch: its gradients add up over the replicas.

    $$ \nabla \frac1B \sum_b l_b = \sum_r \frac{|B_r|}{B}\, \nabla \frac{1}{|B_r|}
       \sum_{b \in B_r} l_b $$

    Keras's optimizers add up the gradients of the replicas. What belongs to the model and not to
    the rows, as the networks' regularizers, counts once in all.

    Example:
      >>> w = tf.Variable(3.0)
      >>> with Tape() as tape:
      ...     loss = tf.reduce_mean(w**2 * tf.constant([1.0, 2.0]))
      >>> float(tape.gradient(loss, w))
      9.0
    """

    def gradient(self, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradients, as of `tf.GradientTape`, times this replica's share of the rows."""
        gradients = super().gradient(target, sources, *args, **kwargs)
        if _scope.rows is None:
            return gradients
        return tf.nest.map_structure(
            lambda gradient: None if gradient is None else _shared(gradient), gradients
        )


def check_scope(strategy: Any, argument: str, variables: Any) -> None:
    """Raise ValueError for variables that a strategy does not know: replicas would fight for them.

    Args:
      strategy: a `tf.distribute.Strategy`.
      argument: what an error calls them.
      variables: a list of variables.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    for variable in variables:
        if not strategy.extended.variable_created_in_scope(variable):
            raise ValueError(
                f"{argument}: got one with the variable {variable.name!r} that was made outside of "
                f"the scope of {type(strategy).__name__}, wanted all of it made inside: "
                "`with strategy.scope():` around what makes the model, the objective and compile"
            )


def refuse(strategy: Any, name: str) -> None:
    """Raise ValueError under a strategy of several replicas, for a model that one has to train."""
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"{name}: got it made in the scope of {type(strategy).__name__}, wanted it outside: "
            "it is trained by one replica only"
        )


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one of all workers that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return resolver.task_type == chief and resolver.task_id == 0


def _context() -> Any:
    """The context of one of several replicas, None if there are not several."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def _shared(value: Any) -> Any:
    """A mean over this replica's rows, by their share in those of all; 0 if there are none."""
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(_shared(value.values), value.indices, value.dense_shape)
    share = tf.cast(tf.math.divide_no_nan(_scope.rows, _scope.total), value.dtype)
    return known(share * value)


def _pad(values: Any, missing: Any) -> Any:
    """The values with so many rows of zeros after them."""
    values = tf.convert_to_tensor(values)
    zeros = tf.zeros(tf.concat([[missing], tf.shape(values)[1:]], 0), values.dtype)
    padded = tf.concat([values, zeros], axis=0)
    padded.set_shape([None, *values.shape[1:]])
    return padded
