"""The cost of streaming training data: PGD-10 steps with data on the device and from the host, in turn.

    python -m experiments.throughput.streaming > streaming.jsonl

Prints a JSON line for each network, with the ratio. The images come from a mapped file on the disk. Windows are small,
so that one is sent every few steps.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax import models
from piat_jax.attacks import bind, pgd
from piat_jax.benchmark.ours import NETWORKS, _device
from piat_jax.cli import errors
from piat_jax.data import Split
from piat_jax.experiment.provenance import describe_run
from piat_jax.objectives import PGDAT
from piat_jax.training import Examples, Recipe, init_state, run_epoch, sgd
from piat_jax.training.streaming import Stream

ROUNDS = 7
# network, batch size, steps in an epoch, batches in a window
CASES = (("small", 128, 16, 4), ("resnet18", 16, 4, 1))


def measure(network: str, batch: int, steps: int, window: int, folder: Path) -> dict[str, object]:
    """Images per second of an epoch either way, in turn."""
    shape = NETWORKS[network].image_shape
    rng = np.random.default_rng(0)
    path = folder / f"{network}.npy"
    np.save(path, rng.integers(0, 256, (batch * steps, *shape), np.uint8))
    split = Split(np.load(path, mmap_mode="r", allow_pickle=False), rng.integers(0, 10, batch * steps).astype(np.int32))
    model = models.create(NETWORKS[network].name, num_classes=10, **NETWORKS[network].options)
    objective = PGDAT(model=model, attack=bind(pgd, eps=8 / 255, step_size=2 / 255, steps=10))
    recipe = Recipe(sgd(1e-4), batch_size=batch, crop_padding=4, flip=True)
    sources = {
        "device": Examples(jnp.asarray(split.images), jnp.asarray(split.labels)),
        "stream": Stream(split, batch_size=batch, window_bytes=window * batch * int(np.prod(shape))),
    }
    key = jax.random.key(0)
    state = init_state(objective, recipe.optimizer, jnp.zeros((1, *shape)), key=key)
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(ROUNDS + 1):
        for name, examples in sources.items():
            began = time.perf_counter()
            # Chunks of the same length either way.
            state, _ = run_epoch(state, objective, examples, key=key, recipe=recipe, epochs=1, steps_per_chunk=window)
            jax.block_until_ready(state)
            if number:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    rates = {name: [round(batch * steps / x, 2) for x in values] for name, values in seconds.items()}
    return {
        "network": network,
        "batch": batch,
        "window_batches": window,
        "images_per_second": {name: float(np.median(values)) for name, values in rates.items()},
        "rounds": rates,
        "stream_over_device": round(float(np.median(rates["stream"]) / np.median(rates["device"])), 3),
    }


def main(argv: Sequence[str]) -> None:
    """Measure every case and print its line."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    about = describe_run()
    about = {name: about[name] for name in ("started", "commit", "versions")} | {"device": _device()}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            print(json.dumps({**about, **measure(*case, Path(folder))}), flush=True)


if __name__ == "__main__":
    errors.leave(errors.run(main))
