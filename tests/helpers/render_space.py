"""Draw the page that inspects a model folder with a headless Chromium, light next to dark.

python tests/helpers/render_space.py DIR --out hub_card/space/screenshot.png [--name user/name] [--height 1830]
"""

import argparse
import io
import sys
from pathlib import Path

from browser import Browser, find_chromium
from PIL import Image
from places import REPO


sys.path.insert(0, str(REPO / "hub_card" / "space"))
READY = "document.querySelectorAll('#near b').length > 0"
WRITTEN = "document.querySelector('#written textarea')"
# Text was generated and has not changed for 1.5 seconds.
DONE = (
    f"new Promise(then => {{ let before = {WRITTEN}.value;"
    f" setTimeout(() => then(before && before == {WRITTEN}.value), 1500) }})"
)


def render(browser: Browser, url: str, theme: str, width: int, height: int) -> Image.Image:
    """Return a screenshot of the page after it has generated text."""
    browser.open(url, width, height, theme)
    browser.until(READY, 60)
    if browser.value(f"!!{WRITTEN}"):
        browser.click("document.querySelector('#start')")
        browser.until(DONE, 60)
    browser.value("scrollTo(0, 0)")
    return Image.open(io.BytesIO(browser.picture())).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name")
    parser.add_argument("--width", type=int, default=900)
    parser.add_argument("--height", type=int, default=1830)
    given = parser.parse_args()
    binary = find_chromium()
    if binary is None:
        sys.exit("No picture of the page: Chromium is not installed.")
    import app

    blocks = app.build(app.inspection.open_subject(given.folder), given.name or given.folder.name)
    url, browser = app.launch(blocks, prevent_thread_lock=True, quiet=True), Browser(binary)
    try:
        images = [render(browser, url, theme, given.width, given.height) for theme in ("light", "dark")]
    finally:
        browser.close()
        blocks.close(verbose=False)
    both = Image.new("RGB", (2 * given.width, given.height))
    for n, image in enumerate(images):
        both.paste(image, (n * given.width, 0))
    both.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(given.out, optimize=True)
    print(f"Written: {given.out}")


if __name__ == "__main__":
    main()
