"""HierarchicalVAE: several layers of latent variables, each the parent of the one below."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import (
    blocks,
    checks,
    discrete,
    distributions,
    models,
    noise,
    objectives,
    priors,
    regularizers,
)

tfd = tfp.distributions

INFERENCE = ("bottom_up", "top_down")

# What changes from call to call, or between training and evaluation.
_NOISY = (
    keras.layers.AlphaDropout,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


@keras.saving.register_keras_serializable("tfpvae")
class HierarchicalVAE(models.VAE):
    r"""A variational autoencoder with L layers of latent variables: a deep latent Gaussian model.

    $$ p(x, z) = p(x \mid z_1)\, p(z_1 \mid z_2) \cdots p(z_{L-1} \mid z_L)\, p(z_L) $$

    Its posterior goes up from the data, each layer given the one below, or comes down after a pass
    upwards through deterministic networks, each layer given the one above and x (the ladder):

    $$ \begin{aligned}
       \text{bottom up:} \quad & q(z \mid x)
          = q(z_1 \mid x)\, q(z_2 \mid z_1) \cdots q(z_L \mid z_{L-1}) \\
       \text{top down:} \quad & q(z \mid x)
          = q(z_L \mid x)\, q(z_{L-1} \mid z_L, x) \cdots q(z_1 \mid z_2, x), \\
       & q(z_l \mid z_{l+1}, x) \propto \mathcal N(z_l;\ m_l(x), s_l(x)^2)\; p(z_l \mid z_{l+1})
       \end{aligned} $$

    The last line is a normal distribution whose precision is the sum of both precisions: what the
    data say of z_l is put together with what the model expects of it.

    z = (z_1, ..., z_L) is one vector, so everything that a `VAE` does is done with it: all
    objectives and estimators, `log_weights`, `elbo`, `log_marginal_likelihood`, `sample`, `impute`.
    `split` cuts it into its layers. `prior()` and `posterior(x)` are those of all layers together.
    `predict` has each layer at its mean given the layer that it is drawn from at its own.

    The history holds `kl_1`, ..., `kl_L` beside `kl`, which is their sum: the KL of layer l is

    $$ \mathrm{KL}_l = \mathbb E_{q(z \mid x)}\Bigl[
       \log \frac{q(z_l \mid \dots)}{p(z_l \mid z_{l+1})}\Bigr] $$

    in closed form given the layers that z_l depends on, where that is possible (top down in every
    layer, bottom up in the last) and TFP has one, and otherwise from the draws. Going bottom up,
    that of a layer below the last may be negative; their sum is not.

    Networks between layers of latent variables see draws, and are evaluated anew at each one: they
    must give the same output for the same input, so dropout and batch normalization are refused
    there. In the pass upwards from x they are welcome.

    Shapes: z_l `[..., *event_shape_l]`, z `[..., D_1 + ... + D_L]`; x and losses as in `VAE`.

    Args:
      prior: p(z_L), a block of `tfpvae.priors`.
      encoders: with "bottom_up" the networks of q(z_1|x), q(z_2|z_1), ..., each of which ends in a
        posterior block. With "top_down" a pair of networks for each layer, `(features, head)`:
        the first features see x, those of layer l + 1 the features of layer l; the head makes
        m_l and s_l of the features of layer l, and ends in a posterior block of independent normal
        variables (that of z_L in any).
      decoders: the networks of p(x|z_1), p(z_1|z_2), ..., p(z_{L-1}|z_L), from the data upwards;
        each ends in a block, with "top_down" all but the first in one of independent normals.
      inference: "bottom_up" or "top_down".
      seed: of the model's noise, as in `VAE`.
      preprocessing: a tf_keras layer that x goes through before all else, as in `VAE`.
      **kwargs: of `keras.Model`.

    Raises:
      TypeError: for parts that are no tf_keras layers or do not end in a block.
      ValueError: for layers whose sizes do not fit, networks that are random, an unknown inference.

    Example:
      >>> from tfpvae import likelihoods, posteriors, priors
      >>> dense = keras.layers.Dense
      >>> vae = HierarchicalVAE(
      ...     priors.StandardNormal(2),
      ...     [keras.Sequential([dense(6), posteriors.DiagonalNormal(3)]),
      ...      keras.Sequential([dense(4), posteriors.DiagonalNormal(2)])],
      ...     [keras.Sequential([dense(5), likelihoods.Bernoulli(5)]),
      ...      keras.Sequential([dense(6), likelihoods.Normal(3)])], seed=0)
      >>> vae.compile("adam")
      >>> history = vae.fit(np.eye(5, dtype="float32"), epochs=1, verbose=0).history
      >>> sorted(history)
      ['elbo', 'kl', 'kl_1', 'kl_2', 'loss', 'nll']
      >>> [z.shape.as_list() for z in vae.split(vae.prior().sample(7))]
      [[7, 3], [7, 2]]

    Source: Rezende, Mohamed and Wierstra, "Stochastic Backpropagation and Approximate Inference in
    Deep Generative Models", 2014; Burda, Grosse and Salakhutdinov, "Importance Weighted
    Autoencoders", 2016 (bottom up); Sonderby et al., "Ladder Variational Autoencoders", 2016 (top
    down).
    """

    def __init__(
        self,
        prior: Any,
        encoders: Sequence[Any],
        decoders: Sequence[Any],
        inference: str = "bottom_up",
        seed: int | None = None,
        preprocessing: Any = None,
        **kwargs: Any,
    ) -> None:
        parts = _Parts(prior, encoders, decoders, inference)
        super().__init__(
            parts.joint_prior(), parts.encoder(), parts.decoder(), seed, preprocessing, **kwargs
        )
        # Past Keras's tracking: they are parts of the prior, the encoder and the decoder.
        object.__setattr__(self, "_hierarchy", parts)
        object.__setattr__(self, "_kl_terms", tuple(f"kl_{i + 1}" for i in range(self.num_layers)))

    @property
    def num_layers(self) -> int:
        """The number L of layers of latent variables."""
        return len(self._hierarchy.decoders)

    @property
    def event_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of z_1, ..., z_L."""
        return list(self._hierarchy.event_shapes)

    @property
    def inference(self) -> str:
        """Whether the posterior goes "bottom_up" or "top_down"."""
        return self._hierarchy.inference

    def split(self, z: Any) -> list[Any]:
        """The layers z_1, ..., z_L, each `[..., *event_shape_l]`, of z `[..., D]`."""
        return distributions.split(self._given_codes(z), self.event_shapes)

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, *, objective: Any = None, **kwargs: Any
    ) -> None:
        """Configure training, as `VAE.compile`.

        Args:
          optimizer: as in Keras.
          loss: as in `VAE.compile`.
          objective: as in `VAE.compile`. `ELBO(kl_weight=[w_1, ..., w_L])` weights the KL of each
            layer, and `ELBO(free_bits=...)` applies to the KL of each layer.
          **kwargs: the other arguments of `keras.Model.compile`.

        Raises:
          TypeError: for an objective that is none.
          ValueError: for another loss; weights for another number of layers; a closed form of the
            KL where there is none.
        """
        plain = isinstance(objective, objectives.Objective) and objective.is_plain
        if plain and objective.use_exact_kl and not self._hierarchy.has_exact_kl:
            raise ValueError(
                "use_exact_kl: got True, but bottom up only the last layer has a closed form of "
                "the KL; use_exact_kl=None falls back to Monte Carlo"
            )
        super().compile(optimizer, loss, objective=objective, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        parts = self._hierarchy
        config = {
            "name": self.name,
            "prior": _serialized(parts.prior),
            "encoders": _serialized(parts.encoders),
            "decoders": _serialized(parts.decoders),
            "inference": self.inference,
        }
        if self.preprocessing is not None:
            config["preprocessing"] = _serialized(self.preprocessing)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "HierarchicalVAE":
        """The model that a configuration describes."""
        del custom_objects  # Keras has put them into scope.
        names = {"prior", "encoders", "decoders", "preprocessing"}
        with blocks.floatx(config["prior"]):
            return cls(
                **{
                    name: _deserialized(value) if name in names else value
                    for name, value in config.items()
                }
            )

    def build(self, input_shape: Any) -> None:
        """Build all networks by passing one example of this shape `[B, ...]` through them."""
        super().build(input_shape)
        parts = self._hierarchy
        with noise.fixed(0):
            _check_kinds(self.num_layers, _at_zero(parts.heads[-1]), parts.prior())

    def _divergence(self, q: Any, z: Any, regularizer: Any) -> tuple[Any, dict[str, Any]]:
        """KL(q(z|x) || p(z)) of each example, and those of the layers, whose sum it is."""
        if z is None:
            z = regularizer.draws(q)
        layers = zip(self._kl_terms, _factors(q, z), _factors(regularizer.prior(), z), strict=True)
        found = {}
        for name, (of_q, value), (of_p, _) in layers:
            # What z_l depends on in q and in p must not depend on z_l itself.
            exact = regularizer.use_exact_kl
            if name != self._kl_terms[-1] and self.inference == "bottom_up":
                exact = False
            kl = regularizers.KLDivergenceRegularizer(of_p, exact).divergence(of_q, value)
            found[name] = tf.reduce_mean(kl, axis=range(kl.shape.rank - 1))
        return tf.add_n([*found.values()]), found

    def _mean(self, q: Any) -> Any:
        """Each layer at its mean, given the layer that it is drawn from at its own."""
        inner = getattr(q, "tensor_distribution", None)
        return self._codes(inner.means()) if isinstance(inner, distributions.Chain) else q.mean()


class _Parts:
    """The networks of a hierarchy, checked, and what they are put together to."""

    def __init__(self, prior: Any, encoders: Any, decoders: Any, inference: str) -> None:
        if not checks.one_of(inference, INFERENCE):
            raise ValueError(
                f"inference: got {inference!r}, wanted one of {', '.join(map(repr, INFERENCE))}"
            )
        checks.refuse_keras3("prior", prior)
        if not isinstance(prior, priors.Prior):
            raise TypeError(f"prior: got {prior!r}, wanted a block of tfpvae.priors")
        self.prior, self.inference = prior, inference
        self.encoders, self.decoders = _listed("encoders", encoders), _listed("decoders", decoders)
        if len(self.encoders) != len(self.decoders):
            raise ValueError(
                f"encoders: got {len(self.encoders)} with {len(self.decoders)} decoders, wanted as "
                "many: one of each for every layer of latent variables"
            )
        if inference == "top_down":
            self.encoders = [
                _listed(f"encoders[{i}]", pair, "a pair (features, head) of tf_keras networks")
                for i, pair in enumerate(self.encoders)
            ]
            for i, pair in enumerate(self.encoders):
                if len(pair) != 2:
                    raise TypeError(
                        f"encoders[{i}]: got {len(pair)} networks, wanted a pair (features, head)"
                    )
        self.heads = [
            _last_block(f"encoders[{i}]", pair[1] if inference == "top_down" else pair)
            for i, pair in enumerate(self.encoders)
        ]
        self.event_shapes = [block.event_shape for block in self.heads]
        self.size = sum(map(math.prod, self.event_shapes))
        for i, decoder in enumerate(self.decoders):
            check = _last_block if i else blocks.check_network
            check(f"decoders[{i}]", decoder)
        self._check_sizes()

    @property
    def has_exact_kl(self) -> bool:
        """Whether the KLs of all layers can have closed forms."""
        return self.inference == "top_down" or len(self.decoders) == 1

    def joint_prior(self) -> Any:
        """p(z_1, ..., z_L)."""
        if len(self.decoders) == 1:
            return self.prior
        return _JointPrior(self)

    def encoder(self) -> Any:
        """From x to q(z_1, ..., z_L | x)."""
        if self.inference == "top_down":
            return _Encoder(self.encoders, _TopDown(self))
        if len(self.decoders) == 1:
            return self.encoders[0]
        return _Encoder([(None, self.encoders[0])], _BottomUp(self))

    def decoder(self) -> Any:
        """From z to p(x|z_1)."""
        if len(self.decoders) == 1:
            return self.decoders[0]
        return _Decoder(self.decoders[0], self.event_shapes)

    def _check_sizes(self) -> None:
        """Pass an example through all networks between layers: build them, and see if they fit."""
        num = len(self.decoders)
        if tuple(self.prior.event_shape) != self.event_shapes[-1]:
            raise ValueError(
                f"prior: got one of events of shape {tuple(self.prior.event_shape)}, wanted "
                f"{self.event_shapes[-1]}, those of z_{num}, the last layer, which encoders"
                f"[{num - 1}] makes"
            )
        for i, block in enumerate(self.heads):
            if block.conversion.name != "sample" or (i and block.num_samples is not None):
                raise ValueError(
                    f"encoders[{i}]: got a block {block.name!r} that passes "
                    + ("several draws" if block.num_samples else f"its {block.conversion.name}")
                    + " on, wanted one draw"
                    + (": the block of encoders[0] says how many" if block.num_samples else "")
                )
        if num == 1:
            return
        for i, shape in enumerate(self.event_shapes[1:], 1):
            below = self.event_shapes[i - 1]
            if self.inference == "bottom_up":
                _build(f"encoders[{i}]", self.encoders[i], below, f"z_{i}")
            p = _build(f"decoders[{i}]", self.decoders[i], shape, f"z_{i + 1}")
            if tuple(p.event_shape) != below:
                raise ValueError(
                    f"decoders[{i}]: got one that makes events of shape {tuple(p.event_shape)}, "
                    f"wanted {below}, those of z_{i}, which encoders[{i - 1}] makes"
                )
            if self.inference == "top_down":
                _check_normal(f"encoders[{i - 1}]", _at_zero(self.heads[i - 1]))
                _check_normal(f"decoders[{i}]", p)
            _check_kinds(i, _at_zero(self.heads[i - 1]), p)
        _build("decoders[0]", self.decoders[0], self.event_shapes[0], "z_1", between=False)


class _JointPrior(priors.Prior):
    """p(z_1, ..., z_L), with the weights of p(z_L) and of the networks p(z_l | z_{l+1})."""

    def __init__(self, parts: _Parts) -> None:
        blocks.Block.__init__(
            self,
            (parts.size,),
            blocks.Conversion("sample", None),
            dtype=parts.prior.dtype,
            name="joint_prior",
        )
        self._free = ()
        self.last, self.networks = parts.prior, parts.decoders[1:]
        object.__setattr__(self, "_hierarchy", parts)
        ends = [_last_block("decoders", network) for network in self.networks]
        self._conditionals_are = _reparameterization(map(_at_zero, ends))
        self.built = True

    def title(self) -> str:
        """What errors call it."""
        return "p(z_1, ..., z_L)"

    def attach(self, encoder: Any) -> None:
        """Take note of the network that makes z_L."""
        if self._hierarchy.inference == "bottom_up":
            self.last.attach(self._hierarchy.encoders[-1])
        else:
            self.last.attach(_LastEncoder(encoder))

    def _distribution(self, inputs: Any) -> Any:
        last, shapes = self.last(), self._hierarchy.event_shapes
        full, is_last = tfd.FULLY_REPARAMETERIZED, last.reparameterization_type
        pairs = zip(self.networks, shapes[1:], strict=True)
        return distributions.Chain(
            last,
            [_given(network, shape) for network, shape in reversed([*pairs])],
            shapes[::-1],
            reverse=True,
            reparameterization_type=self._conditionals_are if is_last == full else is_last,
            dtype=tf.as_dtype(self.dtype),
            name="joint_prior",
        )


class _JointPosterior(blocks.Block):
    """q(z_1, ..., z_L | x), from the numbers that the pass upwards from x ends in."""

    def __init__(self, parts: _Parts, heads: Sequence[Any], networks: Sequence[Any]) -> None:
        shape = (parts.size,) if len(parts.decoders) > 1 else heads[0].event_shape
        super().__init__(shape, heads[0].conversion, dtype=heads[0].dtype, name="joint_posterior")
        self.networks = list(networks)  # Whose weights it has.
        object.__setattr__(self, "heads", list(heads))  # The encoders'.
        object.__setattr__(self, "_hierarchy", parts)
        ends = [_last_block("encoders", network) for network in self.networks]
        self._reparameterization = _reparameterization(map(_at_zero, (*heads, *ends)))
        self.complete()

    def free_parameters(self) -> tuple[blocks.Parameter, ...]:
        """Those of all heads."""
        return tuple(
            parameter._replace(name=f"{parameter.name}_{i + 1}")
            for i, head in enumerate(self.heads)
            for parameter in head.free
        )

    def _check_variables(self, created_variables: Any, accessed_variables: Any) -> None:
        """Nothing: Keras would warn of weights that others have, the heads and the joint prior."""

    def _chain(self, first: Any, conditionals: Any, reverse: bool) -> Any:
        shapes = self._hierarchy.event_shapes
        if len(shapes) == 1:
            return first
        return distributions.Chain(
            first,
            conditionals,
            shapes[::-1] if reverse else shapes,
            reverse=reverse,
            reparameterization_type=self._reparameterization,
            dtype=tf.as_dtype(self.dtype),
            name=type(self).__name__.strip("_"),
        )


class _BottomUp(_JointPosterior):
    """q(z_1|x) q(z_2|z_1) ..., of the parameters of the first."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__(parts, parts.heads[:1], parts.encoders[1:])

    def new(self, params: Any, **kwargs: Any) -> Any:
        """The distribution, from unconstrained numbers."""
        pairs = zip(self.networks, self._hierarchy.event_shapes, strict=False)
        conditionals = [_given(network, shape) for network, shape in pairs]
        return self._chain(self.heads[0].new(params, **kwargs), conditionals, reverse=False)


class _TopDown(_JointPosterior):
    """q(z_L|x) q(z_{L-1}|z_L, x) ..., of the parameters of what x says of each layer."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__(parts, parts.heads, ())

    def new(self, params: Any, **kwargs: Any) -> Any:
        """The distribution, from unconstrained numbers."""
        if params.shape.rank > 2:
            raise ValueError(
                f"encoders: got heads that put out parameters of shape {tuple(params.shape)}, "
                "wanted (B, size): end them in a dense layer and a block"
            )
        pieces = tf.split(params, [head.params_size for head in self.heads], axis=-1)
        *rest, last = (
            head.new(piece, **kwargs) for head, piece in zip(self.heads, pieces, strict=True)
        )
        parts = self._hierarchy
        triples = zip(rest, parts.decoders[1:], parts.event_shapes[1:], strict=True)
        conditionals = [_merged(q, _given(network, shape)) for q, network, shape in triples]
        return self._chain(last, conditionals[::-1], reverse=True)


class _Encoder(keras.Model):
    """From x to the joint posterior."""

    def __init__(self, pairs: Any, joint: Any) -> None:
        super().__init__(name="encoder", autocast=False)
        self.features = [features for features, _ in pairs if features is not None]
        self.heads = [head for _, head in pairs]
        self.joint = joint  # The last of `layers`, as the output is.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """q(z_1, ..., z_L | x)."""
        params = []
        for i, q in enumerate(self.upwards(inputs, training)):
            block, found = blocks.source(q) or (None, None)
            if block is not self.joint.heads[i]:
                raise TypeError(
                    f"encoders[{i}]: got a network whose output is not made by the block "
                    f"{self.joint.heads[i].name!r}, the last of its layers, wanted one that ends "
                    "in it"
                )
            params.append(found)
        return self.joint(params[0] if len(params) == 1 else tf.concat(params, axis=-1))

    def upwards(self, inputs: Any, training: bool | None) -> list[Any]:
        """What each head makes of x."""
        values, made = inputs, []
        for i, head in enumerate(self.heads):
            if not self.features:
                made.append(_called(head, values, training))
                continue
            values = _called(self.features[i], values, training)
            with noise.fixed(0):  # Only the joint posterior draws.
                made.append(_called(head, values, training))
        return made


class _LastEncoder(keras.Model):
    """From x to q(z_L|x) of a ladder: the encoder of p(z_L)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(name="last_encoder", autocast=False)
        object.__setattr__(self, "_encoder", encoder)  # Whose weights they are.

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """q(z_L|x)."""
        return self._encoder.upwards(inputs, training)[-1]


class _Decoder(keras.Model):
    """From z to p(x|z_1)."""

    def __init__(self, network: Any, event_shapes: list[tuple[int, ...]]) -> None:
        super().__init__(name="decoder", autocast=False)
        object.__setattr__(self, "_event_shapes", event_shapes)
        self.network = network

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """p(x|z_1)."""
        first, *_ = distributions.split(inputs, self._event_shapes)
        return self.network(first, training=training)


def _given(network: Any, event_shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """What a network makes of z `[..., *event_shape]`, a distribution with batch shape `[...]`."""

    def conditional(z: Any) -> Any:
        batch_ndims = z.shape.rank - len(event_shape)
        flat = z if batch_ndims == 1 else tf.reshape(z, [-1, *event_shape])
        with noise.fixed(0):  # For the value that its block passes on, which nobody asks for.
            p = network(flat, training=False)
            if batch_ndims != 1:
                p = blocks.rebatch(p, tf.shape(z)[:batch_ndims], batch_ndims)
        return p.tensor_distribution

    return conditional


def _merged(q: Any, conditional: Callable[[Any], Any]) -> Callable[[Any], Any]:
    r"""The normalized product of normal distributions, one of them given z.

    $$ \frac{1}{s^2} = \frac{1}{s_q^2} + \frac{1}{s_p^2}, \qquad
       \frac{m}{s^2} = \frac{m_q}{s_q^2} + \frac{m_p}{s_p^2} $$
    """

    def product(z: Any) -> Any:
        p = conditional(z)
        variance_of_q, variance_of_p = q.variance(), p.variance()
        total = variance_of_q + variance_of_p
        loc = (variance_of_p * q.mean() + variance_of_q * p.mean()) / total
        scale = q.stddev() * p.stddev() * tf.math.rsqrt(total)
        return blocks.independent(tfd.Normal(loc, scale), p.event_shape.rank)

    return product


def _factors(distribution: Any, z: Any) -> list[tuple[Any, Any]]:
    """The distributions of the layers given what they depend on, and their values."""
    inner = getattr(distribution, "tensor_distribution", distribution)
    return inner.factors(z) if isinstance(inner, distributions.Chain) else [(inner, z)]


def _at_zero(block: Any) -> Any:
    """The distribution of a block where all its unconstrained numbers are zero."""
    with tf.init_scope():
        return block.new(tf.zeros([block.params_size], block.dtype))


def _reparameterization(distributions: Any) -> Any:
    """How all of several distributions together are reparameterized."""
    full = tfd.FULLY_REPARAMETERIZED
    found = [distribution.reparameterization_type == full for distribution in distributions]
    return full if all(found) else tfd.NOT_REPARAMETERIZED


def _called(network: Any, values: Any, training: bool | None) -> Any:
    """The output of a network, which is built for batches of any size."""
    if isinstance(network, keras.Sequential) and not network.built:
        network.build((None, *values.shape[1:]))  # Else it is rebuilt, which takes draws, later.
    return network(values, training=training)


def _build(name: str, network: Any, shape: tuple[int, ...], z: str, between: bool = True) -> Any:
    """What a network makes of one example of this shape; ValueError if it does not take it."""
    if between:
        for layer in (network, *network.submodules):
            if isinstance(layer, _NOISY):
                raise ValueError(
                    f"{name}: got a layer {type(layer).__name__}, whose output depends on more "
                    f"than its input, wanted none in a network between layers of latent "
                    f"variables: the density of a draw has to be that which it was drawn from"
                )
    try:
        with tf.init_scope(), noise.fixed(0):
            zeros = tf.zeros((1, *shape), blocks.full_precision(None))
            found = _called(network, zeros, False)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"{name}: got a network that does not take {z}, values of shape {shape}: {error}"
        ) from error
    return found


def _listed(name: str, networks: Any, wanted: str = "a list of tf_keras networks") -> list[Any]:
    """The networks, which have to come as a list."""
    if not isinstance(networks, (list, tuple)) or not networks:
        raise TypeError(f"{name}: got {networks!r}, wanted {wanted}")
    return list(networks)


def _last_block(name: str, network: Any) -> Any:
    """The block that a network ends in."""
    blocks.check_network(name, network)
    block = models._last_layer(network)
    if not isinstance(block, blocks.Block):
        raise TypeError(
            f"{name}: got a network that ends in a layer {type(block).__name__}, wanted one that "
            "ends in a block of tfpvae.posteriors, tfpvae.likelihoods or of your own"
        )
    if block.activity_regularizer is not None:
        raise ValueError(
            f"{name}: its block {block.name!r} has an activity_regularizer, wanted none: the model "
            "adds the KL of all layers to the loss itself"
        )
    return block


def _check_normal(name: str, distribution: Any) -> None:
    inner = getattr(distribution, "tensor_distribution", distribution)
    if not isinstance(distributions.leaf(inner), tfd.Normal):
        raise ValueError(
            f"{name}: got a network that makes a {inner.name}, wanted independent normal "
            "variables (posteriors.DiagonalNormal, likelihoods.Normal), as inference='top_down' "
            "multiplies normal densities; 'bottom_up' takes any block"
        )


def _check_kinds(layer: int, q: Any, p: Any) -> None:
    """Raise ValueError if a layer is discrete in the posterior and continuous a priori."""
    inner = getattr(p, "tensor_distribution", p)
    try:
        discrete.check_same_kind(q, inner)
    except ValueError as error:
        raise ValueError(f"z_{layer}: {error}") from None


def _serialized(value: Any) -> Any:
    """The configuration of a layer, or of lists of layers."""
    if isinstance(value, (list, tuple)):
        return [_serialized(item) for item in value]
    return keras.saving.serialize_keras_object(value)


def _deserialized(config: Any) -> Any:
    """The layer, or the lists of layers, that a configuration describes."""
    if isinstance(config, (list, tuple)):
        return [_deserialized(item) for item in config]
    return keras.saving.deserialize_keras_object(config)
