"""The fuzzer's requests: repeatable, odd in many ways, and with lengths that end."""

from random import Random

from tests.differential import grpc_cases, http_infer
from tests.differential.cases import GrpcCase
from tests.fuzz.mutate import mutated

GRPC: list[GrpcCase] = list(grpc_cases.TABLE.values())


def test_the_same_seed_makes_the_same_requests() -> None:
    case = http_infer.TABLE["plain"]
    made = [[mutated(case, GRPC, Random(seed)) for seed in range(50)] for _ in "ab"]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40


def test_most_requests_say_how_long_they_are() -> None:
    case = http_infer.TABLE["plain"]
    told = 0
    for seed in range(200):
        head, _, body = mutated(case, GRPC, Random(seed)).ask.steps[0].partition(b"\r\n\r\n")
        told += b"Content-Length: %d" % len(body) in head
    assert told > 150


def test_a_grpc_request_stays_one_on_its_method() -> None:
    case = grpc_cases.TABLE["plain"]
    made = {mutated(case, GRPC, Random(seed)) for seed in range(100)}
    assert {each.ask.method for each in made} == {"ModelInfer"}
    assert len({each.ask.messages for each in made}) > 80
