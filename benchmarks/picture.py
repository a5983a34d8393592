"""Makes a picture of a report's top: `python benchmarks/picture.py REPORT/report.html docs/images/report.png [--dark]`.

Why: the README shows a real report, and anybody can make the picture again. Needs Chromium (or Chrome), nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1280, 1150
SIZE_LIMIT_BYTES = 300_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    parser.add_argument("--height", type=int, default=HEIGHT, help="pixels from the top")
    options = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    if not options.page.is_file():
        sys.exit(f"{options.page} does not exist: make a report with hyperlapse bench --report DIR")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={WIDTH},{options.height}", "--virtual-time-budget=20000",
            f"--screenshot={options.picture.absolute()}",
        ]  # fmt: skip
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
        if options.dark:
            command.append("--blink-settings=preferredColorScheme=0")
        subprocess.run([*command, options.page.absolute().as_uri()], check=True, capture_output=True, timeout=300)
    size = options.picture.stat().st_size
    print(f"{options.picture}: {size:,} bytes")
    if size > SIZE_LIMIT_BYTES:
        sys.exit(f"a picture in the project is smaller than {SIZE_LIMIT_BYTES:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
