"""Listening for the end of other processes; real ones are in test_pretrain_processes.py."""

import types
from typing import Any

import pytest

from adamae_jax import peers


class Store:
    """Answers in turn: an exception is raised."""

    def __init__(self, *answers: Any):
        """Nothing is asked yet."""
        self.answers = list(answers)
        self.keys: list[str] = []

    def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
        self.keys.append(key)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def key_value_set(self, key: str, value: str) -> None:
        raise RuntimeError("ALREADY_EXISTS")


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ((RuntimeError("DEADLINE_EXCEEDED: x"), RuntimeError("DEADLINE_EXCEEDED: y"), "well"), 3),
        ((RuntimeError("UNAVAILABLE: the store has gone"), "well"), 1),
    ],
)
def test_listening_goes_on_for_as_long_as_the_run(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[Any, ...], asked: int
) -> None:
    store = Store(*answers)
    state = types.SimpleNamespace(num_processes=2, client=store)
    monkeypatch.setattr(peers.distributed, "global_state", state)
    peers.Peers().finish()
    assert store.keys == [peers.ENDED] * asked


def test_a_single_process_listens_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    state = types.SimpleNamespace(num_processes=1, client=store)
    monkeypatch.setattr(peers.distributed, "global_state", state)
    peers.Peers().finish()
    assert not store.keys
