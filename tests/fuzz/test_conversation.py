"""The HTTP/2 fuzzer's conversations: repeatable, sound before they are spoilt, odd in many ways."""

from random import Random

import ngh2

from tests.fuzz.conversation import FAULTS, PREFACE, Frame, conversation, frames_of, spoilt


def test_the_same_seed_makes_the_same_conversations() -> None:
    made = [[spoilt(conversation(Random(n))[0], Random(n)) for n in range(100)] for _ in "ab"]
    assert made[0] == made[1]
    assert len(set(made[0])) > 95


def test_a_conversation_is_sound_before_it_is_spoilt() -> None:
    for seed in range(50):
        frames, wanted = conversation(Random(seed))
        engine = ngh2.Connection(ngh2.Role.SERVER, ngh2.Configuration())
        engine.initiate_connection({})
        engine.receive_data(PREFACE + b"".join(frame.encode() for frame in frames))
        events = engine.events()
        assert not [event for event in events if isinstance(event, ngh2.ConnectionClosed)]
        asked = {event.stream_id for event in events if isinstance(event, ngh2.RequestReceived)}
        assert asked >= set(wanted)


def test_frames_are_read_as_they_are_written() -> None:
    frames, _ = conversation(Random(1))
    assert frames_of(b"".join(frame.encode() for frame in frames)) == frames
    assert frames_of(Frame(6, 0, 0, bytes(8)).encode()) == [Frame(6, 0, 0, bytes(8))]


def test_every_fault_can_be_planted_anywhere() -> None:
    for fault in FAULTS:
        for seed in range(100):
            random = Random(seed)
            frames = conversation(random)[0][: random.randrange(5)]
            fault(frames, random.randrange(len(frames) + 1), random)
            for frame in frames[:200]:
                assert len(frame.encode()) == 9 + len(frame.payload)
