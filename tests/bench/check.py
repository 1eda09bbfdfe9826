"""How long `tritonsched check` takes to say no to hostile text, and yes to a sample policy.

    python -m tests.bench.check

Prints milliseconds, the best of some tries; tests bound the tokens that are looked at.
"""

import contextlib
import sys
import time
from pathlib import Path

from tests.unit.config.test_faults import HOSTILE
from tritonsched.config.faults import PolicyFaults
from tritonsched.config.load import parse_policy

POLICIES = Path(__file__).parents[2] / "deploy" / "policies"
TRIES = 5


def best_ms(text: str) -> float:
    """Parse and judge; a refusal is an answer."""
    found = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        with contextlib.suppress(PolicyFaults):
            parse_policy(text)
        found.append(1e3 * (time.perf_counter() - begin))
    return min(found)


def main() -> None:
    texts = {name: text for name, (text, _, _) in HOSTILE.items()}
    texts["a duplicate key"] = "classes: {a: {}}\n" * 2
    texts |= {path.name: path.read_text() for path in sorted(POLICIES.glob("*.yaml"))}
    for name, text in texts.items():
        sys.stdout.write(f"{best_ms(text):8.2f} ms  {len(text):7} bytes  {name}\n")


if __name__ == "__main__":
    main()
