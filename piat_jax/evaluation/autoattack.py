"""AutoAttack: robust accuracy against a parameter-free ensemble of attacks."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from piat_jax.attacks.ensemble import Member, ensemble, names_of
from piat_jax.attacks.targets import ranked_others
from piat_jax.core.bound import Bound
from piat_jax.core.checks import InputError, check_choice, check_classes, check_count, check_range, check_seed
from piat_jax.core.network_checks import check_network, check_takes_keys, checked_logits
from piat_jax.core.norms import norm_name
from piat_jax.core.rng import example_keys, named_key
from piat_jax.core.scratch import scratch
from piat_jax.core.types import Array
from piat_jax.evaluation import sanity
from piat_jax.evaluation.attack_state import AttackState
from piat_jax.evaluation.blocks import Blocks, Rows
from piat_jax.evaluation.journal import ATTACKED, Journal, Record, digest
from piat_jax.evaluation.robustness import Finding, Robustness
from piat_jax.evaluation.validity import Threat, measure, of_validity

PRECISIONS = ("highest", "default")
ATTACK_PRECISIONS = ("same", "tensorfloat32", "bfloat16")


class AttackProgress(NamedTuple):
    """Progress of an evaluation, reported after every block."""

    attack: str
    done: int  # finished runs of this attack
    total: int  # runs that it needs if none of the remaining ones succeeds
    robust: int  # examples robust so far
    examples: int
    elapsed: float  # seconds of this call
    left: float  # estimate of the most seconds that the remaining runs take


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The share of examples that no attack breaks: `mean_i [no x' found in the ball of x_i has argmax z(x') != y_i]`.

    The attacks run one after the other, each on the clean images of the examples that are still robust. An attack
    succeeds if its image lies in ball and box and is misclassified in a separate forward, the same for all attacks and
    for the clean images. The accuracy counts all examples; those misclassified without an attack are not robust.

    Randomness derives from (seed, attack, run, example, iteration), always with the threefry generator. So the flags do
    not depend on block size, order, number of devices, or on stopping and resuming.

    Attributes:
      eps: radius in pixel units (1 = the whole range), so 8/255 and not 8.
      norm: "linf", "l2" or "l1", or in RobustBench's spelling.
      version: "standard", "plus" or "rand"; see `attacks.ensemble`.
      attacks: names to run instead of the version's (also one string, "apgd-ce,square"), or `Member`s, including your
        own.
      steps, restarts, targets, queries, eot: settings that replace the version's; see `attacks.ensemble`.
      seed: seed of all randomness.
      individually: whether to run every attack on all examples with a correct clean image, for the accuracy under each
        attack alone.
      block_size: examples per block, over all devices; rounded up to a multiple of 8 per device.
      precision: of matrix products, "highest" (float32) or "default" (may be TF32 or bfloat16 on accelerators).
      attack_precision: of the attacks' matrix products: "same" as `precision`, or JAX's "tensorfloat32" or "bfloat16".
        Clean images and every success are judged at `precision`, and a run whose success the judge refuses is repeated
        at `precision`. Examples that the attacks leave unbroken are not attacked again, so the accuracy may be higher
        than with "same". It has no effect on a CPU, which always multiplies in float32. Under "bfloat16" a GPU still
        multiplies float32 in TF32; for fewer bits, give `run` a network with bfloat16 activations.

    Raises:
      InputError: a number out of range or an unknown name.

    Source: Croce & Hein (2020), arXiv:2003.01690. In the published code, noise is drawn for a whole batch, and NaN
    logits count as fooled; neither is done here. Its "custom" version is `attacks`.

    >>> import jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.4)], axis=1)
    >>> images = np.linspace(0.3, 0.9, 8, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((8, 4, 4, 1), np.float32)
    >>> result = AutoAttack(eps=0.2, steps=5, queries=20, targets=1).run(logits_fn, images, np.zeros(8, int))
    >>> result.clean_accuracy, result.accuracy
    (0.75, 0.5)
    """

    eps: float = 8 / 255
    norm: str = "linf"
    version: str = "standard"
    attacks: str | Sequence[str] | Sequence[Member] = ()
    steps: int = 100
    restarts: int | None = None
    targets: int | None = None
    queries: int = 5000
    eot: int | None = None
    seed: int = 0
    individually: bool = False
    block_size: int = 256
    precision: str = "highest"
    attack_precision: str = "same"

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_name(self.norm))
        if isinstance(self.attacks, str):
            object.__setattr__(self, "attacks", names_of(self.attacks))
        check_range("eps", self.eps, 0, 1 if self.norm == "linf" else float("inf"), open_low=True)
        check_count("block_size", self.block_size, 1)
        check_seed("seed", self.seed)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("attack_precision", self.attack_precision, ATTACK_PRECISIONS)
        members = self.members()
        without = ", ".join(member.name for member in members if not _averages(member))
        if without and any(map(_averages, members)):
            raise InputError(f"eot={self.eot}: {without} cannot attack a randomised network; leave it out of attacks=")

    def members(self) -> tuple[Member, ...]:
        """The attacks, in order."""
        if any(isinstance(attack, Member) for attack in self.attacks):
            return _checked(self.attacks)  # type: ignore[arg-type]
        return ensemble(
            self.version,
            attacks=self.attacks,  # type: ignore[arg-type]
            norm=self.norm,
            steps=self.steps,
            restarts=self.restarts,
            targets=self.targets,
            queries=self.queries,
            eot=self.eot,
        )

    def run(
        self,
        logits_fn: Callable[..., Array],
        images: Any,
        labels: Any,
        *,
        folder: str | Path | None = None,
        report: Callable[[AttackProgress], None] = lambda progress: None,
        devices: Sequence[Any] | None = None,
        attack_logits_fn: Callable[..., Array] | None = None,
    ) -> Robustness:
        """Attack `images` and return which examples are robust.

        Args:
          logits_fn: images `[B, H, W, C]` in [0, 1] to logits `[B, K]`, K at least 2, each row independent of the
            others: BatchNorm in evaluation mode, normalisation inside. With version "rand", or any `eot` above 1, it is
            called as `logits_fn(images, keys)` with a typed key for each image. Weights it closes over become constants
            of the compiled attacks. To compile once for several checkpoints, give a pytree, such as
            `jax.tree_util.Partial(fn, params)` or the result of `make_logits_fn`.
          images: `[N, H, W, C]` uint8, or floats in [0, 1]; they stay on the host, and may be a memory map.
          labels: `[N]` integers in [0, K).
          folder: where to write every block, and finally the result. Called again with the same arguments, the
            evaluation resumes where it was stopped or killed; a finished result is read. The adversarial images stay on
            disk, in images.npy, so memory holds only a few blocks. Without a folder they are in memory, four bytes per
            value, or above 1 GiB in a temporary file (`core.scratch`).
          report: called after each block.
          devices: the devices to split blocks over; default all. If they belong to several processes, each process
            makes the same call, and the first writes to the folder, which they share.
          attack_logits_fn: the network that the attacks see in place of `logits_fn`, called alike: the same network in
            fewer bits, such as with bfloat16 activations. As with `attack_precision`, `logits_fn` judges, and is
            attacked itself if it refuses a success.

        Raises:
          InputError: images outside [0, 1], labels out of range, wrong shapes, or a folder that holds something else.
        """
        check_network(logits_fn)
        if attack_logits_fn is not None:
            check_network(attack_logits_fn)
        images, labels = np.asarray(images), np.asarray(labels)
        sanity.check_data(images, labels)
        return _Run(self, logits_fn, images, labels, devices or jax.devices(), attack_logits_fn).run(folder, report)


def _checked(members: Sequence[Any]) -> tuple[Member, ...]:
    names = [member.name for member in members if isinstance(member, Member)]
    if len(names) < len(members):
        raise InputError("attacks mixes Members and names; give only names, or only Members")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"attacks has several members named {', '.join(twice)}; give each its own name")
    for member in members:
        if not isinstance(member.attack, Bound):
            raise InputError(f"attack of member {member.name!r} is {member.attack!r}; give bind(function, ...)")
    return tuple(members)


class _Run:
    """One evaluation of one network on one data set."""

    def __init__(
        self,
        settings: AutoAttack,
        logits_fn: Callable[..., Array],
        images: np.ndarray,
        labels: np.ndarray,
        devices: Sequence[Any],
        attack_logits_fn: Callable[..., Array] | None,
    ):
        self.settings, self.images, self.labels = settings, images, labels.astype(np.int32)
        self.members = settings.members()
        self.blocks = Blocks(logits_fn, min(settings.block_size, len(labels)), devices, settings.precision)
        # The network to attack first, if it has fewer bits than the judge.
        self.fast, self.other_network = None, attack_logits_fn is not None
        if self.other_network or settings.attack_precision != "same":
            seen = logits_fn if attack_logits_fn is None else attack_logits_fn
            precision = settings.precision if settings.attack_precision == "same" else settings.attack_precision
            self.fast = Blocks(seen, self.blocks.size, devices, precision)
        self.key = jax.random.key(settings.seed, impl="threefry2x32")
        self.keyed = any(map(_averages, self.members))
        self.arguments = [jax.ShapeDtypeStruct((self.blocks.size, *images.shape[1:]), np.float32)]
        if self.keyed:
            why = "version='rand'" if settings.version == "rand" else f"eot={settings.eot}"
            for network in (logits_fn, attack_logits_fn or logits_fn):
                check_takes_keys(network, why)
            self.arguments.append(jax.eval_shape(lambda: jax.random.split(self.key, self.blocks.size)))
        logits = jax.eval_shape(functools.partial(checked_logits, logits_fn), *self.arguments)
        if attack_logits_fn is not None:
            seen = jax.eval_shape(functools.partial(checked_logits, attack_logits_fn), *self.arguments)
            if seen.shape != logits.shape:
                raise InputError(
                    f"attack_logits_fn returns logits of shape {seen.shape}, but logits_fn {logits.shape}; "
                    "give the same network in fewer bits"
                )
        self.classes = logits.shape[1]
        check_classes("labels", labels, self.classes)
        self.runs = [member.runs * max(min(member.targets, self.classes - 1), 1) for member in self.members]

    def run(self, folder: str | Path | None, report: Callable[[AttackProgress], None]) -> Robustness:
        """Run the full evaluation: clean images, checks, attacks."""
        journal = Journal(folder, self.identity()) if folder is not None else None
        logits = self._clean(self.blocks)
        if journal:
            journal.check_network(logits, self.blocks.weights_digest())
            if self.fast and self.other_network:
                seen = self._clean(self.fast)
                journal.check_network(seen, self.fast.weights_digest(), file=ATTACKED)
            if result := journal.result():
                return result
        shape = self.images.shape
        images = journal.open_images(shape) if journal else scratch("the adversarial images", shape, np.float32)
        for rows in self._slices():
            images[rows] = self._pixels(rows)
        tally = AttackState(self.runs, images, logits, self.labels, alone=self.settings.individually)
        for record in journal.records() if journal else ():
            tally.apply(record)
        findings = list(self._findings(logits))
        self.ranked = self._ranked(logits)
        pace = _Pace(self.members)
        for number, member in enumerate(self.members):
            while tally.pending(number).any():
                record = self._attack(number, member, *tally.next(number, self.blocks.size))
                if journal:
                    journal.append(record)
                tally.apply(record)
                report(pace.progress(record, tally))
        white = [member.white_box for member in self.members]
        names = tuple(member.name for member in self.members)
        for name, valid in zip(names, tally.valid):
            findings += of_validity(name, np.concatenate([*valid, np.array([], bool)]))
        result = Robustness(
            attacks=names,
            labels=self.labels,
            clean=tally.clean,
            attempted=tally.attempted,
            fooled=tally.fooled,
            queries=tally.queries,
            images=tally.images,
            predictions=tally.predictions,
            distances=tally.distances,
            seconds=dict(zip(names, tally.seconds.tolist())),
            findings=(*findings, *sanity.of_attacks(names, white, tally.attempted, tally.fooled)),
            settings=self.identity(),
        )
        return journal.finish(result) if journal else result

    def identity(self) -> dict[str, Any]:
        """The settings that identify the evaluation; block size and devices are not among them."""
        settings = self.settings
        return {
            "version": "custom" if settings.attacks else settings.version,
            "norm": settings.norm,
            "eps": float(settings.eps),
            "attacks": {member.name: f"{member.attack} x {runs}" for member, runs in zip(self.members, self.runs)},
            "seed": settings.seed,
            "individually": settings.individually,
            "precision": settings.precision,
            **({} if settings.attack_precision == "same" else {"attack_precision": settings.attack_precision}),
            **({"attack_network": "another"} if self.other_network else {}),
            "num_examples": len(self.labels),
            "data": digest(self.images, self.labels),
        }

    def _slices(self) -> list[np.ndarray]:
        """The rows of all examples, block by block."""
        rows = np.arange(len(self.labels))
        return [rows[start : start + self.blocks.size] for start in range(0, len(rows), self.blocks.size)]

    def _clean(self, blocks: Blocks) -> np.ndarray:
        """Logits `[N, K]` of the clean images."""
        return np.concatenate([self._logits(blocks, self._pixels(rows), rows, "clean") for rows in self._slices()])

    def _ranked(self, logits: np.ndarray) -> np.ndarray:
        """The target classes of the attacks, `[N, T]`, computed block by block to limit memory."""
        most = max(member.targets for member in self.members)

        def ranked(rows: np.ndarray) -> np.ndarray:
            return np.asarray(ranked_others(jnp.asarray(logits[rows]), jnp.asarray(self.labels[rows]))[:, :most])

        return np.concatenate([ranked(rows) for rows in self._slices()])

    def _findings(self, logits: np.ndarray) -> Iterator[Finding]:
        yield from sanity.of_outputs(logits, self.labels)
        yield from sanity.of_program(self.blocks.logits_fn, *self.arguments)
        if not self.keyed:
            first = slice(0, self.blocks.size)
            yield from sanity.of_behaviour(self.blocks, self._pixels(first), self.labels[first], logits[first])

    def _attack(self, number: int, member: Member, block: np.ndarray, again: bool) -> Record:
        """Attack a block of runs and judge the images; repeated runs (`again`) attack the judge's network."""
        began = time.perf_counter()
        runs, examples = block.T
        clean, labels = self._pixels(examples), self.labels[examples]
        targets = self.ranked[examples, runs // member.runs].astype(np.int32) if member.targets else None
        # Each run of each example has its own index, and so its own randomness.
        indices = (examples * self.runs[number] + runs).astype(np.uint32)
        rows = Rows(clean, labels, indices, np.ones(len(block), bool), targets)
        key = named_key(self.key, member.name)
        fast = self.fast if self.fast and not again else None
        attacked = fast or self.blocks
        found, queries, claimed = attacked.attack(member.attack, rows, key, self.settings.eps, self.settings.norm)
        logits = self._logits(self.blocks, found, indices, f"judge {member.name}")
        predictions = logits.argmax(axis=1).astype(np.int32)
        distances, valid = measure(found, clean, Threat(self.settings.eps, self.settings.norm))
        fell = valid & np.isfinite(logits).all(axis=1) & (predictions != labels)
        return Record(
            member=np.array(number, np.int32),
            examples=examples.astype(np.int32),
            tasks=runs.astype(np.int32),
            fell=fell,
            queries=queries,
            images=found[fell],
            predictions=predictions[fell],
            distances=distances[fell].astype(np.float32),
            seconds=np.array(time.perf_counter() - began),
            valid=valid,
            refused=valid & claimed & ~fell if fast else np.array([], bool),
        )

    def _pixels(self, rows: np.ndarray | slice) -> np.ndarray:
        chosen = self.images[rows]
        return chosen / np.float32(255) if chosen.dtype == np.uint8 else chosen.astype(np.float32)

    def _logits(self, blocks: Blocks, images: np.ndarray, indices: np.ndarray, stream: str) -> np.ndarray:
        keys = example_keys(named_key(self.key, stream), jnp.asarray(indices)) if self.keyed else None
        return blocks.logits(images, keys)


class _Pace:
    """Estimates the remaining time from the cost of runs in forwards."""

    def __init__(self, members: Sequence[Member]):
        self.members, self.began = members, time.perf_counter()
        self.started: set[int] = set()
        self.seconds = self.cost = 0.0

    def progress(self, record: Record, tally: AttackState) -> AttackProgress:
        """The progress after a block."""
        number = int(record.member)
        seconds, cost = float(record.seconds), len(record.tasks) * self.members[number].cost
        elapsed = time.perf_counter() - self.began
        if number in self.started:  # the first block of an attack compiles it
            self.seconds, self.cost = self.seconds + seconds, self.cost + cost
        self.started.add(number)
        pace = self.seconds / self.cost if self.cost else seconds / cost
        pending = [int(tally.pending(k).sum()) for k in range(len(self.members))]
        left = pace * sum(runs * member.cost for runs, member in zip(pending, self.members))
        done = int((tally.done[number] & ~tally.pending(number)).sum())
        robust, count = int(tally.robust.sum()), len(tally.clean)
        return AttackProgress(self.members[number].name, done, done + pending[number], robust, count, elapsed, left)


def _averages(member: Member) -> bool:
    """Whether the member averages gradients over draws of a randomised network, which then takes keys."""
    return dict(member.attack.static).get("eot", 1) > 1
