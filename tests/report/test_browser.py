"""The pages in a real browser: no console message, nothing wider than the window, both colour schemes.

The tests append a script to a copy of the page; the copy reports what it measures as attributes of its body, which
`--dump-dom` prints. A window cannot be as narrow as a phone, so a phone is a frame of 390 px.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import curation_of, report_of
from tests.report.fabricate import Run

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: install Debian's package chromium"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
)
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"
DESKTOP_PX, PHONE_PX = 1280, 390
MEASURE = """<script>
addEventListener("error", event => { document.body.dataset.error = event.message || "a resource failed to load"; }, true);
addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  const root = document.documentElement, wide = [];
  for (const one of document.querySelectorAll("body *")) {
    if (one.closest(".scroll, pre, svg")) continue;
    if (one.getBoundingClientRect().right > root.clientWidth + 1) wide.push(one.tagName + "." + one.className);
  }
  const small = [...document.querySelectorAll("p, li, td, th, span, small")].filter(
    one => one.textContent.trim() && parseFloat(getComputedStyle(one).fontSize) < 10.5);
  const broken = [...document.images].filter(one => !one.complete || !one.naturalWidth);
  const fetched = performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:"));
  const measured = { width: root.clientWidth, scroll: root.scrollWidth, wide: wide.slice(0, 5), small: small.length,
    images: document.images.length, broken: broken.length, requests: fetched.length,
    ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor };
  (parent === self ? document : parent.document).body.dataset.measured = JSON.stringify(measured);
});
</script>"""


def opened(page: str, width_px: int, scheme: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Open a copy of the page and return what it measures of itself, and what the browser logs of its console."""
    copy = page.replace("</body>", f"{MEASURE}</body>")
    assert copy != page
    if width_px < 500:
        frame = f'<iframe style="border:0;width:{width_px}px;height:900px" srcdoc="{html.escape(copy)}"></iframe>'
        head = '<meta charset="utf-8"><meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        copy = f"<!doctype html>{head}<body>{frame}</body>"
    path = folder / f"{width_px}.html"
    path.write_text(copy, encoding="utf-8")
    command = [
        str(CHROMIUM),
        *FLAGS,
        scheme,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width_px, 500)},900",
    ]
    done = subprocess.run(
        [*command, "--hide-scrollbars", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    found = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    assert 'data-error="' not in done.stdout
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found.group(1))), console


def brightness(colour: str) -> float:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


@pytest.mark.parametrize(
    ("width_px", "scheme"), [(DESKTOP_PX, LIGHT), (DESKTOP_PX, DARK), (PHONE_PX, LIGHT), (PHONE_PX, DARK)]
)
def test_the_report_fits_and_says_nothing_on_the_console(page: str, tmp_path: Path, width_px: int, scheme: str) -> None:
    measured, console = opened(page, width_px, scheme, tmp_path)
    assert measured["width"] == width_px
    assert measured["scroll"] <= width_px, measured["wide"]
    assert measured["wide"] == []
    assert console == ""
    assert measured["images"] > 60
    assert measured["broken"] == measured["small"] == measured["requests"] == 0
    assert (brightness(measured["paper"]) < 60) is (scheme == DARK)
    assert abs(brightness(measured["paper"]) - brightness(measured["ink"])) > 150


@pytest.mark.parametrize("width_px", [DESKTOP_PX, PHONE_PX])
def test_the_curation_page_fits(run: Run, tmp_path: Path, width_px: int) -> None:
    measured, console = opened(curation_of(run), width_px, LIGHT, tmp_path)
    assert (measured["scroll"], measured["wide"], console) == (width_px, [], "")
    assert measured["images"] > 40


def test_a_subject_of_long_names_fits_a_phone(run: Run, tmp_path: Path) -> None:
    long = "a" * 60
    page = report_of(run).replace(">main<", f">{long}<").replace(">robin<", f">{long}<").replace("close portrait", long)
    measured, console = opened(page, PHONE_PX, LIGHT, tmp_path)
    assert (measured["scroll"], measured["wide"], console) == (PHONE_PX, [], "")


def test_what_is_too_wide_or_breaks_is_noticed(page: str, tmp_path: Path) -> None:
    """The measure itself can fail: a wide element, a console message and a broken picture are all reported."""
    wide = page.replace(
        "<main>",
        '<main><p style="width:2000px" class="planted">x</p><img src="data:image/png,x"><script>console.error("boom")</script>',
    )
    found = wide.replace("</body>", f"{MEASURE}</body>")
    path = tmp_path / "wide.html"
    path.write_text(found.replace("data-error", ""), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1280,900",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    measured = json.loads(html.unescape(re.findall(r'data-measured="([^"]*)"', done.stdout)[0]))
    assert measured["scroll"] >= 2000
    assert "P.planted" in measured["wide"]
    assert measured["broken"] == 1
    assert '"boom"' in done.stderr
    assert "CONSOLE" in done.stderr


def test_the_printed_picture_of_the_page_is_no_blank(page: str, tmp_path: Path) -> None:
    from PIL import Image

    path, shot = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page, encoding="utf-8")
    command = [
        str(CHROMIUM),
        *FLAGS,
        LIGHT,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1280,1200",
        f"--screenshot={shot}",
        path.as_uri(),
    ]
    subprocess.run(command, capture_output=True, timeout=180, check=True)
    image = Image.open(shot).convert("RGB")
    assert image.size == (1280, 1200)
    assert len(image.getcolors(1280 * 1200) or []) > 100
