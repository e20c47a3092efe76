"""What other libraries' losses are beside -ELBO: the same model, at the same weights, and trained.

The model is a VAE of dense networks (64-128-2-128-64) on scikit-learn's digits. Each library starts
from the same weights. Then its weights are put into a VAE of tfpvae, which says what -ELBO they
have. Numbers of draws are means over many passes.
"""

import argparse
import importlib.util
import sys
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, posteriors, priors

tfb, tfpl = tfp.bijectors, tfp.layers
D, H, K, BATCH_SIZE = 64, 128, 2, 100


def initial_weights():
    """Kernels and biases of the four layers, by Glorot's rule."""
    keras.utils.set_random_seed(0)
    shapes = [(D, H), (H, 2 * K), (K, H), (H, D)]
    glorot = [
        keras.initializers.GlorotUniform(seed=i)(shape).numpy() for i, shape in enumerate(shapes)
    ]
    return [w for kernel in glorot for w in (kernel, np.zeros(kernel.shape[1], "float32"))]


def dense_networks(last_of_encoder=(), last_of_decoder=()):
    def network(*layers):
        return keras.Sequential([*layers])

    relu = {"activation": "relu"}
    return (
        network(
            keras.Input((D,)),
            keras.layers.Dense(H, **relu),
            keras.layers.Dense(2 * K),
            *last_of_encoder,
        ),
        network(
            keras.Input((K,)),
            keras.layers.Dense(H, **relu),
            keras.layers.Dense(D),
            *last_of_decoder,
        ),
    )


def set_weights(networks, weights):
    networks[0].set_weights(weights[:4])
    networks[1].set_weights(weights[4:])


def get_weights(networks):
    return [*networks[0].get_weights(), *networks[1].get_weights()]


def of_log_variances():
    """The posterior of a network that puts out log variances, as most other code does."""
    half = tfb.Chain([tfb.Exp(), tfb.Scale(0.5)])
    return posteriors.DiagonalNormal(K, constraints={"scale": half})


class Ours:
    """tfpvae; `softplus` or `log variance` says what the encoder's numbers are."""

    title = "tfpvae, `VAE`"
    needs = ()

    def __init__(self, weights, log_variance=True, likelihood=None):
        posterior = of_log_variances() if log_variance else posteriors.DiagonalNormal(K)
        block = likelihoods.Bernoulli(D) if likelihood is None else likelihood
        self.networks = dense_networks([posterior], [block])
        self.vae = VAE(priors.StandardNormal(K), *self.networks, seed=0)
        self.vae.compile(keras.optimizers.Adam(1e-3))
        set_weights(self.networks, weights)

    def elbo(self, x):
        return -float(self.vae.elbo(x, num_samples=200, seed=0, verbose=0).mean())

    def printed(self, x):
        return np.mean([self.vae.test_on_batch(x)[0] for _ in range(100)])

    def train(self, x, epochs):
        return self.vae.fit(x, epochs=epochs, batch_size=BATCH_SIZE, verbose=0).history["loss"][-1]

    def weights(self):
        return get_weights(self.networks)

    def as_ours(self, weights):
        return Ours(weights)


class Stock(Ours):
    """`tfp.layers` with their `KLDivergenceRegularizer`, as in TFP's tutorial."""

    title = "stock `tfp.layers`"

    def __init__(self, weights):
        tfd = tfp.distributions
        prior = tfd.Independent(tfd.Normal(tf.zeros(K), 1.0), reinterpreted_batch_ndims=1)
        kl = tfpl.KLDivergenceRegularizer(prior, use_exact_kl=True)
        self.networks = dense_networks(
            [tfpl.IndependentNormal(K, activity_regularizer=kl)], [tfpl.IndependentBernoulli(D)]
        )
        inputs = keras.Input((D,))
        self.model = keras.Model(inputs, self.networks[1](self.networks[0](inputs)))
        self.model.compile(keras.optimizers.Adam(1e-3), loss=lambda x, p: -p.log_prob(x))
        set_weights(self.networks, weights)

    def printed(self, x):
        return np.mean([self.model.test_on_batch(x, x) for _ in range(100)])

    def train(self, x, epochs):
        fitted = self.model.fit(x, x, epochs=epochs, batch_size=BATCH_SIZE, verbose=0)
        return fitted.history["loss"][-1]

    def as_ours(self, weights):
        return Ours(weights, log_variance=False)


class Sampling(keras.layers.Layer):
    """The layer of Keras's tutorials."""

    def call(self, inputs):
        loc, log_variance = inputs
        return loc + tf.exp(0.5 * log_variance) * tf.random.normal(tf.shape(loc))


class Tutorial(keras.Model):
    """The model of Keras's example: its own train_step, two losses added."""

    def __init__(self, encoder, decoder, kind):
        super().__init__()
        self.encoder, self.decoder, self.kind, self.sampling = encoder, decoder, kind, Sampling()
        self.mean = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.mean]

    def losses_of(self, x):
        loc, log_variance = tf.split(self.encoder(x), 2, axis=-1)
        decoded = tf.sigmoid(self.decoder(self.sampling([loc, log_variance])))
        kl = -0.5 * (1 + log_variance - tf.square(loc) - tf.exp(log_variance))
        if self.kind == "sum":  # keras.io/examples/generative/vae
            pixels = keras.losses.binary_crossentropy(x[..., None], decoded[..., None])
            return tf.reduce_mean(tf.reduce_sum(pixels, 1)) + tf.reduce_mean(tf.reduce_sum(kl, 1))
        # tensorflow.org/guide/keras: "Making new layers and models via subclassing"
        return tf.reduce_mean(tf.square(x - decoded)) + tf.reduce_mean(kl)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.losses_of(data)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}


class KerasSum(Ours):
    title = "Keras example: sums of `binary_crossentropy` and KL"
    kind = "sum"

    def __init__(self, weights):
        self.networks = dense_networks()
        self.model = Tutorial(*self.networks, self.kind)
        self.model.compile(keras.optimizers.Adam(1e-3))
        set_weights(self.networks, weights)

    def printed(self, x):
        return np.mean([float(self.model.losses_of(tf.constant(x))) for _ in range(100)])

    def train(self, x, epochs):
        fitted = self.model.fit(x, epochs=epochs, batch_size=BATCH_SIZE, verbose=0)
        return fitted.history["loss"][-1]


class KerasMean(KerasSum):
    title = "TensorFlow guide: means of squared errors and KL"
    kind = "mean"

    def as_ours(self, weights):
        """Its likelihood is normal, with variance 1/2, around the sigmoids."""
        sigmoid = {"loc": tfb.Sigmoid()}
        return Ours(weights, likelihood=likelihoods.Normal(D, scale=0.5**0.5, constraints=sigmoid))


def torch_networks(weights):
    import torch

    torch.set_num_threads(1)  # Which is faster for networks this small.
    layers = []
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
        layers.append(layer)
    pairs = layers[:2], layers[2:]
    return [torch.nn.Sequential(first, torch.nn.ReLU(), last) for first, last in pairs]


def torch_weights(networks):
    layers = [network[i] for network in networks for i in (0, 2)]
    return [
        w
        for layer in layers
        for w in (layer.weight.detach().numpy().T, layer.bias.detach().numpy())
    ]


class Pythae(Ours):
    """Its `VAE` with its trainer."""

    title = 'Pythae 0.1.2, `reconstruction_loss="bce"`'
    needs = ("torch", "pythae")
    kind = "bce"

    def __init__(self, weights):
        import torch
        from pythae import models
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder

        class Encoder(BaseEncoder):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, x):
                loc, log_variance = self.network(x).chunk(2, dim=-1)
                return ModelOutput(embedding=loc, log_covariance=log_variance)

        class Decoder(BaseDecoder):
            def __init__(self, network):
                super().__init__()
                self.network = network

            def forward(self, z):
                return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

        torch.manual_seed(0)
        self.networks = torch_networks(weights)
        config = models.VAEConfig((D,), K, reconstruction_loss=self.kind)
        self.model = models.VAE(config, Encoder(self.networks[0]), Decoder(self.networks[1]))

    def printed(self, x):
        import torch
        from pythae.data.datasets import BaseDataset

        data = BaseDataset(torch.tensor(x), torch.zeros(len(x)))
        with torch.no_grad():
            return np.mean([float(self.model({"data": data.data}).loss) for _ in range(100)])

    def train(self, x, epochs):
        import logging

        import torch
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import TrainingCallback

        losses = []

        class Reading(TrainingCallback):
            def on_log(self, training_config, logs, **kwargs):
                losses.append(logs["train_epoch_loss"])

        logging.disable(logging.INFO)
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH_SIZE,
                num_epochs=epochs,
                optimizer_cls="Adam",
                learning_rate=1e-3,
                no_cuda=True,
            )
            data = BaseDataset(torch.tensor(x), torch.zeros(len(x)))
            BaseTrainer(self.model, data, training_config=settings, callbacks=[Reading()]).train()
        logging.disable(logging.NOTSET)
        return losses[-1]

    def weights(self):
        return torch_weights(self.networks)


class PythaeSquared(Pythae):
    title = 'Pythae 0.1.2, `reconstruction_loss="mse"`'
    kind = "mse"

    def as_ours(self, weights):
        """Half the squared error is a normal likelihood of variance 1."""
        sigmoid = {"loc": tfb.Sigmoid()}
        return Ours(weights, likelihood=likelihoods.Normal(D, scale=1.0, constraints=sigmoid))


class Pyro(Ours):
    """The model and guide of Pyro's VAE tutorial."""

    title = "Pyro 1.9, `svi.step` of `Trace_ELBO`"
    needs = ("torch", "pyro")

    def __init__(self, weights):
        import pyro
        import pyro.distributions as dist
        import torch

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.networks = encoder, decoder = torch_networks(weights)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), K), 1.0).to_event(1))
                p = dist.Bernoulli(logits=decoder(z), validate_args=False)
                pyro.sample("x", p.to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                loc, log_variance = encoder(x).chunk(2, dim=-1)
                pyro.sample("z", dist.Normal(loc, torch.exp(0.5 * log_variance)).to_event(1))

        optimizer = pyro.optim.Adam({"lr": 1e-3})
        self.svi = pyro.infer.SVI(model, guide, optimizer, pyro.infer.Trace_ELBO())

    def printed(self, x):
        import torch

        data = torch.tensor(x)
        return np.mean([self.svi.evaluate_loss(data) for _ in range(100)])

    def train(self, x, epochs):
        import torch

        data = torch.tensor(x)
        for _ in range(epochs):
            batches = data[torch.randperm(len(data))].split(BATCH_SIZE)
            total = sum(self.svi.step(batch) for batch in batches)
        return total

    def weights(self):
        return torch_weights(self.networks)


LIBRARIES = (Ours, Stock, KerasSum, KerasMean, Pythae, PythaeSquared, Pyro)


def measure(library, x, epochs):
    """What it prints and -ELBO, at the first weights and after training."""
    theirs = library(initial_weights())
    first = theirs.printed(x), theirs.as_ours(initial_weights()).elbo(x)
    last = theirs.train(x, epochs)
    return first, (last, theirs.as_ours(theirs.weights()).elbo(x), Ours.elbo(_bernoulli(theirs), x))


def _bernoulli(theirs):
    """The trained networks with the Bernoulli likelihood, whatever they were trained with."""
    log_variance = not isinstance(theirs, Stock)
    return Ours(theirs.weights(), log_variance)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--only", help="libraries whose titles hold this text")
    options = parser.parse_args()
    x = datasets.load("digits", scale=True, flatten=True).x_train
    print(
        "| | prints, first weights | their -ELBO | prints, trained | their -ELBO | as Bernoulli |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for library in (found for found in LIBRARIES if (options.only or "") in found.title):
        if not all(importlib.util.find_spec(name) for name in library.needs):
            print(f"{library.title}: not installed, pip install 'tfpvae[bench]'", file=sys.stderr)
            continue
        first, last = measure(library, x, options.epochs)
        cells = " | ".join(f"{value:,.3f}" for value in (*first, *last))
        print(f"| {library.title} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
