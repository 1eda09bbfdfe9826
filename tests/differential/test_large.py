"""Messages beyond 256 MiB pass whole, over both protocols, merged form and JSON alike."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.differential.cases import HttpCase, infer, plain, slot
from tests.differential.conftest import Case, Stage
from tests.differential.grpc_cases import infer as grpc_infer
from tests.differential.grpc_cases import request
from tritonsched.sidecar import Sidecar

LARGE = 257 << 20
Make = Callable[[int], Case]


def http(size: int) -> HttpCase:
    data = np.arange(size // 4, dtype=np.float32)
    head = plain(inputs=[slot(shape=(1, data.size), size=data.nbytes)])
    return infer(head, data.tobytes())


def grpc(size: int) -> Case:
    data = np.arange(size // 4, dtype=np.float32)
    return grpc_infer(request(inputs=(("IN", "FP32", (1, data.size)),), raws=(data.tobytes(),)))


@pytest.mark.parametrize("make", [http, grpc], ids=["http", "grpc"])
async def test_a_megabyte_passes_whole(stage: Stage, merging: Sidecar, make: Make) -> None:
    assert not await stage.difference(make(1 << 20), merging)


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("make", [http, grpc], ids=["http", "grpc"])
async def test_a_quarter_of_a_gigabyte_passes_whole(
    stage: Stage, merging: Sidecar, make: Make
) -> None:
    assert not await stage.difference(make(LARGE), merging)
