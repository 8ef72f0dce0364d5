"""Which documents there are."""

from tests.support.daemon import CHECKOUT

MANUAL = sorted((CHECKOUT / "sandboxd/manual").glob("*.md"))
EXAMPLES = [CHECKOUT / "README.md", *MANUAL]
"""their examples are run"""
DOCUMENTS = [*EXAMPLES, CHECKOUT / "sandboxd/README.md", CHECKOUT / "tests/README.md"]
