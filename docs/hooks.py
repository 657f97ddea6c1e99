"""Pages that are made out of the code when the site is built: methods, reference, configs, changelog."""

import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import piat_jax
from piat_jax.experiment.methods import describe, parse_method
from piat_jax.objectives import METHODS, WRAPPERS

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("attacks", "averaging", "losses", "objectives", "models", "training", "evaluation", "data", "experiment"),
    *("interop", "programs", "analysis", "checkpoint", "loggers", "benchmark", "core.types"),
)
"""In the order of the reference."""
SOURCE = os.environ.get("PIAT_SOURCE", "")
"""Where files are that are no part of the site: an address such as that of a commit on GitHub; "" names them only."""
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:experiments|piat_jax|configs|tests|README)[^)]*)\)")
PICTURES = {
    "robust_accuracy.png": "embedded/robust_accuracy.png",
    "all_methods.png": "all_methods/piat.png",
    "boundary.png": "toy/boundary.png",
    "oscillation.png": "toy/oscillation.png",
}
"""Of the gallery: where each is among the results."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {**methods(), **reference(), "changelog.md": changelog()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for name, path in PICTURES.items():
        files.append(File.generated(config, f"images/{name}", abs_src_path=str(ROOT / "experiments/results" / path)))
    place_in_nav(config["nav"], "Methods", [path for path in made if path.startswith("methods/")])
    place_in_nav(config["nav"], "Reference", [path for path in made if path.startswith("reference/")])
    return files


def place_in_nav(nav: list[Any], title: str, paths: list[str]) -> None:
    """Put pages behind what a part of the navigation has."""
    for part in nav:
        if title in part:
            own = part[title] if isinstance(part[title], list) else []
            part[title] = [*own, *(path for path in paths if path not in own)]


def methods() -> dict[str, str]:
    """A page for each objective and wrapper: what it is, its fields, and its docstring."""
    pages = {}
    for name, cls in {**METHODS, **WRAPPERS}.items():
        registry = METHODS if name in METHODS else WRAPPERS
        about = registry.about(name)
        use = name if name in METHODS else f"{parse_method(name).base!s}+{name}"
        groups = re.findall(r"config\.(\w+): (.*?)(?= config\.|$)", " ".join(describe(name).split()))
        fields = "\n".join(f"* `config.{group}`: `{values}`" for group, values in groups)
        pages[f"methods/{name}.md"] = (
            f"# {about.title}\n\n{about.summary}\n\n{about.paper}\n\n"
            f"    piat-train --config=cifar10_resnet18:{use}+piat --workdir=runs/x\n\n"
            f"Fields and their defaults:\n\n{fields}\n\n"
            f"::: {cls.__module__}.{cls.__qualname__}\n    options:\n      members: false\n"
        )
    return pages


def reference() -> dict[str, str]:
    """A page for each public package: what its `__all__` names."""
    pages, rows = {}, []
    for name in PACKAGES:
        module = importlib.import_module(f"piat_jax.{name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        members = "".join(f"\n::: {path}\n" for path in public(module))
        pages[f"reference/{name}.md"] = f"# piat_jax.{name}\n\n{summary}\n{members}"
        rows.append(f"| [`piat_jax.{name}`]({name}.md) | {summary} |")
    front = "".join(
        f"\n::: {path}\n" for path in ("piat_jax.experiment.front.train", "piat_jax.experiment.loading.load")
    )
    table = "\n".join(rows)
    pages["reference/index.md"] = (
        "# Reference\n\nWhat each package offers. `import piat_jax` has the most used of it: "
        + ", ".join(f"`{name}`" for name in sorted(piat_jax._HOMES))
        + f".\n\n| package | |\n|---|---|\n{table}\n"
        + front
    )
    return {"reference/index.md": pages.pop("reference/index.md"), **pages}


def public(module: Any) -> list[str]:
    """Where what a module offers is defined, in the order of its `__all__`; of one without, what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        tree = ast.parse(Path(module.__file__).read_text())
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names = [name for name in names if not name.startswith("_")]
    found = []
    for name in names:
        value = getattr(module, name)
        if callable(value) and hasattr(value, "__module__") and getattr(value, "__doc__", None):
            home = importlib.import_module(value.__module__) if value.__module__.startswith("piat_jax") else module
            owner = home if getattr(home, name, None) is value else module
            found.append(f"{owner.__name__}.{name}")
    return found


def configs() -> str:
    """The docstring of each config."""
    texts = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in ("__init__", "common"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            texts.append(f"## {path.stem}\n\n{text}\n")
    return "\n".join(texts)


def changelog() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text()


def on_page_markdown(markdown: str, *, page: Any, **rest: Any) -> str:
    """Configs get their docstrings; links out of docs/ lead to the repository's files, or name them."""
    del rest
    if page.file.src_uri == "configs.md":
        markdown += "\n" + configs()
    return OUTSIDE.sub(rf"[\1]({SOURCE}/\2)" if SOURCE else r"\1 (`\2`)", markdown)
