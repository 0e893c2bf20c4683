"""Draw the card of a published folder with a headless Chromium, light next to dark.

python tests/helpers/render_card.py RUN/published --out card.png [--width 760]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import markdown
from PIL import Image, ImageChops


STYLE = """
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; } main { padding: 24px; max-width: %dpx; }
table { border-collapse: collapse; margin: 12px 0; font-size: 13px; display: block; overflow-x: auto; }
td, th { border: 1px solid #8886; padding: 3px 8px; } pre { padding: 10px; overflow-x: auto; border: 1px solid #8886; }
code { font-size: 12px; } img { max-width: 100%%; } blockquote { border-left: 3px solid #8888; padding-left: 12px; }
.light { background: #fff; color: #1f2328; } .dark { background: #0d1117; color: #e6edf3; } .dark a { color: #4493f8; }
"""


def render(folder: Path, theme: str, width: int, browser: str) -> Image.Image:
    """Draw the card of a folder; its pictures are read from the folder."""
    text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    body = markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])
    page = f"<!doctype html><meta charset=utf-8><base href='{folder.resolve().as_uri()}/'>"
    page += f"<style>{STYLE % width}</style><body class={theme}><main>{body}</main>"
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "card.html").write_text(page, encoding="utf-8")
        shot = Path(work) / "card.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
        flags += [f"--user-data-dir={work}/profile", f"--window-size={width + 48},9000", f"--screenshot={shot}"]
        command = [browser, *flags, (Path(work) / "card.html").as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(shot).convert("RGB")
    blank = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    return image.crop((0, 0, image.width, ImageChops.difference(image, blank).getbbox()[3] + 24))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=760)
    given = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit(f"No picture of the card: Chromium is not installed. Its text is {given.folder}/README.md.")
    images = [render(given.folder, theme, given.width, browser) for theme in ("light", "dark")]
    both = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    for n, image in enumerate(images):
        both.paste(image, (n * image.width, 0))
    both.save(given.out, optimize=True)
    print(f"Written: {given.out}")


if __name__ == "__main__":
    main()
