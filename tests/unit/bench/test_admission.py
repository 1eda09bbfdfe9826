"""The benches of guaranteed streams print what they say, and hold on a small share."""

from dataclasses import replace

import pytest

from tests.bench import admission, streams
from tests.bench.admission import Family, admitted, deeprt, load, planned, proposals, served

NAMES = ("resnet152", "vgg16", "inceptionv3", "densenet121")
STEEP = admission.families()["trt"].times
SMALL = Family({name: STEEP[name] for name in NAMES}, (4, 12), 24)


def test_more_is_admitted_than_by_windows_of_half_the_deadline_and_none_of_it_misses() -> None:
    asked = proposals(SMALL, 1)
    ours = admitted(asked, planned(SMALL))
    theirs = admitted(asked, deeprt(SMALL, use_utilisation=True))
    assert 0 < len(theirs) < len(ours)
    assert load(SMALL, ours) > load(SMALL, theirs)
    for early in (False, True):
        result = served(SMALL, ours, 1, early=early)
        assert (result.refused, result.missed) == (0, 0)
        assert result.frames == sum(stream.frames for stream in ours)


def test_a_published_table_is_read_as_a_profile_reads_it() -> None:
    for family in admission.families().values():
        for times in family.times.values():
            costs = [times(rows) for rows in range(1, admission.ROWS_MAX + 1)]
            assert costs == sorted(costs)


async def test_decisions_go_on_while_a_proposal_is_tested() -> None:
    _, gaps = await admission.pace(admission.proposal(streams=8, seconds=1))
    assert len(gaps) > 1


def test_the_tables_name_their_goals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "EXACT", {"early": replace(streams.NOISY, seconds=1)})
    streams.main(["--only", "guarantee", "--frames", "100"])
    assert " of 200,000" in capsys.readouterr().out
    admission.main(["--only", "cost"])
    assert "goal: 10,000 frames < 50 ms" in capsys.readouterr().out
