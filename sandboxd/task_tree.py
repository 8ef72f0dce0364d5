"""All tasks of a trio program as text: who owns whom, and what each waits for. For a daemon that has got stuck.

Trio keeps what is needed anyway; nothing is recorded, and nothing costs before it is asked for.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import trio

from sandboxd.printable import printable

# Of the frames a task waits in, the innermost few say why; the rest is how it got there.
FRAMES = 5
# A thousand connections are three tasks each.
MOST_LINES = 10_000
# Tasks that serve a request are called after its path, which is the client's.
NAME_LIMIT = 200

_PACKAGE = Path(__file__).parent


def render_task_tree(root: trio.lowlevel.Task, *, most: int = MOST_LINES) -> str:
    """A line for each task: its name, and the innermost frames of ours it waits in, `file:line function`."""
    lines = _lines(root, "")
    shown = list(islice(lines, most))
    left = sum(1 for _ in lines)
    return "\n".join([*shown, f"… and {left} more"] if left else shown)


def _lines(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}{printable(task.name, limit=NAME_LIMIT)}: {_place(task)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda child: child.name):
            yield from _lines(child, indent + "  ")


def _place(task: trio.lowlevel.Task) -> str:
    frames = [
        f"{Path(frame.f_code.co_filename).relative_to(_PACKAGE)}:{line} {frame.f_code.co_name}"
        for frame, line in task.iter_await_frames()
        if frame.f_code.co_filename.startswith(f"{_PACKAGE}/")
    ]
    return " > ".join(frames[-FRAMES:]) or "runs, or waits in a library"
