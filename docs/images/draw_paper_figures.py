"""Draw the pictures of docs/paper_results.rst: the tops of pages of `python -m benchmarks.paper`.

Run: python docs/images/draw_paper_figures.py runs/paper_stand_in
Requires Chromium, and the pages figure4/figure.html, ... that
`python -m benchmarks.paper all --stand-in --out DIR` wrote to DIR.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

WIDTH = 900
# Enough of each page to show its content. No query had Figure 6's outcomes.
HEIGHTS = {4: 765, 5: 1450, 7: 1100, 8: 890}
COLOURS = 192  # with 64, clothes change colour


def draw(browser: str, page: Path, height: int) -> Image.Image:
    """Return the upper part of a page."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}"]
        options += [f"--window-size={WIDTH},{height}", page.resolve().as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True)
        with Image.open(shot) as picture:
            return picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", type=Path, help="folder of the pages")
    folder = parser.parse_args().pages
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        parser.error("neither chromium nor google-chrome is on PATH")
    for number, height in HEIGHTS.items():
        if (page := folder / f"figure{number}" / "figure.html").exists():
            target = Path(__file__).with_name(f"paper-figure{number}.png")
            draw(browser, page, height).save(target, optimize=True)
            print(target)


if __name__ == "__main__":
    main()
