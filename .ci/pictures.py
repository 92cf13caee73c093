"""Draws the pictures of README and docs from a run: ``python .ci/pictures.py RUN [PAGE] [EVALUATION.html]``.

RUN is the folder of ``acq-isl demo``, PAGE the address that ``acq-isl web RUN`` prints. Needs playwright and
Debian's chromium. Look at what it drew before it is committed.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
# Of the field chosen first: light, all labels (predicted), all stains; below them what the colours are.
BESIDE = """() => {
  const field = document.querySelector("article.field"), pair = [...field.querySelectorAll(".pair figure")];
  const row = document.createElement("div"), key = document.querySelector("fieldset");
  row.style.cssText = "display:grid;grid-template-columns:repeat(3,400px);gap:12px;width:1240px;padding:8px";
  row.append(field.querySelector(".row figure.plain"), ...pair);
  const shown = pair[0].querySelector("figcaption").textContent;
  key.querySelectorAll("label").forEach(label => {
    const name = label.textContent.trim().replace(" (predicted)", "");
    label.lastChild.textContent = " " + name;
    if (!shown.includes(name)) label.remove();
  });
  key.querySelectorAll("input, legend").forEach(node => node.remove());
  const box = document.createElement("div");
  box.id = "beside"; box.style.cssText = "width:1256px;background:#fff;padding-bottom:8px";
  box.append(row, key); document.body.replaceChildren(box);
}"""


def open_page(browser: Browser, address: str, size: tuple[int, int], dark: bool = False) -> Page:
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme="dark" if dark else "light")  # type: ignore[arg-type]
    page.goto(address, timeout=120_000)
    page.wait_for_timeout(6000 if address.startswith("http") else 500)
    return page


def draw(shot: bytes, name: str) -> None:
    """In 256 colours: half of the bytes."""
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    run, *more = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        report = open_page(browser, (Path(run).resolve() / "report.html").as_uri(), (1280, 900))
        draw(report.locator(".map").first.screenshot(), "overview")
        report.evaluate(BESIDE)
        report.locator("#beside").screenshot(path=IMAGES / "demo.png")
        for address in more:
            if address.startswith("http"):
                for name, size in (("light", (1280, 1000)), ("dark", (1280, 1000)), ("phone", (390, 844))):
                    page = open_page(browser, address, size, dark=name == "dark")
                    draw(page.screenshot(), f"web-{name}")
            else:
                page = open_page(browser, Path(address).resolve().as_uri(), (900, 900))
                for name in ("table", "counts", "doubt"):
                    page.evaluate(f"document.querySelector('section[aria-labelledby={name}]')?.remove()")
                top = page.evaluate("document.querySelector('section[aria-labelledby=agreement]').offsetTop")
                part = {"x": 0, "y": top - 10, "width": 900, "height": 760}
                draw(page.screenshot(full_page=True, clip=part), "evaluation")
        browser.close()


if __name__ == "__main__":
    main()
