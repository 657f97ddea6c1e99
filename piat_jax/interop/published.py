"""Published networks by their names in timm, torchvision and RobustBench."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from piat_jax.core.checks import InputError, did_you_mean
from piat_jax.interop.robustbench import CIFAR10, CIFAR100, EPS, HALF, KINDS, Statistics

SOURCES = ("timm", "torchvision", "robustbench")
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NONE: Statistics = ((), ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One row of the table: the network, and the images for its evaluation."""

    model: str  # its name in `models.create`
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int = 1000
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 224  # side of the center crop in pixels
    resize: int = 256  # shorter side before the crop; 0 = no resizing
    squash: bool = False  # both sides are resized, which changes the aspect ratio
    interpolation: str = "bilinear"
    dataset: str = "imagenet"
    norm: str = ""  # of the threat model in its evaluation; "" = none or unknown
    eps: float = 0.0  # the threat model's radius, for pixels in [0, 1]

    def __str__(self) -> str:
        what = f"{self.size} pixels a side"
        if self.resize:
            sides = "both sides" if self.squash else "the shorter side"
            what += f", center crop after {self.interpolation} resizing of {sides} to {self.resize}"
        return what


def is_published(name: str) -> bool:
    """Whether a text denotes a published name.

    >>> is_published("timm:convnext_tiny"), is_published("resnet50")
    (True, False)
    """
    return ":" in name


def published(name: str) -> Published:
    """The table's row for a published name, `SOURCE:NAME`; timm's and torchvision's names may end with `.TAG`.

    Without a tag it is the source's default.

    Raises:
      InputError: the name is unknown.

    >>> published("torchvision:resnet50").resize, published("timm:vit_small_patch16_224").mean
    (232, (0.5, 0.5, 0.5))
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    source, _, rest = name.partition(":")
    if source not in SOURCES:
        raise InputError(f"model={name!r}: source {source!r} is unknown{did_you_mean(source, SOURCES)}")
    names = [known.partition(":")[2] for known in PUBLISHED if known.startswith(f"{source}:")]
    tags = [known for known in names if known.startswith(f"{rest.partition('.')[0]}.")]
    raise InputError(
        f"model={name!r} is not in the table of {source}'s names{did_you_mean(rest, tags or names)}; or give the "
        "network's own name, with --mean and --std"
    )


ROW = re.compile(r"(\w+)/([\d.]+)([a-z]*)(?:@(\d+))?")
"""A tag, a number, letters, and the side of the images if it is not 224."""


def _rows(texts: str) -> Iterator[tuple[str, float, str, int]]:
    for text in texts.split():
        match = ROW.fullmatch(text)
        assert match, text
        yield match[1], float(match[2]), match[3], int(match[4] or 224)


def _timm(model: str, statistics: Statistics, tags: str, **options: Any) -> dict[str, Published]:
    """Rows by tag, each with the crop's share of the side; networks without 1,000 classes are left out."""
    rows = {}
    for tag, percent, letters, side in _rows(tags):
        rows[tag] = Published(
            model=model,
            options=options,
            mean=statistics[0],
            std=statistics[1],
            size=side,
            resize=int(side / (percent / 100)),
            squash="s" in letters,
            interpolation="bilinear" if "l" in letters else "bicubic",
        )
    return rows


def _torchvision(model: str, tags: str, **options: Any) -> dict[str, Published]:
    """Rows by tag, each with the shorter side before the crop."""
    rows, (mean, std) = {}, IMAGENET
    for tag, resize, letters, side in _rows(tags):
        interpolation = "bicubic" if "c" in letters else "bilinear"
        known: dict[str, Any] = {"size": side, "resize": int(resize), "interpolation": interpolation}
        rows[f"IMAGENET1K_{tag}"] = Published(model=model, options=options, mean=mean, std=std, **known)
    return rows


# Architecture -> tag -> row; the first tag is the default. A number is the crop in percent, with l for bilinear
# interpolation, s if both sides are resized, and @ with the side if it is not 224.
TIMM = {
    "resnet18": _timm("resnet18_imagenet", IMAGENET, "a1_in1k/95 a2_in1k/95 gluon_in1k/87.5 tv_in1k/87.5l"),
    "resnet50": _timm(
        "resnet50_imagenet",
        IMAGENET,
        "a1_in1k/95 a2_in1k/95 b1k_in1k/95 b2k_in1k/95 c1_in1k/95 c2_in1k/95 d_in1k/95 am_in1k/87.5 ra_in1k/87.5 "
        "ram_in1k/87.5 gluon_in1k/87.5 tv_in1k/87.5l",
    ),
    "wide_resnet50_2": _timm("wrn_50_2", IMAGENET, "racm_in1k/87.5 tv_in1k/87.5l"),
    **{
        f"convnext_{size}": _timm(
            f"convnext_{size}",
            IMAGENET,
            "in12k_ft_in1k/95 in12k_ft_in1k_384/100s@384 fb_in22k_ft_in1k/87.5 fb_in1k/87.5 "
            "fb_in22k_ft_in1k_384/100s@384",
        )
        for size in ("tiny", "small")
    },
    **{
        f"convnext_{size}": _timm(
            f"convnext_{size}", IMAGENET, "fb_in22k_ft_in1k/87.5 fb_in1k/87.5 fb_in22k_ft_in1k_384/100s@384"
        )
        for size in ("base", "large")
    },
    "vit_tiny_patch16_224": _timm("vit_tiny", HALF, "augreg_in21k_ft_in1k/90", patch_size=16),
    "vit_small_patch16_224": _timm("vit_small", HALF, "augreg_in21k_ft_in1k/90 augreg_in1k/90", patch_size=16),
    "vit_base_patch16_224": _timm(
        "vit_base",
        HALF,
        "augreg2_in21k_ft_in1k/90 augreg_in21k_ft_in1k/90 augreg_in1k/90 orig_in21k_ft_in1k/90 sam_in1k/90",
        patch_size=16,
    ),
    "vit_large_patch16_224": _timm("vit_large", HALF, "augreg_in21k_ft_in1k/90", patch_size=16),
    **{
        f"vit_{size}_patch16_384": _timm(f"vit_{size}", HALF, tags, patch_size=16)
        for size, tags in (
            ("tiny", "augreg_in21k_ft_in1k/100@384"),
            ("small", "augreg_in21k_ft_in1k/100@384 augreg_in1k/100@384"),
            ("base", "augreg_in21k_ft_in1k/100@384 orig_in21k_ft_in1k/100@384 augreg_in1k/100@384"),
            ("large", "augreg_in21k_ft_in1k/100@384"),
        )
    },
    "deit_tiny_patch16_224": _timm("deit_tiny", IMAGENET, "fb_in1k/90", patch_size=16),
    "deit_small_patch16_224": _timm("deit_small", IMAGENET, "fb_in1k/90", patch_size=16),
    "deit_base_patch16_224": _timm("vit_base", IMAGENET, "fb_in1k/90", patch_size=16),
    "deit_base_patch16_384": _timm("vit_base", IMAGENET, "fb_in1k/100@384", patch_size=16),
    "convit_tiny": _timm("convit_tiny", IMAGENET, "fb_in1k/87.5", patch_size=16),
    "convit_small": _timm("convit_small", IMAGENET, "fb_in1k/87.5", patch_size=16),
    "convit_base": _timm("convit_base", IMAGENET, "fb_in1k/87.5", patch_size=16),
    "xcit_small_12_p16_224": _timm("xcit_s12", IMAGENET, "fb_in1k/100 fb_dist_in1k/100"),
    "xcit_small_12_p16_384": _timm("xcit_s12", IMAGENET, "fb_dist_in1k/100@384"),
    "swin_tiny_patch4_window7_224": _timm("swin_tiny", IMAGENET, "ms_in1k/90 ms_in22k_ft_in1k/90"),
    "swin_small_patch4_window7_224": _timm("swin_small", IMAGENET, "ms_in22k_ft_in1k/90 ms_in1k/90"),
    "swin_base_patch4_window7_224": _timm("swin_base", IMAGENET, "ms_in22k_ft_in1k/90 ms_in1k/90"),
    "swin_large_patch4_window7_224": _timm("swin_large", IMAGENET, "ms_in22k_ft_in1k/90"),
    "swin_base_patch4_window12_384": _timm(
        "swin_base", IMAGENET, "ms_in22k_ft_in1k/100@384 ms_in1k/100@384", window=12
    ),
    "swin_large_patch4_window12_384": _timm("swin_large", IMAGENET, "ms_in22k_ft_in1k/100@384", window=12),
}
# The same, with the shorter side before the crop as number, and c for bicubic interpolation.
TORCHVISION = {
    "resnet18": _torchvision("resnet18_imagenet", "V1/256"),
    "resnet50": _torchvision("resnet50_imagenet", "V2/232 V1/256"),
    "wide_resnet50_2": _torchvision("wrn_50_2", "V2/232 V1/256"),
    "convnext_tiny": _torchvision("convnext_tiny", "V1/236"),
    "convnext_small": _torchvision("convnext_small", "V1/230"),
    "convnext_base": _torchvision("convnext_base", "V1/232"),
    "convnext_large": _torchvision("convnext_large", "V1/232"),
    "swin_t": _torchvision("swin_tiny", "V1/232c"),
    "swin_s": _torchvision("swin_small", "V1/246c"),
    "swin_b": _torchvision("swin_base", "V1/238c"),
    "vit_b_16": _torchvision("vit_base", "V1/256 SWAG_E2E_V1/384c@384 SWAG_LINEAR_V1/224c", patch_size=16),
    "vit_l_16": _torchvision("vit_large", "V1/242 SWAG_E2E_V1/512c@512 SWAG_LINEAR_V1/224c", patch_size=16),
}


def _robust(model: str, statistics: Statistics = IMAGENET, *, patch_size: int = 0, **fields: Any) -> Published:
    options = {"patch_size": patch_size} if patch_size else {}
    fields = {"norm": "linf", "eps": 4 / 255, **fields}
    return Published(model=model, options=options, mean=statistics[0], std=statistics[1], **fields)


def _of_cifar(model: str, dataset: str, statistics: Statistics, threat: str = "Linf", **options: Any) -> Published:
    return Published(
        model=model,
        options=options,
        num_classes=100 if dataset == "cifar100" else 10,
        mean=statistics[0],
        std=statistics[1],
        size=32,
        resize=0,
        dataset=dataset,
        norm=threat.lower(),
        eps=EPS[threat],
    )


BICUBIC: dict[str, Any] = {"interpolation": "bicubic"}
# RobustBench's names of ImageNet networks, and (after data set and threat model) of CIFAR networks with the same
# architectures. Networks without a mean here take images in [0, 1], as in their code.
ROBUSTBENCH = {
    "Wong2020Fast": _robust("resnet50_imagenet", size=288, resize=0),
    "Engstrom2019Robustness": _robust("resnet50_imagenet"),
    "Salman2020Do_R18": _robust("resnet18_imagenet"),
    "Salman2020Do_R50": _robust("resnet50_imagenet"),
    "Salman2020Do_50_2": _robust("wrn_50_2"),
    "Standard_R50": _robust("resnet50_imagenet", norm="", eps=0.0),
    "Chen2024Data_WRN_50_2": _robust("wrn_50_2", NONE),
    "Singh2023Revisiting_ViT-S-ConvStem": _robust("vit_small_convstem", patch_size=16, **BICUBIC),
    "Singh2023Revisiting_ViT-B-ConvStem": _robust("vit_base_convstem", NONE, patch_size=16, **BICUBIC),
    "Singh2023Revisiting_ConvNeXt-T-ConvStem": _robust("convnext_tiny_convstem", NONE, **BICUBIC),
    "Singh2023Revisiting_ConvNeXt-S-ConvStem": _robust("convnext_small_convstem", NONE, **BICUBIC),
    "Singh2023Revisiting_ConvNeXt-B-ConvStem": _robust("convnext_base_convstem", NONE, **BICUBIC),
    "Singh2023Revisiting_ConvNeXt-L-ConvStem": _robust("convnext_large_convstem", NONE, **BICUBIC),
    "Liu2023Comprehensive_ConvNeXt-B": _robust("convnext_base", **BICUBIC),
    "Liu2023Comprehensive_ConvNeXt-L": _robust("convnext_large", **BICUBIC),
    "Liu2023Comprehensive_Swin-B": _robust("swin_base", **BICUBIC),
    "Liu2023Comprehensive_Swin-L": _robust("swin_large", **BICUBIC),
    "RodriguezMunoz2024Characterizing_Swin-B": _robust("swin_base", **BICUBIC),
    "RodriguezMunoz2024Characterizing_Swin-L": _robust("swin_large", **BICUBIC),
    "Mo2022When_Swin-B": _robust("swin_base", resize=224, squash=True),
    "Mo2022When_ViT-B": _robust("vit_base", patch_size=16, resize=224, squash=True),
    "Debenedetti2022Light_XCiT-S12": _robust("xcit_s12", NONE),
    "Debenedetti2022Light_XCiT-M12": _robust("xcit_m12", NONE),
    "Debenedetti2022Light_XCiT-L12": _robust("xcit_l12", NONE),
    **{
        f"{dataset}/Debenedetti2022Light_XCiT-{size.upper()}12": _of_cifar(
            f"xcit_{size}12", dataset, statistics, patch_size=4
        )
        for dataset, statistics in (("cifar10", CIFAR10), ("cifar100", CIFAR100))
        for size in "sml"
    },
    **{
        f"{kind.dataset}/{kind.threat}/{name}": _of_cifar(
            kind.model, kind.dataset, kind.statistics, kind.threat, **dict(kind.options)
        )
        for kind in KINDS
        for name in kind.names.split()
    },
}


def _table() -> dict[str, Published]:
    found = {}
    for source, names in (("timm", TIMM), ("torchvision", TORCHVISION)):
        for name, rows in names.items():
            found[f"{source}:{name}"] = next(iter(rows.values()))
            found |= {f"{source}:{name}.{tag}": row for tag, row in rows.items()}
    return found | {f"robustbench:{name}": row for name, row in ROBUSTBENCH.items()}


PUBLISHED: Mapping[str, Published] = _table()
"""All names with their rows.

Source: timm 1.0.31 (its pretrained configurations, without the larger images of test_input_size), torchvision 0.28.0
(the transforms of its weights), and RobustBench's model_zoo, architectures and data.py.
"""
