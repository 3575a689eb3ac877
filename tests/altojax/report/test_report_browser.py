"""A report in a real Chromium: it is seen whole at the width of a small screen, and lines say what they are."""

import pytest
import runs

from altojax.report.write_report import write_report

VALUES = {
    "lora_alpha": [16.0, 32.0, 64.0, 8.0],
    "lora_dropout": [0.0, 0.05, 0.1],
    "lr_scheduler_type": ["cosine", "linear", "warmup_stable_decay"],
    "warmup_ratio": [0.03, 0.1],
    "weight_decay": [0.01, 0.1],
    "target_modules": ["all-linear", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"], r".*\.(mlp|self_attn)\..*"],
}
"""What varies beside rank, learning rate and batch size."""


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A report of trials that differ in nine hyper-parameters."""
    few = runs.facts

    def facts(task, i, trials):
        told = few(task, i, trials)
        told["config"] |= {name: values[(i // 2) % len(values)] for name, values in VALUES.items()}
        return told

    monkeypatch.setattr(runs, "facts", facts)
    write_report(runs.write_run(tmp_path / "run", tasks=("reviews",), trials=12))
    return tmp_path / "run" / "report.html"


def test_nine_hyper_parameters_fit_a_page_of_1280_pixels_and_lines_are_named(chromium, report):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"file://{report}")
    heads = page.locator("table[data-sortable] th").all_inner_texts()
    assert len(heads) == 6 + 9 and "".join(heads[-1].split()).startswith("batchsize")
    boxes = page.locator(".scroll, .plot, html")
    assert not boxes.evaluate_all("(all) => all.filter((box) => box.scrollWidth > box.clientWidth).length")
    texts = page.locator("figure svg text")
    lowest = texts.evaluate_all("(all) => Math.min(...all.map((text) => text.getBoundingClientRect().height))")
    assert lowest > 9, "text of a figure is made too small to be read"
    curve = page.locator("figure").first.locator("g.named").filter(has_text="trial-03: diverging")
    path = curve.locator("path")
    assert path.evaluate("(line) => getComputedStyle(line).strokeOpacity") == "0"
    curve.evaluate("""(group) => {
        const line = group.querySelector("path"), at = line.getPointAtLength(line.getTotalLength());
        const seen = new DOMPoint(at.x, at.y).matrixTransform(line.getScreenCTM());
        window.scrollBy({ top: seen.y - 300, behavior: "instant" });
    }""")
    end = path.evaluate("""(line) => {
        const at = line.getPointAtLength(line.getTotalLength());
        const seen = new DOMPoint(at.x, at.y).matrixTransform(line.getScreenCTM());
        return [seen.x, seen.y];
    }""")
    page.mouse.move(*end)
    assert path.evaluate("(line) => getComputedStyle(line).strokeOpacity") == "0.35", "the line is not met by the mouse"
    page.close()
