"""The README's picture of the page. `python -m tests.bench.screenshot deploy/page.png`

Rule: the real page in a real browser, over the real scheduler on two devices in virtual time, so
that the picture does not depend on the machine; 64 colours keep it small.
"""

import asyncio
import io
import sys
import tempfile
from pathlib import Path

import orjson
from PIL import Image

from tests.integration.browser import running_browser
from tests.integration.test_page import SHOWN, page
from tests.unit.proxy.panorama import MS, Panorama
from tritonsched.core.reservation import Reservation
from tritonsched.core.tuning import Tuning

MODELS = ("detect", "classify", "embed", "rank", "ocr", "pose", "depth", "caption")
CLASSES = ("interactive", "camera", "bulk")
RATES = (200, 300, 480, 250)
SECONDS = 60


def frame() -> bytes:
    """A minute with a rush, a stream, and a growing reply time."""
    made = Panorama([*MODELS], [*CLASSES], devices=2)
    changes = []
    for second in range(SECONDS):
        if second % 15 == 10:
            before = made.scheduler.tuning.reply_ns
            made.scheduler.retune(Tuning(reply_ns=before + 150_000), made.now)
            after = made.scheduler.tuning.reply_ns // 1000
            words = f"reply {before // 1000}→{after} µs: replies are written {after} µs late at p95"
            changes.append(words)
        made.seconds(1, per_s=RATES[second // 15 % len(RATES)])
    start_ns = made.now + 1000 * MS
    stream = Reservation(1, "detect", 100 * MS, 60 * MS, 3000, start_ns=start_ns, tenant="gate 4")
    made.scheduler.reserve(stream, made.now)
    made.scheduler.decide(made.now)
    proposal = made.scheduler.proposal(made.now)
    assert proposal is not None
    made.scheduler.judge(proposal.run(), made.now)
    made.scheduler.decide(made.now)
    return orjson.dumps(made.frame(changes=changes))


async def taken() -> bytes:
    shown = frame()
    with tempfile.TemporaryDirectory() as folder:
        async with running_browser(Path(folder)) as browser, page(browser, shown) as tab:
            await tab.until(SHOWN)
            await tab.until("document.querySelectorAll('#reservations tbody tr').length > 0")
            return await tab.screenshot()


def main() -> None:
    picture = Image.open(io.BytesIO(asyncio.run(taken()))).convert("RGB").quantize(64)
    picture.save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
