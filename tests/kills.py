"""Training that is killed at random moments and started again, until it ends.

    python tests/kills.py --num 20 --seed 0

A run without kills comes first. Then runs of the same command are killed (SIGKILL) at random
moments, each started again until it ends; weights, optimizer and history must be the same bits.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Everything that has state: shuffled data, noise, schedules of the learning rate and of the KL's
# weight, Adam, callbacks that change the learning rate and keep the best weights, sample weights.
TRAINING = """
import sys, time
import numpy as np
import tf_keras as keras
from tfpvae import VAE, likelihoods, objectives, posteriors, priors, schedules
from tfpvae.resuming import Resume

folder, out, kind = sys.argv[1:4]
keras.utils.set_random_seed(3)
rng = np.random.default_rng(0)
x = (rng.random((1000, 12)) < rng.random(12)).astype("float32")
weight = rng.uniform(0.5, 1.5, 1000).astype("float32")
encoder = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(4),
                            posteriors.DiagonalNormal(2)])
decoder = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(12),
                            likelihoods.Bernoulli(12)])
vae = VAE(priors.NormalMixture(2, 3), encoder, decoder, seed=5)
rate = 1e-3 if kind == "callbacks" else keras.optimizers.schedules.CosineDecay(1e-2, 640)
vae.compile(keras.optimizers.Adam(rate),
            objective=objectives.ELBO(kl_weight=schedules.Linear(300)),
            jit_compile=True if kind == "xla" else None)
callbacks = []
if kind == "callbacks":
    callbacks = [keras.callbacks.ReduceLROnPlateau("val_elbo", mode="max", patience=1, factor=0.7),
                 keras.callbacks.EarlyStopping("val_elbo", mode="max", patience=30,
                                               restore_best_weights=True)]
# Something to be killed in: a little longer than the epoch takes.
slow = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: time.sleep(0.05))
print("ready", flush=True)
history = vae.fit(x, batch_size=64, epochs=40, sample_weight=weight, validation_data=x[:100],
                  callbacks=[*callbacks, slow], resume=Resume(folder, min_seconds=0.0), verbose=0)
arrays = {f"w{i}": w for i, w in enumerate(vae.get_weights())}
arrays |= {f"o{i}": v.numpy() for i, v in enumerate(vae.optimizer.variables)}
arrays |= {f"h{name}": np.array(values, "float64") for name, values in history.history.items()}
np.savez(out + ".npz", epoch=history.epoch, **arrays)
"""

KINDS = ("schedules", "callbacks", "xla")


def run(num: int, seed: int, say=lambda line: None) -> dict:
    """Kill `num` times; how often it was, in which runs, and how many ended with the same bits."""
    rng = random.Random(seed)
    killed, runs, same, epochs = 0, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        wanted = {}
        while killed < num:
            kind = KINDS[runs % len(KINDS)]
            if kind not in wanted:
                began = time.monotonic()
                _to_the_end(base / f"plain-{kind}", kind)
                wanted[kind] = _result(base / f"plain-{kind}"), time.monotonic() - began
                say(f"{kind}: a run without kills took {wanted[kind][1]:.0f} s")
            place = base / f"run-{runs}"
            for _ in range(min(5, num - killed)):
                if not _killed(place, kind, rng.uniform(0.0, 0.6 * wanted[kind][1])):
                    break  # It was faster.
                killed += 1
                epochs.append(_epoch(place))
            _to_the_end(place, kind)
            runs += 1
            equal = _result(place) == wanted[kind][0]
            same += equal
            say(f"{kind}: killed after the epochs {epochs[-5:]}, {'same' if equal else 'OTHER'}")
    return {"kills": killed, "runs": runs, "same": same, "epochs": epochs}


def _start(place: pathlib.Path, kind: str) -> subprocess.Popen:
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", TRAINING, str(place / "resume"), str(place / "out"), kind]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _killed(place: pathlib.Path, kind: str, seconds: float) -> bool:
    """Whether the run was killed so many seconds after its model was made."""
    process = _start(place, kind)
    assert process.stdout.readline() == "ready\n", process.stderr.read()[-3000:]
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    finally:
        process.stdout.close()
        process.stderr.close()
    return False


def _to_the_end(place: pathlib.Path, kind: str) -> None:
    process = _start(place, kind)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]


def _epoch(place: pathlib.Path) -> int | None:
    """The last epoch that was saved."""
    found = sorted(path.name for path in (place / "resume").glob("epoch-*"))
    return int(found[-1][6:]) if found else None


def _result(place: pathlib.Path) -> dict:
    import numpy as np

    with np.load(place / "out.npz") as file:
        return {name: (values.dtype.str, values.tobytes()) for name, values in file.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=20, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(run(options.num, options.seed, lambda line: print(line, flush=True))))
