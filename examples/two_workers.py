"""Two worker processes train one model on one machine, as two machines would.

    python examples/two_workers.py

starts this script twice more, with the TF_CONFIG that a cluster has, trains the model by itself as
well, with the same batches, and prints the losses of all three. They differ by the noise of the
draws; with --mean, by which z is the mean of q(z|x), by rounding.

On a cluster run it once on each machine, with TF_CONFIG set: it is a worker then.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfpvae import VAE, datasets, likelihoods, networks, posteriors, priors

LATENT_SIZE = 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=100, help="of all workers together")
    parser.add_argument("--mean", action="store_true", help="pass on the mean of q(z|x)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, batches and draws")
    parser.add_argument("--timeout", type=int, default=600, help="seconds until workers are ended")
    return parser.parse_args()


def build(data_size: int, options: argparse.Namespace) -> VAE:
    """The model of examples/mlp_vae.py."""
    conversion = "mean" if options.mean else "sample"
    posterior = posteriors.DiagonalNormal(LATENT_SIZE, convert_to_tensor_fn=conversion)
    likelihood = likelihoods.Bernoulli(data_size)
    encoder = networks.mlp_encoder(data_size, posterior.params_size)
    decoder = networks.mlp_decoder(LATENT_SIZE, likelihood.params_size)
    return VAE(
        priors.StandardNormal(LATENT_SIZE),
        keras.Sequential([encoder, posterior]),
        keras.Sequential([decoder, likelihood]),
        seed=options.seed,
    )


def train(strategy: Any, options: argparse.Namespace) -> list[float]:
    """The losses of the epochs."""
    keras.utils.set_random_seed(options.seed)  # All workers the same: one order of the rows.
    x = datasets.load("digits", scale=True, flatten=True).x_train
    with strategy.scope():
        vae = build(x.shape[1], options)
        vae.compile("adam")
    history = vae.fit(x, batch_size=options.batch_size, epochs=options.epochs, verbose=0)
    return [float(loss) for loss in history.history["loss"]]


def addresses(num: int) -> list[str]:
    """Free ones of the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def start(stack: contextlib.ExitStack, index: int, cluster: list[str]) -> Any:
    """A worker process, which the stack ends."""
    config = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": index}}
    process = subprocess.Popen(
        [sys.executable, *sys.argv],
        env=os.environ | {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)  # A process that has ended is not hit.
    return process


def main() -> None:
    """Be a worker, or start two and compare."""
    options = arguments()
    if "TF_CONFIG" in os.environ:
        print(json.dumps(train(tf.distribute.MultiWorkerMirroredStrategy(), options)))
        return
    with contextlib.ExitStack() as stack:
        cluster = addresses(2)
        workers = [start(stack, i, cluster) for i in range(2)]
        outputs = [worker.communicate(timeout=options.timeout)[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise SystemExit(f"a worker failed; run with TF_CONFIG set to see why: {cluster}")
    losses = [json.loads(output.splitlines()[-1]) for output in outputs]
    losses.append(train(tf.distribute.get_strategy(), options))
    print(f"{'epoch':>5}{'worker 0':>12}{'worker 1':>12}{'alone':>12}{'difference':>14}")
    for epoch, (one, other, alone) in enumerate(zip(*losses, strict=True), 1):
        print(f"{epoch:5}{one:12.4f}{other:12.4f}{alone:12.4f}{one - alone:14.1e}")


if __name__ == "__main__":
    main()
