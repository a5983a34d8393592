"""`hyperlapse devices` and `hyperlapse models`, and products of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from hyperlapse.cli import devices as devices_command
from hyperlapse.cli import models as models_command
from hyperlapse.cli.benchmark import BenchError, BenchOptions, run_bench
from hyperlapse.cli.predict import command as predict
from hyperlapse.cli.priced_device import priced_device
from hyperlapse.predictor.devices import DeviceSpec
from hyperlapse.shim import devices
from hyperlapse.shim.devices import DeviceProfileError
from hyperlapse.shim.models import bundled_models

from .conftest import UNPRICED

OWN = {
    "name": "my-gpu",
    "extends": "l40s",
    "facts": {
        "multiprocessors": {"value": 71, "source": "half of an L40S"},
        "memory_bus_bits": {"value": 192, "source": "half of an L40S"},
    },
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "hyperlapse" / "devices"
    folder.mkdir(parents=True)
    return folder


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**OWN, **changes}))
    return path


def listed(*arguments: str) -> Result:
    return CliRunner().invoke(devices_command.command, arguments)


@pytest.mark.usefixtures("own", "database")
def test_the_list_of_devices() -> None:
    result = listed("--json")
    assert result.exit_code == 0, result.output
    found = {line["name"]: line for line in json.loads(result.output)}
    assert set(found) == set(devices.names())
    assert found["h100-sxm-80gb"]["compute_capability"] == "9.0"
    assert found["h100-sxm-80gb"]["kernels_carried_over_from"] is None
    assert found["rtx-4090"]["kernels_carried_over_from"] == "rtx-pro-6000"
    assert found["rtx-4090"]["memory_bytes"] == 25_250_627_584
    assert all(set(line["measured_kernels"]) - {"mla"} == {"gemm", "attention", "moe"} for line in found.values())
    table = listed().output
    assert all(name in table for name in found)


@pytest.mark.usefixtures("own")
def test_one_device_shows_each_fact_with_its_source() -> None:
    result = listed("b200")
    assert result.exit_code == 0
    assert "191,501,434,880" in result.output
    assert "178.35 GiB" in result.output
    assert listed("b2000").exit_code == 2


@pytest.mark.usefixtures("database")
def test_a_product_of_the_user_s_own(own: Path) -> None:
    write(own / "my-gpu.yaml")
    assert "my-gpu" in devices.names()
    spec = priced_device("my-gpu")
    whole = DeviceSpec.named("l40s")
    assert (spec.transfer_from, spec.multiprocessors) == ("l40s", 71)
    assert spec.memory_bandwidth_bytes_per_s == pytest.approx(whole.memory_bandwidth_bytes_per_s / 2)
    assert spec.bf16_flops_per_s == pytest.approx(whole.bf16_flops_per_s / 2)
    durations = [
        json.loads(
            CliRunner().invoke(predict, ["--model", "qwen3-8b", "--gpu", gpu, "--batch", "1:512", "--json"]).output
        )
        for gpu in ("l40s", str(own / "my-gpu.yaml"))
    ]
    assert durations[1]["duration_ns"] > 1.7 * durations[0]["duration_ns"]
    assert durations[1]["coverage_ns"]["measured"] == 0
    assert any("carried over to my-gpu" in note for note in durations[1]["notes"])


def test_durations_of_one_s_own(own: Path) -> None:
    path = write(own / "x.yaml", durations={"like": "h100-sxm-80gb", "memory_bandwidth_share": 0.5})
    spec = priced_device(str(path))
    assert (spec.transfer_from, spec.memory_bandwidth_share) == ("h100-sxm-80gb", 0.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"durations": {"memory_bandwith_share": 0.5}}, "did you mean `memory_bandwidth_share`"),
        ({"durations": {"memory_bandwidth_share": 1.5}}, "a share between 0 and 1"),
        ({"durations": {"bf16_flops_per_s": "fast"}}, "a whole number .a rate per second., not 'fast'"),
        ({"durations": {"bf16_flops_per_s": 0}}, "must be positive"),
        ({"durations": {"like": "h100-sxm-80gbb"}}, "did you mean h100-sxm-80gb"),
        ({"durations": []}, "a mapping"),
        ({"extends": "l40"}, "did you mean l40s"),
        ({"extend": "l40s"}, "did you mean `extends`"),
        ({"facts": {"memory_clock": {"value": 1, "source": "x"}}}, "did you mean `memory_clock_khz` .kHz."),
        ({"facts": {"clock_khz": {"value": "fast", "source": "x"}}}, "a whole number .kHz., not 'fast'"),
    ],
)
def test_wrong_profiles_name_field_unit_and_nearest_name(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = write(tmp_path / "wrong.yaml", **changes)
    with pytest.raises(DeviceProfileError, match=says) as caught:
        priced_device(str(path))
    assert "wrong.yaml" in str(caught.value)


@pytest.mark.usefixtures("database")
def test_a_broken_profile_of_the_user_s_hides_no_other(own: Path) -> None:
    (own / "broken.yaml").write_text("name: [")
    result = listed()
    assert result.exit_code == 1
    assert "h100-sxm-80gb" in result.output
    assert "broken.yaml" in result.output
    assert devices.load("h200").name == "h200-sxm-141gb"


@pytest.mark.usefixtures("own", "database")
def test_the_list_of_models(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(models_command.command, ["--json"])
    assert result.exit_code == 0, result.output
    found = {line["name"]: line for line in json.loads(result.output)}
    assert found["llama-3.1-70b"]["weight_bytes_bf16"] == pytest.approx(141.1e9, rel=0.001)
    assert found["llama-3.1-70b"]["gpus"]["b200-sxm-180gb"] == {"fits": True, "priced": True, "problem": None}
    assert found["llama-3.1-70b"]["gpus"]["h200-sxm-141gb"]["fits"] is False
    unpriced = {(name, gpu) for name, line in found.items() for gpu, each in line["gpus"].items() if not each["priced"]}
    assert unpriced == UNPRICED
    problem = found["qwen3-8b-fp8"]["gpus"]["a100-sxm-80gb"]["problem"]
    assert "no measured GEMM of type fp8_block" in problem
    assert found["qwen3-30b-a3b"]["experts"] == "8 of 128"
    table = runner.invoke(models_command.command, ["--gpu", "l40s"]).output
    assert "fits, priced" in table
    assert "do not fit" in table
    config = json.loads((Path(found["qwen3-8b"]["config"])).read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    described = runner.invoke(models_command.command, [str(tmp_path), "--json"])
    assert "MambaForCausalLM" in json.loads(described.output)[0]["problem"]
    assert runner.invoke(models_command.command, ["no-such-model"]).exit_code == 2


@pytest.mark.usefixtures("own", "database")
def test_a_model_without_durations_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = json.loads((bundled_models()["qwen3-30b-a3b"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(BenchError, match=r"weights quantised by 'awq' cannot be priced yet") as caught:
        run_bench(BenchOptions(model=str(tmp_path)))
    assert caught.value.status == 2
