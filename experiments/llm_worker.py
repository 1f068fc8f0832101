"""The process of the LLM server: a worker (see `worker`) that serves prompts instead of a workload's requests."""

import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from herald.errors import ConfigError
from herald.experiments.language_models import DecoderShape
from herald.experiments.llm_server import Engine, Lengths, Schedule
from herald.experiments.worker import Commands, Session, main


@dataclass(frozen=True)
class Server:
    """A model, the slots of its engine, and who asks it for what."""

    decoder: DecoderShape
    num_slots: int
    lengths: Lengths
    rate_hz: float


SERVERS: Mapping[str, Server] = {
    "llm-small": Server(
        DecoderShape(width=1024, layers=8, heads=16, vocabulary=50_257, context=512),
        num_slots=16,
        lengths=Lengths(prompt=(32, 256), new=(16, 96)),
        rate_hz=5.0,
    ),
    "llm-tiny": Server(
        DecoderShape(width=64, layers=2, heads=4, vocabulary=500, context=64),
        num_slots=4,
        lengths=Lengths(prompt=(4, 32), new=(4, 24)),
        rate_hz=20.0,
    ),
}
DEFAULT = {"cpu": "llm-tiny", "cuda": "llm-small"}


class TorchModel:
    """A `SlotDecoder` as an engine sees it. Prompts are made once: what they say does not matter."""

    def __init__(self, server: Server, device: str, seed: int) -> None:
        import torch

        from herald.experiments.slot_decoder import SlotDecoder

        torch.manual_seed(seed)
        self._torch = torch
        self._device = torch.device(device)
        self._decoder = SlotDecoder(server.decoder, server.num_slots).to(self._device).eval()
        self._texts = torch.randint(server.decoder.vocabulary, (server.lengths.prompt[1],))
        self.num_slots = server.num_slots

    def prefill(self, slots: Sequence[int], prompt_lengths: Sequence[int]) -> Callable[[], None]:
        """See `llm_server.Model`."""
        torch = self._torch
        texts = self._texts[: max(prompt_lengths)].repeat(len(slots), 1).to(self._device, non_blocking=True)
        chosen, lengths = (torch.tensor(values, device=self._device) for values in (slots, prompt_lengths))
        with torch.no_grad():
            return self._read(self._decoder.prefill(chosen, texts, lengths))

    def decode(self) -> Callable[[], None]:
        """Likewise."""
        with self._torch.no_grad():
            return self._read(self._decoder.decode())

    @staticmethod
    def _read(tokens: Any) -> Callable[[], None]:
        """A server hands tokens to clients, so that its host waits for them."""
        read: Callable[[], None] = tokens.tolist
        return read


class LlmSession(Session):
    """A worker's session whose workload is a server's."""

    def load(
        self, workload: str, device: str, seed: int, warmup: int, deterministic: bool = False
    ) -> dict[str, object]:
        """Build a server's model and run ``warmup`` prefills and decoding steps; facts about this process."""
        import torch

        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        if workload not in SERVERS:
            raise ConfigError(f"server = {workload!r}: allowed are {', '.join(SERVERS)}")
        self.server = SERVERS[workload]
        self.seed = seed
        self.model = TorchModel(self.server, device, seed)
        self.steps(warmup)
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
            "num_threads": torch.get_num_threads(),
            "server": asdict(self.server),
        }

    def steps(self, count: int, losses: bool = False) -> dict[str, object]:
        """``count`` prefills of every number of sequences there can be, each with a decoding step. No requests."""
        del losses
        longest = self.server.lengths.prompt[1]
        for _ in range(count):
            for num in (1, self.model.num_slots):
                self.model.prefill(range(num), [longest] * num)()
                self.model.decode()()
        return {}

    def run(self, start_s: float, seconds: float, arrivals: Mapping[str, object]) -> dict[str, object]:
        """From ``start_s`` on the monotonic clock serve the arrivals of ``seconds``: a `Served` each, as lists."""
        from herald.experiments.arrivals import from_json

        gc.collect()
        prompts = self.server.lengths.prompts(from_json(arrivals), seconds, self.seed)
        served = Engine(self.model, self.job).serve(Schedule(prompts, start_s, self.job), start_s)
        return {
            "served": [[s.arrival_s, round(s.first_token_s, 6), round(s.done_s, 6), s.tokens] for s in served],
            "took_s": round(time.monotonic() - start_s, 6),
        }


COMMANDS: Commands = {
    method.__name__: method
    for method in (
        LlmSession.load,
        LlmSession.attach,
        LlmSession.detach,
        LlmSession.stats,
        LlmSession.run,
    )
}

if __name__ == "__main__":
    main(LlmSession(), COMMANDS)
