"""A trained model to look into: a page where codes are decoded and data encoded as one drags."""

import contextlib
import errno
import os
import socket
import threading
import webbrowser
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfpvae import (
    blocks,
    checks,
    conditional,
    diagnostics,
    execution,
    hierarchical,
    latent_space,
    likelihoods,
    local_inference,
    models,
    noise,
    regularizers,
    saving,
    semi_supervised,
)

tfd = tfp.distributions

#: How many codes are shown at most.
MAX_CODES = 2000

#: Draws of z that an ELBO is the mean over: few, because a drawing is scored while it is drawn.
ELBO_DRAWS = 16

_MOMENT_DRAWS = 500
_IMAGE_SIDE = 8  # A vector of fewer than 8 x 8 numbers is rather a row of a table than an image.
_GENERIC = ("DistributionLayer", "Likelihood", "Prior")
_SUPPORTED = "a VAE or a ConditionalVAE whose z is one vector of real numbers"


class Decoded(NamedTuple):
    """A distribution of x: what a code is decoded to.

    Attributes:
      mean: its mean `[*event_shape]`; of classes, which have none, the mode.
      sd: its standard deviation `[*event_shape]`; None if TFP does not know it.
      draw: one draw `[*event_shape]`.
    """

    mean: np.ndarray
    sd: np.ndarray | None
    draw: np.ndarray


class Encoded(NamedTuple):
    """What an example is encoded to.

    Attributes:
      x: the example as the likelihood scores it, `[*event_shape]`.
      loc: the mean of q(z|x) `[D]`.
      covariance: of q(z|x) `[D, D]`.
      reconstruction: p(x'|z) at the mean of q(z|x).
      kl: KL(q(z|x) || p(z)) in nats, None without densities.
      kl_by_unit: KL(q(z_d|x) || p(z_d)) `[D]`, None if TFP does not know the marginals.
      elbo: the ELBO in nats, None without densities.
    """

    x: np.ndarray
    loc: np.ndarray
    covariance: np.ndarray
    reconstruction: Decoded
    kl: float | None
    kl_by_unit: np.ndarray | None
    elbo: float | None

    @property
    def sd(self) -> np.ndarray:
        """The standard deviations of q(z|x) `[D]`."""
        return np.sqrt(np.diag(self.covariance))


class Explorer:
    r"""A model with its data, compiled for one code or one example at a time.

    $$ z \mapsto \mathbb E[x \mid z],\ \mathrm{sd}[x \mid z],\ x \sim p(x \mid z), \qquad
       x \mapsto q(z \mid x),\ \mathrm{ELBO}(x) $$

    This is what the page of `serve` shows, without the page.

    Args:
      model: a `VAE` or a `ConditionalVAE`, built.
      x: data `[N, *event_shape]`, of a `ConditionalVAE` the pair (x, y); None for none. At most
        2,000 examples are kept, by chance.
      labels: of the examples `[N]`, to colour their codes: integers or strings are classes,
        floating-point numbers a quantity. Of a `ConditionalVAE` they may stand for y.
      image_shape: `(H, W)` or `(H, W, C)` to see x as images, None for columns; "auto" takes events
        of shape `[H, W]`, `[H, W, 1 or 3]`, and square vectors of 64 numbers or more, as images.

    Raises:
      TypeError, ValueError: for another model, one that has not been built, or whose z are no
        vectors of real numbers; labels that are none or differ in number; an image shape that does
        not fit.

    Example:
      >>> import tf_keras as keras
      >>> from tfpvae import VAE, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> vae.build((None, 3))
      >>> explorer = Explorer(vae, np.eye(3), labels=["a", "b", "b"])
      >>> explorer.decode(np.zeros(2)).mean
      array([0.5, 0.5, 0.5], dtype=float32)
      >>> explorer.encode(explorer.x[0]).loc.shape
      (2,)
    """

    def __init__(
        self, model: Any, x: Any = None, labels: Any = None, image_shape: Any = "auto"
    ) -> None:
        self.model = _checked(model)
        self.is_conditional = isinstance(model, conditional.ConditionalVAE)
        if self.is_conditional and x is not None and not isinstance(x, tuple):
            if labels is None:
                raise TypeError("labels: got None with x, wanted the y that a ConditionalVAE needs")
            x = (x, labels)
        elif self.is_conditional and x is not None and labels is None and np.ndim(x[1]) == 1:
            labels = x[1]
        if self.is_conditional and x is None and model.num_classes is None:
            raise ValueError("x: got None, wanted (x, y), because the model has no classes")
        self.names: tuple[str, ...] = tuple(map(str, getattr(x, "columns", ())))
        self.x, self.y, self.indices, self.labels = self._chosen(x, labels)
        block = models._last_layer(model.decoder)
        if isinstance(block, likelihoods.Columns):
            self.names = _column_names(block)
        self.event_shape = tuple(getattr(block, "event_shape", self._raw_shape))
        self.image_shape = _image_shape(image_shape, self.event_shape, bool(self.names))
        if len(self.names) != np.prod(self.event_shape, dtype=int):
            self.names = tuple(f"x[{i}]" for i in range(np.prod(self.event_shape, dtype=int)))
        self._compile()
        self._describe_codes()
        self._describe_values()

    @property
    def latent_size(self) -> int:
        """The number D of latent units."""
        return self.model.prior.event_shape[0]

    @property
    def description(self) -> str:
        """What the model is, in one line."""
        parts = {
            "prior": self.model.prior,
            "posterior": models._last_layer(self.model.encoder),
            "likelihood": models._last_layer(self.model.decoder),
        }
        named = [f"{name} {_title(part)}" for name, part in parts.items()]
        units = f"{self.latent_size} latent unit{'s' * (self.latent_size > 1)}"
        return ", ".join([type(self.model).__name__, *named, units])

    @property
    def num_classes(self) -> int | None:
        """The number of classes that x is given, None for none."""
        return self.model.num_classes if self.is_conditional else None

    def condition(self, index: int | None = None, label: int = 0) -> Any:
        """The y of an example, or the label; None of a model that has none."""
        if not self.is_conditional:
            return None
        if index is None and self.num_classes is None:
            index = 0
        if index is None:
            return np.asarray(label, self._specs["y"].dtype.as_numpy_dtype)
        return self.y[index]

    def decode(self, z: Any, y: Any = None, seed: int = 0) -> Decoded:
        """The distribution p(x|z) at a code.

        Args:
          z: the code `[D]`.
          y: of a `ConditionalVAE`, what x is given.
          seed: of the draw.
        """
        found = self._decoder(*self._tensors(z=z, y=y), noise.as_seed(seed))
        return _decoded(found)

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """The posterior q(z|x) of an example, its reconstruction and its ELBO.

        Args:
          x: the example `[*event_shape]`, as the model takes it.
          y: of a `ConditionalVAE`, what x is given.
        """
        found = self._encoder(*self._tensors(x=x, y=y))
        kl_by_unit = found.get("kl_by_unit")
        return Encoded(
            x=found["x"].numpy()[0],
            loc=found["loc"].numpy()[0].astype(float),
            covariance=found["covariance"].numpy()[0].astype(float),
            reconstruction=_decoded(found),
            kl=float(found["kl"][0]) if "kl" in found else None,
            kl_by_unit=None if kl_by_unit is None else kl_by_unit.numpy()[0],
            elbo=float(found["elbo"][0]) if "elbo" in found else None,
        )

    def drawing(self, canvas: np.ndarray) -> np.ndarray:
        """The drawing `[H, W]`, ink from 0 to 1, as an example between the model's grey levels."""
        low, high = self.ink
        x = low + (high - low) * np.asarray(canvas, float)[..., None]
        x = np.broadcast_to(np.round(x) if self.is_whole else x, self.image_shape)
        return x.reshape(self._raw_shape).astype(self._specs["x"].dtype.as_numpy_dtype)

    def images(self, values: np.ndarray) -> np.ndarray:
        """Values `[*event_shape]` as an image `[H, W, C]`."""
        return np.asarray(values).reshape(self.image_shape)

    @property
    def _raw_shape(self) -> tuple[int, ...]:
        return tuple(self.model._build_input_shape[1:])

    def _chosen(self, x: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
        """At most `MAX_CODES` of the examples, their y, where they are in the data, and labels."""
        if x is None:
            if labels is not None:
                raise ValueError("labels: got some without x, wanted none, or the data x, too")
            return None, None, None, None
        data = self.model._arrays(x)
        num = execution.length(data)
        found = None
        if labels is not None:
            found = checks.labels("labels", labels)
            if found.shape != (num,) and not (self.is_conditional and found.ndim > 1):
                raise ValueError(
                    f"labels: got shape {found.shape}, wanted ({num},), one for each x"
                )
            found = None if found.ndim > 1 else found
        if found is not None and found.dtype.kind == "O":
            found = found.astype(str)
        chosen = np.arange(num)
        if num > MAX_CODES:
            chosen = np.sort(np.random.default_rng(0).permutation(num)[:MAX_CODES])
        data = execution.take(data, chosen)
        x, y = data if self.is_conditional else (data, None)
        return x, y, chosen, None if found is None else found[chosen]

    def _data(self) -> Any:
        return (self.x, self.y) if self.is_conditional else self.x

    def _compile(self) -> None:
        """Trace decoder and encoder for one row, and run them once."""
        model = self.model
        prior_type = model.prior.dtype
        data_type = model._data_dtype or tf.keras.backend.floatx()
        if self.x is not None:
            data_type = tf.as_dtype(model._placed(self.x[:1]).dtype)
        self._specs = {
            "z": tf.TensorSpec([1, self.latent_size], prior_type),
            "x": tf.TensorSpec([1, *self._raw_shape], data_type),
        }
        given = []
        if self.is_conditional:
            spec = tf.TensorSpec([1, *model._condition_shape], model.data_dtype)
            if self.y is not None:
                spec = tf.TensorSpec([1, *self.y.shape[1:]], model._placed(self.y[:1]).dtype)
            elif model.num_classes is not None:
                spec = tf.TensorSpec([1], tf.int32)
            self._specs["y"], given = spec, [spec]
        seed = tf.TensorSpec([2], tf.int32)
        self._decoder = execution.Traced(self._decode).concrete(self._specs["z"], *given, seed)
        self._encoder = execution.Traced(self._encode).concrete(self._specs["x"], *given)

    def _tensors(self, **values: Any) -> list[Any]:
        """The values as rows of the types that the compiled functions take."""
        found = []
        for name, value in values.items():
            if name in self._specs:
                spec = self._specs[name]
                array = np.asarray(value).reshape(spec.shape)
                found.append(tf.constant(array.astype(spec.dtype.as_numpy_dtype)))
        return found

    def _decode(self, z: Any, *rest: Any) -> dict[str, Any]:
        *y, seed = rest
        condition = self.model._condition(y[0]) if y else None
        with noise.fixed(seed):
            return _pieces(self.model._decode(self.model._codes(z), False, condition))

    def _encode(self, *data: Any) -> dict[str, Any]:
        model = self.model
        with noise.fixed(0):
            given = list(data) if self.is_conditional else data[0]
            q, z, p, x, condition = model._draw(given, ELBO_DRAWS)
            prior = model.prior(condition)
            loc, covariance = _moments(q)
            found = _pieces(model._decode(model._codes(loc), False, condition))
        found |= {"x": x, "loc": loc, "covariance": covariance}
        if self._has_densities:
            kl, _ = model._divergence(q, z, regularizers.KLDivergenceRegularizer(prior))
            found |= {"kl": kl, "elbo": tf.reduce_mean(p.log_prob(x), axis=0) - kl}
        by_unit = _kl_by_unit(q, prior)
        return found if by_unit is None else found | {"kl_by_unit": by_unit}

    @property
    def _has_densities(self) -> bool:
        return all(blocks.has_density(part) for part in (self.model.encoder, self.model.prior))

    def _describe_codes(self) -> None:
        """The codes of the data, the order of the units, and where they may be moved."""
        model, size = self.model, self.latent_size
        y = None if not self.is_conditional else self.condition()[None]
        prior = model.prior(model._condition(y) if self.is_conditional else None)
        levels = np.array([0.001, 0.5, 0.999])
        low, middle, high = latent_space._prior_quantiles(prior, levels).reshape(3, size)
        self.start = middle.astype(float)
        self.codes: Any = None
        self.elbo: Any = None
        self.kl_by_unit: Any = None
        self.activity: Any = None
        self.order = np.arange(size)
        if self.x is not None:
            with noise.fixed(0):
                q = model.posterior(self._data())
                self.codes = _loc(q).astype(float)
                by_unit = _kl_by_unit(q, model.prior(self.y) if self.is_conditional else prior)
            self.activity = self.codes.var(axis=0)
            if by_unit is not None:
                self.kl_by_unit = np.asarray(by_unit).mean(axis=0)
            use = self.activity if self.kl_by_unit is None else self.kl_by_unit
            self.order = np.argsort(-use, kind="stable")
            if self._has_densities:
                self.elbo = model.elbo(self._data(), ELBO_DRAWS, seed=0)
            low = np.minimum(low, self.codes.min(axis=0))
            high = np.maximum(high, self.codes.max(axis=0))
        margin = 0.04 * (high - low)
        self.limits = np.stack([low - margin, high + margin], axis=1)
        marginals = diagnostics._marginals(prior)
        self.prior_normal = None
        if isinstance(marginals, tfd.Normal):
            self.prior_normal = [np.ravel(v) for v in (marginals.mean(), marginals.stddev())]

    def _describe_values(self) -> None:
        """The range of x as the model takes it and as it scores it, and the columns' scales."""
        if self.x is None:
            rng = np.random.default_rng(0)
            low, high = self.limits.T
            z = rng.uniform(low, high, size=(64, self.latent_size))
            found = [self.decode(code, self.condition()) for code in z]
            draws, means = (np.stack([getattr(p, k) for p in found]) for k in ("draw", "mean"))
            # What draws of a density say of the range is mostly its noise.
            scored = draws if (draws == np.round(draws)).all() else means
        else:
            scored = np.asarray(self.model.prepare(self.model._placed(self.x)), float)
        flat = scored.reshape(len(scored), -1).astype(float)
        self.scale = float(np.nanmin(flat)), float(np.nanmax(flat))
        raw = self.scale
        if self.x is not None:
            raw = float(np.nanmin(self.x)), float(np.nanmax(self.x))
        elif self._specs["x"].dtype == tf.uint8:
            raw = 0.0, 255.0
        self.ink = raw
        values = flat if self.x is None else np.asarray(self.x, float)
        values = values[~np.isnan(values)]
        self.is_whole = bool((values == np.round(values)).all()) and (
            self.x is not None or self.scale[1] > 1
        )
        self.centre, self.spread = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
        self.spread = np.where(self.spread > 0, self.spread, 1.0)


def stroke(canvas: np.ndarray, start: Any, end: Any, width: float) -> np.ndarray:
    r"""The canvas with a straight stroke of ink from one point to another.

    $$ c'_{ij} = \max\bigl(c_{ij},\ \operatorname{clip}(\tfrac w2 + \tfrac12 - d_{ij},\, 0,\, 1)
       \bigr) $$

    where d is the distance of a pixel's centre from the stroke: its edge fades over one pixel.

    Args:
      canvas: ink `[H, W]` from 0 to 1.
      start: `(x, y)` in pixels, from the left and from the top.
      end: the same; as the start for a dot.
      width: w, of the stroke, in pixels.

    Example:
      >>> stroke(np.zeros((3, 4)), (0, 1.5), (4, 1.5), 1.0)
      array([[0., 0., 0., 0.],
             [1., 1., 1., 1.],
             [0., 0., 0., 0.]])
    """
    canvas, a, b = np.asarray(canvas, float), np.asarray(start, float), np.asarray(end, float)
    rows, columns = np.indices(canvas.shape)
    points = np.stack([columns + 0.5, rows + 0.5], axis=-1) - a
    along = b - a
    length = float(along @ along)
    share = np.clip(points @ along / length, 0, 1) if length else np.zeros(canvas.shape)
    distance = np.linalg.norm(points - share[..., None] * along, axis=-1)
    return np.maximum(canvas, np.clip(width / 2 + 0.5 - distance, 0, 1))


def ellipse(loc: Any, covariance: Any, num_sd: float, num: int = 60) -> np.ndarray:
    r"""Points of the ellipse of a plane's normal distribution at some standard deviations.

    $$ (z - m)^\top C^{-1} (z - m) = s^2 $$

    Args:
      loc: m `[2]`.
      covariance: C `[2, 2]`.
      num_sd: s.
      num: how many points, the last one the first again.

    Returns:
      An array `[num, 2]`.

    Example:
      >>> ellipse([1.0, 0.0], np.diag([4.0, 1.0]), 2.0, 5).round(6) + 0.0
      array([[ 5.,  0.],
             [ 1.,  2.],
             [-3.,  0.],
             [ 1., -2.],
             [ 5.,  0.]])
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, float))
    # The symmetric root: the first point is on the first axis where the covariance is diagonal.
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    angle = np.linspace(0, 2 * np.pi, num)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.asarray(loc, float) + num_sd * circle @ root


class Server:
    """A page that is being served; `stop` ends it, and so does the end of a `with` block.

    Attributes:
      port: where it is served.
      url: of the page.
    """

    def __init__(self, document: Any, port: int) -> None:
        from bokeh.application import Application
        from bokeh.application.handlers import FunctionHandler
        from bokeh.server.server import BaseServer
        from bokeh.server.tornado import BokehTornado
        from tornado.httpserver import HTTPServer
        from tornado.ioloop import IOLoop

        listening = _bound(port)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        started = threading.Event()

        def run() -> None:
            loop = self._loop = IOLoop(make_current=True)
            origins = [f"127.0.0.1:{self.port}", f"localhost:{self.port}"]
            application = BokehTornado(
                {"/": Application(FunctionHandler(document))}, extra_websocket_origins=origins
            )
            http = HTTPServer(application)
            http.add_socket(listening)
            server = BaseServer(loop, application, http)
            server.start()
            loop.add_callback(started.set)
            loop.start()
            server.stop()
            loop.close()

        self._thread = threading.Thread(target=run, name="tfpvae.explore", daemon=True)
        self._thread.start()
        started.wait()

    def wait(self) -> None:
        """Wait for Ctrl-C, and stop."""
        try:
            while self._thread.is_alive():
                self._join()
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self._loop.add_callback(self._loop.stop)
            self._thread.join()

    def _join(self) -> None:
        self._thread.join(1.0)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()


def serve(
    model: Any,
    x: Any = None,
    labels: Any = None,
    port: int = 5006,
    open_browser: bool = True,
    block: bool = True,
    *,
    image_shape: Any = "auto",
    title: str | None = None,
) -> Server:
    """Serve a page to explore a trained model, on this machine alone.

    Drag through the latent plane and see p(x|z) change; click a code of the data and see the
    example, its posterior and its reconstruction; move each latent unit by a slider; draw an image
    and see where it lands, and whether its ELBO is one that the model knows.

    Nothing of the page comes from the network. Each browser tab has a state of its own.

    Args:
      model: a `VAE` or a `ConditionalVAE`, or the path of a `.keras` file of one.
      x: data `[N, *event_shape]`, of a `ConditionalVAE` with its y: `(x, y)`; None for none.
      labels: of the examples `[N]`, which colour their codes: integers or strings are classes,
        floating-point numbers a quantity. Of a `ConditionalVAE` they may stand for y.
      port: where to serve it; 0 for any that is free.
      open_browser: whether to show it in the browser.
      block: whether to wait for Ctrl-C; otherwise it is served in a thread.
      image_shape: as of `Explorer`.
      title: of the page, the file's name or the model's if None.

    Returns:
      A `Server`, which knows its `url`.

    Raises:
      ImportError: without Bokeh.
      OSError: if the port is in use.
      TypeError, ValueError: as of `Explorer`; for a port that is none.

    Example:
      >>> import tf_keras as keras
      >>> from tfpvae import VAE, posteriors, priors
      >>> encoder = keras.Sequential([keras.layers.Dense(4), posteriors.DiagonalNormal(2)])
      >>> decoder = keras.Sequential([keras.layers.Dense(3), likelihoods.Bernoulli(3)])
      >>> vae = VAE(priors.StandardNormal(2), encoder, decoder, seed=0)
      >>> vae.build((None, 3))
      >>> with serve(vae, port=0, open_browser=False, block=False) as server:
      ...     server.url
      'http://127.0.0.1:.../'
    """
    open_browser, block = checks.flag("open_browser", open_browser), checks.flag("block", block)
    if isinstance(port, bool) or not isinstance(port, (int, np.integer)):
        raise TypeError(f"port: got {port!r}, wanted an integer")
    if not 0 <= port < 2**16:
        raise ValueError(f"port: got {port}, wanted one of 1 to 65535, or 0 for any that is free")
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        raise ImportError("explore needs Bokeh: pip install 'tfpvae[explore]'") from error
    if isinstance(model, (str, os.PathLike)):
        path = checks.path("model", model)
        model, title = saving.load_model(path), title or path.name
    explorer = Explorer(model, x, labels, image_shape)
    from tfpvae import explore_page

    name = title or model.name
    server = Server(lambda document: explore_page.Page(explorer, document, name), int(port))
    if open_browser:
        webbrowser.open(server.url)
    if block:
        print(f"{name} is shown at {server.url} (Ctrl-C ends it)", flush=True)
        server.wait()
    return server


def _bound(port: int) -> socket.socket:
    """A socket that listens on this machine's own address only."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # Where it would let two servers have one port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(("127.0.0.1", port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise
        message = f"port: got {port}, which is in use, wanted a free one: --port"
        raise OSError(errno.EADDRINUSE, message) from None
    return listening


def _checked(model: Any) -> Any:
    """The model, if it is one that can be shown."""
    checks.refuse_keras3("model", model)
    others = (
        hierarchical.HierarchicalVAE,
        local_inference.LocalVAE,
        semi_supervised.SemiSupervisedVAE,
    )
    if not isinstance(model, models.VAE) or isinstance(model, others):
        raise TypeError(f"model: got {_kind(model)}, wanted {_SUPPORTED}")
    if not model.built:
        raise ValueError(
            "model: got one that has not seen data yet, wanted one that is built: call fit(x), or "
            "build((None, ...)) with the shape of x"
        )
    if len(model.prior.event_shape) != 1:
        raise ValueError(
            f"model: got one whose z have shape {model.prior.event_shape}, wanted vectors, (D,)"
        )
    with noise.fixed(0):
        data = model._zeros(model._build_input_shape)
        if isinstance(model, conditional.ConditionalVAE):
            data = [data, model._zeros((1, *model._condition_shape))]
        q, _ = model._encode(model._prepared(data), False)
    if q.reparameterization_type != tfd.FULLY_REPARAMETERIZED:
        raise ValueError(f"model: got one with the posterior {q.name}, wanted {_SUPPORTED}")
    return model


def _kind(model: Any) -> str:
    return f"a {type(model).__name__}" if isinstance(model, tf.Module) else f"{model!r:.60}"


def _title(part: Any) -> str:
    """The name of a block; tfd's only where the block has none of its own."""
    name = type(part).__name__
    if not isinstance(part, blocks.Block):
        return name
    title = part.title()
    return name if title.startswith(f"{name} (tfd.") and name not in _GENERIC else title


def _column_names(block: Any) -> tuple[str, ...]:
    """A name for each number of a table's rows."""
    names = []
    for name, column in block.columns.items():
        size = int(np.prod(column.event_shape, dtype=int))
        names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return tuple(names)


def _image_shape(given: Any, event_shape: tuple[int, ...], is_table: bool) -> Any:
    """The shape `[H, W, C]` that x has as an image, None if it is none."""
    size = int(np.prod(event_shape, dtype=int))
    if given is None:
        return None
    if not isinstance(given, str):
        shape = blocks.as_shape("image_shape", given)
        shape = (*shape, 1) if len(shape) == 2 else shape
        if len(shape) != 3 or shape[2] not in (1, 3) or np.prod(shape) != size:
            raise ValueError(
                f"image_shape: got {given!r}, wanted (H, W) or (H, W, 1 or 3) of {size} numbers"
            )
        return shape
    if given != "auto":
        raise ValueError(f"image_shape: got {given!r}, wanted (H, W), None or 'auto'")
    side = int(np.sqrt(size))
    if len(event_shape) == 1 and not is_table and side**2 == size and side >= _IMAGE_SIDE:
        return side, side, 1
    if len(event_shape) == 2:
        return (*event_shape, 1)
    return event_shape if len(event_shape) == 3 and event_shape[2] in (1, 3) else None


def _loc(q: Any) -> np.ndarray:
    """The means of posteriors `[N, D]`."""
    with contextlib.suppress(NotImplementedError):
        return q.mean().numpy()
    return q.sample(64, seed=noise.as_seed(0)).numpy().mean(axis=0)


def _moments(q: Any) -> tuple[Any, Any]:
    """Mean `[B, D]` and covariance `[B, D, D]` of posteriors, of draws where TFP lacks them."""
    q = getattr(q, "tensor_distribution", q)
    with contextlib.suppress(NotImplementedError):
        if diagnostics._is_factorized(q):
            return q.mean(), tf.linalg.diag(q.variance())
        return q.mean(), q.covariance()
    z = q.sample(_MOMENT_DRAWS, seed=noise.next_seed())
    return tf.reduce_mean(z, axis=0), tfp.stats.covariance(z, sample_axis=0)


def _kl_by_unit(q: Any, prior: Any) -> Any:
    """KL(q(z_d|x) || p(z_d)) `[B, D]`, None if TFP does not know it."""
    of_q = diagnostics._marginals(q)
    of_p = diagnostics._marginals(prior) if diagnostics._is_factorized(prior) else None
    if of_q is not None and of_p is not None:
        with contextlib.suppress(NotImplementedError):
            return tfd.kl_divergence(of_q, of_p)
    return None


def _pieces(p: Any) -> dict[str, Any]:
    """The mean, the standard deviation and a draw of a distribution, as tensors."""
    draw = p.sample(seed=noise.next_seed())
    found = {"draw": draw}
    try:
        found["mean"] = p.mean()
    except NotImplementedError:
        found["mean"] = tf.convert_to_tensor(p)
    with contextlib.suppress(NotImplementedError):
        found["sd"] = p.stddev()
    return found


def _decoded(found: dict[str, Any]) -> Decoded:
    sd = found.get("sd")
    return Decoded(
        mean=found["mean"].numpy()[0],
        sd=None if sd is None else sd.numpy()[0],
        draw=found["draw"].numpy()[0],
    )
