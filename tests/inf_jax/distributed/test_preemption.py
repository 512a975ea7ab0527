"""What SIGTERM and the clock ask for after a step."""

import signal

import pytest

from inf_jax.distributed.preemption import CHECKPOINT, CONTINUE, STOP, STOPPED, PreemptionGuard


def test_preemption_guard(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard(save_every_s=60) as guard:
        assert guard.action(1) == CONTINUE
        clock[0] = 60
        assert guard.action(2) == CHECKPOINT
        guard.saved()
        clock[0] = 119
        assert guard.action(3) == CONTINUE
        signal.raise_signal(signal.SIGUSR1)  # would ask for a trace: ignored
        signal.raise_signal(signal.SIGTERM)
        assert guard.action(4) == STOP
        signal.raise_signal(signal.SIGTERM)  # sent twice
        clock[0] += 6
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    with PreemptionGuard() as guard:
        with pytest.raises(SystemExit) as ended:  # nothing to save yet
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == STOPPED
        assert guard.action(1) == STOP  # even if a callback has swallowed the exception
    with PreemptionGuard() as guard:
        clock[0] = 1e9
        assert guard.action(1) == CONTINUE
