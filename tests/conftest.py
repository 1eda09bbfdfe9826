"""Options of all tests: `--grpc-frontend` names the implementation of the gRPC front end that the
tests with sockets run on, so that one set of tests holds both.
"""

import pytest

from tritonsched.options import GrpcFrontend


def pytest_addoption(parser: pytest.Parser) -> None:
    names = [kind.value for kind in GrpcFrontend]
    parser.addoption("--grpc-frontend", choices=names, default=GrpcFrontend.NGH2.value)


@pytest.fixture(scope="session")
def frontend(pytestconfig: pytest.Config) -> GrpcFrontend:
    return GrpcFrontend(pytestconfig.getoption("--grpc-frontend"))
