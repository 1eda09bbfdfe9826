"""What a scheduling rule needs before it can choose. Rule: said once, at the start.

The look-ahead is compiled, which takes seconds where nothing is kept of an earlier time; so it is
done before anybody waits for an answer.
"""

from collections.abc import Callable

from tritonsched.core.policies.kernels import compiled, obstacle
from tritonsched.core.policies.lookahead import Lookahead


def prepare(rule: str, say: Callable[[str], None]) -> None:
    """Compile what compiles; say what cannot be, and what follows."""
    if rule != Lookahead.name:
        return
    if compiled() is None:
        say(f"rule '{rule}' chooses as 'lite': {obstacle()}")
