"""Run folders made by hand."""

import json

import pytest


def write_run(folder, method="pgd_at", *, seed=0, epochs=4, pgd=(0.4, 0.6, 0.5, 0.55), every=1, **changes):
    """A run evaluated every `every` epochs; best and final as given by `best`, `final`."""
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "dataset": {"name": changes.get("dataset", "cifar10"), "validation_examples": changes.get("held_out", 0)},
        "model": {"name": "resnet18"},
        "epochs": epochs,
        "seed": seed,
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch in range(1, len(pgd) * every + 1):
        entry = {"epoch": epoch, "train_loss": 1.0, "train_adversarial_accuracy": epoch / 10}
        if epoch % every == 0:
            entry |= {"test_clean": 0.7 + epoch / 100, "test_pgd20": pgd[epoch // every - 1]}
        lines.append(json.dumps(entry) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    checkpoints = {
        "best": {"epoch": 2, "accuracy": changes.get("best", {"clean": 0.8, "pgd20": 0.6})},
        "final": {"epoch": len(pgd) * every, "accuracy": changes.get("final", {"clean": 0.83, "pgd20": 0.55})},
    }
    evaluation = {"num_examples": changes.get("num_examples", 1000), "checkpoints": checkpoints}
    evaluation |= {"aa_examples": changes["aa_examples"]} if "aa_examples" in changes else {}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.fixture
def run_at(tmp_path):
    """Write the run NAME below tmp_path and return its folder."""
    return lambda name, *args, **options: write_run(tmp_path / name, *args, **options)
