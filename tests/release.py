"""Whether a tag may be released: `python tests/release.py v0.2.0`.

The tag is `v` and `piat_jax.__version__`, CITATION.cff says the same, and the changelog has a heading for it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(tag: str, *, root: Path = ROOT) -> list[str]:
    """What is wrong with a tag; empty where it may be released."""
    text = (root / "piat_jax/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    version = found[1] if found else ""
    wrong = []
    if tag != f"v{version}":
        wrong.append(f"the tag is {tag} and piat_jax.__version__ is {version}")
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text():
        wrong.append(f"CITATION.cff has not version: {version}")
    if not re.search(rf"^## \[{re.escape(version)}\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        wrong.append(f"CHANGELOG.md has no heading '## [{version}]'")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
