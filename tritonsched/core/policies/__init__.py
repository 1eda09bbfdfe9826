"""The scheduling rules by name. One small file a rule; a rule is chosen by the policy file's
`scheduler.policy` or by `--rule`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tritonsched.core.policies.disbatcher import Disbatcher
from tritonsched.core.policies.edf import Edf
from tritonsched.core.policies.fcfs import Fcfs
from tritonsched.core.policies.lite import Lite
from tritonsched.core.policies.lookahead import Lookahead
from tritonsched.core.policy import Policy

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {"disbatcher": Disbatcher, "edf": Edf, "fcfs": Fcfs, "lite": Lite, "lookahead": Lookahead}
)
DEFAULT_POLICY = "lite"
