"""Summaries for TensorBoard: the terms of the ELBO, the use of the latent units, and pictures."""

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import (
    checks,
    diagnostics,
    execution,
    local_inference,
    noise,
    plotting,
    replicas,
    schedules,
)

_GRID = 12  # decoded points along each axis of the latent plane


class LatentSummaries(keras.callbacks.Callback):
    r"""A callback that shows in TensorBoard what a VAE learns.

    After each epoch it writes scalars, histograms and pictures, in three runs:

    - `train` and `validation`: `epoch/loss`, `epoch/elbo`, `epoch/nll`, `epoch/kl` and whatever
      else is in the logs, and `epoch/kl_weight`.
    - `latents`, of the examples given: `latents/active_units`, `latents/mutual_information`,
      `latents/kl` and `latents/aggregate_kl`; of each unit d

      $$ \frac1N \sum_n \mathrm{KL}\bigl(q(z_d \mid x_n)\ \|\ p(z_d)\bigr), \qquad
         A_d = \mathrm{Var}_x\bigl(\mathbb E_{q(z \mid x)}[z_d]\bigr) $$

      as the scalar `kl_by_unit/d`, and as histograms over the units; see `diagnostics.Latents`.
    - Pictures in `latents`: `reconstructions`, and `samples`, which are the means of p(x|z) at
      draws z of the prior, the same draws after each epoch; of two latent units `latent_plane`, the
      means of q(z|x), and `manifold`, the means of p(x|z) on a grid.

    Nothing is done between the epochs, and all draws have a seed of their own: the weights and the
    history are bit for bit those of a run without the callback. With `fit(resume=)` the same folder
    goes on. Each run wants a folder of its own: `tensorboard --logdir` shows all that are in one.

    Args:
      log_dir: a folder; made if it is not there.
      x: data `[N, *event_shape]`, a fixed sample of some hundred examples, best held out: the cost
        is N^2. Of a `ConditionalVAE` a tuple (x, y).
      labels: classes `[N]` of the examples, which colour the latent plane.
      image_shape: (H, W) or (H, W, C), if x are images in rows. Images `[N, H, W]` and
        `[N, H, W, 1 or 3]` are taken for what they are; of other data there are no images.
      every: measure and write after the first epoch and then after every so many.
      images_every: draw after the first epoch, every so many, and the last.
      num_images: how many reconstructions and samples.
      seed: of the draws.

    Raises:
      ImportError: without TensorBoard.
      TypeError, ValueError: for a folder that is no path, examples that are no numbers, numbers
        that are no positive integers.

    Example:
      >>> import pathlib, tempfile
      >>> from tfpvae import VAE, likelihoods, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> vae.compile("adam")
      >>> x = np.eye(3, dtype="float32")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     summaries = LatentSummaries(folder, x)
      ...     history = vae.fit(x, verbose=0, callbacks=[summaries])
      ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
      ['latents', 'train']
    """

    def __init__(
        self,
        log_dir: Any,
        x: Any,
        labels: Any = None,
        *,
        image_shape: Any = None,
        every: int = 1,
        images_every: int = 10,
        num_images: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "LatentSummaries: needs TensorBoard: pip install 'tfpvae[tensorboard]'"
            )
        self._folder = checks.path("log_dir", log_dir)
        arrays = x if isinstance(x, tuple) else checks.as_array("x", x)
        rows = len(arrays[0] if isinstance(x, tuple) else arrays)
        labels = None if labels is None else checks.labels("labels", labels)
        if labels is not None and labels.shape != (rows,):
            raise ValueError(f"labels: got shape {labels.shape}, wanted ({rows},), one for each x")
        # In a dictionary, which `resume` does not take for a part of the state.
        self._data = {"x": arrays, "labels": labels}
        self._image_shape = None if image_shape is None else _shape(image_shape)
        self._every = checks.positive_integer("every", every)
        self._images_every = checks.positive_integer("images_every", images_every)
        self._num_images = checks.positive_integer("num_images", num_images)
        self._seed = noise.as_seed(seed)
        self._writers: dict[str, Any] = {}
        self._last, self._drawn = -1, -1  # The last epoch, and that of the last pictures.

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse what the model cannot encode, before any step."""
        local_inference.check_vae(self.model)
        self._writers, self._last, self._drawn = {}, -1, -1
        x, _ = self.model._split(self.model._arrays(self._data["x"]))
        if self._image_shape and math.prod(self._image_shape) != math.prod(x.shape[1:]):
            raise ValueError(
                f"image_shape: got {self._image_shape} for x of shape {x.shape}, wanted "
                f"{math.prod(x.shape[1:])} numbers"
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write what there is to say after an epoch."""
        self._last = epoch
        if epoch % self._every or not replicas.is_chief(self.model.distribute_strategy):
            return
        weight = np.asarray(schedules.value_of(self.model.objective.kl_weight))
        layers = {f"kl_weight_{i}": value for i, value in enumerate(np.ravel(weight))}
        weights = layers if weight.ndim else {"kl_weight": weight}
        for name, value in {**(logs or {}), **weights}.items():
            held_out = name.startswith("val_")
            with self._writer("validation" if held_out else "train"):
                _scalar(f"epoch/{name.removeprefix('val_')}", value, epoch)
        if self.model._has_densities:
            with self._writer("latents"):
                self._write_latents(epoch)
        if epoch % self._images_every == 0:
            self._write_images(epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Draw the end, and close the files."""
        if self._drawn < self._last and replicas.is_chief(self.model.distribute_strategy):
            self._write_images(self._last)
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            self._writers[run] = tf.summary.create_file_writer(str(self._folder / run))
        return self._writers[run].as_default()

    def _write_latents(self, step: int) -> None:
        use = diagnostics.latents(self.model, self._data["x"], self._seed, verbose=0)
        _scalar("latents/active_units", use.active.sum(), step)
        for name in ("mutual_information", "kl", "aggregate_kl"):
            _scalar(f"latents/{name}", getattr(use, name), step)
        tf.summary.histogram("latents/activity", use.activity, step)
        if use.kl_by_unit is not None:
            tf.summary.histogram("latents/kl_by_unit", use.kl_by_unit, step)
            for d, value in enumerate(use.kl_by_unit):
                _scalar(f"kl_by_unit/{d}", value, step)

    def _write_images(self, step: int) -> None:
        self._drawn = step
        with self._writer("latents"):
            for name, ax in self._pictures():
                tf.summary.image(name, _pixels(ax.figure)[np.newaxis], step)

    def _pictures(self) -> Iterator[tuple[str, Any]]:
        """The pictures by name, as matplotlib's Axes."""
        vae = self.model
        arrays = vae._arrays(self._data["x"])
        plane = tuple(vae.prior.event_shape) == (2,)
        if plane:
            means = np.asarray(vae.posterior(self._data["x"]).mean())
            yield "latent_plane", plotting.latent_plane(means, self._data["labels"])
        first = execution.take(arrays, slice(self._num_images))
        with noise.fixed(self._seed):
            data = vae._prepared(vae._placed(first))
            x, condition = vae._split(data)
            reconstructed = vae._decode(vae._encode(data, False)[1], False, condition)
            samples = vae._decode(vae._prior_draws(len(x), condition), False, condition)
            x, reconstructed, samples = map(np.asarray, (x, reconstructed, samples))
        shape = self._image_shape or x.shape[1:]
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] not in (1, 3)):
            return
        low, high = np.nanmin(x), np.nanmax(x)

        def images(values: Any) -> np.ndarray:
            grey = (np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12)
            return np.clip(grey, 0.0, 1.0).reshape(-1, *shape)

        yield "reconstructions", plotting.reconstructions(images(x), images(reconstructed))
        yield "samples", plotting.image_rows({"": images(samples)})
        if plane and condition is None:
            grid = plotting.prior_grid(_GRID)
            with noise.fixed(self._seed):
                decoded = np.asarray(vae._decode(vae._given_codes(grid), False))
            yield "manifold", plotting.manifold(images(decoded), z=grid)


def _scalar(name: str, value: Any, step: int) -> None:
    """Write a number, unless it is none: callbacks leave NaN in the logs of some epochs."""
    if np.isfinite(value):
        tf.summary.scalar(name, float(value), step)


def _pixels(figure: Any) -> np.ndarray:
    """A figure as an image `[H, W, 4]` of bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _shape(value: Any) -> tuple[int, ...]:
    sizes = checks.sequence("image_shape", value, "(H, W) or (H, W, C)")
    shape = tuple(checks.positive_integer("image_shape", size) for size in sizes)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] not in (1, 3)):
        raise ValueError(f"image_shape: got {value!r}, wanted (H, W), (H, W, 1) or (H, W, 3)")
    return shape
