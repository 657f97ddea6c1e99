"""What a release is checked for (tests/release.py, .github/workflows/release.yml)."""

import re
import shutil
import subprocess
import sys

import pytest

import piat_jax
from tests.release import ROOT, problems


def test_this_version_may_be_released():
    assert problems(f"v{piat_jax.__version__}") == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("piat_jax/__init__.py", "__version__ = ", "version = ", "piat_jax.__version__ is "),
        ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff has not version"),
        ("CHANGELOG.md", f"## [{piat_jax.__version__}]", "## [9]", "CHANGELOG.md has no heading"),
    ],
)
def test_what_is_missing_is_told(file, old, new, said, tmp_path):
    (tmp_path / "piat_jax").mkdir()
    for name in ("piat_jax/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    assert said in "\n".join(problems(f"v{piat_jax.__version__}", root=tmp_path))


def test_another_tag_is_refused():
    assert problems("v0.0.1") == [f"the tag is v0.0.1 and piat_jax.__version__ is {piat_jax.__version__}"]


@pytest.mark.parametrize(("tag", "code"), [(f"v{piat_jax.__version__}", 0), ("v0.0.1", 1)])
def test_the_exit_code_says_so_too(tag, code):
    assert subprocess.run([sys.executable, ROOT / "tests/release.py", tag], capture_output=True).returncode == code


def test_actions_are_pinned_by_hash_with_their_version_beside():
    """A tag of an action can be moved to other code; a release must not run that."""
    uses = [
        line.partition("uses:")[2].strip()
        for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(uses) > 10
    assert [one for one in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", one)] == []
    assert len({one.partition("@")[0] for one in uses}) == len(set(uses))  # one version of each
