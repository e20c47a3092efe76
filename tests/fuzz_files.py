"""Damages model files in every way it can think of, and loads them.

    python tests/fuzz_files.py --num 500 --seed 0

The files are those of tests/golden/ of this version. Each damaged one is loaded by
`tfpvae.load_model` in a process that is watched: it has to be refused with `InvalidModelFile`, or
to give the densities of the whole file. Damage that comes with new digests makes another valid file
at times; that is counted apart. No process may die, hang, or import, open or start anything.
"""

import argparse
import collections
import copy
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import queue
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import tf_keras as keras

GOLDEN = Path(__file__).parent / "golden"
OUTCOMES = (
    "same",
    "refused",
    "another valid file",
    "differs",
    "other error",
    "crashed",
    "timed out",
    "ran code",
)
SECONDS = 180.0  # for one file
MEMORY = 2**33  # bytes more than at the start

METADATA, CONFIG, WEIGHTS = MEMBERS = ("metadata.json", "config.json", "model.weights.h5")

VALUES = [0, -1, 1, 3, 10**5, 10**9, -(10**9), 10**30, 0.5, 1e308, float("nan"), float("inf")]
VALUES += [None, True, "", "x", [], {}, [1], [10**5, 10**5], [[]], {"class_name": "Dense"}]
NAMES = [
    "Lambda",
    "Dense",
    "Sequential",
    "VAE",
    "RNN",
    "TFOpLambda",
    "StringLookup",
    "function",
    "system",
    "eval",
    "exec",
    "relu",
    "adam",
    "__lambda__",
    "__typespec__",
    "__tensor__",
    "tfpvae>VAE",
    "os",
    "builtins",
    "subprocess",
    "antigravity",
    "keras.utils",
    "tfpvae.cli",
    "io.read_file",
    "tensorflow_probability.python.layers",
    "keras.layers",
    "../../etc/passwd",
]


# Damage.


def flip(rng, content):
    content = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(content)


def span(rng, content):
    start = int(rng.integers(len(content)))
    return start, start + int(2 ** rng.uniform(0, np.log2(len(content))))


def zero(rng, content):
    start, stop = span(rng, content)
    return content[:start] + bytes(len(content[start:stop])) + content[stop:]


def cut(rng, content):
    return content[: rng.integers(len(content))]


def remove(rng, content):
    start, stop = span(rng, content)
    return content[:start] + content[stop:]


def double(rng, content):
    start, stop = span(rng, content)
    return content[:stop] + content[start:]


BYTES = (flip, flip, zero, cut, remove, double)


def pack(content, names=MEMBERS):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in zip(names, content, strict=True):
            archive.writestr(name, member)
    return file.getvalue()


def unpack(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return [archive.read(name) for name in MEMBERS]


def signed(content):
    """The archive, with the digests made right."""
    metadata, *others = content
    digests = [hashlib.sha256(member).hexdigest() for member in others]
    metadata = json.loads(metadata) | {"sha256": dict(zip(MEMBERS[1:], digests, strict=True))}
    return pack([json.dumps(metadata), *others])


def of_bytes(rng, whole):
    """Damage of the file as a whole."""
    return BYTES[rng.integers(len(BYTES))](rng, whole)


def of_members(rng, whole):
    """Members dropped, renamed, or in each other's place."""
    content, names = unpack(whole), [*MEMBERS]
    i, j = (int(k) for k in rng.choice(3, 2, replace=False))
    kind = rng.integers(4)
    if kind == 0:
        del content[i], names[i]
    elif kind == 1:
        names[i] = ("../evil", "/etc/evil", "config.jsom", "assets/x", " ", names[i].upper())[
            rng.integers(6)
        ]
    elif kind == 2:
        content[i], content[j] = content[j], content[i]
    else:
        content[i] = BYTES[rng.integers(len(BYTES))](rng, content[i])
    return pack(content, names)


def places(tree):
    """All that can be replaced: (container, key)."""
    found, items = [], [tree]
    while items:
        item = items.pop()
        if isinstance(item, (dict, list)):
            keys = [*item] if isinstance(item, dict) else range(len(item))
            found += [(item, key) for key in keys]
            items += [item[key] for key in keys]
    return found


def of_config(rng, whole):
    """Values of the configuration replaced by others; digests right."""
    content = unpack(whole)
    tree = json.loads(content[1])
    for _ in range(rng.integers(1, 4)):
        options = places(tree)
        if not options:
            break
        container, key = options[rng.integers(len(options))]
        kind = rng.integers(5)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, name = options[rng.integers(len(options))]
            container[key] = copy.deepcopy(other[name])
        elif kind == 2 or isinstance(container[key], str):
            container[key] = NAMES[rng.integers(len(NAMES))]
        else:
            container[key] = VALUES[rng.integers(len(VALUES))]
    content[1] = json.dumps(tree).encode()
    return signed(content)


def of_weights(rng, whole):
    """Bytes of the weights changed; digests right."""
    content = unpack(whole)
    content[2] = BYTES[rng.integers(len(BYTES))](rng, content[2])
    return signed(content)


# Keys of a configuration that name what is made are few: they get a kind of their own.


def of_names(rng, whole):
    """Names of classes, modules and functions in the configuration replaced; digests right."""
    content = unpack(whole)
    tree = json.loads(content[1])
    keys = ("class_name", "module", "registered_name", "activation", "dtype", "name")
    options = [(item, key) for item, key in places(tree) if key in keys]
    if rng.integers(2):  # All three names of one object: Keras imports the module.
        nodes = [item for item, key in options if key == "class_name"]
        node = nodes[rng.integers(len(nodes))]
        node |= {"module": "evil", "class_name": "Evil", "registered_name": None}
    for _ in range(rng.integers(2)):
        container, key = options[rng.integers(len(options))]
        container[key] = NAMES[rng.integers(len(NAMES))]
    content[1] = json.dumps(tree).encode()
    return signed(content)


KINDS = {
    "bytes": (of_bytes, False),
    "members": (of_members, False),
    "configuration": (of_config, True),
    "names": (of_names, True),
    "weights": (of_weights, True),
}


# Watched processes.

_ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
_ACTS += ("socket.connect", "ctypes.dlopen", "pickle.find_class", "marshal.loads", "exec")
_ACTS += ("compile", "import", "os.remove", "os.rename", "os.mkdir", "shutil.rmtree", "os.symlink")


class Watch:
    """Notes what runs code, once it is armed.

    Args:
      quiet: events that were seen while whole files were loaded; they are no fault of the files.
    """

    def __init__(self):
        self.armed, self.seen, self.quiet = False, [], set()
        sys.addaudithook(self._note)
        sys.meta_path.insert(0, self)  # `importlib.import_module` is not audited.

    def find_spec(self, name, path=None, target=None):
        """Notes what is imported, and leaves it to others."""
        self._note("import", (name,))

    def _note(self, event, arguments):
        if not self.armed:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
            found = f"open {path} {mode}" if writes else None
        else:
            found = f"{event} {str(arguments[:1])[:80]}" if event in _ACTS else None
        if found is not None and found not in self.quiet:
            self.seen.append(found)


def work(tasks, answers, folder):
    """Loads damaged files as they come."""
    try:
        _work(tasks, answers, folder)
    except Exception as error:
        answers.put((None, "failed", repr(error)))


def _work(tasks, answers, folder):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import resource
    import warnings

    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import tfpvae

    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    watch = Watch()
    wanted, whole = {}, {}
    path = Path(folder, f"{os.getpid()}.keras")
    for name in golden.MODELS:
        whole[name] = (GOLDEN / tfpvae.__version__ / f"{name}.keras").read_bytes()
        for _ in range(2):  # What is loaded on first use is no fault of a file.
            path.write_bytes(whole[name])
            watch.armed = True
            wanted[name] = golden.numbers(name, tfpvae.load_model(path))
            watch.armed = False
    watch.quiet = set(watch.seen)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.put((None, None, None))
    while (task := tasks.get()) is not None:
        index, seed = task
        name, kind, content = damaged(whole, index, seed)
        path.write_bytes(content)
        answers.put((index, "started", f"{name}: {kind}"))
        watch.seen = []
        outcome, note = "refused", ""
        watch.armed = True
        try:
            model = tfpvae.load_model(path)
        except tfpvae.saving.InvalidModelFile as error:
            note = f"{error}"
        except BaseException as error:
            outcome, note = "other error", repr(error)
        else:
            try:
                same = all(map(np.array_equal, golden.numbers(name, model), wanted[name]))
            except Exception:  # It may be a model of another class.
                same = False
            changed = "another valid file" if KINDS[kind][1] else "differs"
            outcome = "same" if same else changed
            note = outcome
        watch.armed = False
        if watch.seen:
            outcome, note = "ran code", f"{watch.seen[:3]} {note}"
        answers.put((index, outcome, f"{name}: {kind}: {note[:300]}"))


def damaged(whole, index, seed):
    """The name of a model, the kind of damage, and the damaged file."""
    rng = np.random.default_rng([seed, index])
    name = [*whole][index % len(whole)]
    kind = [*KINDS][rng.integers(len(KINDS))]
    content = KINDS[kind][0](rng, whole[name])
    while content == whole[name]:
        content = KINDS[kind][0](rng, whole[name])
    return name, kind, content


class Worker:
    """A process that loads files, one after the other, and what it works on."""

    def __init__(self, context, folder):
        self.tasks, self.answers = context.SimpleQueue(), context.Queue()
        self.process = context.Process(
            target=work, args=(self.tasks, self.answers, folder), daemon=True
        )
        self.process.start()
        self.index, self.note, self.since = None, "", time.monotonic()


def run(num=500, seed=0, num_workers=2, progress=False, notes=None):
    """Load so many damaged files.

    Args:
      num: how many.
      seed: of the damage.
      num_workers: processes.
      progress: whether to show a bar.
      notes: a list that takes (outcome, what was done, what was said) of each file.

    Returns:
      A dict: `num`, `seconds`, a count of each of OUTCOMES, and in `failures` what should not be.
    """
    context = multiprocessing.get_context("spawn")
    counts, failures = collections.Counter(), []
    todo, started = collections.deque(range(num)), time.monotonic()
    bar = keras.utils.Progbar(num, unit_name="file", verbose=int(progress), interval=1.0)
    with tempfile.TemporaryDirectory() as folder:

        def finish(worker, outcome, note):
            counts[outcome] += 1
            if outcome not in OUTCOMES[:3]:
                failures.append((worker.index, outcome, note))
            if notes is not None:
                notes.append((worker.index, outcome, note))
            worker.index = None
            bar.add(1)

        workers = [Worker(context, folder) for _ in range(min(num_workers, num))]
        while todo or any(worker.index is not None for worker in workers):
            for i, worker in enumerate(workers):
                try:
                    index, outcome, note = worker.answers.get(timeout=0.01)
                except queue.Empty:
                    late = time.monotonic() - worker.since > SECONDS
                    if worker.process.is_alive() and not late:
                        continue
                    if worker.index is not None:
                        died = f"{worker.note}, exit code {worker.process.exitcode}"
                        finish(worker, "timed out" if late else "crashed", died)
                    worker.process.kill()
                    if todo:
                        workers[i] = Worker(context, folder)
                    continue
                if outcome == "failed":
                    raise RuntimeError(f"whole files could not be loaded: {note}")
                if outcome == "started":
                    worker.note = note
                    continue
                if index is not None:
                    finish(worker, outcome, note)
                worker.since = time.monotonic()
                if todo:
                    worker.index = todo.popleft()
                    worker.tasks.put((worker.index, seed))
        for worker in workers:
            worker.tasks.put(None)
        for worker in workers:
            worker.process.join(10)
            worker.process.kill()
    result = {"num": num, "seed": seed, "seconds": round(time.monotonic() - started, 1)}
    return result | {name: counts[name] for name in OUTCOMES} | {"failures": failures}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--notes", type=Path, help="write what became of each file there")
    arguments = parser.parse_args()
    notes = []
    found = run(arguments.num, arguments.seed, arguments.num_workers, True, notes)
    failures = found.pop("failures")
    for name, value in found.items():
        print(f"{name:>20} {value}")
    for failure in failures:
        print(*failure)
    if arguments.notes:
        arguments.notes.write_text("\n".join(map(str, sorted(notes))) + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
