"""Prometheus metrics, with the suffixes of vLLM's names, so that dashboards need another prefix alone."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipo.serving.generation import Generation
from pipo.serving.scheduler import Scheduler

SHORT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30)
LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)


class Metrics:
    """Counters of what is over, and gauges of what goes on. Real tokens alone are counted, never PAD."""

    def __init__(self, model_name: str, is_pipo: bool) -> None:
        disable_created_metrics()  # vLLM has none either
        self.registry = CollectorRegistry()
        self.model_name, self.is_pipo = model_name, is_pipo

        def counter(name: str, about: str) -> Counter:
            return Counter(f"pipo:{name}", about, ["model_name"], registry=self.registry).labels(model_name)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"pipo:{name}", about, ["model_name"], buckets=buckets, registry=self.registry)
            return made.labels(model_name)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were read.")
        self.generation_tokens = counter("generation_tokens", "Real tokens that were generated.")
        self.steps = counter("decode_steps", "Steps of answers: one or two real tokens each.")
        self.success = Counter(
            "pipo:request_success", "Answers that are over.", ["model_name", "finished_reason"], registry=self.registry
        )
        self.ttft = histogram("time_to_first_token_seconds", "From arrival, before tokenization.", SHORT)
        self.itl = histogram(
            "inter_token_latency_seconds", "Decoding time of an answer / tokens after its first slot.", SHORT
        )
        self.e2e = histogram("e2e_request_latency_seconds", "From arrival to the last token.", LONG)
        self.queued = histogram("request_queue_time_seconds", "From arrival until decoding begins.", LONG)
        self.prefill = histogram("request_prefill_time_seconds", "From then to the first token.", LONG)
        self.decode = histogram("request_decode_time_seconds", "From the first token to the last.", LONG)
        if is_pipo:
            self.drafts = counter("spec_decode_num_drafts", "Steps in which a draft was compared with the threshold.")
            self.draft_tokens = counter("spec_decode_num_draft_tokens", "Drafts: one such a step.")
            self.accepted = counter("spec_decode_num_accepted_tokens", "Drafts that were kept.")

    def watch(self, scheduler: Scheduler, tokens: int) -> None:
        """Show what the scheduler does; `tokens` is what its batch can remember at most."""
        self.registry.register(_Gauges(scheduler, tokens, self.model_name))

    def ended(self, generation: Generation) -> None:
        """Count an answer that is over, however it ended."""
        answer, g = generation.completion, generation
        self.success.labels(self.model_name, answer.finish_reason).inc()
        if not g.first_at:
            return
        self.prompt_tokens.inc(answer.prompt_tokens)
        self.generation_tokens.inc(len(answer.token_ids))
        self.steps.inc(answer.steps)
        for histogram, seconds in (
            (self.ttft, g.first_at - g.arrived),
            (self.e2e, g.finished_at - g.arrived),
            (self.queued, g.started_at - g.arrived),
            (self.prefill, g.first_at - g.started_at),
            (self.decode, g.finished_at - g.first_at),
        ):
            histogram.observe(seconds)
        if later := len(answer.token_ids) - len(answer.slots[0].tokens):
            self.itl.observe((g.finished_at - g.first_at) / later)
        if self.is_pipo:
            self.drafts.inc(answer.drafted)
            self.draft_tokens.inc(answer.drafted)
            self.accepted.inc(answer.accepted)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, scheduler: Scheduler, tokens: int, model_name: str) -> None:
        self.scheduler, self.tokens, self.model_name = scheduler, tokens, model_name

    def collect(self) -> Any:
        """Read when they are asked for."""
        share = self.scheduler.tokens_in_use / self.tokens
        for name, about, value in (
            ("num_requests_running", "Answers that are decoded.", self.scheduler.running),
            ("num_requests_waiting", "Answers that are queued.", self.scheduler.waiting),
            ("kv_cache_usage_perc", "Share of max-num-seqs * max-model-len tokens that are remembered.", share),
        ):
            gauge = GaugeMetricFamily(f"pipo:{name}", about, labels=["model_name"])
            gauge.add_metric([self.model_name], value)
            yield gauge
