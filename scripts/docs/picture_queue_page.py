"""Takes the picture of the queue's live page that the docs show, of a queue that never was.

    python scripts/docs/picture_queue_page.py

Makes docs/figures/serve.png. Needs the extra `dev`, and a Chromium, which `make browser` finds or installs.
"""

from jaxrun.process.script import run_script

import contextlib
import itertools
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from altojax.cluster.service.page.app import make_app
from altojax.cluster.service.page.feed import Feed
from altojax.cluster.service.page.server import served
from jaxrun.process.errors import UserError

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "figures" / "serve.png"
TASKS, WIDTH_PX, HEIGHT_PX = 44, 1240, 1716
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SEED, NOW_S = 2, 5400.0
RUNS = tuple(zip(("reviews", "sql", "math") * 3, range(90, 180, 10), strict=True))
"""Tasks that run and have curves, each with the steps after which it is seen."""

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from made_up_queue import Told, busy  # noqa: E402
from runs import write_run  # noqa: E402


def main() -> None:
    """Serves the page and takes its picture."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"no browser on PATH, expected one of {', '.join(BROWSERS)}; make browser installs it")
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        runs = [write_run(folder / str(tick), tasks=(task,), live_at=tick, seed=tick) for task, tick in RUNS]
        source = Told(busy(TASKS, now_s=NOW_S, made_s=time.time() - NOW_S, output_dirs=runs, seed=SEED))
        feed = Feed(source, "ada", clock=itertools.count(step=10.0).__next__)
        app = make_app(feed, undo.enter_context(ThreadPoolExecutor(1)), lambda name, wish: None, "token")
        url = undo.enter_context(served(app, 0))
        chromium = undo.enter_context(sync_playwright()).chromium.launch(executable_path=browser)
        undo.callback(chromium.close)
        page = chromium.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("#which-running + label").click()
        page.locator("#losses").scroll_into_view_if_needed()
        page.locator("#cards figure").nth(1).locator(".curve").first.wait_for()
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=str(PICTURE))


if __name__ == "__main__":
    sys.exit(run_script(main))
