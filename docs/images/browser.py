"""A page as a browser without a window shows it: for the scripts beside this file."""

import subprocess
from pathlib import Path


def screenshot(browser: str, page: Path, picture: Path, *, width: int, height: int) -> None:
    """Write `picture`, a PNG of the file `page`; `browser` is a Chromium."""
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
