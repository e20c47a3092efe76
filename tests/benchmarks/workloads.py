"""What is trained, and who trains it: two tables that import no framework."""

import dataclasses
import importlib.util
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Workload:
    """A variational autoencoder with a Bernoulli likelihood on MNIST, and its training."""

    title: str
    shape: tuple[int, ...]  # of an example
    weights: tuple[int, int]  # how many the encoder and the decoder must have
    optimizer: str  # with Keras's settings: learning rate 1e-3, rho 0.9, epsilon 1e-7
    batch_size: int
    rows: int
    latent_size: int = 2
    hidden: tuple[int, ...] = (256,)  # of both dense networks
    activation: str = "relu"
    num_samples: int | None = None  # of the importance weighted bound, None for the ELBO
    repeat: int = 1  # the data are the rows so often: more of the same kind

    @property
    def steps(self):
        return -(-self.rows * self.repeat // self.batch_size)


def _burda(num_samples, rows):
    """The one-layer set-up of Burda, Grosse and Salakhutdinov (2016)."""
    return Workload(
        f"784-200-200-50-200-200-784, bound of {num_samples} draws",
        (784,),
        (217_300, 207_984),
        "adam",
        20,
        rows,
        latent_size=50,
        hidden=(200, 200),
        activation="tanh",
        num_samples=num_samples,
    )


WORKLOADS = {
    "mlp": Workload("784-256-2-256-784", (784,), (201_988, 202_256), "rmsprop", 100, 60_000),
    "conv": Workload("convolutional", (28, 28, 1), (69_076, 65_089), "adam", 32, 12_000),
    "iwae-1": _burda(1, rows=60_000),
    "iwae-50": _burda(50, rows=12_000),
}
DENSE = tuple(name for name, workload in WORKLOADS.items() if len(workload.shape) == 1)
TUTORIALS = ("mlp", "conv")


class Contender(NamedTuple):
    """A function `module.function(workload, x, epochs, report)`.

    It trains on the images x, float32 `[rows, *shape]`, and calls `report(loss)` at the end of each
    epoch with its mean loss in nats an example. `report` takes the time, and waits for its turn.
    """

    title: str
    module: str
    function: str
    package: str = "tfpvae"
    workloads: tuple[str, ...] = tuple(WORKLOADS)

    @property
    def missing(self):
        return importlib.util.find_spec(self.package) is None


CONTENDERS = {
    "tfpvae": Contender("tfpvae", "keras_contenders", "train_tfpvae"),
    "tfpvae-flow": Contender(
        "tfpvae, IAF posterior", "keras_contenders", "train_flow", workloads=("mlp",)
    ),
    "stock": Contender("stock tfp.layers", "keras_contenders", "train_stock", workloads=TUTORIALS),
    "stock-tuned": Contender(
        "stock tfp.layers, tuned", "keras_contenders", "train_stock_tuned", workloads=TUTORIALS
    ),
    "torch": Contender("PyTorch loop", "torch_contenders", "train", "torch"),
    "pythae": Contender("Pythae", "pythae_contender", "train", "pythae", TUTORIALS),
    "products-tf": Contender("products alone (TensorFlow)", "keras_contenders", "multiply"),
    # Dense layers only: TensorFlow's convolutions are the faster ones.
    "products-torch": Contender(
        "products alone (PyTorch)", "torch_contenders", "multiply", "torch", DENSE
    ),
    "tfpvae-stream": Contender("tfpvae, tf.data stream", "keras_contenders", "train_stream"),
}
