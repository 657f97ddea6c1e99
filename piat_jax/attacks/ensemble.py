"""AutoAttack's ensembles: their attacks, order and settings."""

from collections.abc import Sequence
from typing import NamedTuple

from piat_jax.attacks.apgd import apgd
from piat_jax.attacks.fab import fab
from piat_jax.attacks.square import square
from piat_jax.core.bound import Bound, bind
from piat_jax.core.checks import InputError, check_choice, check_count

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


class Member(NamedTuple):
    """One attack of an ensemble: it makes `runs` runs per example, for each of `targets` classes."""

    name: str
    attack: Bound  # called as attack(logits_fn, images, labels, key=, indices=, eps=, norm=)
    runs: int = 1  # independent runs, each with its own randomness
    targets: int = 0  # number of target classes, by falling clean logit; 0 is untargeted
    cost: float = 1.0  # of one run, in forwards, to estimate the remaining time
    white_box: bool = True  # whether it uses gradients


def names_of(attacks: str | Sequence[str]) -> tuple[str, ...]:
    """The names in a sequence, or in one string with commas.

    >>> names_of("apgd-ce, square"), names_of(["fab"])
    (('apgd-ce', 'square'), ('fab',))
    """
    if isinstance(attacks, str):
        return tuple(name.strip() for name in attacks.split(",") if name.strip())
    return tuple(attacks)


def ensemble(
    version: str = "standard",
    *,
    attacks: str | Sequence[str] = (),
    norm: str = "linf",
    steps: int = 100,
    restarts: int | None = None,
    targets: int | None = None,
    queries: int = 5000,
    eot: int | None = None,
) -> tuple[Member, ...]:
    """The members of a version of AutoAttack, in running order.

    | version | attacks |
    |---|---|
    | standard | APGD-CE, APGD-T on 9 targets, FAB-T on 9 targets, Square |
    | plus | APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, APGD-T and FAB-T on 9 targets |
    | rand | APGD-CE and APGD-DLR on gradients averaged over 20 forwards, for randomised networks |

    Args:
      version: "standard", "plus" or "rand".
      attacks: names of members to run instead of the version's, with the version's settings; also one string with
        commas.
      norm: "linf", "l2" or "l1"; under "l1" APGD-CE has 5 restarts and APGD-T 5 targets in every version.
      steps: steps of APGD and FAB.
      restarts: restarts of APGD and untargeted FAB; replaces the version's.
      targets: targets of APGD-T and FAB-T, at most K - 1; replaces the version's.
      queries: queries of Square.
      eot: forwards that a gradient of APGD is averaged over; replaces the version's.

    Raises:
      InputError: an unknown name, or a number below 1.

    Source: Croce & Hein (2020), arXiv:2003.01690, and (2021), arXiv:2103.01208; settings of the published code. In that
    code custom choices of attacks have 5 restarts; here choosing attacks changes nothing else.

    >>> [member.name for member in ensemble("standard")]
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """
    check_choice("version", version, VERSIONS)
    attacks = names_of(attacks)
    for name in attacks:
        check_choice("attack", name, MEMBERS)
    names = attacks or VERSIONS[version]
    if len(set(names)) < len(names):
        raise InputError(f"attacks={','.join(names)} names an attack twice; give restarts= to repeat it")
    numbers = {"steps": steps, "restarts": restarts, "targets": targets, "queries": queries, "eot": eot}
    for argument, value in numbers.items():
        check_count(argument, 1 if value is None else value, 1)
    eot = eot or (20 if version == "rand" else 1)
    five_if_plus = restarts or (5 if version == "plus" else 1)

    def apgd_member(name: str, loss: str, runs: int, targets: int = 0) -> Member:
        return Member(name, bind(apgd, loss=loss, steps=steps, eot=eot), runs, targets, cost=3.0 * eot * (steps + 1))

    def member(name: str) -> Member:
        if name == "apgd-ce":
            return apgd_member(name, "ce", restarts or (5 if norm == "l1" else five_if_plus))
        if name == "apgd-dlr":
            return apgd_member(name, "dlr", five_if_plus)
        if name == "apgd-t":
            return apgd_member(name, "targeted", restarts or 1, targets or (5 if norm == "l1" else 9))
        if name == "fab":
            # FAB handles its restarts itself, so they are one run.
            options = {"steps": steps, "restarts": five_if_plus, "targets": None}
            return Member(name, bind(fab, **options), cost=20.0 * steps * five_if_plus)
        if name == "fab-t":
            return Member(name, bind(fab, steps=steps), targets=targets or 9, cost=4.0 * steps)
        return Member(name, bind(square, queries=queries), cost=float(queries), white_box=False)

    return tuple(member(name) for name in names)
