"""Several replicas and workers train as one does with the same batches; see replica_cases.py."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import replica_cases
import tensorflow as tf
import tf_keras as keras

import tfpvae
from tfpvae import VAE, objectives, replicas, schedules

SECONDS = 240  # until processes that hang are ended
SCRIPT = Path(__file__).with_name("replica_cases.py")
COMPARED = ("sgd", "everything", "stream", "labels", "discriminator", "adversarial")
OTHERS = ("noise", "saved", "files")


def run(folder, kind, names, cluster=None):
    """The arrays of cases, as found by processes of their own, one for each worker."""
    root = str(Path(tfpvae.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "REPLICA_FOLDER": str(folder),
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    outputs, running = [], []
    with contextlib.ExitStack() as stack:
        for i in range(len(cluster or [None])):
            if cluster:
                task = {"type": "worker", "index": i}
                config = {"cluster": {"worker": cluster}, "task": task}
                environment["TF_CONFIG"] = json.dumps(config)
            outputs.append(folder / f"{kind}-{i}.npz")
            log = stack.enter_context(open(folder / f"{kind}-{i}.log", "w+"))
            command = [sys.executable, str(SCRIPT), kind, str(outputs[-1]), *names]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
            stack.callback(running[-1].wait)
            stack.callback(running[-1].kill)  # Of a process that has ended it does nothing.
        codes = [process.wait(SECONDS) for process in running]
    logs = [path.read_text()[-3000:] for path in sorted(folder.glob(f"{kind}-*.log"))]
    assert codes == [0] * len(codes), "\n".join(logs)
    return [dict(np.load(output)) for output in outputs]


def free_addresses(num):
    """Addresses on the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


@functools.cache
def alone(name):
    """What a case finds without a strategy."""
    return replica_cases.CASES[name](tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    (found,) = run(tmp_path_factory.mktemp("mirrored"), "mirrored", [*COMPARED, *OTHERS])
    return found


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return run(folder, "workers", [*COMPARED, *OTHERS], free_addresses(2))


def check_as_alone(found, name):
    """20 steps of float32 agree within 1e-5, of float64 to the last digits."""
    wanted = alone(name)
    atol = {"everything": 1e-13, "adversarial": 1e-8}.get(name, 1e-5)  # The draws are 1e-9 wide.
    assert {key.split("/")[1] for key in found if key.startswith(f"{name}/")} == {*wanted}
    for key, value in wanted.items():
        np.testing.assert_allclose(found[f"{name}/{key}"], value, rtol=0, atol=atol, err_msg=key)


def test_two_devices_train_as_one(tmp_path):
    (found,) = run(tmp_path, "mirrored", ["sgd", "noise"])
    check_as_alone(found, "sgd")
    check_noise(found)
    wanted = alone("sgd")
    assert wanted["loss"][0] - wanted["loss"][-1] > 0.1  # It is training.


def check_noise(found):
    """In each of two steps the replicas have draws of their own, a step counts once."""
    draws = found["noise/draws"]
    assert len(np.unique(draws)) == draws.size
    assert found["noise/count"] == 2 + 2 * 4


@pytest.mark.long
@pytest.mark.parametrize("name", COMPARED)
def test_devices_train_as_one(name, mirrored):
    check_as_alone(mirrored, name)


@pytest.mark.long
@pytest.mark.parametrize("name", COMPARED)
def test_workers_train_as_one(name, workers):
    for found in workers:
        check_as_alone(found, name)


@pytest.mark.long
def test_workers_have_one_seed_and_different_draws(workers):
    one, other = workers
    np.testing.assert_array_equal(one["noise/seed"], other["noise/seed"])
    assert len(np.intersect1d(one["noise/draws"], other["noise/draws"])) == 0
    for found in workers:
        check_noise(found)
    np.testing.assert_array_equal(one["noise/loss"], other["noise/loss"])


@pytest.mark.long
def test_all_save_and_the_first_writes(workers, mirrored):
    assert all(found["saved/same"] for found in (*workers, mirrored))


def test_what_is_made_outside_of_the_scope_is_refused():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert replicas.is_chief(strategy)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.build((None, 2))
    replicas.check_scope(strategy, "model", model.variables)  # There is one replica.


def test_two_replicas_refuse_foreign_variables(tmp_path):
    code = """
import tensorflow as tf, numpy as np, replica_cases as cases
from tfpvae import VAE, objectives, schedules
import tf_keras as keras
"""
    del code
