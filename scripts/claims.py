"""List each number of the README and of the docs with the command behind it.

Usage: python scripts/claims.py [--missing]

`scripts/claims.toml` says which text of which page comes from which command, or why it is no
measurement. Numbers in code, in addresses and in the numbers of a list are no claims. A claim
without a text is of a whole page, or of the `numbers` of that page which it names. Where the runs
are kept in `docs/benchmarks`, the ratios of mean makespans are computed from them anew and compared
with the text. Leaves with 1 if a number has no claim, if a text is gone from its page, or if a
ratio is another. With --missing only what is wrong is printed.
"""

import gzip
import json
import re
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.,-])\d(?:[\d,.]*\d)?(?!\w)")
LAW = "working_set"


@dataclass(frozen=True)
class Claim:
    """A text of a page, and where its numbers come from."""

    page: str
    says: str = ""
    """The text, or its beginning; "": the whole page."""
    until: str = ""
    """Its end; "": the whole text is in `says`."""
    command: str = ""
    """What makes the numbers."""
    source: str = ""
    """Who measured them, if it was not this project."""
    because: str = ""
    """Why they are no measurement: a version, a name, a default."""
    numbers: tuple[str, ...] = ()
    """Of a claim of a whole page: the only numbers that it is about; (): all."""
    results: str = ""
    """File of runs from which `ratios` are computed."""
    ratios: tuple[tuple[str, str], ...] = ()
    """(number in the text, arm): the mean makespan of the arm over that of the law."""

    @property
    def origin(self):
        """Where the numbers come from, in one line."""
        return self.command or self.source or self.because


def read_claims():
    """All pages, and all claims."""
    with (ROOT / "scripts/claims.toml").open("rb") as file:
        found = tomllib.load(file)
    claims = []
    for entry in found["claim"]:
        entry["ratios"] = tuple(entry.get("ratios", {}).items())
        entry["numbers"] = tuple(entry.get("numbers", ()))
        claims.append(Claim(**entry))
    docs = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return ["README.md", *docs], claims


def prose_of(path):
    """A page in one line, with everything that holds no claim blanked out."""
    text = path.read_text("utf-8")
    for pattern in (r"(?ms)^```.*?^```", r"`[^`]*`", r"\]\([^)]*\)", r"(?m)^\d+\. ", r"\[\w+\]:.*"):
        text = re.sub(pattern, lambda found: re.sub(r"\d", " ", found.group()), text)
    return " ".join(text.split())


def span_of(claim, text):
    """Where a claim stands in the prose of its page; None: it is not there."""
    says = " ".join(claim.says.split())
    start = text.find(says)
    if start < 0:
        return None
    end = start + len(says)
    if claim.until:
        last = text.find(" ".join(claim.until.split()), end)
        if last < 0:
            return None
        end = last + len(claim.until)
    return start, end


def ratios_of(claim):
    """Arm -> its mean makespan over that of the law, from the runs that are kept."""
    with gzip.open(ROOT / claim.results, "rt", encoding="utf-8") as file:
        rounds = json.load(file)["rounds"]
    spans = defaultdict(list)
    for run in rounds:
        if run["outcome"] == "finished":
            spans[run["arm"]].append(run["span_s"])
    means = {arm: sum(each) / len(each) for arm, each in spans.items()}
    return {arm: mean / means[LAW] for arm, mean in means.items()}


def check():
    """Rows (page, text, origin) for every claim, and what is wrong, as sentences."""
    pages, claims = read_claims()
    rows, wrong = [], []
    for page in pages:
        text = prose_of(ROOT / page)
        spans = []
        whole = [claim for claim in claims if claim.page == page and not claim.says]
        for claim in whole:
            rows.append((page, ", ".join(claim.numbers) or "all others", claim.origin))
            there = NUMBER.findall(text)
            gone = [number for number in claim.numbers if number not in there]
            wrong += [f"{page}: the number {number} is gone" for number in gone]
        for claim in (claim for claim in claims if claim.page == page and claim.says):
            span = span_of(claim, text)
            if span is None:
                wrong.append(f"{page}: the text is gone: {claim.says[:60]!r}")
                continue
            spans.append(span)
            numbers = NUMBER.findall(text[slice(*span)])
            rows.append((page, ", ".join(numbers), claim.origin))
            if not numbers:
                wrong.append(f"{page}: no number in {claim.says[:60]!r}")
        for found in NUMBER.finditer(text):
            known = any(not claim.numbers or found.group() in claim.numbers for claim in whole)
            if not known and not any(start <= found.start() < end for start, end in spans):
                around = text[max(0, found.start() - 40) : found.end() + 30]
                wrong.append(f"{page}: {found.group()} has no command: ...{around}...")
    for claim in claims:
        if sum(map(bool, (claim.command, claim.source, claim.because))) != 1:
            wrong.append(f"{claim.page}: say one of command, source, because: {claim.says[:60]!r}")
        if claim.page not in pages:
            wrong.append(f"{claim.page} is none of the pages")
        for number, arm in claim.ratios:
            ratio = ratios_of(claim)[arm]
            if f"{ratio:.2f}" != number:
                wrong.append(f"{claim.page}: {number} is {ratio:.4f} in {claim.results} ({arm})")
            if number not in claim.says + claim.until:
                wrong.append(f"{claim.page}: {number} is not in the text {claim.says[:60]!r}")
    return rows, wrong


def main():
    """Print the list; leave with 1 if anything is wrong."""
    rows, wrong = check()
    if "--missing" not in sys.argv[1:]:
        for page, numbers, origin in rows:
            print(f"{page}: {numbers}\n    {origin}")
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
