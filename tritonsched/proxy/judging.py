"""Proposals run here, beside the decision loop. Rule: whatever happens, there is a verdict.

A proposal is pure Python and may take a tenth of a second; in a thread it gives way to the loop
every few milliseconds (`sys.getswitchinterval`).
"""

import asyncio

import structlog

from tritonsched.core.proposal import Proposal, Verdict

_log = structlog.get_logger()


async def judged(proposal: Proposal) -> Verdict:
    """The proposal's answer; a refusal if answering it broke."""
    try:
        return await asyncio.to_thread(proposal.run)
    except Exception as error:
        _log.error("internal error", exc_info=error)
        return Verdict(proposal)
