"""Several replicas and workers train as one does with the same batches; see replica_cases.py."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import replica_cases
import tensorflow as tf

import tfpvae
from tfpvae import replicas

SECONDS = 600  # until processes that hang are ended
SCRIPT = Path(__file__).with_name("replica_cases.py")
COMPARED = (
    "sgd",
    "everything",
    "positive",
    "stream",
    "labels",
    "discriminator",
    "adversarial",
    "files",
    "resumed",
)
OTHERS = ("noise", "saved")


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
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLICA_FOLDER", folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fit ended with kl_weight", UserWarning)
            return replica_cases.CASES[name](tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    (found,) = run(tmp_path_factory.mktemp("mirrored"), "mirrored", [*COMPARED, *OTHERS, "refused"])
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
def test_all_workers_save_and_the_first_writes(workers, mirrored):
    """The file is that of any model: one process goes on from it as the workers do."""
    for found in (*workers, mirrored):
        assert [*found["saved/files"]] == ["model.keras"]
        np.testing.assert_allclose(found["saved/again"], found["saved/weight 0"], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["schedule", "discriminator", "weights"])
def test_what_is_made_outside_of_the_scope_is_refused(name, mirrored):
    message = str(mirrored[f"refused/{name}"])
    assert "made outside of the scope of MirroredStrategy" in message
    assert message.startswith("discriminator:" if name == "discriminator" else "model:")


@pytest.mark.long
@pytest.mark.parametrize("name", ["LocalVAE", "SimulatorModel"])
def test_models_for_one_replica_refuse_several(name, mirrored):
    message = str(mirrored[f"refused/{name}"])
    assert message.startswith(f"{name}: got it made in the scope of MirroredStrategy")


def test_parts_of_a_batch_add_up():
    """Without a strategy, nothing is done to a batch."""
    x = tf.ones([3, 2])
    with replicas.batch(x) as (same, y, weight):
        assert same is x
        assert y is None
        assert weight is None
        assert int(replicas.rows(x)) == 3
        assert replicas.known(x) is x
        assert float(replicas.mean(tf.constant([1.0, 5.0]))) == 3.0
    with tf.GradientTape() as tape:
        tape.watch(x)
        mean = tf.reduce_sum(replicas.mean(x))
    assert tape.gradient(mean, x) is None


def test_who_writes():
    def strategy(*task, jobs=("worker",)):
        cluster = tf.train.ClusterSpec({job: ["127.0.0.1:1", "127.0.0.1:2"] for job in jobs})
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            cluster, task_type=task[0], task_id=task[1]
        )
        return SimpleNamespace(cluster_resolver=resolver)

    assert replicas.is_chief(tf.distribute.get_strategy())
    assert replicas.is_chief(strategy("worker", 0))
    assert not replicas.is_chief(strategy("worker", 1))
    both = {"jobs": ("chief", "worker")}
    assert replicas.is_chief(strategy("chief", 0, **both))
    assert not replicas.is_chief(strategy("worker", 0, **both))
