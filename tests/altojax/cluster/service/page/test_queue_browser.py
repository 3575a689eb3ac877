"""The live page in a real Chromium: it follows the queue, asks only its own server, and takes every name as text."""

import contextlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from made_up_queue import Told, busy, job, queue
from playwright.sync_api import expect
from runs import write_run

from altojax.cluster.service.page.app import make_app
from altojax.cluster.service.page.feed import Feed
from altojax.cluster.service.page.server import Address, served
from altojax.cluster.service.queue.queue_view import AttemptSpan
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point

TOKEN = "k3y"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
NAME = '"><img src=x onerror=alert(3)>-1'


class Window:
    """One tab, what it asked for, and what went wrong in it."""

    def __init__(self, page, url: str, source: Told, asked: list) -> None:
        self.page = page
        self.url = url
        self.source = source
        self.asked = asked
        self.requests: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: self.wrong.append(dialog.message))

    def open(self) -> "Window":
        self.page.goto(self.url)
        expect(self.page.locator("#link")).to_have_text("live")
        return self

    def tell(self, snapshot) -> None:
        """Lets the queue be another, and the page ask again."""
        self.source.now = snapshot
        self.page.clock.fast_forward(4000)

    def row(self, name: str):
        return self.page.get_by_role("row").filter(has=self.page.get_by_role("rowheader", name=name))


@pytest.fixture
def window(chromium):
    """Opens a page over a queue; at the end nothing has gone wrong in it, and it has asked only its own server."""
    with contextlib.ExitStack() as undo:

        def show(snapshot, **context) -> Window:
            source, asked = Told(snapshot), []
            reading = undo.enter_context(ThreadPoolExecutor(1))
            ask = lambda name, wish: asked.append((name, wish))  # noqa: E731
            every_look_s = itertools.count(step=10.0)
            app = make_app(Feed(source, "ada", clock=every_look_s.__next__), reading, ask, TOKEN)
            url = undo.enter_context(served(app, 0))
            opened = undo.enter_context(contextlib.closing(chromium.new_context(**context)))
            opened.set_default_timeout(10_000)
            page = opened.new_page()
            page.clock.install()
            shown.append(Window(page, url, source, asked))
            return shown[-1].open()

        shown: list[Window] = []
        yield show
        for one in shown:
            assert one.wrong == []
            assert one.requests and all(request.startswith((f"{one.url}/", "about:")) for request in one.requests)


def test_a_task_submitted_while_the_page_is_open_appears_and_the_rest_stays_untouched(window):
    one = window(queue([job("support-1", submitted_s=10.0)], now_s=60.0, made_s=time.time() - 60))
    one.page.evaluate("window.mark = document.querySelector('#rows tr')")
    gpus = {"gpu-1": (2, 3)}
    first = job("support-1", status="running", gpus=gpus, started_s=70.0, start_s=70.0, end_s=4000.0)
    second = job("triage-2", width=2, start_s=4000.0, end_s=5000.0, submitted_s=65.0)
    spans = [AttemptSpan("support-1", 1, "research", gpus, 70.0)]
    one.tell(queue([first, second], spans, now_s=80.0, made_s=time.time() - 80))
    expect(one.row("triage-2")).to_contain_text("waiting")
    expect(one.row("triage-2")).to_contain_text("≈")
    expect(one.row("support-1")).to_contain_text("running")
    assert one.page.evaluate("window.mark === document.querySelector('#rows tr')"), "the row was made anew"
    bars = one.page.locator("#timeline g title")
    assert {text.split(" of ")[0] for text in bars.all_text_contents()} == {"support-1", "triage-2"}


def test_loss_curves_of_a_running_task_appear_and_grow(window, tmp_path):
    run = write_run(tmp_path, tasks=("sql",), trials=6, live_at=60)
    running = job("sql-1", status="running", gpus={"gpu-1": (0,)}, started_s=0.0, start_s=0.0, end_s=900.0)
    running = job(**running.__dict__ | {"journal_dir": str(run), "tasks": ("sql",)})
    one = window(queue([running, job("later-2")], now_s=60.0, made_s=time.time() - 60))
    one.page.locator("#losses").scroll_into_view_if_needed()
    with Journal.read(run) as journal:
        seen = {point.trial for point in journal.points() if point.split == "validation"}
    curves = one.page.locator("#cards .curve")
    expect(curves).to_have_count(len(seen))
    assert len({path.get_attribute("stroke") for path in one.page.locator(".curve > path").all()}) == len(seen)
    expect(one.page.locator("#cards figure")).to_have_count(1)
    before = one.page.get_by_role("img", name="the best is").get_attribute("aria-label")
    with Journal.open(run, config_text="output_dir: x\n", identity="d") as journal:
        journal.append(61, [Event("note")], [Point("sql", "trial-5", 200, 1600, 9, "validation", 0.0125)])
    one.tell(one.source.now)
    expect(one.page.get_by_role("img", name="trial-5 with 0.0125")).to_be_visible()
    assert "0.0125" not in before


def test_hostile_names_are_text(window, tmp_path):
    run = tmp_path / "run"
    with Journal.open(run, config_text="a: 1\n", identity="d") as journal:
        about = {"task": HOSTILE, "trial": HOSTILE, "config": {}, "total_steps": 9, "total_samples": 9}
        about |= {"schedule": {"total_steps": 9, "twice": 0.5, "warmup": 0.0}}
        journal.set("trials", [about])
        journal.append(1, [], [Point(HOSTILE, HOSTILE, 1, 4, 1, "validation", 1.5)])
    gpus = {HOSTILE: (0,)}
    bad = job(NAME, tenant=HOSTILE, reason=HOSTILE, status="running", gpus=gpus, start_s=0.0, end_s=9e4, started_s=0.0)
    bad = job(**bad.__dict__ | {"journal_dir": str(run), "tasks": (HOSTILE,), "members": (HOSTILE,)})
    spans = [AttemptSpan(NAME, 1, HOSTILE, gpus, 0.0)]
    one = window(queue([bad], spans, nodes={HOSTILE: 1}, holder=HOSTILE, rule=HOSTILE, now_s=60.0, made_s=time.time()))
    expect(one.page.get_by_role("rowheader", name=NAME)).to_be_visible()
    expect(one.page.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    one.page.locator("#losses").scroll_into_view_if_needed()
    expect(one.page.locator("#cards .curve")).to_have_count(1)
    one.page.wait_for_timeout(100)
    assert one.page.locator("img").count() == 0
    assert one.page.locator("script:not([src])").count() == 0


def test_the_keyboard_alone_unlocks_pauses_and_cancels(window):
    one = window(queue([job("support-1"), job("triage-2", status="paused")], made_s=time.time()))
    page = one.page
    expect(page.get_by_role("button", name="cancel support-1")).to_be_hidden()

    def tab_to(locator):
        for _ in range(40):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"no way to {locator} with Tab")

    def unlock(token):
        tab_to(page.get_by_label("The token in the queue's serve.json"))
        page.keyboard.type(token)
        page.keyboard.press("Enter")

    tab_to(page.locator("summary"))
    page.keyboard.press("Enter")
    unlock("wrong")
    expect(page.locator("#said")).to_have_text("That is not the token of the queue's serve.json.")
    one.wrong.clear()  # Chromium itself says on the console that an answer was 401.
    page.get_by_label("The token").fill("")
    page.locator("body").evaluate("() => document.activeElement.blur()")
    unlock(TOKEN)
    expect(page.get_by_role("button", name="resume triage-2")).to_be_visible()
    expect(page.get_by_role("button", name="resume support-1")).to_be_hidden()
    tab_to(page.get_by_role("button", name="pause support-1"))
    page.keyboard.press("Space")
    expect(page.locator("#said")).to_have_text("Asked to pause support-1.")
    tab_to(page.get_by_role("button", name="cancel support-1"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Cancel support-1?")).to_be_visible()
    page.keyboard.press("Escape")
    assert one.asked == [("support-1", "pause")]
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("Asked to cancel support-1.")
    assert one.asked == [("support-1", "pause"), ("support-1", "cancel")]
    page.reload()
    expect(page.get_by_role("button", name="cancel support-1")).to_be_visible()
    assert page.evaluate("document.cookie") == ""


def test_the_link_that_serve_prints_unlocks_and_leaves_no_token_behind(window, tmp_path):
    run = str(write_run(tmp_path, tasks=("sql",), trials=2, live_at=40))
    running = {"status": "running", "gpus": {"gpu-1": (0,)}, "started_s": 0.0, "start_s": 0.0, "end_s": 900.0}
    foreign = job("sql-1", user="bob", reason="a note of bob", journal_dir=run, tasks=("sql",), **running)
    one = window(queue([foreign], made_s=time.time()))
    one.page.locator("#losses").scroll_into_view_if_needed()
    expect(one.page.locator("#cards")).to_contain_text("Needs the token")
    expect(one.row("sql-1")).not_to_contain_text("a note of bob")
    one.page.goto("about:blank")
    one.wrong.clear()  # Chromium itself says on the console that an answer was 401.
    one.page.goto(Address(one.url, TOKEN).link)
    expect(one.page.get_by_role("button", name="cancel sql-1")).to_be_visible()
    expect(one.row("sql-1")).to_contain_text("a note of bob")
    one.page.locator("#losses").scroll_into_view_if_needed()
    expect(one.page.locator("#cards .curve")).not_to_have_count(0)
    assert one.page.url == f"{one.url}/"
    assert not any(TOKEN in request for request in one.requests)


def test_a_thousand_tasks_are_searched_and_sorted_by_group(window):
    one = window(busy(1000, nodes={"a": 8, "b": 8}, now_s=20000.0, made_s=time.time() - 20000))
    last = one.source.now.jobs[-1].name
    expect(one.page.get_by_label("all 1000")).to_be_checked()
    expect(one.row(last)).to_have_count(0)
    one.page.get_by_label("Search tasks").fill(last)
    expect(one.row(last)).to_be_visible()
    one.page.get_by_label("Search tasks").fill("")
    one.page.get_by_text("running ", exact=False).and_(one.page.locator("label")).click()
    running = [job.name for job in one.source.now.jobs if job.status == "running"]
    expect(one.page.locator("#rows tr")).to_have_count(len(running))


def test_it_says_when_nobody_answers_or_orchestrates(window):
    one = window(queue([job("support-1")], made_s=time.time(), now_s=5.0))
    one.tell(queue([job("support-1")], alive=False, made_s=time.time(), now_s=6.0))
    expect(one.page.get_by_role("status").first).to_have_text("nobody orchestrates: the lease has run out")
    one.page.route("**/state.json", lambda route: route.abort())
    one.tell(one.source.now)
    expect(one.page.get_by_role("status").first).to_contain_text("no answer; shown is")
    expect(one.row("support-1")).to_be_visible()
    one.wrong.clear()  # Chromium itself says on the console that nobody answered.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_fits_and_can_be_read(window, scheme):
    look = {"color_scheme": scheme, "viewport": {"width": 360, "height": 800}}
    one = window(busy(30, made_s=time.time() - 7000), **look)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360, "the page itself scrolls sideways"
    tree = one.page.context.new_cdp_session(one.page).send("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "link", "radio", "searchbox", "textbox", "img", "columnheader", "rowheader", "group")
    nameless = [
        node
        for node in tree
        if not node["ignored"] and node["role"]["value"] in named and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    ground, ink = one.page.evaluate(
        "(() => { const look = getComputedStyle(document.body); return [look.backgroundColor, look.color]; })()"
    )
    light, dark = (ground, ink) if scheme == "light" else (ink, ground)
    assert brightness(light) > 200 and brightness(dark) < 60


def brightness(colour: str) -> float:
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3
