"""The tree of tasks as text."""

import trio
import trio.testing

from sandboxd.task_tree import render_task_tree


async def wait_for_ever() -> None:
    await trio.sleep_forever()


async def test_children_are_below_their_parents_and_the_rest_is_counted() -> None:
    me = trio.lowlevel.current_task()
    async with trio.open_nursery() as nursery:
        for name in ("second", "first"):
            nursery.start_soon(wait_for_ever, name=name)
        await trio.testing.wait_all_tasks_blocked()
        parent, *children = render_task_tree(me).splitlines()
        assert parent.startswith(me.name)
        assert [line.split(":")[0] for line in children] == ["  first", "  second"]
        assert render_task_tree(me, most=2).splitlines()[1:] == [children[0], "… and 1 more"]
        nursery.cancel_scope.cancel()
