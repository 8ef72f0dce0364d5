"""The manual: one Markdown page for each topic, beside this file and part of the package.

The daemon serves it at /docs, `sandboxctl help` shows it, and the tests run its examples.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# In the order in which they are listed, by section.
SECTIONS = {
    "First steps": ("getting-started", "troubleshooting"),
    "Sandboxes": ("sandboxes", "snapshots", "ports", "images"),
    "Inside a sandbox": ("commands", "terminals", "files", "watches", "code"),
    "The daemon": ("daemon", "access", "observing", "security", "performance"),
    "Programming": ("api", "sdk", "clients"),
}
TOPICS = tuple(name for names in SECTIONS.values() for name in names)


@dataclass(frozen=True, slots=True)
class Page:
    """One topic of the manual."""

    name: str
    """what `sandboxctl help` and the page's address call it, e.g. "files" """
    text: str
    """Markdown, from its title on"""

    @property
    def title(self) -> str:
        """The text of the page's first heading."""
        return self.text.partition("\n")[0].removeprefix("# ")

    @property
    def summary(self) -> str:
        """The first paragraph, as one line."""
        return " ".join(self.text.split("\n\n", 2)[1].split())


@cache
def page(name: str) -> Page:
    """The page of a topic. Raises: KeyError for a topic that there is not."""
    if name not in TOPICS:
        raise KeyError(name)
    return Page(name, (resources.files(__name__) / f"{name}.md").read_text("utf-8"))


def near(name: str) -> list[str]:
    """The topics that a mistyped name may mean, the likeliest first: those spelt alike, and those that mention it."""
    alike = difflib.get_close_matches(name.lower(), TOPICS, cutoff=0.55)
    mentioned = [topic for topic in TOPICS if re.search(rf"\b{re.escape(name.lower())}", _headings(topic))]
    return list(dict.fromkeys([*alike, *mentioned]))[:4]


def anchor(heading: str) -> str:
    """What a link to a heading calls it, e.g. "to-its-end": the same here and where GitHub shows the page."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _headings(topic: str) -> str:
    return " ".join(re.findall(r"^#+ (.*)", page(topic).text, re.MULTILINE)).lower()
