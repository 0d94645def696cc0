"""GET /metrics: the series of vLLM that routers, alerts and reconcilers read."""

from __future__ import annotations

from extproc.local.sim.witness import Witness

SLOTS = 256
"""Requests that fill the simulated KV cache."""


def metrics_text(witness: Witness, model: str) -> bytes:
    """Prometheus text format."""
    running = len(witness.running)
    label = f'{{engine="0",model_name="{model}"}}'
    lines = []
    for kind, name, value in (
        ("gauge", "vllm:num_requests_running", running),
        ("gauge", "vllm:num_requests_waiting", 0),
        ("gauge", "vllm:kv_cache_usage_perc", min(1.0, running / SLOTS)),
        ("counter", "vllm:prompt_tokens_total", witness.prompt_tokens_total),
        ("counter", "vllm:generation_tokens_total", witness.generation_tokens_total),
    ):
        lines += [f"# TYPE {name} {kind}", f"{name}{label} {value}"]
    lines.append("# TYPE vllm:request_success_total counter")
    for end, count in sorted(witness.ended.items()):
        lines.append(f'vllm:request_success_total{{engine="0",finished_reason="{end}",model_name="{model}"}} {count}')
    return ("\n".join(lines) + "\n").encode()
