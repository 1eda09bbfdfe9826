"""Options of all tests: `--grpc-frontend` names the implementation of the gRPC front end that every
sidecar of the tests runs on, so that one set of tests holds both. No example of a property test has
a time limit: a slow machine says nothing of the property.
"""

import os

import pytest
from hypothesis import settings

from tritonsched.options import GrpcFrontend

FRONTEND_VARIABLE = "TRITONSCHED_GRPC_FRONTEND"

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    names = [kind.value for kind in GrpcFrontend]
    parser.addoption("--grpc-frontend", choices=names, help="of every sidecar, processes too")


def pytest_configure(config: pytest.Config) -> None:
    """As `tritonsched serve` takes it from its environment."""
    if chosen := config.getoption("--grpc-frontend"):
        os.environ[FRONTEND_VARIABLE] = chosen
