"""What the built documentation is checked for (docs/check_site.py)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs/check_site.py"


def checker():
    spec = importlib.util.spec_from_file_location("check_site", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="guide/">g</a><a href="#top">t</a><a href="http://x.y/z">o</a>'
    )
    quotes = "<blockquote><blockquote></blockquote></blockquote><blockquote></blockquote>"
    (tmp_path / "guide/index.html").write_text(
        f'<p id="here"></p>{quotes}<img src="../picture.png"><a href="../#top">t</a>'
    )
    (tmp_path / "picture.png").write_bytes(b"")
    return tmp_path


def test_a_whole_site_passes(site):
    assert checker().broken(site) == []
    assert subprocess.run([sys.executable, SCRIPT, site], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('<a href="gone/">', "guide/index.html: gone/ is not there"),
        ('<img src="gone.png">', "guide/index.html: gone.png is not there"),
        ('<a href="../#gone">', "guide/index.html: ../#gone has no such place"),
        ('<a href="#gone">', "guide/index.html: #gone has no such place"),
        (3 * "<blockquote>", "guide/index.html shows a doctest as a quotation"),
    ],
)
def test_what_leads_nowhere_is_told(site, more, said):
    page = site / "guide/index.html"
    page.write_text(page.read_text() + more)
    assert checker().broken(site) == [said]
    ended = subprocess.run([sys.executable, SCRIPT, site], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (1, said)
