"""List the methods: a sentence, the paper and the defaults of each.

    piat-methods
    piat-methods awp trades+awp+piat

A method is written as its parts joined by +: one objective, then wrappers from the inside out, an average, and piat.
"""

import dataclasses
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from piat_jax.averaging import PIAT, RationalWeight
from piat_jax.cli import arguments, errors
from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.objectives import METHODS, WRAPPERS, AttackedObjective

# What a config says in text and cli/build.py makes into an object.
TEXT_FIELDS = {"las": {"strategy": "resnet18"}, "kd": {"standard": "", "robust": ""}}
# The fields of an average's config group; cli/build.py makes averaging.Average of them.
AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"decay": 0.999, "start": 0.0, "warmup": True},
    "seat": {"decay": 0.999, "start": 0.0},
    "swa": {"start": 55 / 200},
    "fawa": {"decay": 0.88, "start": 0.0, "threshold": 0.2},
}
SHARED = {field.name for field in dataclasses.fields(AttackedObjective)}


class Stack(NamedTuple):
    """A method taken apart."""

    base: str
    wrappers: tuple[str, ...] = ()  # from the inside out
    average: str = ""
    piat: bool = False

    def __str__(self) -> str:
        return "+".join([self.base, *self.wrappers, *filter(None, [self.average]), *(["piat"] if self.piat else [])])


def parse_method(method: str) -> Stack:
    """The parts of "trades+awp+swa+piat"; an objective that is left out is the one the paper wraps, mostly PGD-AT.

    >>> str(parse_method("piat")), str(parse_method("awp+piat")), str(parse_method("rat"))
    ('pgd_at+piat', 'pgd_at+awp+piat', 'trades+rat')
    >>> parse_method("trades+awp+swa")
    Stack(base='trades', wrappers=('awp',), average='swa', piat=False)
    >>> parse_method("tradse+piat")
    Traceback (most recent call last):
    piat_jax.core.checks.InputError: method='tradse+piat': 'tradse' is unknown; did you mean 'trades'?
    """
    parts = method.split("+")
    known = [*METHODS, *WRAPPERS, *AVERAGES, "piat"]
    for part in parts:
        if part not in known:
            where = f"method={method!r}: {part!r}" if len(parts) > 1 else f"method={method!r}"
            raise InputError(f"{where} is unknown{did_you_mean(part, known)}")
        if parts.count(part) > 1:
            raise InputError(f"method={method!r} has {part!r} twice; leave one out")
    bases, averages = ([part for part in parts if part in table] for table in (METHODS, AVERAGES))
    for kind, found in (("objectives", bases), ("averages", averages)):
        if len(found) > 1:
            raise InputError(f"method={method!r} has {len(found)} {kind} ({', '.join(found)}); keep one")
    wrappers = tuple(part for part in parts if part in WRAPPERS)
    wanted = [WRAPPERS[name].default_inner for name in wrappers if WRAPPERS[name].default_inner != "pgd_at"]
    base = (bases or wanted or ["pgd_at"])[0]
    return Stack(base, wrappers, averages[0] if averages else "", "piat" in parts)


def method_groups(stack: Stack) -> dict[str, dict[str, Any]]:
    """The config groups of a method: "objective", "attack" (what it changes there), one for each wrapper, "average".

    >>> groups = method_groups(parse_method("trades+awp"))
    >>> groups["objective"]["beta"], groups["attack"], groups["awp"]
    (6.0, {'start': 'normal', 'l2_rule': 'awp'}, {'gamma': 0.005, 'start': 0.045})
    """
    inside, groups = [stack.base], {"objective": _defaults(METHODS[stack.base], SHARED)}
    groups["objective"] = {"attack_batch_norm": "eval"} | groups["objective"]
    groups["attack"] = dict(METHODS[stack.base].attack_options)
    for name in stack.wrappers:
        wrapper = WRAPPERS[name]
        own = _defaults(wrapper, {"inner"}) | TEXT_FIELDS.get(name, {})
        for key in inside:
            own |= wrapper.variants.get(key, {})
        groups[name] = own
        for key, options in sorted(wrapper.inner_options.items(), key=lambda item: item[0].count("+")):
            if key.startswith(stack.base) and set(key.split("+")) <= set(inside):
                groups["objective"] |= options
        groups["attack"] |= wrapper.attack_options
        inside.append(name)
    if stack.average:
        groups["average"] = dict(AVERAGES[stack.average])
    return groups


def _defaults(cls: type, without: set[str]) -> dict[str, Any]:
    """Fields of a dataclass and their defaults."""
    fields = [field for field in dataclasses.fields(cls) if field.name not in without]
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


class Entry(NamedTuple):
    """What the list says of a method."""

    sentence: str
    paper: str


CATALOG: Mapping[str, Entry] = {
    "standard": Entry("Ordinary training on clean images, the reference for what robustness costs.", "none"),
    "pgd_at": Entry("Cross-entropy on images perturbed by PGD.", "Madry et al. (2018), arXiv:1706.06083"),
    "alp": Entry("PGD-AT with clean and adversarial logits drawn together.", "Kannan et al. (2018), arXiv:1803.06373"),
    "trades": Entry(
        "Clean cross-entropy and the divergence of the adversarial prediction from the clean one, which the attack "
        "maximises.",
        "Zhang et al. (2019), arXiv:1901.08573",
    ),
    "mart": Entry(
        "Boosted cross-entropy, and a divergence that weighs misclassified examples more.",
        "Wang et al. (2020), ICLR",
    ),
    "nmse": Entry("PGD-AT with the normalised mean square error of logits.", "the PIAT paper, Eq. 11-12"),
    "awp": Entry("Trains at adversarially perturbed weights.", "Wu et al. (2020), arXiv:2004.05884"),
    "rpat": Entry(
        "Makes logits change evenly along the perturbation: a penalty at its mid-point.",
        "Wang and Liu (2025), arXiv:2508.02186, the RPAT paper, Eq. 3",
    ),
    "consistency": Entry(
        "Two augmentations of each image, whose adversarial predictions must agree.",
        "Tack et al. (2022), arXiv:2103.04623",
    ),
    "mail": Entry("Weighs examples by their adversarial margin.", "Wang et al. (2021), arXiv:2106.07904"),
    "gairat": Entry(
        "Weighs examples by how many attack steps they withstand.", "Zhang et al. (2021), arXiv:2010.01736"
    ),
    "fat": Entry("Friendly attack: stops once an example is misclassified.", "Zhang et al. (2020), arXiv:2002.11242"),
    "ecas": Entry(
        "Cycles the radius over epochs and adapts it to each prediction's entropy.",
        "Kuurila-Zhang et al., the ECAS paper",
    ),
    "las": Entry(
        "A strategy network chooses each example's radius, steps and step size.",
        "Jia et al. (2022), arXiv:2203.06616",
    ),
    "cfa": Entry(
        "Radius and regularisation of each class by how robust it is; the whole of the paper is cfa+fawa.",
        "Wei et al. (2023), arXiv:2303.14460",
    ),
    "rat": Entry(
        "TRADES with soft targets from a Taylor expansion in randomised weights.", "Jin et al. (2023), arXiv:2303.10653"
    ),
    "rebat": Entry(
        "Late in training, pulls the model towards its weight average, which is what is evaluated.",
        "Wang et al. (2023), arXiv:2310.19360",
    ),
    "rpatpp": Entry(
        "ReBAT whose target is the average's prediction extrapolated from the mid-point.",
        "Wang and Liu (2025), arXiv:2508.02186",
    ),
    "ard_prm": Entry(
        "A&P, for Vision Transformers: early in training the attack loses attention branches and patches at random.",
        "Mo et al. (2022), arXiv:2210.07540",
    ),
    "mix": Entry(
        "Mixup or CutMix in a share of the batches, attacked as mixed; A&P's code has it in its PGD-AT.",
        "Zhang et al. (2018), arXiv:1710.09412; Yun et al. (2019), arXiv:1905.04899",
    ),
    "kd": Entry("Distils from a standard and a robust teacher; with swa it is KD+SWA.", "Chen et al. (2021), ICLR"),
    "ema": Entry(
        "Exponential average of the weights, each step; warmed up as SEAT's unless average.warmup=False.",
        "Polyak and Juditsky (1992)",
    ),
    "seat": Entry("Exponential average with warm-up, each step.", "Wang and Wang (2022), arXiv:2203.09678"),
    "swa": Entry("Equal average of the weights of late epochs.", "Izmailov et al. (2018), arXiv:1803.05407"),
    "fawa": Entry(
        "Average over epochs in which the worst class is robust enough on validation data.",
        "Wei et al. (2023), arXiv:2303.14460",
    ),
    "piat": Entry("Interpolates the weights at each epoch's end and goes on from there.", "the PIAT paper, Eq. 9-10"),
}


def describe(name: str) -> str:
    """A part's or a whole method's entry: names, sentences, papers and defaults."""
    stack = parse_method(name)
    groups = method_groups(stack)
    parts = name.split("+")
    lines = []
    for part in parts:
        entry = CATALOG[part]
        lines += [part, *textwrap.wrap(entry.sentence, 110, initial_indent="    ", subsequent_indent="    ")]
        lines.append(f"    {entry.paper}")
    shown = {
        "objective": groups["objective"] if any(part in METHODS or part in WRAPPERS for part in parts) else {},
        "attack": groups["attack"],
        **{part: groups[part] for part in parts if part in WRAPPERS},
        "average": groups.get("average", {}),
        "piat": _defaults(RationalWeight, set()) | _defaults(PIAT, {"weight"}) if "piat" in parts else {},
    }
    for group, fields in shown.items():
        if fields:
            text = ", ".join(f"{field}={_short(value)}" for field, value in fields.items())
            lines += textwrap.wrap(
                f"config.{group}: {text}", 110, initial_indent="    ", subsequent_indent="        ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def main(argv: Sequence[str]) -> None:
    """The command."""
    names = arguments.parse(arguments.new_flags(), argv, __doc__, folders=True)
    if names:
        print("\n".join(map(describe, names)))
        return
    kinds = {
        "Objectives, one in each method": METHODS,
        "Wrappers, around an objective and each other": WRAPPERS,
        "Averages of the weights, evaluated in their place": AVERAGES,
        "Interpolation, with any of them": ["piat"],
    }
    for title, members in kinds.items():
        print(f"{title}\n{'=' * len(title)}")
        print("\n".join(map(describe, members)), end="\n\n")


def entry() -> None:
    """Console entry point."""
    sys.exit(errors.run(main))


if __name__ == "__main__":
    entry()
