"""Which element type a quantised checkpoint computes its products in: from `quantization_config` to a database's table.

Why: the kernel database has tables of products in FP8 with a scale for each tensor, token or channel (`fp8`) and with one
for each block of 128 x 128 weights (`fp8_block`), each timed with the quantisation of its inputs. A checkpoint must be one
of them in all its layers, or be refused by name: half the bytes priced as another half would look plausible.

It must never guess from the size of the weights.
"""

from __future__ import annotations

import re
from typing import Any

from hyperlapse.predictor.prediction import UnsupportedModelError

BFLOAT16 = "bfloat16"
FP8 = "fp8"
FP8_BLOCK = "fp8_block"

_BLOCK = [128, 128]

# Layers that a checkpoint may leave in bfloat16: they are priced as such, or are no products.
_UNQUANTISED = re.compile(r"(^|[.:*])(lm_head|gate|(\w+_)?layernorm|norm)\$?$")


def weight_bytes_of(weights: str) -> int:
    """Bytes of an element; 0 for weights in the model's own type."""
    return 1 if weights in (FP8, FP8_BLOCK) else 0


def element_type(quantization: Any, name: str) -> str:
    """The database's name for the element type of the products. quantization: `quantization_config` of config.json, or
    None. Raises UnsupportedModelError, which says what cannot be priced.
    """
    if not quantization:
        return BFLOAT16
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method == "fp8":
        left_out = quantization.get("modules_to_not_convert") or quantization.get("ignored_layers") or []
        found = FP8
        if quantization.get("weight_block_size"):
            found = _blocks(quantization["weight_block_size"], name)
    elif method == "compressed-tensors":
        left_out = quantization.get("ignore") or []
        found = _compressed(quantization, name)
    else:
        raise _refused(name, f"weights quantised by {method!r}")
    other = [layer for layer in left_out if not _UNQUANTISED.search(str(layer))]
    if other:
        raise _refused(name, f"a model with some layers quantised and others, such as {other[0]}, not")
    return found


def _compressed(quantization: dict[str, Any], name: str) -> str:
    if quantization.get("kv_cache_scheme"):
        raise _refused(name, "a quantised KV cache in the checkpoint")
    types = set()
    for group in (quantization.get("config_groups") or {}).values():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        for part, what in ((weights, "weights"), (inputs, "inputs")):
            if part.get("type") != "float" or part.get("num_bits") != 8:
                raise _refused(name, f"{what} of {part.get('num_bits', 16)} bits ({part.get('type', 'not quantised')})")
        if group.get("targets") != ["Linear"]:
            raise _refused(name, f"quantisation of {group.get('targets')}")
        block = weights.get("strategy") == "block"
        types.add(_blocks(weights.get("block_structure"), name) if block else FP8)
    if len(types) != 1:
        raise _refused(name, "several kinds of quantised layers")
    return types.pop()


def _blocks(shape: Any, name: str) -> str:
    if shape != _BLOCK:
        raise _refused(name, f"weights with a scale for each block of {shape}")
    return FP8_BLOCK


def _refused(name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}: {what} cannot be priced yet (`quantization_config` of config.json): FP8 in all layers can, with a scale "
        "for each tensor, token or channel, or for each block of 128 x 128"
    )
