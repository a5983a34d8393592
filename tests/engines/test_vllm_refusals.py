"""What the middleware refuses, against what the engine's own model runner raises for. No GPU, no run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.engine


def test_refused_is_what_ends_the_engine_and_nothing_else(in_each: Callable[[str], str]) -> None:
    """Around every limit, with a model that has three ends and a tokenizer to which a space makes another word."""
    printed = in_each(
        """
        import inspect, json
        from types import SimpleNamespace as N
        from unittest.mock import MagicMock
        from hyperlapse.integrations.vllm.refusals import refused
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
        from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState

        class Words:
            eos_token_id, max_token_id = 900, 999

            def encode(self, text, add_special_tokens):
                return [7 if text.startswith(" ") else 8] * len(text.split())

        def held(kind):  # a state without its buffers on the GPU
            class Held(kind):
                prompt_len_np = [5]

                def __init__(self):
                    pass

                def __getattr__(self, name):
                    return MagicMock()

            return Held()

        engine = N(
            input_processor=N(generation_config_fields={"eos_token_id": [900, 901, 902]}),
            renderer=N(get_eos_token_id=lambda: 900),
            tokenizer=Words(),
            vllm_config=N(use_v2_model_runner=True),
        )

        def ends_the_engine(fields):
            try:
                params = SamplingParams(**fields)
                params.update_from_generation_config(engine.input_processor.generation_config_fields, 900)
                params.update_from_tokenizer(engine.tokenizer)
            except VLLMValidationError:
                return False  # answered by the API server
            given = {"req_idx": 0, "prompt_len": 5, "sampling_params": params}
            for kind in (LogitBiasState, BadWordsState):
                state = held(kind)
                try:
                    state.add_request(**{name: given[name] for name in inspect.signature(state.add_request).parameters})
                except ValueError as error:
                    assert "Too many" in str(error), error
                    return True
            return False

        words = lambda count, length=1: [" ".join([f"w{i}"] + ["a"] * (length - 1)) for i in range(count)]
        cases = [
            *({"stop_token_ids": list(range(count)), "min_tokens": 1} for count in (1, 124, 125, 126, 128, 129, 500)),
            *({"stop_token_ids": [*range(count), 900, 901], "min_tokens": 1} for count in (125, 126)),
            {"stop_token_ids": list(range(500))},
            *({"allowed_token_ids": list(range(count))} for count in (1024, 1025)),
            *({"logit_bias": {str(i): 1.0 for i in range(count)}} for count in (1024, 1025)),
            *({"bad_words": words(count)} for count in (1, 64, 65, 128, 129)),
            {"bad_words": ["same"] * 65},
            *({"bad_words": words(1, length)} for length in (512, 513)),
            *({"bad_words": words(64, length)} for length in (8, 9)),
            {"bad_words": words(64, 8), "stop_token_ids": list(range(126)), "min_tokens": 1},
        ]
        found = [refused("/v1/completions", json.dumps(fields).encode(), lambda: engine) for fields in cases]
        for fields, why in zip(cases, found):
            assert ends_the_engine(fields) == (why is not None), (fields, why)
        assert refused("/v1/completions", json.dumps({"sampling_params": cases[3]}).encode(), lambda: engine) == found[3]
        print(len(cases), sum(why is not None for why in found))
        print(found[3])
        """
    )
    counts, why = printed.splitlines()[-2:]
    cases, refusals = (int(word) for word in counts.split())
    assert cases == 25
    assert refusals >= 9
    assert "the 3 ids that end a text in this model are 129" in why
    assert "at most 125" in why


def test_the_middleware_finds_what_it_counts_with(in_each: Callable[[str], str]) -> None:
    """Names of vLLM's that no type checker sees: of its engine client, and where its API server keeps it."""
    in_each(
        """
        import inspect
        from vllm.entrypoints.openai import api_server
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.input_processor import InputProcessor
        made = inspect.getsource(AsyncLLM.__init__)
        assert "self.input_processor = " in made and "self.renderer = " in made and hasattr(AsyncLLM, "tokenizer")
        assert "self.generation_config_fields = " in inspect.getsource(InputProcessor.__init__)
        handed_on = inspect.getsource(InputProcessor)
        assert "self.renderer.get_eos_token_id()" in handed_on and "update_from_tokenizer(self.tokenizer)" in handed_on
        assert "state.engine_client = engine_client" in inspect.getsource(api_server.init_app_state)
        """
    )
