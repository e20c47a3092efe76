"""The tutorials' models on full MNIST, trained to the end: `make study`, 40 minutes to an hour."""

import statistics
import sys
from pathlib import Path

import pytest
import tf_keras as keras

from tfpvae import datasets

pytestmark = pytest.mark.study

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("common", "mlp_vae", "conv_vae"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_mlp_vae_reaches_the_tutorials_loss():
    """Median test loss over five seeds at most 152.0 nats."""
    import mlp_vae

    data = datasets.load("mnist", scale=True, flatten=True)
    losses = []
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        vae = mlp_vae.build(784, seed)
        vae.compile("rmsprop")
        vae.fit(data.x_train, epochs=50, batch_size=100, verbose=0)
        logs = vae.evaluate(data.x_test, batch_size=100, verbose=0, return_dict=True)
        losses.append(logs["loss"])
        print(f"mlp_vae seed {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in logs.items()))
    print(f"mlp_vae: median {statistics.median(losses):.2f}, {min(losses):.2f}-{max(losses):.2f}")
    assert statistics.median(losses) <= 152.0


def test_conv_vae_reaches_the_tutorials_loss():
    """Test loss at most 151.7 nats within 15 epochs, early stopping with patience 2."""
    import conv_vae

    data = datasets.load("mnist", scale=True)
    losses = []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        vae = conv_vae.build((28, 28, 1), seed)
        vae.compile("adam")
        history = vae.fit(
            data.x_train[..., None],
            epochs=15,
            batch_size=32,
            validation_data=data.x_test[..., None],
            callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=2)],
            verbose=0,
        ).history["val_loss"]
        losses.append(min(history))
        print(f"conv_vae seed {seed}: val_loss {min(history):.2f}, {len(history)} epochs")
    print(f"conv_vae: median {statistics.median(losses):.2f}, {min(losses):.2f}-{max(losses):.2f}")
    assert statistics.median(losses) <= 151.7
