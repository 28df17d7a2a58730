"""A page as a browser without a window shows it: for the scripts beside this file."""

import subprocess
from pathlib import Path


def screenshot(
    browser: str, page: Path | str, picture: Path, *, width: int, height: int, virtual_s: float = 0
) -> None:
    """Write `picture`, a PNG of a page; `browser` is a Chromium.

    Args:
        page: a file or an address.
        virtual_s: time that its scripts see pass, once nothing is loading any more; 0: none.
    """
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            *([f"--virtual-time-budget={round(virtual_s * 1000)}"] if virtual_s else []),
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            page if isinstance(page, str) else page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
