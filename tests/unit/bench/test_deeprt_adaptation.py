"""DeepRT's adaptation in shape, on a small set: it saves misses where everything is served."""

import pytest

from tests.bench import deeprt_adaptation
from tests.bench.deeprt_adaptation import Setup, cameras, missed, table


def test_adaptation_saves_misses_and_refusing_leaves_it_little_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deeprt_adaptation, "FRAMES", 25)
    monkeypatch.setattr(deeprt_adaptation, "FIRST_JOB", 6)
    streams = cameras(1)
    assert len(streams) == deeprt_adaptation.STREAMS
    plain, adapted, refusing = (
        missed(Setup(1, 200, adapts=adapts, refuses=refuses), streams)
        for adapts, refuses in ((False, False), (True, False), (True, True))
    )
    assert 0 < refusing <= adapted < 0.8 * plain


def test_without_an_overrun_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeprt_adaptation, "FRAMES", 10)
    monkeypatch.setattr(deeprt_adaptation, "STREAMS", 20)
    assert missed(Setup(1, 0, adapts=True), cameras(1)) == 0


def test_the_table_stands_beside_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeprt_adaptation, "FRAMES", 4)
    monkeypatch.setattr(deeprt_adaptation, "STREAMS", 4)
    lines = table(1)
    assert {len(line) for line in lines} == {6}
    assert lines[1][-1] == "5 / 14 / 42 / 92"
