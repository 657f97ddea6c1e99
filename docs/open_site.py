"""Open every page of the built site in Chromium: `python docs/open_site.py site [PICTURES]`.

Each page is opened wide in light and in dark, and as wide as a phone. It tells scripts' errors, files that do not load,
elements wider than the window, and words that the search does not find. Screenshots go to PICTURES. Needs
`pip install playwright` and a Chromium, which CHROMIUM names.
"""

import contextlib
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FORMS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}
SEARCHES = {  # what is typed, and a part of the address of a page that must be among the first found
    "microbatches": "methods/",
    "catastrophic overfitting": "faq/",
    "interpolate_params": "reference/",
    "Slurm": "guides/",
    "bfloat16 AutoAttack": "evaluation/",
}
TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1) return false;
  for (let at = element; at; at = at.parentElement) {
    const style = getComputedStyle(at), clips = at != element && at != document.body && style.overflowX != "visible";
    if (style.position == "fixed" || clips) return false;
  }
  return true;
}).map(element => element.tagName + " " + element.textContent.slice(0, 40))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


def problems(page: Page, address: str) -> list[str]:
    """What is wrong with a page as it is opened now."""
    found: list[str] = []
    watch = {
        "console": lambda message: found.append(f"console: {message.text}") if message.type == "error" else None,
        "pageerror": lambda error: found.append(f"script: {error}"),
        "requestfailed": lambda request: found.append(f"not loaded: {request.url}"),
    }
    for event, note in watch.items():
        page.on(event, note)
    page.goto(address, wait_until="load")
    found += [f"wider than the window: {element}" for element in page.evaluate(TOO_WIDE)[:3]]
    for event, note in watch.items():
        page.remove_listener(event, note)
    return found


def search(page: Page, address: str, words: str, wanted: str) -> list[str]:
    """What the search does not find."""
    page.goto(address)
    page.locator("[data-md-component=search-query]").fill(words)
    with contextlib.suppress(Exception):
        page.wait_for_selector(".md-search-result__item", timeout=10_000)
    found = [link.get_attribute("href") for link in page.locator(".md-search-result__link").all()[:8]]
    return [] if any(wanted in str(link) for link in found) else [f"search {words!r} finds {found}, not {wanted}"]


def main(site: Path, pictures: Path | None) -> list[str]:
    """A line for each problem of the site."""
    lines = []
    with served(site) as address, sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for form, (width, height, scheme) in FORMS.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            for path in sorted(site.rglob("index.html")):
                name = str(path.parent.relative_to(site))
                lines += [f"{name} ({form}): {line}" for line in problems(page, f"{address}/{name}/")]
                if pictures:
                    page.screenshot(path=pictures / f"{name.replace('/', '_')}-{form}.png", full_page=form != "dark")
            if form == "light":
                for words, wanted in SEARCHES.items():
                    lines += search(page, f"{address}/", words, wanted)
            context.close()
        browser.close()
    return lines


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    wrong = main(Path(sys.argv[1]), folder)
    print("\n".join(wrong))
    sys.exit(bool(wrong))
