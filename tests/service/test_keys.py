"""API keys: shown once, kept as hashes, refused when wrong."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.model import Scope
from sandboxd.service.access.keys import USE_NOTED_EVERY, Keys
from sandboxd.store import Store, open_store

READ = frozenset({Scope.READ})


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "state.db") as opened:
        yield opened


async def test_a_new_key_opens_and_only_it(store: Store) -> None:
    keys = Keys(store)
    one, two = await keys.create("one", READ), await keys.create("two", READ)
    assert one.secret != two.secret
    assert keys.find(one.secret) == one.key
    for wrong in ("", one.secret[:-1], one.secret + "x", one.secret.lower(), one.key.id, "\udcff"):
        assert keys.find(wrong) is None


async def test_keys_are_known_to_the_next_daemon_by_their_hash_alone(store: Store) -> None:
    made = await Keys(store).create("one", READ)
    next_one = Keys(store)
    assert next_one.find(made.secret) is None
    await next_one.load()
    assert next_one.find(made.secret) == made.key
    assert made.secret not in str(await store.keys())


async def test_a_revoked_key_is_gone_at_once_and_for_good(store: Store) -> None:
    keys = Keys(store)
    made = await keys.create("one", READ)
    await keys.revoke(made.key.id)
    assert keys.find(made.secret) is None
    await keys.load()
    assert keys.find(made.secret) is None
    with pytest.raises(NotFound):
        await keys.revoke(made.key.id)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\0b", "<b>", "tab\t"])
async def test_a_wrong_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await Keys(store).create(name, READ)


async def test_a_key_without_a_scope_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        await Keys(store).create("one", frozenset())


async def test_uses_are_noted_now_and_then(store: Store, mock_clock: MockClock, nursery: trio.Nursery) -> None:
    keys = Keys(store)
    made = await keys.create("one", READ)
    nursery.start_soon(keys.note_uses)
    keys.find(made.secret)
    await wait_all_tasks_blocked()
    assert (await store.keys())[0][0].last_used_at is None
    mock_clock.jump(USE_NOTED_EVERY + 1)
    while (await store.keys())[0][0].last_used_at is None:
        await wait_all_tasks_blocked()
    nursery.cancel_scope.cancel("it was noted")
