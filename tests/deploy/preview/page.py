"""A page that draws a dashboard, and its picture."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.deploy.preview.panels import Span, ask, panels
from tests.deploy.preview.server import Prometheus

HERE = Path(__file__).parent
WIDTH_PX = 1600


def write_page(path: Path, board: dict[str, Any], prometheus: Prometheus, span: Span) -> Path:
    """The dashboard's JSON and the answers to its queries, with the script that draws them."""
    data = {
        panel["id"]: [curve for target in panel["targets"] for curve in ask(prometheus, target, span)]
        for panel in panels(board)
    }
    content = {"board": board, "data": data, "start": span.start, "end": span.end, "instance": span.instance}
    # Inside a script element only this could end it.
    text = json.dumps(content, ensure_ascii=False).replace("</", "<\\/")
    path.write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{board['title']}</title><style>{(HERE / 'preview.css').read_text()}</style>"
        f"<body><script id='content' type='application/json'>{text}</script>"
        f"<script>{(HERE / 'preview.js').read_text()}</script></body></html>",
        encoding="utf-8",
    )
    return path


def look(page: Path, picture: Path | None = None) -> list[dict[str, Any]]:
    """Open the page in a browser: each panel's id, type, state (drawn or empty), marks and text.

    ``marks`` counts the finite values that were drawn. AssertionError where the script fails.
    """
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            tab = browser.new_page(viewport={"width": WIDTH_PX, "height": 900})
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.goto(page.as_uri())
            tab.wait_for_selector("body[data-done]", timeout=20_000)
            found: list[dict[str, Any]] = tab.eval_on_selector_all(
                ".panel",
                "all => all.map(p => ({id: +p.dataset.id, type: p.dataset.type, state: p.dataset.state,"
                " marks: +p.dataset.marks, text: p.innerText, box: p.getBoundingClientRect().toJSON()}))",
            )
            if picture is not None:
                tab.screenshot(path=picture, full_page=True)
        finally:
            browser.close()
    assert problems == [], problems
    return found
