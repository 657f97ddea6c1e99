import pytest

from experiments.cost import count_passes, to_markdown, training_flop
from piat_jax.experiment import config

# By hand, with K = 3 attack steps: forwards (attack, what it compares with, training), gradients by images, by weights.
COUNTS = {
    "standard": (1, 0, 1),
    "pgd_at": (3 + 1, 3, 1),
    "mart": (3 + 2, 3, 2),
    "trades": (1 + 3 + 3, 3, 2),  # the clean prediction; x, x', x
    "consistency": (2 * (3 + 1), 2 * 3, 2),
    "trades+consistency": (2 * (1 + 3 + 2), 2 * 3, 2 * 2),
    "rpat": (3 + 3, 3, 3),
    "rat": (1 + 3 + 8 + 2, 3, 2 + 2),  # eight in the loss, two for the gradients of the head
    "ecas": (1 + 3 + 1, 3, 1),
    "kd": (3 + 1 + 2, 3, 1),  # two teachers
    "free": (1 + 1, 1, 1),  # the attack's gradient is that of the same forward
    "grad_align": (3 + 1 + 3, 3 + 2, 3),  # gradients at two points, and one of their forwards again to differentiate
    "score": (1 + 3 + 2, 3, 2),
    "ikl": (1 + 3 + 2, 3, 2),
    "ewat": (3 + 1, 3, 1),
    "sovr": (3 + 1, 3, 1),
    "adr": (1 + 3 + 1, 3, 1),  # the average's prediction
    "cure": (1 + 3 + 2 + 2, 3, 2),
    "hat": (1 + 3 + 1 + 3, 3, 3),  # the standard network's labels; the helper examples
    "generalist": (3 + 1 + 1, 3, 1 + 1),  # the copy that learns the clean images
    "multi_norm": (3 * 3 + 3 + 1, 3 * 3, 1),  # three attacks and what they reach
}
RANGES = {
    "te": ((4, 5), (3, 3), (1, 1)),
    "mlcat": ((4, 14), (3, 3), (1, 11)),  # ten steps on the weights
    "awp": ((4, 5), (3, 3), (1, 2)),
    "rebat": ((4, 5), (3, 3), (1, 1)),
    # An attack of at most 14 steps, and every 20th time the strategy's: another one, a forward for R1, a step of the
    # copy, two restarts of PGD-10, two forwards that compare them, two that count.
    "las": ((15, 15 + 14 + 1 + 1 + 20 + 2 + 2), (14, 14 + 14 + 20), (1, 1 + 1)),
}


@pytest.mark.parametrize("method", [*COUNTS, *RANGES])
def test_counts_by_hand(method):
    counts = count_passes(config.load(f"cifar10_resnet18:{method}", {"attack.steps": 3}, checked=False))
    expected = RANGES.get(method) or tuple((n, n) for n in COUNTS[method])
    assert tuple(counts.values()) == expected


def test_the_table_has_ranges_and_ratios():
    configs = {name: config.load(f"embedded:{name}") for name in ("pgd_at", "awp")}
    text = to_markdown(configs, {"pgd_at": [100.0, 200.0, 90.0], "awp": [80.0, 100.0, 45.0]})
    assert text.splitlines()[-1] == "| `pgd_at+awp` | 11 to 12 | 10 | 1 to 2 | 80 | 0.50 |"


def test_epochs_of_fewer_steps_cost_less():
    whole, quarter = (
        training_flop(config.load("embedded_512:pgd_at", {"dataset.epoch_steps": steps})) for steps in ("0", "4")
    )
    assert whole == 4 * quarter  # 512 images are 16 batches
