"""Trainings that are run by one worker and by several; test_distribute.py compares what they do.

    python tests/replica_cases.py KIND OUTPUT CASE...

KIND is `one`, `mirrored` (two virtual devices) or `workers`, a process of a cluster that TF_CONFIG
describes. OUTPUT is a file `.npz` of arrays by case and name. Draws are fixed by construction,
unless they are what a case is about: posteriors pass on their means and KLs have a closed form.
"""

import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfpvae import (
    VAE,
    DensityRatio,
    DistributionLayer,
    LocalVAE,
    SemiSupervisedVAE,
    SimulatorModel,
    likelihoods,
    objectives,
    posteriors,
    priors,
    schedules,
    streams,
)
from tfpvae.resuming import Resume

D = 6
RNG = np.random.default_rng(0)
X = RNG.integers(0, 2, (124, D)).astype("float32")
WEIGHT = RNG.uniform(0.0, 2.0, 124).astype("float32")
KERNEL = RNG.normal(size=(D, D))


def dense(size, **kwargs):
    """A layer that starts from the same weights everywhere."""

    def start(shape, dtype=None):
        rows, columns = (np.arange(n)[:, None] for n in shape)
        return tf.constant(np.sin(1.0 + 3.0 * rows + 7.0 * columns.T) / 2, dtype)

    return keras.layers.Dense(size, kernel_initializer=start, **kwargs)


def set_precision(name):
    keras.backend.set_floatx(name)
    keras.mixed_precision.set_global_policy(name)


def networks(posterior="mean", regularizer=None, dense=dense):
    mean = {"convert_to_tensor_fn": posterior}
    encoder = [dense(8, activation="tanh", kernel_regularizer=regularizer), dense(4)]
    return (
        priors.StandardNormal(2),
        keras.Sequential([*encoder, posteriors.DiagonalNormal(2, **mean)]),
        keras.Sequential([dense(8, activation="tanh"), dense(D), likelihoods.Bernoulli(D)]),
    )


def found(model, history, **other):
    """What is compared: weights, the optimizer's too, and the history."""
    variables = [*model.trainable_variables, *model.optimizer.variables]
    if callable(model.optimizer.variables):
        variables = [*model.trainable_variables, *model.optimizer.variables()]
    arrays = {f"weight {i}": v.numpy() for i, v in enumerate(variables)}
    return arrays | {name: np.array(values) for name, values in history.items()} | other


def sgd(strategy):
    """Parts of 16 and 15 rows in each of 20 steps."""
    with strategy.scope():
        vae = VAE(*networks())
        vae.compile(keras.optimizers.SGD(0.5))
    history = vae.fit(X, batch_size=31, epochs=5, shuffle=False, verbose=0).history
    return found(vae, history)


def everything(strategy):
    """In double precision; a last batch of one row, so that a replica has none; weights."""
    set_precision("float64")
    x, held_out = X[:33].astype("float64"), X[40:45].astype("float64")
    with strategy.scope():
        vae = VAE(*networks(regularizer=keras.regularizers.L2(0.01)))
        weight = schedules.TargetRate(0.5, learning_rate=0.1)
        objective = objectives.ELBO(kl_weight=weight, free_bits=0.05)
        vae.compile(keras.optimizers.Adam(0.02), objective=objective, metrics=["mse"])
    history = vae.fit(
        x,
        sample_weight=WEIGHT[:33],
        batch_size=8,
        epochs=4,
        shuffle=False,
        verbose=0,
        validation_data=(held_out, held_out, WEIGHT[40:45]),
        validation_batch_size=4,
    ).history
    loss = vae.evaluate(x, batch_size=8, verbose=0)
    predicted = vae.predict(x, batch_size=8, verbose=0)
    set_precision("float32")
    return found(vae, history, evaluated=np.array(loss), predicted=predicted)


def positive(strategy):
    """Data whose density at zero is none: a replica without rows must not find that out."""
    with strategy.scope():
        prior, encoder, _ = networks()
        likelihood = DistributionLayer("LogNormal", D)
        decoder = keras.Sequential([dense(likelihood.params_size), likelihood])
        vae = VAE(prior, encoder, decoder)
        vae.compile(keras.optimizers.SGD(0.01))
    history = vae.fit(X[:33] + 0.5, batch_size=8, epochs=4, shuffle=False, verbose=0).history
    return found(vae, history)


def stream(strategy):
    """A dataset that knows nothing of its length, with weights."""
    data = tf.data.Dataset.from_tensor_slices((X, X, WEIGHT)).filter(lambda *_: True).batch(31)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    with strategy.scope():
        vae = VAE(*networks())
        vae.compile(keras.optimizers.SGD(0.5))
    history = vae.fit(data.with_options(options), epochs=5, verbose=0).history
    return found(vae, history)


def labels(strategy):
    """Classes, of which the rows of some replicas have none."""
    y = np.full(62, -1)
    y[[0, 1, 17, 33, 34, 35, 61]] = [0, 1, 2, 1, 0, 2, 1]
    prior, _, _ = networks()
    encoder = [dense(8, activation="tanh"), dense(4)]
    with strategy.scope():
        vae = SemiSupervisedVAE(
            prior,
            keras.Sequential([dense(3), posteriors.OneHotCategorical(3)]),
            keras.Sequential(
                [
                    keras.layers.Concatenate(),
                    *encoder,
                    posteriors.DiagonalNormal(2, convert_to_tensor_fn="mean"),
                ]
            ),
            keras.Sequential(
                [
                    keras.layers.Concatenate(),
                    dense(8, activation="tanh"),
                    dense(D),
                    likelihoods.Bernoulli(D),
                ]
            ),
            num_classes=3,
            classification_weight=2.0,
        )
        vae.compile(keras.optimizers.SGD(0.2))
    history = vae.fit(
        X[:62], y, batch_size=12, epochs=3, shuffle=False, verbose=0, labelled_share=0
    ).history
    return found(vae, history)


def discriminator(strategy):
    """A classifier of draws; the last batch has one row."""
    with strategy.scope():
        ratio = DensityRatio(keras.Sequential([dense(8, activation="tanh"), dense(1)]))
        ratio.compile(keras.optimizers.SGD(0.2))
    pair = X[:40] @ KERNEL.astype("float32"), X[40:65]
    history = ratio.fit(*pair, batch_size=16, epochs=4, shuffle=False, verbose=0).history
    return found(ratio, history)


class Context(keras.layers.Layer):
    """A generator that ignores its noise."""

    def call(self, inputs):
        return inputs[:, :2]


def adversarial(strategy):
    """Two optimizers, on draws that are next to constant."""
    set_precision("float64")
    with strategy.scope():
        posterior = posteriors.Implicit(2, Context(), context_size=2)
        vae = VAE(
            priors.Normal(2, loc=0.0, scale=1e-9),
            keras.Sequential([dense(8, activation="tanh"), dense(2), posterior]),
            keras.Sequential([dense(8, activation="tanh"), dense(D), likelihoods.Bernoulli(D)]),
        )
        network = keras.Sequential([dense(8, activation="tanh"), dense(1)])
        objective = objectives.AdversarialELBO(
            network, keras.optimizers.SGD(0.3), adaptive_contrast=False, num_updates=2
        )
        vae.compile(keras.optimizers.SGD(0.3), objective=objective)
    data = X[:62].astype("float64")
    history = vae.fit(data, batch_size=20, epochs=5, shuffle=False, verbose=0).history
    set_precision("float32")
    other = {f"network {i}": v.numpy() for i, v in enumerate(network.trainable_variables)}
    return found(vae, history, **other)


def noise(strategy):
    """The seed that no one gave, and what replicas draw from it."""
    with strategy.scope():
        vae = VAE(*networks("sample"))
        vae.compile("sgd")
    seed, draws = vae.noise.seed.numpy(), []

    @tf.function
    def step():
        return strategy.run(lambda: tf.random.stateless_normal([5], vae.noise.next()))

    for _ in range(2):
        values = strategy.experimental_local_results(step())
        draws.append([value.numpy() for value in values])
    history = vae.fit(X, batch_size=31, epochs=2, shuffle=False, verbose=0).history
    count = vae.noise.count.numpy()
    return found(vae, history, seed=seed, draws=np.array(draws), count=count)


def saved(strategy):
    """A file of the weights, which all workers ask for and one writes."""
    with strategy.scope():
        vae = VAE(*networks(dense=keras.layers.Dense))
        vae.compile("adam")
    vae.fit(X, batch_size=31, verbose=0, shuffle=False)
    file = Path(os.environ["REPLICA_FOLDER"], "model.keras")
    vae.save(file)
    history = vae.fit(X, batch_size=31, verbose=0, shuffle=False).history  # After the first wrote.
    again = keras.models.load_model(file)
    again.fit(X, batch_size=31, verbose=0, shuffle=False)
    files = np.array([path.name for path in sorted(file.parent.glob("*model*"))])
    return found(vae, history, files=files) | {"again": again.trainable_variables[0].numpy()}


def resumed(strategy):
    """Stopped after two of five epochs; a new model, whose weights were others, ends the run."""
    folder = Path(os.environ["REPLICA_FOLDER"], "run")
    start = keras.initializers.GlorotUniform(seed=1)  # The same everywhere, and in a file.
    layer = functools.partial(keras.layers.Dense, kernel_initializer=start)

    def fit(epochs):
        with strategy.scope():
            vae = VAE(*networks(dense=layer), seed=epochs)
            vae.compile(keras.optimizers.Adam(0.02))
        resume = Resume(folder, min_seconds=0.0)
        history = vae.fit(X, batch_size=31, epochs=epochs, verbose=0, resume=resume).history
        return vae, history

    fit(2)
    vae, history = fit(5)
    return found(vae, history)


def files(strategy):
    """Shards: with parts of each batch, and with files of its own for each worker."""
    resolver = strategy.cluster_resolver
    worker, num = (resolver.task_id, 2) if resolver else (0, 1)
    folder = Path(os.environ["REPLICA_FOLDER"], f"data-{worker}")
    tf.random.set_seed(0)  # All workers need the same, for one order of the rows.
    if not folder.exists():
        # 51 rows for one worker and 40 for the other, which has nothing in the last two steps.
        streams.write(folder, X[:91], rows_per_file=40)

    def fit(rate, num_workers):
        with strategy.scope():
            vae = VAE(*networks())
            vae.compile(keras.optimizers.SGD(rate))
        mine = {"num_workers": num_workers, "worker": worker % num_workers}
        data = streams.read(folder, batch_size=12, **mine)
        history = vae.fit(data, epochs=2, verbose=0, validation_data=data).history
        return vae, history

    together = found(*fit(0.5, 1))
    _, apart = fit(0.0, num)  # The mean over all rows: each has come once.
    return together | {f"apart {name}": np.array(values) for name, values in apart.items()}


def message(function, *args, **kwargs):
    """That of the ValueError which a function raises."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        return np.array(str(error))
    return np.array("none")


def refused(strategy):
    """What cannot be right with several replicas."""
    outside = {
        "schedule": objectives.ELBO(kl_weight=schedules.Linear(10)),
        "discriminator": objectives.AdversarialELBO(dense(1), num_samples=1),
    }
    prior, encoder, decoder = networks()
    encoder.build((None, D))
    with strategy.scope():
        made = {name: VAE(*networks()) for name in outside}
        foreign = VAE(prior, encoder, decoder)
        foreign.compile("sgd")
        local = LocalVAE(prior, posteriors.DiagonalNormal(2), networks()[2], num_data=len(X))
        local.compile("sgd")
        model = SimulatorModel(
            priors.StandardNormal(2), keras.layers.Lambda(tf.identity), posteriors.DiagonalNormal(2)
        )

    def fit(vae, objective):
        vae.compile("sgd", objective=objective)
        vae.fit(X, verbose=0)

    messages = {name: message(fit, vae, outside[name]) for name, vae in made.items()}
    return messages | {
        "weights": message(foreign.fit, X, verbose=0),
        "LocalVAE": message(local.fit, X, verbose=0),
        "SimulatorModel": message(model.fit, X[:, :2], verbose=0),
    }


CASES = {
    case.__name__: case
    for case in (
        sgd,
        everything,
        positive,
        stream,
        labels,
        discriminator,
        adversarial,
        files,
        resumed,
        noise,
        saved,
        refused,
    )
}


def main():
    kind, output, *names = sys.argv[1:]
    if kind == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    elif kind == "workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.get_strategy()
    arrays = {
        f"{name}/{key}": value for name in names for key, value in CASES[name](strategy).items()
    }
    np.savez(output, **arrays)


if __name__ == "__main__":
    main()
