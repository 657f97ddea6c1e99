"""The model card: what was measured and what was not, and metadata that the hub understands."""

import dataclasses
import json

import pytest

import piat_jax
from piat_jax.experiment.run import Run
from piat_jax.interop import About
from piat_jax.interop.card import limits, model_card
from piat_jax.models import create

NET = create("small_resnet", num_classes=10, width=2, stage_sizes=(1,))
SETTINGS = {"seed": 0, "eps": 8 / 255, "step_size": 2 / 255, "norm": "linf", "restarts": 3, "precision": "highest"}
ABOUT = About(
    model="small_resnet",
    num_classes=10,
    image_shape=(32, 32, 3),
    options={"width": 2},
    dataset="cifar10",
    method="trades+nmse+piat, 120 epochs",
    threat="linf, eps 8/255, 10 steps",
    checkpoint="best, epoch 3",
    accuracy={"clean": 0.84, "pgd20": 0.51234, "cw20": 0.5, "square100": 0.5, "aa": 0.48},
    num_examples=10_000,
    aa_examples=1000,
    settings=SETTINGS,
    chosen_on_test=True,
    papers=("TRADES: Zhang et al. (2019), arXiv:1901.08573",),
    license="mit",
)


def rows(card):
    return [line for line in card.splitlines() if line.startswith("| ") and " % |" in line]


def test_each_number_has_its_images_and_settings():
    assert rows(model_card(NET, ABOUT, 100)) == [
        "| clean | 84.00 % | 10,000 |  |",
        "| pgd20 | 51.23 % | 10,000 | linf, eps 8/255, 20 steps of 2/255, 3 restarts |",
        "| cw20 | 50.00 % | 10,000 | linf, eps 8/255, 20 steps of 2/255, 3 restarts |",
        "| square100 | 50.00 % | 1,000 | linf, eps 8/255, 100 queries |",
        "| aa | 48.00 % | 1,000 | AutoAttack, linf, eps 8/255 |",
    ]


TOLD = {
    "measured": "Neither its clean nor its robust accuracy was measured.",
    "attacked": "It was not attacked; its robustness is unknown.",
    "aa": "AutoAttack was not run; the accuracy under weaker attacks overestimates the robustness.",
    "part": "The accuracies are for the first 1,000 of 10,000 test images.",
    "aa_part": "AutoAttack was run on the first 1,000 of these.",
    "chosen": "The epoch was chosen by the accuracy on the test images, which biases this accuracy upwards.",
    "norm": "The robustness in norms other than linf and at radii above 8/255 is unknown.",
    "other": "The numbers do not cover natural corruptions, other data or patches.",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["aa_part", "chosen", "norm"]),
        ({"aa_examples": 10_000, "chosen_on_test": False}, ["norm"]),
        ({"num_examples": 1000}, ["part", "chosen", "norm"]),
        ({"accuracy": {"clean": 0.8}}, ["attacked", "chosen"]),
        ({"accuracy": {"clean": 0.8, "pgd20": 0.5}}, ["aa", "chosen", "norm"]),
        ({"accuracy": {"aa-union": 0.2}, "aa_examples": 0}, ["chosen"]),
        ({"accuracy": {}, "chosen_on_test": False}, ["measured"]),
        ({"dataset": "own.npz", "num_examples": 10, "aa_examples": 0}, ["chosen", "norm"]),
    ],
)
def test_what_was_not_measured_is_said(changes, expected):
    about = dataclasses.replace(ABOUT, **changes)
    assert list(limits(about)) == [TOLD[name] for name in (*expected, "other")]
    assert all(f"* {TOLD[name]}" in model_card(NET, about, 100) for name in expected)


def test_the_hub_understands_its_metadata():
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(model_card(NET, ABOUT, 100, repository="user/net")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "piat_jax", "image-classification")
    assert (data.datasets, data.metrics, data.model_name) == (["uoft-cs/cifar10"], ["accuracy"], "net")
    assert {"adversarial-robustness", "jax", "pytorch"} <= set(data.tags)
    found = [(each.dataset_type, each.dataset_split, each.metric_name, each.metric_value) for each in data.eval_results]
    assert found[0] == ("uoft-cs/cifar10", "test", "Clean accuracy", 84.0)
    assert found[1][2:] == ("Accuracy under pgd20 (linf, eps 8/255, 20 steps of 2/255, 3 restarts)", 51.23)
    assert len(found) == 5
    bare = hub.ModelCard(
        model_card(NET, About(model="small_resnet", num_classes=10, image_shape=(32, 32, 3)), 100)
    ).data
    assert (bare.license, bare.datasets, bare.eval_results) == (None, None, None)


def test_what_it_says_of_use_and_papers():
    card = model_card(NET, ABOUT, 100, repository="user/net")
    for text in (
        'piat_jax.load("hf:user/net")',
        "piat_jax.models.create('small_resnet', num_classes=10, width=2)",
        'load_file(hf_hub_download("user/net", "model.safetensors"))',
        "* TRADES: Zhang et al. (2019), arXiv:1901.08573",
        "@article{liu_piat,",
        "@misc{piat_jax,",
        "| Trained against | linf, eps 8/255, 10 steps |",
    ):
        assert text in card
    other = model_card(NET, dataclasses.replace(ABOUT, method="trades, 3 epochs"), 100)
    assert "@article{liu_piat" not in other
    assert "piat_jax.load(folder)" in other
    assert "hf_hub_download" not in other


def test_a_run_s_card_has_what_evaluation_json_has(tmp_path):
    small = {
        "dataset.train_examples": 16,
        "dataset.test_examples": 8,
        "model.options.width": 2,
        "model.options.stage_sizes": (1,),
        "attack.eps": "4/255",
        "attack.steps": 1,
        "evaluation.attacks": ("clean",),
        "evaluation.select": "clean",
        "log.tensorboard": False,
    }
    piat_jax.train("embedded:trades+piat", tmp_path / "run", epochs=1, batch_size=8, overrides=small)
    run = Run(tmp_path / "run")
    settings = {**SETTINGS, "eps": 4 / 255}
    point = {"epoch": 1, "accuracy": {"clean": 0.5, "aa": 0.25}}
    run.write_evaluation({"num_examples": 8, "aa_examples": 4, "settings": settings, "checkpoints": {"best": point}})
    model = piat_jax.load(run.folder)
    model.to_safetensors(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert rows(card) == ["| clean | 50.00 % | 8 |  |", "| aa | 25.00 % | 4 | AutoAttack, linf, eps 4/255 |"]
    assert "| Trained against | linf, eps 4/255, 1 steps |" in card
    assert "* TRADES: " in card
    assert TOLD["chosen"] in card
    # Of another epoch, they are not this network's.
    run.write_evaluation({"num_examples": 8, "settings": settings, "checkpoints": {"best": {**point, "epoch": 7}}})
    assert piat_jax.load(run.folder).about.accuracy == {}
    assert TOLD["measured"] in list(limits(piat_jax.load(run.folder).about))
    assert TOLD["chosen"] not in list(limits(piat_jax.load(run.folder, checkpoint="final").about))


def test_metadata_is_json_line_by_line():
    """So that no value needs quoting by hand."""
    about = dataclasses.replace(ABOUT, dataset='my: "data"\n', license="")
    head = model_card(NET, about, 100).split("---")[1].strip().splitlines()
    found = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in head}
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == 'my: "data"\n'
    assert "license" not in found
