"""DNS for one sandbox: the policy before any query leaves, and what an answer may tell."""

import trio

from sandboxd.gateway import dns_messages as messages
from sandboxd.gateway.addresses import GATEWAY4, HOST4, HOST6, HOST_NAME, Address
from sandboxd.gateway.policy import Mode
from sandboxd.gateway.resolver import Resolver
from sandboxd.gateway.sandbox import Sandbox


def note_flood(sandbox: Sandbox) -> None:
    sandbox.note("limit", reason="more DNS queries than are answered in a second, or at once", protocol="dns")


async def answer(sandbox: Sandbox, resolver: Resolver, wire: bytes, limit: int) -> bytes | None:
    """The answer to a query; None for what is none, and for a query too many."""
    if not sandbox.queries.take(1, trio.current_time()):
        note_flood(sandbox)
        return None
    question = messages.read_question(wire)
    if not isinstance(question, messages.Question):
        return question
    sandbox.counters.queries += 1
    decision = sandbox.judge.may_resolve(question.name)
    if not decision.allowed:
        sandbox.counters.denied += 1
        sandbox.note("denied", name=question.name, protocol="dns", rule=decision.rule, reason=decision.reason)
        if sandbox.judge.policy.mode is Mode.NONE:
            return messages.no_such_name(question, decision.reason, limit)
        sandbox.pin(GATEWAY4, question.name)
        return messages.denied(question, decision.reason, limit)
    if question.name == HOST_NAME:
        return messages.fixed(question, HOST6 if question.kind == messages.AAAA else HOST4, limit)
    if question.kind not in messages.PASSED:
        return messages.empty(question, limit)
    found = await resolver.query(question.name, question.kind)
    if found is None:
        sandbox.counters.failed += 1
        sandbox.note("failed", name=question.name, protocol="dns", reason="no DNS server answers")
        return messages.failed(question, limit)
    dropped: list[Address] = []

    def keep(address: Address) -> bool:
        allowed = sandbox.judge.may_resolve_to(address).allowed
        if not allowed:
            dropped.append(address)
        return allowed

    reply, kept = messages.answered(question, found, limit, keep=keep)
    for address in kept:
        sandbox.pin(address, question.name)
    if dropped:
        sandbox.counters.denied += 1
        reason = sandbox.judge.may_resolve_to(dropped[0]).reason
        sandbox.note("denied", name=question.name, protocol="dns", address=str(dropped[0]), reason=reason)
    return reply
