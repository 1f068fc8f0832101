"""Steps of an engine on a real GPU: what a stream has done holds the gate, not what the host has enqueued."""

import pytest

import herald
from herald import layout, native
from herald.table import Table

torch = pytest.importorskip("torch")


def test_steps_hold_the_gate_until_their_stream_is_done(domain: str) -> None:
    with herald.attach(priority="high", slo={"ttft": "10s", "tpot": "10s"}, domain=domain, device="cuda") as job:
        table, device = Table.open(domain), job.stats().device
        request = job.begin()
        with job.step("prefill"):
            torch.cuda._sleep(200_000_000)  # about 100 ms
        with job.step("decode"):
            assert table.gate_words()[device, layout.CLASS_HEAVY] == 1
        assert job.stats().service.count == 0  # enqueued, not done
        assert table.gate_words()[device, layout.CLASS_HEAVY] == 1
        torch.cuda.synchronize()
        request.first_token()  # sees that the steps are done
        assert job.stats().service.count == 2
        assert native.table().herald_gate_wait(table.address, table.device_slot(device), 10**9)
        request.end(tokens=2)
        torch.cuda.synchronize()
        while job.stats().open_requests:
            pass
        stats = job.stats()
        assert (stats.requests_done, stats.slo_met, stats.tokens) == (1, 1, 2)
        assert stats.solo_requests == 2
