"""The scheduling rules by name. One small file a rule; a rule is chosen by the policy file's
`scheduler.policy` or by `--rule`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tritonsched.core.policies.cikm import Cikm
from tritonsched.core.policies.clipper import Clipper
from tritonsched.core.policies.clockwork import Clockwork
from tritonsched.core.policies.disbatcher import Disbatcher
from tritonsched.core.policies.edf import Edf
from tritonsched.core.policies.fcfs import Fcfs
from tritonsched.core.policies.lite import Lite
from tritonsched.core.policies.lookahead import Lookahead
from tritonsched.core.policies.nexus import Nexus
from tritonsched.core.policies.sedf import Sedf
from tritonsched.core.policies.slackfit import Slackfit
from tritonsched.core.policies.symphony import Symphony
from tritonsched.core.policy import Policy

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {
        "cikm": Cikm,
        "clipper": Clipper,
        "clockwork": Clockwork,
        "disbatcher": Disbatcher,
        "edf": Edf,
        "fcfs": Fcfs,
        "lite": Lite,
        "lookahead": Lookahead,
        "nexus": Nexus,
        "sedf": Sedf,
        "slackfit": Slackfit,
        "symphony": Symphony,
    }
)
DEFAULT_POLICY = "lookahead"
