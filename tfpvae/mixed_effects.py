"""Regression with random effects: coefficients for all rows, and local ones for each group."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import blocks, checks, inputs, noise, posteriors, priors, regression

tfb, tfd = tfp.bijectors, tfp.distributions

_NEWTON_STEPS = 30
_CORRELATION_PRIOR = 2.0  # concentration of the LKJ distribution
_MAX_GROUPS = 2**24  # of which float32 can tell the numbers apart


class _Rows(NamedTuple):
    """Features and the labels of their groups, on their way to `MixedRegression._arrays`."""

    x: Any
    groups: Any


class _Expansion(NamedTuple):
    """The log-likelihood of each group around the mode of its effects, as a normal factor.

    It is `exp(slope @ [1, e] d - |root^T d|^2 / 2)` for effects that are d away from the mode, and
    for coefficients that are e units away from where training starts.
    """

    mode: np.ndarray  # [G, R]
    tril: np.ndarray  # [G, R, R], the scale of the posterior there
    unit: np.ndarray  # [G, R, R], its transposed inverse
    slope: np.ndarray  # [G, R, 1 + D]
    root: np.ndarray  # [G, R, R]


class _Joint(tfp.distributions.Distribution):
    """Coefficients w `[D]` from a first distribution, then group effects `[G, R]` given these."""

    def __init__(self, first: Any, second: Any, shape: tuple[int, int]) -> None:
        parameters = dict(locals())
        self.first, self.second, self.shape = first, second, shape
        super().__init__(
            dtype=first.dtype,
            reparameterization_type=tfd.FULLY_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name="Joint",
        )

    def _batch_shape(self) -> Any:
        return tf.TensorShape([])

    def _event_shape(self) -> Any:
        return tf.TensorShape([self.first.event_shape[0] + math.prod(self.shape)])

    def join(self, w: Any, u: Any) -> Any:
        """One vector of both."""
        return tf.concat([w, tf.reshape(u, [*tf.unstack(tf.shape(w)[:-1]), -1])], axis=-1)

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        w = self.first.sample(n, seed=seed)
        own = None if seed is None else tf.random.fold_in(seed, 1)
        return self.join(w, self.second(w).sample(seed=own))

    def paired(self, num: int) -> Any:
        """Draws in pairs around the means, see `regression.paired_draws`."""
        w = regression.paired_draws(self.first, num)
        q, half = self.second(w), -(-num // 2)
        normal = tfd.Normal(tf.zeros([], self.dtype), 1.0)
        noises = normal.sample([half, *self.shape], seed=noise.next_seed())
        noises = tf.concat([noises, -noises], axis=0)[:num]
        return self.join(w, q.loc + q.scale.matvec(noises))

    def _log_prob(self, value: Any) -> Any:
        w, u = self.split(value)
        return self.first.log_prob(w) + tf.reduce_sum(self.second(w).log_prob(u), axis=-1)

    def split(self, value: Any) -> tuple[Any, Any]:
        """Coefficients `[..., D]` and group effects `[..., G, R]`."""
        size = self.first.event_shape[0]
        shape = tf.concat([tf.shape(value)[:-1], self.shape], axis=0)
        return value[..., :size], tf.reshape(value[..., size:], shape)


@keras.saving.register_keras_serializable("tfpvae")
class MixedRegression(regression.BayesianRegression):
    r"""Regression with random effects: some coefficients differ from group to group of rows.

    $$ y_n \sim p(y \mid \eta_n), \qquad \eta_n = x_n^\top w + b + v_n^\top u_{g(n)}, \qquad
       u_g \sim \mathcal N(0, \operatorname{diag}(\tau)^2), \quad w \sim p(w), \quad
       \tau \sim p(\tau) $$

    The effects u of a group are the local latent variables of its rows, as z in a VAE; w, the
    scales tau and what else the likelihood leaves free are global. By default the posterior is
    a normal of all global unknowns, tau on the log scale, times one of each group given these:

    $$ q(u_g \mid w, \tau) \propto \mathcal N(u_g; 0, \operatorname{diag}(\tau)^2)
       \exp\bigl(h_g(w)^\top u_g - \tfrac12 u_g^\top \Lambda_g u_g\bigr) $$

    with h and Lambda, which stand for the likelihood of the group, learned for each group. Given
    the global unknowns that is exact for a normal likelihood, and a group whose scale is drawn near
    zero has effects near zero, which a posterior that takes u and tau for independent cannot say.

    `loss` is the negative ELBO of all rows and groups, shared out to the rows, in nats. All groups
    count in the KL of every step, whatever their size and the batch's rows.

    Shapes: x `[N, P]`, groups `[N]`, y `[N, *event_shape]`, effects `[G, R]`.

    Args:
      likelihood: p(y|eta), as in `BayesianRegression`; the effects are those of its location.
      random: what differs between groups: "intercept", or names of columns of x.
      group_scale: the prior of the scales tau, a block of `event_shape` `()` over positive numbers,
        such as `priors.Prior("HalfStudentT", df=4.0, loc=0.0, scale=1.0)`; half-normal of scale 1
        if None. Or their known values, a number, or one for each effect.
      correlated: whether the effects of a group are correlated a priori, with an unknown
        correlation matrix that has an LKJ prior of concentration 2.
      group_posterior: q(u_g|w, tau) if None. Or `posteriors.FullRankNormal` or
        `posteriors.DiagonalNormal` for free normals q(u_g), independent of w and tau.
      encoder: None gives each group parameters of its own. Or a tf_keras network that makes
        features `[N, H]` of rows `[N, P + size of y]`, of x and y: their means over the rows of a
        group, beside the logarithm of the number of rows, go through one layer more and make the
        posterior's parameters, so that `with_groups` serves others.
      groups: the labels of all groups, in the order of their effects; None takes those of the first
        `fit`, sorted.
      prior: p(w), of the coefficients for all rows, as in `BayesianRegression`.
      posterior: q(w, log tau), as in `BayesianRegression`.
      **kwargs: of `BayesianRegression`. With `standardize=True` the prior is on the standardized
        scale; slopes and scales are reported on the scale of x all the same, and effects of the
        intercept are those at the columns' means.

    Raises:
      TypeError: for parts that are no blocks.
      ValueError: for unknown names, and scales that are not positive.

    Example:
      >>> from tfpvae import likelihoods
      >>> rng = np.random.default_rng(0)
      >>> groups = np.repeat(["a", "b", "c", "d"], 20)
      >>> x = rng.normal(size=(80, 1))
      >>> y = x[:, 0] + np.repeat([1.0, -1.0, 0.5, -0.5], 20) + 0.1 * rng.normal(size=80)
      >>> model = MixedRegression(likelihoods.Normal(scale=0.1), random=["intercept"], seed=0)
      >>> history = model.fit(x, y, groups, steps=50, verbose=0)
      >>> model.coefficient_names
      ['x0', 'intercept', 'group scale of intercept (log)']
      >>> model.random_effects.groups, model.random_effects.mean().shape
      (('a', 'b', 'c', 'd'), TensorShape([4, 1]))

    Source: Gelman and Hill, "Data Analysis Using Regression and Multilevel/Hierarchical Models",
    2007; Hoffman and Blei, "Structured Stochastic Variational Inference", 2015.
    """

    def __init__(
        self,
        likelihood: Any,
        random: Sequence[str] = ("intercept",),
        *,
        group_scale: Any = None,
        correlated: bool = False,
        group_posterior: Any = None,
        encoder: Any = None,
        groups: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(likelihood, **kwargs)
        wanted = "a list of names of columns, or 'intercept'"
        names = [random] if isinstance(random, str) else checks.sequence("random", random, wanted)
        self._random = [*map(str, names)]
        if not self._random or len({*self._random}) < len(self._random):
            raise ValueError(f"random: got {self._random}, wanted different names, at least one")
        if group_scale is None:
            group_scale = priors.Prior("HalfNormal", scale=1.0)
        self._known_scale = None
        self._scale_prior: Any = None
        if isinstance(group_scale, priors.Prior):
            self._scale_prior = _checked_prior(group_scale)
        else:
            self._known_scale = _checked_scale(group_scale)
        self._correlated = checks.flag("correlated", correlated)
        if self._correlated and self._known_scale is not None:
            raise ValueError("correlated: got True with known scales, wanted a prior of them")
        self._group_posterior = group_posterior
        checks.refuse_keras3("encoder", encoder)
        if not isinstance(encoder, keras.layers.Layer | None):
            raise TypeError(f"encoder: got {encoder!r}, wanted a tf_keras network or None")
        self.encoder: Any = encoder
        self._groups_are_given = groups is not None
        # In the order given: effects of new groups come after those that were known before.
        self._groups: Any = None if groups is None else [*dict.fromkeys(_labels("groups", groups))]
        object.__setattr__(self, "_context", None)  # The rows that the encoder reads in training.

    # What is where.

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs `[N, P]` and the groups that are known."""
        if self._groups is None:
            raise ValueError("groups: got none yet: call fit(x, y, groups) first")
        names = [*(self._feature_names or [f"x{i}" for i in range(input_shape[-1])]), "intercept"]
        unknown = [name for name in self._random if name not in names]
        if unknown:
            raise ValueError(f"random: got {unknown}, wanted some of {names}")
        located = next(p for p in self.likelihood.free if p.name == self._depends[0])
        self._outputs_of_effects = located.size
        sizes = self.likelihood.sizes
        start = sum(sizes[: self.likelihood.free.index(located)])
        self._located = slice(start, start + located.size)
        self._shape = (len(self._groups), len(self._random) * located.size)
        if self._known_scale is not None and len(self._known_scale) not in (1, self._shape[1]):
            raise ValueError(
                f"group_scale: got {len(self._known_scale)} numbers, wanted {self._shape[1]}"
            )
        super().build(input_shape)
        num, size = self._shape
        width = 1 + len(self.coefficient_names)
        self._block = self._own_block(size)
        per_group = (
            width * (size + 1) - 1 + size**2 if self._block is None else (self._block.params_size)
        )
        state = {"trainable": False, "initializer": "zeros", "dtype": self.prior.dtype}
        self.local = self.add_weight(
            name="local",
            shape=(num, per_group),
            initializer="zeros",
            trainable=self.encoder is None,
        )
        self.mode = self.add_weight("mode", (num, size), **state)
        self.tril = self.add_weight("tril", (num, size, size), **state)
        self.unit = self.add_weight("unit", (num, size, size), **state)
        self.slope = self.add_weight("slope", (num, size, width), **state)
        self.root = self.add_weight("root", (num, size, size), **state)
        for variable in (self.tril, self.unit):
            variable.assign(np.tile(np.eye(size), (num, 1, 1)))
        if self.encoder is not None:
            rows = self._num_features + math.prod(self.likelihood.event_shape)
            self.encoder.build((None, rows))
            features = self.encoder.compute_output_shape((None, rows))[-1]
            self.last = keras.layers.Dense(
                per_group, kernel_initializer="zeros", dtype=self.prior.dtype, name="last"
            )
            self.last.build((None, features + 1))

    def _own_block(self, size: int) -> Any:
        """The block of free q(u_g), None for q(u_g|w, tau)."""
        made = self._group_posterior
        if made is None:
            return None
        block = made if isinstance(made, blocks.Block) else made(size)
        normal = isinstance(block, posteriors.FullRankNormal | posteriors.DiagonalNormal)
        if not normal or block.event_shape != (size,):
            raise ValueError(
                f"group_posterior: got {block.title()} of event_shape {block.event_shape}, wanted "
                f"None, posteriors.FullRankNormal or posteriors.DiagonalNormal of {size}"
            )
        return block

    @property
    def _num_scales(self) -> int:
        """How many unknowns the scales and correlations of the effects are."""
        size = len(self._random) * self._outputs_of_effects
        if self._known_scale is not None:
            return 0
        return size + self._correlated * size * (size - 1) // 2

    @property
    def effect_names(self) -> list[str]:
        """The names of the R effects of a group, in their order."""
        located = next(p for p in self.likelihood.free if p.name == self._depends[0])
        if located.size == 1:
            return [*self._random]
        return [f"{name}[{k}]" for name in self._random for k in self._outputs(located)]

    @property
    def coefficient_names(self) -> list[str]:
        """The names of the coefficients, and of the unknown scales, in their order."""
        names = super().coefficient_names
        if self._known_scale is not None:
            return names
        names += [f"group scale of {name} (log)" for name in self.effect_names]
        size = len(self.effect_names)
        if self._correlated:
            names += [f"correlation {i} (unconstrained)" for i in range(size * (size - 1) // 2)]
        return names

    # The model.

    def _tril(self, w: Any) -> Any:
        """The scale of p(u_g|tau), `[..., R, R]` lower triangular."""
        start, size = self._num_coefficients, self._shape[1]
        if self._known_scale is not None:
            scale = tf.broadcast_to(tf.constant(self._known_scale, w.dtype), [size])
            return tf.linalg.diag(scale + tf.zeros_like(w[..., :1]))
        scale = tf.exp(w[..., start : start + size])
        if not self._correlated:
            return tf.linalg.diag(scale)
        return scale[..., tf.newaxis] * tfb.CorrelationCholesky()(w[..., start + size :])

    def _coefficient_prior(self) -> Any:
        """The prior of the coefficients, and of the scales on the log scale."""
        parts, size = [super()._prior_distribution()], self._shape[1]
        if self._known_scale is None:
            parts.append(tfd.TransformedDistribution(self._scale_prior.repeated(size), tfb.Log()))
        if self._correlated and size > 1:
            correlation = tfd.CholeskyLKJ(size, tf.constant(_CORRELATION_PRIOR, self.prior.dtype))
            parts.append(
                tfd.TransformedDistribution(correlation, tfb.Invert(tfb.CorrelationCholesky()))
            )
        return parts[0] if len(parts) == 1 else tfd.Blockwise(parts)

    def _prior_distribution(self) -> Any:
        """The prior p(w) p(u|tau) of coefficients and effects."""
        zeros = tf.zeros(self._shape, self.prior.dtype)
        return _Joint(
            self._coefficient_prior(),
            lambda w: _normal(zeros, self._tril(w)[..., tf.newaxis, :, :]),
            self._shape,
        )

    def _posterior_distribution(self) -> Any:
        """The posterior q(w) q(u|w) of the same."""
        local = self._local_parameters()
        return _Joint(
            super()._posterior_distribution(), lambda w: self._effects(w, local), self._shape
        )

    def _effects(self, w: Any, local: Any) -> Any:
        """The posterior q(u_g|w) of the effects of all groups at coefficients `[..., D]`."""
        if self._block is not None:
            q, tril = self._block.new(local), self.tril
            if isinstance(self._block, posteriors.FullRankNormal):
                own = q.scale.to_dense()
            else:
                tril, own = tf.linalg.diag(tf.linalg.diag_part(tril)), tf.linalg.diag(q.stddev())
            lead = tf.zeros_like(w[..., :1, tf.newaxis])
            loc = self.mode + tf.linalg.matvec(tril, q.mean())
            return _normal(loc + lead, tf.matmul(tril, own) + lead[..., tf.newaxis])
        (num, size), width = self._shape, 1 + w.shape[-1]
        shift, root, log_scale = tf.split(local, [size * width, size**2, width - 1], axis=1)
        e = self._in_units(w)
        one = tf.concat([tf.ones_like(w[..., :1]), e], axis=-1)
        shift = tf.matmul(self.unit, tf.reshape(shift, [num, size, width]))
        slope = tf.einsum("grd,...d->...gr", self.slope + shift, one)
        root = self.root + tf.matmul(self.unit, tf.reshape(root, [num, size, size]))
        growth = tf.exp(0.5 * tf.einsum("gd,...d->...g", log_scale, e))
        prior = self._tril(w)[..., tf.newaxis, :, :]
        root = growth[..., tf.newaxis, tf.newaxis] * root
        return _conditional(prior, self.mode, slope, root)

    def _in_units(self, w: Any) -> Any:
        """How far coefficients `[..., D]` are from where training started, in its units."""
        distance = w - self.start
        if len(self.spread.shape) == 1:
            return distance / self.spread
        eye = tf.eye(self.spread.shape[0], dtype=w.dtype)
        inverse = tf.linalg.triangular_solve(tf.convert_to_tensor(self.spread), eye)
        return tf.einsum("de,...e->...d", inverse, distance)

    def _local_parameters(self) -> Any:
        """What the posterior of each group is made from, `[G, K]`."""
        return (
            tf.convert_to_tensor(self.local)
            if self._context is None
            else self._encoded(*self._context)
        )

    def _encoded(self, rows: Any, codes: Any, num: int) -> Any:
        """What the encoder makes of the rows of each group."""
        features = tf.cast(self.encoder(rows), self.prior.dtype)
        count = tf.math.unsorted_segment_sum(tf.ones_like(features[:, :1]), codes, num)
        total = tf.math.unsorted_segment_sum(features, codes, num)
        count = tf.maximum(count, 1.0)
        return self.last(tf.concat([total / count, tf.math.log(count)], axis=1))

    def _training_draws(self, q: Any) -> Any:
        return q.paired(self._num_draws)

    def _predictors(self, x: Any, w: Any) -> Any:
        """What the likelihood takes, `[B, S, params_size]`, from x `[B, P]` and w `[S, D + G R]`.

        Rows of groups that are not among those of w get effects from the prior.
        """
        size = len(self.coefficient_names)
        w, u = w[:, :size], w[:, size:]
        u = tf.reshape(u, [tf.shape(u)[0], u.shape[1] // self._shape[1], self._shape[1]])
        if u.shape[1] == self._shape[0]:
            u = tf.concat([u, self._fresh(w, 1, noise.next_seed())], axis=1)
        rows = tf.minimum(tf.cast(x[:, -1], tf.int32), u.shape[1] - 1)
        effects = tf.transpose(tf.gather(u, rows, axis=1), (1, 0, 2))
        return super()._predictors(x[:, :-1], w) + self._shift(self._columns_of_effects(x), effects)

    def _fresh(self, w: Any, num: int, seed: Any) -> Any:
        """Effects `[S, num, R]` of groups that nothing is known of."""
        seed = noise.as_seed(0) if seed is None else seed
        zeros = tf.zeros([num, self._shape[1]], w.dtype)
        return _normal(zeros, self._tril(w)[:, tf.newaxis]).sample(seed=seed)

    def _columns_of_effects(self, x: Any) -> Any:
        """What the effects are the coefficients of, v `[B, T]`."""
        features = (x[:, : self._num_features] - self.center) / self.scale
        features = tf.concat([features, tf.ones_like(x[:, :1])], axis=1)
        names = [*self._feature_names, "intercept"]
        return tf.gather(features, [names.index(name) for name in self._random], axis=1)

    def _shift(self, v: Any, effects: Any) -> Any:
        """What effects `[B, ..., R]` add to what the likelihood takes, `[B, ..., params_size]`."""
        effects = tf.reshape(
            effects,
            tf.concat([tf.shape(effects)[:-1], [v.shape[1], self._outputs_of_effects]], axis=0),
        )
        added = tf.einsum("bt,b...tk->b...k", v, effects)
        after = self.likelihood.params_size - self._located.stop
        return tf.pad(added, [[0, 0]] * (added.shape.rank - 1) + [[self._located.start, after]])

    # Where training starts: the mode of the Laplace approximation of p(w, tau | y).

    def _log_density(self, w: Any, x: Any, y: Any, weight: Any) -> Any:
        """The log p(y, w | x) with the effects integrated out by Laplace's approximation."""
        num, codes = self._shape[0], tf.cast(x[:, -1], tf.int32)
        rows = _Observed(self, x, y, weight, codes, num)
        fixed = regression.BayesianRegression._predictors(self, x[:, :-1], w[tf.newaxis])[:, 0]
        tril = self._tril(w)
        z = tf.stop_gradient(rows.mode(tf.stop_gradient(fixed), tf.stop_gradient(tril)))
        z = rows.newton(z, fixed, tril, math.inf)  # This one has the gradient of the mode.
        log_likelihood, _, scale = rows.around(z, fixed, tril)
        log_volume = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(scale)))
        laplace = log_likelihood - 0.5 * tf.reduce_sum(z**2) + log_volume
        return laplace + self._coefficient_prior().log_prob(w)

    def _start_at_mode(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> None:
        super()._start_at_mode(x, y, weight)
        # The block's own standard deviation is not 1 where its parameters are zero.
        q = self._posterior.new(self.unconstrained)
        if isinstance(q, tfd.MultivariateNormalLinearOperator | tfd.Independent):
            self.spread.assign(self.spread / q.stddev())
        found = self._expanded(x, y, weight, self._shape[0])
        if all(np.isfinite(part).all() for part in found):
            self._assign(found)

    def _sizes_of_columns(self, x: np.ndarray) -> np.ndarray:
        return np.append(super()._sizes_of_columns(x), np.ones(self._num_scales))

    def _expansion(self) -> tuple[Any, ...]:
        """The weights that hold an `_Expansion` of each group."""
        return self.mode, self.tril, self.unit, self.slope, self.root

    def _assign(self, found: Sequence[np.ndarray]) -> None:
        for variable, values in zip(self._expansion(), found, strict=True):
            variable.assign(values)

    def _expanded(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, num: int
    ) -> _Expansion:
        """The likelihood of each of `num` groups around the mode of its effects, w at its start."""
        x, y, size = self.prepare(x), tf.constant(y), self.start.shape[0]
        weight = tf.ones_like(x[:, 0]) if weight is None else tf.cast(weight, x.dtype)
        codes = tf.cast(x[:, -1], tf.int32)
        rows = _Observed(self, x, y, weight, codes, num)
        start = tf.convert_to_tensor(self.start)

        def fixed(part: Any, w: Any) -> Any:
            return regression.BayesianRegression._predictors(self, part[:, :-1], w)

        at_start, prior = fixed(x, start[tf.newaxis])[:, 0], self._tril(start)
        z = rows.mode(at_start, prior)
        _, slope, scale = rows.around(z, at_start, prior)
        mode, tril = tf.linalg.matvec(prior, z).numpy(), tf.matmul(prior, scale).numpy()
        _, gradient, cross = rows.derivatives(at_start, tf.constant(mode))
        slope, precision = (part.numpy() for part in rows.sums(gradient, cross))
        # How the slope at the mode changes with the coefficients.
        change = np.zeros((num, *mode.shape[1:], size))
        probes = tf.concat([tf.zeros([1, size], x.dtype), tf.eye(size, dtype=x.dtype)], axis=0)
        for part in regression.pieces_of(len(x), size * self.likelihood.params_size):
            design = fixed(x[part], probes)
            design = design[:, 1:] - design[:, :1]  # [B, D, params_size]
            moved = tf.einsum("bkq,bdq->bkd", cross[part], design)
            spread_out = tf.einsum("bt,bkd->btkd", rows.v[part], moved)
            spread_out = tf.reshape(spread_out, [-1, mode.shape[1], size])
            change += tf.math.unsorted_segment_sum(spread_out, codes[part], num).numpy()
        spread = self.spread.numpy()
        change = change @ (np.diag(spread) if spread.ndim == 1 else spread)
        # A square root of the precision, which is singular where a group says nothing.
        unit = np.swapaxes(np.linalg.inv(tril.astype(np.float64)), 1, 2)
        inner = np.swapaxes(tril, 1, 2) @ precision @ tril
        values, vectors = np.linalg.eigh((inner + np.swapaxes(inner, 1, 2)) / 2)
        root = unit @ (vectors * np.sqrt(np.maximum(values, 0.0))[:, np.newaxis])
        slope = np.concatenate([slope[..., np.newaxis], change], axis=2)
        return _Expansion(mode, tril, unit, slope, root)

    # Data with groups.

    def fit(  # type: ignore[override]  # with groups
        self,
        x: Any = None,
        y: Any = None,
        groups: Any = None,
        batch_size: int | None = None,
        epochs: int | None = None,
        *,
        validation_data: Any = None,
        **settings: Any,
    ) -> Any:
        """Approximate the posterior of coefficients, scales and effects.

        Args:
          x: features `[N, P]`, or a data frame.
          y: what the likelihood explains, `[N, *event_shape]`.
          groups: the label of the group of each row, `[N]`: strings or numbers.
          batch_size: as in `BayesianRegression.fit`, as `epochs`.
          epochs: passes over the data.
          validation_data: `(x, y, groups)` or `(x, y, groups, weight)`; groups that are not in
            training have effects from the prior.
          **settings: the other arguments of `BayesianRegression.fit`.

        Returns:
          Keras's `History`.

        Raises:
          TypeError: for streams of batches, and for labels that are neither names nor numbers.
          ValueError: for labels that are missing or too few, or unknown in a second call.

        Warns:
          UserWarning: for a single group.
        """
        if inputs.is_stream(x):
            raise TypeError(f"x: got {type(x).__name__}, wanted arrays: each row has a group")
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (3, 4):
                raise ValueError("validation_data: wanted (x, y, groups) or (x, y, groups, weight)")
            held_x, held_y, held_groups, *weight = validation_data
            validation_data = (_Rows(held_x, held_groups), held_y, *weight)
        labels = _labels("groups", groups)
        if not (self.built or self._groups_are_given):
            self._groups = _distinct(labels)
        unknown = [label for label in _distinct(labels) if label not in {*self._groups}]
        if unknown:
            raise ValueError(
                f"groups: got labels that the model does not know, such as {unknown[:5]}, wanted "
                "those of the first call of fit; with_groups adds others"
            )
        if len(self._groups) == 1:
            regression.warn("groups: got one group: little but the prior tells its scale")
        return super().fit(
            _Rows(x, groups), y, batch_size, epochs, validation_data=validation_data, **settings
        )

    def _optimizer(self, learning_rate: Any, size: int) -> Any:
        """Adam, with steps in proportion to gradients that are below a tenth of a nat a unit.

        Training starts near the optimum, in units of the posterior. Adam's own epsilon would make
        full steps there of what is noise, in each of the many parameters of the groups.
        """
        return keras.optimizers.Adam(learning_rate, epsilon=0.1 / size)

    def _train(self, data: inputs.Data, *args: Any, **settings: Any) -> Any:
        if self.encoder is None:
            return super()._train(data, *args, **settings)
        self._read(self._rows_to_encode(data.x, data.y, self._shape[0]))
        try:
            return super()._train(data, *args, **settings)
        finally:
            self.local.assign(self._local_parameters())
            self._read(None)

    def _read(self, context: Any) -> None:
        """Take the posterior's parameters from these rows by the encoder, or from `local`."""
        object.__setattr__(self, "_context", context)  # Past Keras, which would track it.
        self.train_function = self.test_function = None  # Which have read others.

    def _rows_to_encode(self, x: np.ndarray, y: np.ndarray, num: int) -> tuple[Any, Any, int]:
        """What `_encoded` takes."""
        x = self.prepare(x)
        features = (x[:, : self._num_features] - self.center) / self.scale
        y = tf.reshape(tf.cast(y, x.dtype), [len(x), -1])
        return tf.concat([features, y], axis=1), tf.cast(x[:, -1], tf.int32), num

    def _arrays(
        self,
        name: str,
        x: Any,
        y: Any,
        offset: Any = None,
        exposure: Any = None,
        learn: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """As in `BayesianRegression`, and the number of the group in the last column."""
        if not isinstance(x, _Rows):
            x = _Rows(x, None)
        found, y = super()._arrays(name, x.x, y, offset, exposure, learn)
        labels = _labels("groups", x.groups)
        if len(labels) != len(found):
            raise ValueError(
                f"groups: got {len(labels)} labels, wanted {len(found)}, one for each row"
            )
        if self._groups is None:
            raise ValueError("the model has not seen data yet: call fit(x, y, groups)")
        known = {label: code for code, label in enumerate(self._groups)}
        for label in _distinct(labels):
            known.setdefault(label, len(known))
        codes = np.array([known[label] for label in labels], found.dtype)
        return np.column_stack([found, codes]), y

    def _check_features(self, x: np.ndarray, argument: str) -> None:
        super()._check_features(x[:, :-1], argument)

    def evaluate(  # type: ignore[override]  # with groups
        self, x: Any = None, y: Any = None, groups: Any = None, **kwargs: Any
    ) -> Any:
        """The loss and its terms, as `BayesianRegression.evaluate`.

        Groups that the model does not know have effects from the prior p(u|tau).
        """
        # Keras's `fit` asks with data that have been through here.
        if not (inputs.is_stream(x) or kwargs.get("_use_cached_eval_dataset")):
            x = _Rows(x, groups)
        return super().evaluate(x, y, **kwargs)

    def with_groups(self, x: Any, y: Any, groups: Any, **options: Any) -> "MixedRegression":
        r"""A model that knows more groups, by rows of theirs, and is the same otherwise.

        Nothing is trained: coefficients and scales keep their posterior. That of a new group's
        effects, given these, is what the encoder makes of its rows; without an encoder Laplace's
        approximation, which is exact for normal likelihoods.

        Args:
          x: features `[N, P]` of rows of the new groups.
          y: `[N, *event_shape]`.
          groups: their labels `[N]`.
          **options: `offset` or `exposure`, as in `fit`.

        Raises:
          ValueError: for groups that the model knows.
        """
        self._require_built()
        new = _distinct(_labels("groups", groups))
        again = [label for label in new if label in {*self._groups}]
        if again:
            raise ValueError(f"groups: got {again[:5]}, which the model knows, wanted others")
        num = len(self._groups)
        model = self.from_config(self.get_config() | {"groups": [*self._groups, *new]})
        model.build((None, self._num_features))
        x, y = model._arrays("x", _Rows(x, groups), y, **options)
        data = inputs.read(("x", "y", "sample_weight"), x, y, None)
        model.check_data(data.x, data.y, ("x", "y"))
        for old, variable in zip(self.variables, model.variables, strict=True):
            rest = variable[old.shape[0] :] if old.shape != variable.shape else None
            variable.assign(old if rest is None else tf.concat([old, rest], axis=0))
        model.num_data.assign_add(float(len(x)))
        data.x[:, -1] -= num
        found = model._expanded(data.x, data.y, None, len(new))
        model._assign(
            [
                np.concatenate([old, part])
                for old, part in zip(self._expansion(), found, strict=True)
            ]
        )
        if self.encoder is not None:
            made = model._encoded(*model._rows_to_encode(data.x, data.y, len(new)))
            model.local.assign(tf.concat([self.local, made], axis=0))
        return model

    def predict_distribution(  # type: ignore[override]  # with groups
        self, x: Any, groups: Any = None, **options: Any
    ) -> Any:
        """The posterior predictive distribution of y, as in `BayesianRegression`.

        Args:
          x: features `[N, P]`.
          groups: the label of the group of each row. Groups that the model knows have their
            posterior, over others the prior p(u|tau) is integrated: rows of one label share u.
          **options: of `BayesianRegression.predict_distribution`, by name.

        Returns:
          A `tfd.Distribution` with batch shape `[N]`.
        """
        return super().predict_distribution(_rows(x, groups), **options)

    def conditional_distribution(  # type: ignore[override]  # with groups
        self, x: Any, groups: Any = None, **options: Any
    ) -> Any:
        """The likelihood at draws of coefficients and effects, `[N, S]`.

        Args:
          x: features `[N, P]`.
          groups: as in `predict_distribution`.
          **options: of `BayesianRegression.conditional_distribution`, by name.
        """
        return super().conditional_distribution(_rows(x, groups), **options)

    def predict(  # type: ignore[override]  # with groups
        self, x: Any, groups: Any = None, **options: Any
    ) -> np.ndarray:
        """The mean of the predictive distribution, of classes the mode.

        Args:
          x: features `[N, P]`.
          groups: as in `predict_distribution`.
          **options: of `BayesianRegression.predict`, by name.
        """
        return super().predict(_rows(x, groups), **options)

    def log_likelihood(  # type: ignore[override]  # with groups
        self, x: Any, y: Any, groups: Any = None, **options: Any
    ) -> np.ndarray:
        """The log-likelihood of each row at draws of coefficients and effects, `[S, N]`, in nats.

        Args:
          x: features `[N, P]`.
          y: `[N, *event_shape]`.
          groups: as in `predict_distribution`.
          **options: of `BayesianRegression.log_likelihood`, by name.
        """
        return super().log_likelihood(_rows(x, groups), y, **options)

    def log_weights(  # type: ignore[override]  # with groups
        self, x: Any, y: Any, groups: Any = None, **options: Any
    ) -> np.ndarray:
        r"""Log importance weights `[S]` of draws of all unknowns from their posterior, in nats.

        $$ \log w_s = \log p(y \mid w_s, u_s) + \log \frac{p(w_s)\, p(u_s \mid w_s)}
           {q(w_s)\, q(u_s \mid w_s)} $$

        Args:
          x: features `[N, P]`.
          y: `[N, *event_shape]`.
          groups: the labels `[N]`; the data have to be those of training.
          **options: of `BayesianRegression.log_weights`, by name.
        """
        return super().log_weights(_rows(x, groups), y, **options)

    def elbo(  # type: ignore[override]  # with groups
        self, x: Any, y: Any, groups: Any = None, num_samples: int = 1000, **options: Any
    ) -> float:
        """The evidence lower bound of the whole data set, in nats: the mean of `log_weights`."""
        return float(self.log_weights(x, y, groups, num_samples=num_samples, **options).mean())

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Refused: TensorFlow does not know the groups by their labels.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "export: got a MixedRegression, wanted a VAE or a BayesianRegression: the labels of "
            "groups are Python's; save(path) writes the model for Python"
        )

    def _draws(self, num_samples: int, seed: Any, x: Any = None) -> Any:
        """Draws `[S, D + G R]`, and after them effects of the other groups in x."""
        draws = super()._draws(num_samples, seed)
        others = 0 if x is None else int(x[:, -1].max()) + 1 - self._shape[0]
        if others <= 0:
            return draws
        w = draws[:, : len(self.coefficient_names)]
        fresh = self._fresh(w, others, tf.random.fold_in(noise.as_seed(seed), 2))
        return tf.concat([draws, tf.reshape(fresh, [len(w), -1])], axis=1)

    # After training.

    @property
    def groups(self) -> tuple[Any, ...]:
        """The labels of the groups that the model knows, in the order of their effects."""
        return tuple(self._groups or ())

    def _column_scale(self) -> np.ndarray:
        """What effects and their scales are divided by to be those of x's own columns, `[R]`."""
        scale = [*self.scale.numpy(), 1.0]
        names = [*self._feature_names, "intercept"]
        found = [scale[names.index(name)] for name in self._random]
        return np.repeat(np.array(found, self.prior.dtype), self._outputs_of_effects)

    def _unscaling(self) -> Any:
        scales = np.arange(len(self.coefficient_names)) >= self._num_coefficients
        return super()._unscaling() + tf.constant(np.diag(scales), self.prior.dtype)

    @property
    def coefficients(self) -> Any:
        """The posterior of the coefficients and of the logarithms of the scales, on x's scale.

        A `tfd.Distribution`; its `names` are `coefficient_names`.
        """
        self._require_built()
        shift, start = np.zeros(len(self.coefficient_names)), self._num_coefficients
        if self._known_scale is None:
            shift[start : start + self._shape[1]] = -np.log(self._column_scale())
        q = super()._posterior_distribution()
        found = regression.affine(q, self._unscaling(), tf.constant(shift, self.prior.dtype))
        object.__setattr__(found, "names", tuple(self.coefficient_names))
        return found

    @property
    def group_scale(self) -> Any:
        """The posterior of the scales tau of the effects, a `tfd.Distribution` over `[R]`.

        Log-normal for normal posteriors; of others it has draws and moments only.
        """
        if self._known_scale is not None:
            self._require_built()
            scale = np.broadcast_to(self._known_scale, (self._shape[1],)) / self._column_scale()
            found = tfd.Independent(tfd.Deterministic(scale.astype(self.prior.dtype)), 1)
        else:
            q, start = self.coefficients, self._num_coefficients
            part = slice(start, start + self._shape[1])
            if isinstance(q, tfd.MultivariateNormalLinearOperator):
                found = tfd.Independent(tfd.LogNormal(q.mean()[part], q.stddev()[part]), 1)
            else:
                draws = tf.exp(q.sample(10_000, noise.as_seed(0))[:, part])
                found = tfd.Empirical(draws, event_ndims=1)
        object.__setattr__(found, "names", tuple(self.effect_names))
        return found

    @property
    def random_effects(self) -> Any:
        """The posterior of the effects of each group, a `tfd.Distribution` over `[G, R]`.

        A mixture of q(u_g|w, tau) at draws of w and tau, for each group by itself: batch shape
        `[G]`. Its `names` are `effect_names`, its `groups` the labels.
        """
        self._require_built()
        joint = self._posterior_distribution()
        num = int(np.clip(2**22 // math.prod(self._shape), 500, 10_000))
        with noise.fixed(0):
            q = joint.second(regression.paired_draws(joint.first, num))
        scale = self._column_scale()
        loc = tf.transpose(q.loc / scale, (1, 0, 2))
        tril = tf.transpose(q.scale.to_dense() / scale[:, np.newaxis], (1, 0, 2, 3))
        equal = tfd.Categorical(logits=tf.zeros([loc.shape[1]], loc.dtype))
        found = tfd.MixtureSameFamily(equal, _normal(loc, tril))
        object.__setattr__(found, "names", tuple(self.effect_names))
        object.__setattr__(found, "groups", self.groups)
        return found

    def draws(self, num_samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws from the posterior of coefficients and scales, on the scale of x, by name.

        Args:
          num_samples: how many.
          seed: of the draws.
        """
        found = super().draws(num_samples, seed)
        if self._known_scale is not None:
            return found
        start, size = self._num_coefficients, self._shape[1]
        rest = self.coefficients.sample(num_samples, noise.as_seed(seed))[:, start:]
        names = self.effect_names
        for name, values in zip(names, tf.exp(rest[:, :size]).numpy().T, strict=True):
            found[f"group scale of {name}"] = values
        if self._correlated:
            root = tfb.CorrelationCholesky()(rest[:, size:])
            correlation = tf.matmul(root, root, transpose_b=True).numpy()
            for i, j in zip(*np.triu_indices(size, 1), strict=True):
                found[f"correlation of {names[i]} and {names[j]}"] = correlation[:, i, j]
        return found

    def to_arviz(self, num_samples: int = 1000, seed: int = 0, **data: Any) -> Any:
        """Not there: what `draws` and `random_effects` return is to be exported by hand.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError(
            "to_arviz: got a MixedRegression, wanted a BayesianRegression: the export knows no "
            "group effects; arviz.from_dict takes what draws() returns, and "
            "random_effects.sample(num)"
        )

    def get_config(self) -> dict[str, Any]:
        """The configuration: JSON."""
        config = super().get_config()
        block = self._group_posterior if not self.built else self._block
        if not isinstance(block, blocks.Block | None):
            raise TypeError(
                "group_posterior: got a function, which a file cannot hold; the model can be saved "
                "once it has seen data"
            )
        made = {"group_posterior": block, "encoder": self.encoder, "group_scale": self._scale_prior}
        config |= {
            name: None if part is None else keras.saving.serialize_keras_object(part)
            for name, part in made.items()
        }
        if self._known_scale is not None:
            config["group_scale"] = self._known_scale
        return config | {
            "random": self._random,
            "correlated": self._correlated,
            "groups": self._groups,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The model that a configuration describes."""
        made = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("group_posterior", "encoder", "group_scale")
            if isinstance(config[name], dict)
        }
        return super().from_config(config | made, custom_objects)


class _Observed:
    """Rows of groups, and what their likelihood says about the effects."""

    def __init__(self, model: Any, x: Any, y: Any, weight: Any, codes: Any, num: int) -> None:
        self._model, self._weight, self._codes, self._num = model, weight, codes, num
        self._y = y
        self.v = model._columns_of_effects(x)

    def derivatives(self, fixed: Any, u: Any) -> tuple[Any, Any, Any]:
        """The log-likelihood of all rows, and its derivatives.

        The first by the effects' linear predictors `[B, K]`, the second by these and by all that
        the likelihood takes, `[B, K, params_size]`.
        """
        model = self._model
        predictors = fixed + model._shift(self.v, tf.gather(u, self._codes))
        located = model._located
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(predictors)
            with tf.GradientTape() as tape:
                tape.watch(predictors)
                p = model.likelihood.new(predictors)
                rows = self._weight * p.log_prob(tf.cast(self._y, p.dtype))
                log_likelihood = tf.reduce_sum(rows)
            slope = tape.gradient(log_likelihood, predictors)[:, located]
            slopes = tf.unstack(tf.reduce_sum(slope, axis=0))
        cross = [outer.gradient(slope_of, predictors) for slope_of in slopes]
        return log_likelihood, slope, tf.stack(cross, axis=1)

    def sums(self, slope: Any, cross: Any) -> tuple[Any, Any]:
        """The slope `[G, R]` of the log-likelihood in the effects, and minus the curvature."""
        precision = -cross[:, :, self._model._located]
        if precision.shape[1] == 1:
            precision = tf.maximum(precision, 0.0)  # As it is at the mode of any good fit.
        v, size = self.v, self._model._shape[1]
        slope = tf.reshape(tf.einsum("bt,bk->btk", v, slope), [-1, size])
        precision = tf.einsum("bt,bs,bkl->btksl", v, v, precision)
        precision = tf.reshape(precision, [-1, size, size])
        return tuple(
            tf.math.unsorted_segment_sum(part, self._codes, self._num)
            for part in (slope, precision)
        )

    def around(self, z: Any, fixed: Any, tril: Any) -> tuple[Any, Any, Any]:
        """At standardized effects u = tril z: the log-likelihood, the slope of p(y, z), its scale.

        The scale is that of the normal whose curvature is that of p(y, z) there.
        """
        log_likelihood, slope, cross = self.derivatives(fixed, tf.matmul(z, tril, transpose_b=True))
        slope, precision = self.sums(slope, cross)
        inner = tf.matmul(tril, tf.matmul(precision, tril), transpose_a=True)
        scale = _scale_of(inner + tf.eye(z.shape[1], dtype=z.dtype))
        return log_likelihood, tf.matmul(slope, tril) - z, scale

    def newton(self, z: Any, fixed: Any, tril: Any, limit: float) -> Any:
        """One step towards the mode of p(z|y), no longer than the limit."""
        _, slope, scale = self.around(z, fixed, tril)
        step = tf.linalg.matvec(scale, tf.linalg.matvec(scale, slope, transpose_a=True))
        return z + tf.clip_by_value(step, -limit, limit)

    def mode(self, fixed: Any, tril: Any) -> Any:
        """The mode of p(z|y), `[G, R]`."""
        z = tf.zeros([self._num, tril.shape[0]], tril.dtype)
        return tf.while_loop(
            lambda *_: True,
            lambda z: (self.newton(z, fixed, tril, 1.0),),
            (z,),
            maximum_iterations=_NEWTON_STEPS,
        )[0]


def _conditional(prior: Any, mode: Any, slope: Any, root: Any) -> Any:
    r"""The normal that a prior and a factor around a mode make.

    $$ \propto \mathcal N(u; 0, L L^\top)
       \exp\bigl(s^\top d - \tfrac12 |K^\top d|^2\bigr), \qquad d = u - \hat u $$
    """
    inner = tf.matmul(prior, root, transpose_a=True)
    precision = tf.matmul(inner, inner, transpose_b=True)
    scale = _scale_of(precision + tf.eye(precision.shape[-1], dtype=precision.dtype))
    potential = slope + tf.linalg.matvec(root, tf.linalg.matvec(root, mode, transpose_a=True))
    tril = tf.matmul(prior, scale)
    loc = tf.linalg.matvec(tril, tf.linalg.matvec(tril, potential, transpose_a=True))
    return _normal(loc, tril)


def _normal(loc: Any, tril: Any) -> Any:
    """The normal; of one number without operations for matrices, which take much longer."""
    if tril.shape[-1] == 1:
        return tfd.MultivariateNormalDiag(loc, tril[..., 0])
    return tfd.MultivariateNormalTriL(loc, tril)


def _scale_of(precision: Any) -> Any:
    """The lower triangular W with `W W^T` the inverse of a precision `[..., R, R]`.

    By Gram and Schmidt's method, number by number: R is small, and TensorFlow takes ten times as
    long for many small matrices.
    """
    columns: list[Any] = []
    for i in reversed(range(precision.shape[-1])):
        row = precision[..., i, :]
        column = tf.one_hot(i, precision.shape[-1], dtype=precision.dtype)
        for other in columns:
            column = column - tf.reduce_sum(row * other, axis=-1, keepdims=True) * other
        norm = tf.reduce_sum(row * column, axis=-1, keepdims=True)
        columns.insert(0, column / tf.sqrt(norm))
    return tf.stack(columns, axis=-1)


def _rows(x: Any, groups: Any) -> _Rows:
    return x if isinstance(x, _Rows) else _Rows(x, groups)


def _labels(name: str, groups: Any) -> list[Any]:
    """The labels of groups as Python's own names and numbers."""
    if groups is None:
        raise ValueError(f"{name}: got None, wanted the label of the group of each row")
    # Not one array of numbers and names, which would make names of the numbers.
    try:
        array = np.asarray(groups, object if isinstance(groups, (list, tuple)) else None)
    except ValueError as error:
        raise ValueError(f"{name}: got rows of different lengths ({error})") from None
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}, wanted one label for each row, (N,)")
    labels = [item.item() if isinstance(item, np.generic) else item for item in array.tolist()]
    for label in {type(label): label for label in labels}.values():
        if not isinstance(label, (str, int, float)) and label is not None:
            raise TypeError(f"{name}: got {label!r}, wanted strings or numbers")
    missing = sum(label is None or label != label for label in labels)
    if missing:
        raise ValueError(
            f"{name}: got {missing} labels that are NaN or None, wanted one for each row: drop "
            "these rows, or give them a label of their own"
        )
    return labels


def _distinct(labels: list[Any]) -> list[Any]:
    """The different labels, sorted."""
    return sorted({*labels}, key=lambda label: (isinstance(label, str), label))


def _checked_prior(prior: Any) -> Any:
    """The prior of scales, if it is one of a single positive number."""
    if prior.event_shape:
        raise ValueError(f"group_scale: got event_shape {prior.event_shape}, wanted ()")
    low = prior().experimental_default_event_space_bijector()
    if low is None or float(low(-50.0)) < 0.0:
        raise ValueError(
            f"group_scale: got {prior.title()}, wanted a prior over positive numbers, such as "
            "priors.Prior('HalfNormal', scale=1.0)"
        )
    return prior


def _checked_scale(values: Any) -> list[float]:
    """Known scales as a list."""
    wanted = f"group_scale: got {values!r}, wanted a block of tfpvae.priors, or known values"
    if isinstance(values, blocks.Block | tfd.Distribution | str) or callable(values):
        raise TypeError(wanted)
    try:
        found = np.ravel(values).tolist()
    except ValueError:  # Lists of different lengths.
        raise TypeError(wanted) from None
    return [checks.positive_number("group_scale", value) for value in found]
