"""The PIAT paper's Tables I to V and Figs. 1, 6, 7, 8 and 9; Figs. 2 to 5 are the toy study."""

from experiments.engine.claims import Claim
from experiments.engine.items import Block, Item, Row, Setting
from experiments.engine.settings import embedded, multiplied

RESNET18 = tuple(
    Setting(name, f"{title}, ResNet-18", f"configs/{name}_resnet18.py", Block(label, "resnet18"))
    for name, title, label in (
        ("cifar10", "CIFAR-10", "CIFAR10"),
        ("cifar100", "CIFAR-100", "CIFAR100"),
        ("svhn", "SVHN", "SVHN"),
    )
)
WRN = tuple(
    Setting(f"{name}_wrn", f"{title}, WRN-32-10", f"configs/{name}_wrn32_10.py", Block(label, "wrn32_10"))
    for name, title, label in (("cifar10", "CIFAR-10", "CIFAR10"), ("cifar100", "CIFAR-100", "CIFAR100"))
)
VITS = tuple(
    Setting(
        f"cifar10_{name}",
        f"CIFAR-10, {title}",
        f"configs/cifar10_{name}.py",
        Block("CIFAR10", name),
        differs="Needs pretrained weights: --data=cifar10_NAME --config.model.weights=FILE, one network at a time. The "
        "learning rate falls after epochs 35 and 38, as in A&P's code; the paper's text has it at the 36th and 38th.",
    )
    for name, title in (("convit_b", "ConViT-B"), ("vit_b", "ViT-B"), ("deit_s", "DeiT-S"))
)
SMALL_VIT = Setting(
    "embedded_512_vit",
    "512 embedded images of Fashion-MNIST, small ViT, L-inf 0.1",
    "configs/embedded_512_vit.py",
    Block("CIFAR10", "vit_b"),
    {"evaluation.every_epochs": "5"},
    "Ours starts from fresh weights, on 512 images of Fashion-MNIST: a ViT of four blocks of width 32.",
    aa_examples=200,
)
ON_RESNET18 = embedded(Block("CIFAR10", "resnet18"))
CLIPPED = embedded(
    Block("CIFAR10", "resnet18"),
    name="embedded_512_clipped",
    title="512 embedded images of Fashion-MNIST, small ResNet, L-inf 0.1, gradients clipped at norm 1",
    overrides={"optimizer.max_norm": "1.0"},
)
ON_WRN = embedded(Block("CIFAR10", "wrn32_10"))
FASHION = Setting(
    "fashion_mnist",
    "Fashion-MNIST, ResNet of width 32, L-inf 0.1",
    "configs/fashion_mnist.py",
    Block("CIFAR10", "resnet18"),
    {
        "model.options.width": "32",
        "epochs": "12",
        "optimizer.lr_epochs": "0,6,9,12",
        "attack.steps": "5",
        "attack.step_size": "0.04",
        "evaluation.step_size": "0.025",
        "evaluation.every_epochs": "3",
        "dataset.train_examples": "20000",
        "dataset.test_examples": "2000",
    },
    "Ours is the first 20,000 images of Fashion-MNIST for 12 epochs of PGD-5, the first 2,000 test images and a ResNet "
    "of 308,074 parameters: what two cores allow.",
    aa_examples=1000,
)

CFA = Row(
    "CFA", "cfa", note="its class-wise radius and regularisation, without FAWA, which needs held-out images (cfa+fawa)"
)
BASELINES = (
    Row("PGD-AT", "pgd_at"),
    Row("ALP", "alp"),
    Row("TRADES", "trades"),
    Row("MART", "mart"),
    Row("MAIL", "mail"),
    CFA,
    Row("RAT", "rat"),
    Row("PIAT+NMSE", "nmse+piat"),
)
PAIRS = tuple(
    row
    for name in ("PGD-AT", "ALP", "TRADES", "MART", "MAIL")
    for method in (name.lower().replace("-", "_"),)
    for row in (
        Row(name, method),
        Row("PIAT", "piat") if name == "PGD-AT" else Row(f"PIAT+{name}", f"{method}+piat"),
    )
)
MU = tuple(Row(f"\N{GREEK SMALL LETTER MU} = {mu}", "nmse+piat", {"objective.mu": str(mu)}) for mu in (3, 4, 5, 6))
FIXED = tuple(
    Row(
        f"\N{GREEK SMALL LETTER LAMDA} = {b}",
        "nmse+piat",
        {"piat.a": "0", "piat.b": str(b), "piat.c": "0", "piat.d": "1"},
    )
    for b in (0.1, 0.5, 0.9)
)
LOWER_RATES = tuple(
    embedded(
        Block("CIFAR10", "resnet18"),
        name=f"embedded_512_rate_{rate}",
        title=f"512 embedded images of Fashion-MNIST, small ResNet, L-inf 0.1, learning rate {rate} in place of 0.2",
        overrides=multiplied(dict.fromkeys((0, 50, 75, 100), rate / 0.2)),
    )
    for rate in (0.05, 0.02)
)


def lookahead(weight: float, steps: int = 16) -> dict[str, str]:
    """PIAT with a constant weight after so many steps: lookahead with slow step size `1 - weight`.

    An epoch has 16 steps. Another period is an epoch of as many steps, with the others' rate and evaluations.
    """
    fields = {"piat.a": "0", "piat.b": str(weight), "piat.c": "0", "piat.d": "1"}
    if steps == 16:
        return fields
    epochs = 1600 // steps
    return fields | {
        "dataset.epoch_steps": str(steps), "epochs": str(epochs), "evaluation.every_epochs": str(epochs // 20)
    }  # fmt: skip


DAMPED = (1, 2, 3, 5, 8, 12, 18, 26, 36, 50, 55, 60, 65, 70, 75, 87, 100)
PIAT_ROW = Row("PIAT", "piat")
AVERAGING = (
    Row("PGD-AT", "pgd_at"),
    Row("lookahead 0.5", "piat", lookahead(0.5)),
    Row("lookahead 0.9", "piat", lookahead(0.9)),
    Row("lookahead 0.5 every 4 steps", "piat", lookahead(0.5, 4)),
    Row("lookahead 0.5 every 80 steps", "piat", lookahead(0.5, 80)),
    Row("EMA", "ema"),
    Row("SWA", "swa"),
    Row("half the rate", "pgd_at", multiplied(dict.fromkeys((0, 50, 75, 100), 0.5))),
    Row("a tenth of the rate", "pgd_at", multiplied(dict.fromkeys((0, 50, 75, 100), 0.1))),
    Row("cosine", "pgd_at", {"optimizer.schedule": "cosine", "optimizer.lr": "0.2"}),
    Row("rate times 9/(n + 10)", "pgd_at", multiplied({n: 9 / (n + 10) for n in DAMPED})),
)
EQ_10 = "\N{GREEK SMALL LETTER LAMDA} = (n + 1)/(n + 10)"

ITEMS = (
    Item(
        "fig1",
        "Fig. 1: robust accuracy during training",
        (
            *(row for row in BASELINES if row.name in ("PGD-AT", "TRADES", "MART", "MAIL")),
            Row("PIAT", "piat"),
            BASELINES[-1],
        ),
        {"paper": RESNET18[:1], "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20"),
        extra=("oscillation", "gap"),
        draw="curves",
    ),
    Item(
        "steadiness",
        "PIAT's effect on training, with more seeds",
        (Row("PGD-AT", "pgd_at"), Row("PIAT", "piat")),
        {"paper": RESNET18[:1], "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20"),
        extra=("oscillation", "gap"),
        claims=(
            Claim("PIAT oscillates less than PGD-AT", "PIAT", "PGD-AT", "oscillation", "lower"),
            Claim("PIAT overfits less: best minus final", "PIAT", "PGD-AT", "gap", "lower"),
            Claim("PIAT's final model is more robust", "PIAT", "PGD-AT", "final:pgd20", "higher"),
            Claim("PIAT's best model is more robust", "PIAT", "PGD-AT", "best:pgd20", "higher"),
            Claim("PIAT keeps the clean accuracy", "PIAT", "PGD-AT", "final:clean", "kept"),
        ),
        draw="curves",
        notes=("Not an item of the paper: Fig. 1's first and last line with seeds enough for intervals.",),
    ),
    Item(
        "table1",
        "Table I: defences, best and final checkpoint",
        BASELINES,
        {"paper": RESNET18, "small": (ON_RESNET18,)},
        published="I",
        extra=("diff", "beyond"),
        claims=tuple(
            Claim(f"PIAT+NMSE is more robust than {row.name} ({name})", "PIAT+NMSE", row.name, key, "higher")
            for row in BASELINES[:-1]
            for name, key in (("PGD-20 best", "best:pgd20"), ("AA best", "best:aa"), ("AA final", "final:aa"))
        ),
    ),
    Item(
        "table1_fashion",
        "Table I on Fashion-MNIST",
        (
            Row("PGD-AT", "pgd_at"),
            Row("PIAT", "piat"),
            Row("TRADES", "trades"),
            Row("NMSE", "nmse"),
            Row("PIAT+NMSE", "nmse+piat"),
        ),
        {"small": (FASHION,)},
        published="I",
        extra=("diff",),
    ),
    Item(
        "table2",
        "Table II: defences, WRN-32-10",
        BASELINES,
        {"paper": WRN, "small": (ON_WRN,)},
        attacks=("clean", "pgd20", "aa"),
        checkpoints=("best",),
        published="II",
    ),
    Item(
        "table3",
        "Table III: methods without and with PIAT, WRN-32-10",
        PAIRS,
        {"paper": WRN, "small": (ON_WRN,)},
        attacks=("clean", "pgd20", "aa"),
        checkpoints=("best",),
        published="III",
        claims=tuple(
            Claim(f"PIAT makes {one.name} more robust ({name})", other.name, one.name, key, "higher")
            for one, other in zip(PAIRS[::2], PAIRS[1::2])
            for name, key in (("PGD-20 best", "best:pgd20"), ("AA best", "best:aa"))
        ),
    ),
    Item(
        "table4",
        "Table IV: Vision Transformers",
        tuple(
            Row(f"{name}{suffix}", f"{method}{parts}")
            for name, method in (("PGD-AT", "pgd_at"), ("TRADES", "trades"), ("MART", "mart"))
            for suffix, parts in (("", ""), ("+A&P", "+ard_prm"), ("+A&P+PIAT", "+ard_prm+piat"))
        ),
        {"paper": VITS, "small": (SMALL_VIT,)},
        attacks=("clean", "pgd20", "aa"),
        checkpoints=("final",),
        published="IV",
    ),
    Item(
        "table5",
        "Table V: NMSE against ALP",
        (Row("ALP", "alp"), Row("NMSE", "nmse")),
        {"paper": RESNET18[:2], "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20", "aa"),
        checkpoints=("best",),
        published="V",
        claims=(
            Claim("NMSE keeps clean accuracy better than ALP", "NMSE", "ALP", "best:clean", "higher"),
            Claim("NMSE is more robust than ALP (AA)", "NMSE", "ALP", "best:aa", "higher"),
            Claim("ALP is more robust than NMSE under PGD-20", "ALP", "NMSE", "best:pgd20", "higher"),
        ),
    ),
    Item(
        "fig6",
        "Fig. 6: PIAT with other methods, under AutoAttack",
        PAIRS,
        {"paper": RESNET18, "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20", "aa"),
        extra=("beyond",),
        claims=tuple(
            Claim(f"PIAT makes {one.name} more robust (AA final)", other.name, one.name, "final:aa", "higher")
            for one, other in zip(PAIRS[::2], PAIRS[1::2])
        ),
        draw="pairs",
    ),
    Item(
        "fig7",
        "Fig. 7: the weight of NMSE",
        MU,
        # At this learning rate a seed may fall to chance with these mu, unless gradients are clipped.
        {"paper": RESNET18[:1], "small": (ON_RESNET18, CLIPPED, *LOWER_RATES)},
        attacks=("clean", "pgd20", "cw20"),
        draw="variants",
    ),
    Item(
        "fig8",
        "Fig. 8: loss landscapes",
        (Row("PGD-AT", "pgd_at"), Row("PIAT", "piat")),
        {"paper": RESNET18[:1], "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20"),
        study="landscape",
        as_table=False,
    ),
    Item(
        "fig9",
        "Fig. 9: a fixed lambda against Eq. 10",
        (*FIXED, Row(EQ_10, "nmse+piat")),
        {"paper": RESNET18[:1], "small": (ON_RESNET18,)},
        attacks=("clean", "pgd20"),
        extra=("oscillation", "gap"),
        claims=(
            Claim(
                "a large fixed lambda does not overfit, a small one does", FIXED[-1].name, FIXED[0].name, "gap", "lower"
            ),
            Claim("Eq. 10 ends more robust than a small fixed lambda", EQ_10, FIXED[0].name, "final:pgd20", "higher"),
            Claim("Eq. 10 ends more robust than a large fixed lambda", EQ_10, FIXED[-1].name, "final:pgd20", "higher"),
        ),
        draw="curves",
    ),
    Item(
        "averaging",
        "Is it Eq. 10, or any averaging or smaller steps?",
        (PIAT_ROW, *AVERAGING),
        {"small": (ON_RESNET18,)},
        extra=("beyond", "oscillation", "gap"),
        claims=tuple(
            Claim(f"PIAT is more robust than {row.name} ({name})", PIAT_ROW.name, row.name, key, "higher")
            for row in AVERAGING
            for name, key in (("PGD-20 best", "best:pgd20"), ("PGD-20 final", "final:pgd20"), ("AA final", "final:aa"))
        ),
        draw="differences",
        notes=(
            "Not an item of the paper. lookahead: PIAT's write-back with a constant weight. EMA and SWA are evaluated, "
            "and training does not see them. Rates are multiplied throughout; the last row has PIAT's 1 - lambda.",
        ),
    ),
)
