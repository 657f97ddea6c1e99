"""The ECAS paper's Tables 1 to 4 and Fig. 2."""

from experiments.engine.claims import Claim
from experiments.engine.items import Block, Item, Row, Setting
from experiments.engine.settings import embedded, steps

SHORT = {**steps((99, 104), 110, (0.1, 0.01, 0.001)), "optimizer.weight_decay": "5e-4"}
# ECAS-TRADES' second drop stands in its code at 104/100 of the run, which is never reached.
ONE_DROP = steps((99,), 110, (0.1, 0.01))
LONG = steps((100, 150), 200, (0.1, 0.01, 0.001))  # of everything with AWP


def on(model: str, *data: str) -> tuple[Setting, ...]:
    """CIFAR-10 or CIFAR-100 with WRN-34-10 or ResNet-18."""
    file, label, title = {
        "wrn": ("wrn32_10", "wrn34_10", "WRN-34-10"),
        "resnet18": ("resnet18", "resnet18", "ResNet-18"),
    }[model]
    return tuple(
        Setting(
            f"ecas_{name}_{model}",
            f"{name.upper().replace('CIFAR', 'CIFAR-')}, {title}",
            f"configs/{name}_{file}.py",
            Block(name.upper(), label),
            SHORT,
            "TRADES under LAS-AT has 100 epochs in its own code; here all but AWP have 110. For CIFAR-10 the codes of "
            "AWP, LAS-AWP and ECAS-AWP normalise images and pad crops by reflection; here no row does.",
        )
        for name in data
    )


SMALL = embedded(Block("CIFAR10", "wrn34_10"))
SMALL_RESNET18 = embedded(Block("CIFAR10", "resnet18"))


def scheduler(name: str, kind: str, published: str, *, entropy: bool = False) -> Row:
    """A row of Table 1: the same loss, another scheduler."""
    fields = (
        {} if (kind, entropy) == ("cyclic", True) else {"ecas.scheduler": kind, "ecas.entropy": str(entropy).lower()}
    )
    return Row(name, "ecas", fields, published)


SCHEDULERS = (
    scheduler("Fixed", "fixed", "PGD-AT Baseline (Fixed)"),
    scheduler("Linear", "linear", "PGD-AT + Linear"),
    scheduler("Cyclic (batch)", "cyclic_batch", "PGD-AT + Cyclic (batch)"),
    scheduler("Cyclic", "cyclic", "PGD-AT + Cyclic"),
    scheduler("Cyclic + entropy", "cyclic", "PGD-AT + Cyclic + entropy", entropy=True),
)


FRAMEWORKS = tuple(
    Row(
        f"{prefix}{name}",
        "+".join(filter(None, [method, wrapper])) or "pgd_at",
        protocol=LONG if method == "awp" else ONE_DROP if (method, wrapper) == ("trades", "ecas") else {},
    )
    for name, method in (("PGD-AT", ""), ("TRADES", "trades"), ("AWP", "awp"))
    for prefix, wrapper in (("", ""), ("LAS-", "las"), ("ECAS-", "ecas"))
)
OTHERS = (
    Row("PGD-AT", "pgd_at"),
    Row("TRADES", "trades"),
    Row("FAT", "fat"),
    Row("MART", "mart"),
    *(
        Row(f"{prefix}AWP", f"awp{part}", protocol=LONG)
        for prefix, part in (("", ""), ("LAS-", "+las"), ("ECAS-", "+ecas"))
    ),
)
LADDER = ("clean", "pgd10", "pgd20", "pgd50", "cw20", "aa")
SHORT_LADDER = ("clean", "pgd20", "aa")
# How much longer the first epoch takes; we have no column to compare.
EXTRA = "The paper's seconds that the first epoch takes longer, LAS-AT and ECAS: "
EXTRA_WRN = (
    f"{EXTRA}CIFAR-10 PGD-AT 681.0 and 89.4, TRADES 6048.4 and 52.0, AWP 5587.6 and 59.7; "
    "CIFAR-100 PGD-AT 428.3 and 150.5, TRADES 6051.4 and 166.0, AWP 1081.2 and 149.3."
)
MEASURED = "Our costs, measured in turn on a CPU, are in docs/methods.md."
EXTRA_RESNET18 = f"{EXTRA}PGD-AT 129.0 and 27.8, TRADES 1127.3 and 22.6, AWP 982.8 and 21.5."
SCHEDULER_CLAIMS = (
    Claim("a cyclic radius is more robust than a fixed one (AA)", "Cyclic", "Fixed", "best:aa", "higher"),
    Claim("a cyclic radius has more clean accuracy than a fixed one", "Cyclic", "Fixed", "best:clean", "higher"),
    Claim("entropy adds robustness (AA)", "Cyclic + entropy", "Cyclic", "best:aa", "higher"),
    Claim("a linear radius costs clean accuracy", "Linear", "Fixed", "best:clean", "lower"),
)
FRAMEWORK_CLAIMS = (
    *(
        Claim(f"ECAS makes {name} more robust (AA)", f"ECAS-{name}", name, "best:aa", "higher")
        for name in ("PGD-AT", "TRADES", "AWP")
    ),
    *(
        Claim(f"ECAS takes less time than LAS-AT on {name}", f"ECAS-{name}", f"LAS-{name}", "seconds", "lower")
        for name in ("PGD-AT", "TRADES", "AWP")
    ),
)

ITEMS = (
    Item(
        "table1",
        "Table 1: schedulers of the radius",
        SCHEDULERS,
        {"paper": on("wrn", "cifar10"), "small": (SMALL,)},
        attacks=LADDER,
        checkpoints=("best",),
        published="1",
        claims=SCHEDULER_CLAIMS,
        notes=("Fixed trains with the label smoothing of the others, so that the radius is all that differs.",),
    ),
    Item(
        "table2",
        "Table 2: ECAS and LAS-AT, time and accuracy, WRN-34-10",
        FRAMEWORKS,
        {"paper": on("wrn", "cifar10", "cifar100"), "small": (SMALL,)},
        attacks=SHORT_LADDER,
        checkpoints=("best",),
        published="2",
        extra=("seconds",),
        claims=FRAMEWORK_CLAIMS,
        notes=(EXTRA_WRN, MEASURED),
    ),
    Item(
        "table3",
        "Table 3: ECAS and LAS-AT, time and accuracy, ResNet-18",
        FRAMEWORKS,
        {"paper": on("resnet18", "cifar10"), "small": (SMALL_RESNET18,)},
        attacks=SHORT_LADDER,
        checkpoints=("best",),
        published="3",
        extra=("seconds",),
        claims=FRAMEWORK_CLAIMS,
        notes=(EXTRA_RESNET18, MEASURED),
    ),
    Item(
        "table4",
        "Table 4: ECAS-AWP against others, WRN-34-10",
        OTHERS,
        {"paper": on("wrn", "cifar10"), "small": (SMALL,)},
        attacks=LADDER,
        checkpoints=("best",),
        published="4",
        claims=(Claim("ECAS-AWP is more robust than AWP (AA)", "ECAS-AWP", "AWP", "best:aa", "higher"),),
    ),
    Item(
        "fig2",
        "Fig. 2: the radii that ECAS chooses",
        SCHEDULERS[-1:],
        {"paper": on("wrn", "cifar10"), "small": (SMALL,)},
        attacks=SHORT_LADDER[:2],
        study="radii",
        as_table=False,
    ),
)
