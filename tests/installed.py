"""What a user of pip has: the sdist's wheel in an empty environment and an empty folder. `make wheel` runs it.

    python tests/installed.py dist/*.whl requirements.txt

The README's commands, by name; that nothing of the checkout is used; and that every command has its help.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

SMALL = [
    *("--config.epochs=2", "--config.dataset.train_examples=64", "--config.dataset.test_examples=20"),
    *("--config.model.options.width=2", "--config.attack.steps=1", "--config.evaluation.final_attacks=clean,pgd2"),
]
PYTHON = """
import numpy as np, piat_jax
assert "site-packages" in piat_jax.__file__, piat_jax.__file__
model = piat_jax.load("runs/x", checkpoint="final")
test = piat_jax.data.load("embedded", test_examples=20).test
print(model, model.evaluate(test.images, test.labels, "clean,pgd2"))
same = piat_jax.load("exported")
"""
MINE = """
from piat_jax.configs import common

def get_config(method="piat"):
    config = common.get_config(method)
    config.dataset.name, config.dataset.crop_padding, config.dataset.flip = "embedded", 0, False
    config.model.name = "small_resnet"
    return config
"""


def main(wheel: str, requirements: str) -> None:
    """Install and try everything."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "env", with_pip=True)
        binaries = home / "env" / "bin"
        where = home / "empty"
        where.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

        def call(program: str, *arguments: str) -> str:
            print(f"$ {program} {' '.join(arguments)}", flush=True)
            command = [str(binaries / program), *arguments]
            done = subprocess.run(command, cwd=where, env=environment, text=True, capture_output=True)
            if done.returncode:
                sys.exit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
            return done.stdout

        call("python", "-m", "pip", "install", "--quiet", "--constraint", requirements, wheel)
        listed = call("python", "-m", "piat_jax")
        for name in [line.split()[0] for line in listed.splitlines() if line.startswith("  piat-")]:
            call(name, "--help")
        call("piat-train", "--config=embedded:nmse+piat", "--workdir=runs/x", *SMALL)
        call("piat-train", "--resume", "runs/x")
        call("piat-evaluate", "runs/x", "--attacks=clean,pgd2")
        call("piat-report", "runs/x")
        call("piat-convert", "runs/x", "exported", "--checkpoint=final")
        call("python", "-c", PYTHON)
        call("piat-sweep", "--config=embedded", "--methods=pgd_at,piat", "--workdir=runs/sweep", *SMALL)
        (where / "mine.py").write_text(MINE)
        call("piat-train", "--config=mine.py:trades+piat", "--show")
        assert "attack.eps = 0.0313725 (8/255)" in call("piat-train", "--config=cifar10_resnet18:trades", "--fields")
        assert (where / "runs" / "sweep" / "report" / "table.md").exists()
    print("the wheel has everything")


if __name__ == "__main__":
    main(*(str(Path(argument).resolve()) for argument in sys.argv[1:]))
