"""The table of published rules: who is in it, and what it marks."""

from tests.bench import rivals, study
from tritonsched.core.policies import POLICIES
from tritonsched.sim.studies import STUDIES


def test_every_figure_of_the_study_has_its_rule_and_its_workload() -> None:
    assert set(rivals.STUDY) <= set(POLICIES)
    assert {len(values) for _, values in rivals.STUDY.values()} == {len(STUDIES)}
    assert all(0 < value < 1 for _, values in rivals.STUDY.values() for value in values)


def test_the_studys_own_figures_are_near_and_others_are_marked() -> None:
    theirs = {rule: list(values) for rule, (_, values) in rivals.STUDY.items()}
    theirs["clipper"][0] -= 2 * rivals.FAR
    made = rivals.lines({**theirs, "sedf": [0.5] * len(STUDIES)})
    assert made[0][-1] == "sedf"
    assert made[1][0] == "W1"
    assert made[1][made[0].index("clipper")] == "0.817 (0.917)!"
    assert made[1][made[0].index("lite")] == "0.978 (0.978)"
    assert made[-2][0] == "mean"
    assert made[-2][made[0].index("slackfit")] == "0.835 (0.835)"
    assert made[-2][-1] == "0.500"


def test_published_rules_have_a_table_of_their_own() -> None:
    assert set(rivals.PUBLISHED) < set(POLICIES)
    assert set(study._rules()) == set(POLICIES) - set(rivals.PUBLISHED)
    assert "published" in study.SECTIONS
