"""Replays recorded runs of several H100s with a shared prefix, and compares: the check of tensor parallelism.

    python benchmarks/replay_shared_prefix.py --recorded FOLDER [--runs NAME ...] [--seconds 50] [--stage 0]

FOLDER is `default_args` of the repository inference-sim/training (its README says where the runs come from): vLLM 0.15.1 under
inference-perf, which sends requests at a constant rate; each of some users asks the same prompt again and again, so that all
but its last block is found in the prefix cache. Nothing was calibrated on these runs. A replay sends the first seconds of a
stage and leaves out the first rounds of prompts, which only a start pays for; prompts have the recorded median length.

The recording counts each chunk of the stream twice (the median time between two is 40 us) and answers by their text, so tokens
are those that were asked for (ends were ignored) and the time of one comes from the end-to-end latency. Bound: TTFT, TPOT and
end-to-end latency (mean) within 10 % of the recorded means, for each run. The host-time model is that of another release and
host.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from common import finish, verdict
from hyperlapse.cli.benchmark import BenchOptions, run_bench
from hyperlapse.cli.progress import TerminalProgress

ENGINE, GPU, BOUND = "vllm==0.15.1", "h100-sxm-80gb", 0.10
WARM_UP_ROUNDS = 2
# Shapes from the models' own config.json.
_LLAMA_2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "torch_dtype": "float16", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0, "attention_bias": False, "initializer_range": 0.02,
    "use_cache": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {
        **_LLAMA_2, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32,
    },
    "meta-llama/Llama-2-70b-hf": {
        **_LLAMA_2, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_hidden_layers": 80, "num_key_value_heads": 8,
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
        "attention_dropout": 0.0, "initializer_range": 0.02, "output_router_logits": False, "router_aux_loss_coef": 0.02,
        "use_cache": True,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stage of a recorded run; means in milliseconds."""

    name: str
    model: str
    gpus: int
    flags: tuple[str, ...]
    rate: float
    users: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    e2e_ms: float

    @property
    def tpot_ms(self) -> float:
        return (self.e2e_ms - self.ttft_ms) / (self.output_tokens - 1)

    @classmethod
    def read(cls, folder: Path, stage: int) -> Recorded:
        server = yaml.safe_load((folder / "exp-config.yaml").read_text(encoding="utf-8"))
        client = yaml.safe_load((folder / "profile.yaml").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "results" / f"stage_{stage}_lifecycle_metrics.json").read_text(encoding="utf-8"))
        prefix, good = client["data"]["shared_prefix"], metrics["successes"]
        limits = ("max_model_len", "max_num_batched_tokens", "max_num_seqs")
        return cls(
            folder.name,
            server["model"],
            int(server["tensor_parallelism"]),
            tuple(word for name in limits for word in (f"--{name.replace('_', '-')}", str(server[name]))),
            float(client["load"]["stages"][stage]["rate"]),
            int(prefix["num_unique_system_prompts"]) * int(prefix["num_users_per_system_prompt"]),
            round(good["prompt_len"]["median"]),
            int(prefix["output_len"]),
            1e3 * good["latency"]["time_to_first_token"]["mean"],
            1e3 * good["latency"]["request_latency"]["mean"],
        )


def replay(recorded: Recorded, seconds: float, engine: str) -> tuple[float, float, float, float]:
    """(TTFT, TPOT, E2E: means in milliseconds, how much faster than its virtual time) of the same load, emulated."""
    with tempfile.TemporaryDirectory(prefix="hyperlapse-replay-") as temporary:
        name = recorded.model.rpartition("/")[2].removesuffix("-hf").lower()
        model, trace = Path(temporary, name), Path(temporary, "requests.jsonl")
        model.mkdir()
        (model / "config.json").write_text(json.dumps(MODELS[recorded.model]), encoding="utf-8")
        requests = (
            {
                "arrival_s": index / recorded.rate,
                "prompt_tokens": recorded.prompt_tokens,
                "output_tokens": recorded.output_tokens,
                "prefix_id": f"user {index % recorded.users}",
                "prefix_tokens": recorded.prompt_tokens,
            }
            for index in range(round(seconds * recorded.rate))
        )
        trace.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
        options = BenchOptions(
            model=str(model),
            gpu=GPU,
            gpus=recorded.gpus,
            engine=engine,
            trace=trace,
            output=Path(temporary, "out"),
            engine_flags=recorded.flags,
        )
        with TerminalProgress() as progress:
            run = run_bench(options, progress)
    # the last requests leave a batch that nobody joins any more, which the recording's many hundred seconds hardly show
    last_ns = max(record.send_ns for record in run.records)
    steady = [
        record
        for record in run.records[WARM_UP_ROUNDS * recorded.users :]
        if record.send_ns < last_ns - 1e6 * recorded.e2e_ms
    ]
    ttft_ms, e2e_ms = (fmean(values) / 1e6 for values in zip(*((r.ttft_ns, r.e2e_ns) for r in steady), strict=True))
    return ttft_ms, (e2e_ms - ttft_ms) / (recorded.output_tokens - 1), e2e_ms, run.result.speedup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", type=Path, required=True, help="default_args of inference-sim/training")
    parser.add_argument("--runs", nargs="*", help="names of runs; all whose model is known, if left out")
    parser.add_argument("--seconds", type=float, default=50.0, help="of virtual time that are replayed")
    parser.add_argument("--stage", type=int, default=0)
    parser.add_argument("--engine", default=ENGINE)
    given = parser.parse_args()
    good = True
    for folder in sorted(path.parent for path in given.recorded.glob("*/exp-config.yaml")):
        if given.runs and folder.name not in given.runs:
            continue
        recorded = Recorded.read(folder, given.stage)
        if recorded.model not in MODELS:
            print(f"{folder.name}: left out: {recorded.model} on {recorded.gpus} GPUs is not priced", flush=True)
            continue
        *emulated, speedup = replay(recorded, given.seconds, given.engine)
        errors = [
            found / wanted - 1
            for found, wanted in zip(emulated, (recorded.ttft_ms, recorded.tpot_ms, recorded.e2e_ms), strict=True)
        ]
        within = all(abs(error) <= BOUND for error in errors)
        good &= within
        shown = ", ".join(
            f"{name} {error:+.1%} ({found:.1f} ms)"
            for name, error, found in zip(("TTFT", "TPOT", "E2E"), errors, emulated, strict=True)
        )
        print(
            f"{folder.name}, {recorded.rate:g}/s on {recorded.gpus} x {GPU}: {shown}; {speedup:.1f} times real time "
            f"({BOUND:.0%} wanted): {verdict(within)}",
            flush=True,
        )
    finish(good)


if __name__ == "__main__":
    main()
