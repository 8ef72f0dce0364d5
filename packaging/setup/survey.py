"""Counts what a source tree is made of, and says so directory by directory. Runs inside the sandbox of `make run`."""

import ast
import os
import sys
from collections import Counter

KINDS = {".py": "Python", ".c": "C", ".h": "C", ".toml": "TOML", ".json": "JSON", ".md": "Markdown", ".sh": "Shell"}


def functions(source: str) -> list[int]:
    """The length in lines of every function."""
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in found]


def main(root: str) -> None:
    lines: Counter[str] = Counter()
    lengths: list[int] = []
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in ("__pycache__", "build", ".git"))
        here: Counter[str] = Counter()
        for name in files:
            kind = KINDS.get(os.path.splitext(name)[1])
            if kind is None:
                continue
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
                source = file.read()
            here[kind] += source.count("\n")
            if kind == "Python":
                lengths += functions(source)
        if here:
            told = ", ".join(f"{count} lines of {kind}" for kind, count in here.most_common())
            print(f"{os.path.relpath(directory, root):<28} {told}", flush=True)
        lines.update(here)
    lengths.sort()
    print(f"{'in all':<28} {', '.join(f'{count} of {kind}' for kind, count in lines.most_common())}")
    print(f"{len(lengths)} functions, half of them at most {lengths[len(lengths) // 2]} lines long")


main(sys.argv[1])
