"""What is refused before the engine starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hyperlapse.integrations.vllm import adapt_command, unsupported
from hyperlapse.integrations.vllm.unsupported import UnsupportedConfigurationError, refuse_configuration, refuse_flags


@pytest.mark.parametrize("detail", ["kernel", "step"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--enable-lora"], "LoRA"),
        (["--lora_modules", "a=b"], "LoRA"),
        (["--speculative-config", "{}"], "--speculative-config: speculative decoding"),
        (["--speculative-config.method=ngram"], "speculative decoding"),
        (["-sc", "{}"], "speculative decoding"),
        (["--runner", "pooling"], "Serve a model that generates text"),
        (["--runner=pooling"], "Serve a model that generates text"),
        (["--task", "embed"], "Serve a model that generates text"),
        (["--convert", "classify"], "Serve a model that generates text"),
        (["--enable-prompt-embeds"], "token ids"),
        (["--return-sampling-mask"], "sampling masks"),
        (["--logits-processors", "a:B"], "logits processors"),
        (["-ep", "--tensor-parallel-size", "2"], "-ep: expert parallelism is not priced"),
        (["--enable_expert_parallel", "-dp=2"], "expert parallelism is not priced"),
    ],
)
def test_flags(detail: str, flags: list[str], words: str) -> None:
    with pytest.raises(UnsupportedConfigurationError, match=words):
        adapt_command(["vllm", "serve", "m", "--port", "80", *flags], detail)


@pytest.mark.parametrize("flags", [["--kv-offloading-size", "4"], ["--kv_offloading_size=4"]])
def test_offloading_is_for_the_kernel_detail(flags: list[str]) -> None:
    refuse_flags(flags, "kernel")
    with pytest.raises(UnsupportedConfigurationError, match=r"KV offloading.*use --detail kernel"):
        refuse_flags(flags, "step")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--runner", "generate"],
        ["--runner", "auto"],
        ["--convert", "none"],
        ["a=b"],
        ["--enable-expert-parallel"],
        ["-ep", "-tp", "1"],
        ["--tensor-parallel-size=2"],
    ],
)
def test_other_flags(flags: list[str]) -> None:
    refuse_flags(flags, "step")


def test_other_programs_may_do_what_they_like() -> None:
    assert adapt_command(["tool", "--enable-lora"], "step").argv == ["tool", "--enable-lora"]


def config(**changed: Any) -> Any:
    parallel = {
        "tensor_parallel_size": 1, "data_parallel_size": 1, "pipeline_parallel_size": 1, "enable_expert_parallel": False,
    }  # fmt: skip
    model = {
        "runner_type": "generate", "is_encoder_decoder": False, "is_multimodal_model": False, "quantization": None,
        "hf_overrides": {}, "enable_prompt_embeds": False, "return_sampling_mask": False, "logits_processors": None,
        "is_moe": False,
    }  # fmt: skip
    whole = {"lora_config": None, "speculative_config": None, "kv_transfer_config": None, "use_v2_model_runner": True}
    for values in (parallel, model, whole):
        values.update({name: value for name, value in changed.items() if name in values})
    parts = {"parallel_config": parallel, "model_config": model}
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in parts.items()}, **whole)


@pytest.mark.parametrize("detail", ["kernel", "step"])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"runner_type": "pooling"}, "embedding"),
        ({"is_multimodal_model": True}, "multimodal"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"lora_config": object()}, "LoRA"),
        ({"speculative_config": object()}, "speculative"),
        ({"enable_prompt_embeds": True}, "embeddings"),
        ({"return_sampling_mask": True}, "sampling masks"),
        ({"logits_processors": ["a:B"]}, "logits processors"),
        ({"kv_transfer_config": SimpleNamespace(kv_connector="NixlConnector")}, "NixlConnector"),
        ({"enable_expert_parallel": True, "tensor_parallel_size": 2}, "expert parallelism"),
        ({"is_moe": True, "data_parallel_size": 2}, "replicas of a model with experts"),
    ],
)
def test_configurations(detail: str, changed: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedConfigurationError, match=words):
        refuse_configuration(config(**changed), detail)
    said = capsys.readouterr().err
    assert said.startswith("hyperlapse: ")
    assert words in said


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"hf_overrides": {"a": 1}}, "hf-overrides"),
        ({"kv_transfer_config": SimpleNamespace(kv_connector="OffloadingConnector")}, "KV offloading"),
    ],
)
def test_configurations_of_the_kernel_detail_only(changed: dict[str, Any], words: str) -> None:
    refuse_configuration(config(**changed), "kernel")
    with pytest.raises(UnsupportedConfigurationError, match=rf"{words}.*use --detail kernel"):
        refuse_configuration(config(**changed), "step")


def test_offloading_is_for_the_version_that_it_works_with(monkeypatch: pytest.MonkeyPatch) -> None:
    offloading = config(kv_transfer_config=SimpleNamespace(kv_connector="OffloadingConnector"))
    monkeypatch.setattr(unsupported, "installed_version", lambda: "0.23.0")
    refuse_configuration(offloading, "kernel")
    monkeypatch.setattr(unsupported, "installed_version", lambda: "0.32.0")
    with pytest.raises(UnsupportedConfigurationError, match=r"vLLM 0\.23\.0 only"):
        refuse_configuration(offloading, "kernel")


@pytest.mark.parametrize("changed", [{}, {"use_v2_model_runner": False}, {"quantization": "fp8"}])
def test_an_ordinary_configuration(changed: dict[str, Any]) -> None:
    """On either model runner of a version that has both; what a quantised model costs is the predictor's to refuse."""
    for detail in ("kernel", "step"):
        refuse_configuration(config(**changed), detail)


def test_an_old_version_runs_on_model_runner_v1_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsupported, "model_runner", lambda: "V1")
    refuse_configuration(config(use_v2_model_runner=False), "kernel")
    with pytest.raises(UnsupportedConfigurationError, match="only as an experiment"):
        refuse_configuration(config(), "kernel")
