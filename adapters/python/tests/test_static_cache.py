# SPDX-License-Identifier: MIT
"""Every family of decoders with every kind of cache: `generate` builds the mask before the forward for
a cache of a fixed size, and the forward of most families builds it again."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_transformers import make, short_calls_are_ours  # noqa: F401  a fixture

import tokensparse.transformers as ts

LENGTH, NEW = 80, 3
GPT = dict(num_key_value_heads=4, n_embd=64, n_layer=3, n_head=4, n_positions=256)
MLA = dict(
    q_lora_rank=None, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16,
    head_dim=16, first_k_dense_replace=1, n_routed_experts=4, moe_intermediate_size=32, n_group=1,
    topk_group=1, num_experts_per_tok=2, n_shared_experts=1, num_key_value_heads=4,
)  # fmt: skip
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
FAMILIES = {
    "Llama": {},
    "Mistral": dict(sliding_window=None),
    "Mixtral": dict(sliding_window=None, num_local_experts=4),
    "Qwen2": {},
    "Qwen3": dict(head_dim=16),
    "Qwen3Moe": dict(head_dim=16, **MOE),
    "Gemma": dict(head_dim=16),
    "Gemma2": dict(head_dim=16, sliding_window=64, attn_logit_softcapping=None),
    "Gemma3": dict(head_dim=16, sliding_window=64),
    "SmolLM3": {},
    "Phi": {},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {},
    "Cohere": {},
    "Starcoder2": dict(sliding_window=None),
    "StableLm": {},
    "Glm": dict(head_dim=16),
    "GPT2": GPT,
    "GPTNeoX": dict(num_key_value_heads=4),
    "OPT": dict(num_key_value_heads=4, ffn_dim=96, word_embed_proj_dim=64),
    "DeepseekV3": MLA,
    "Bert": dict(num_key_value_heads=4, is_decoder=True),
}
CLASSES = {"Gemma3": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
# Served by tokensparse of the three layers; the others have a window or head dims that differ.
SERVED = {"Gemma2": 1, "Gemma3": 0, "DeepseekV3": 0}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that a second thread is only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def family(name):
    return make(name, CLASSES.get(name), CONFIGS.get(name), num_hidden_layers=3, **FAMILIES[name])


def generate(model, ids, mask, **options):
    torch.manual_seed(5)
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return torch.stack(found.logits, 1)


def ways(model):
    """Logits of each way through `generate`."""
    ids = torch.randint(3, 97, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    whole, padded = torch.ones_like(ids), torch.ones_like(ids)
    padded[0, :9] = 0
    static = lambda: transformers.StaticCache(config=model.config, max_cache_len=LENGTH + NEW)
    yield "dynamic", generate(model, ids, whole)
    yield "static", generate(model, ids, whole, cache_implementation="static")
    yield "padded", generate(model, ids, padded, cache_implementation="static")
    yield "object", generate(model, ids, padded, past_key_values=static())
    yield "chunks", generate(
        model, ids.repeat(1, 2), whole.repeat(1, 2), past_key_values=None,
        cache_implementation="static", prefill_chunk_size=LENGTH,
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_generate_in_every_family(name):
    model = family(name)
    with torch.no_grad():
        expected = dict(ways(model))
        model.set_attn_implementation("tokensparse")
        for way, found in ways(model):
            torch.testing.assert_close(found, expected[way], atol=1e-3, rtol=1e-3, msg=way)
    report = ts.report(model)
    assert sum(layer.served > 0 for layer in report) == SERVED.get(name, 3), report
    for layer in report:
        assert not layer.served or set(layer.stock) == {"decode"}, report


def test_a_mask_of_another_call_is_refused():
    model = family("Llama")
    model.set_attn_implementation("tokensparse")
    ids = torch.ones(1, LENGTH, dtype=torch.long)
    spans = ts.mask(1, LENGTH - 1, LENGTH - 1, config=model.config)
    with torch.no_grad():
        with pytest.raises(ValueError, match="attention_mask: must be made for 1 sequences of 80"):
            model(ids, attention_mask=spans)
        with pytest.raises(ValueError, match="attention_mask: must cover the 80 tokens .* covers 9"):
            model(ids, attention_mask=ids[:, :9], past_key_values=transformers.DynamicCache())


def test_spans_reach_a_compiled_model():
    model, ids = family("Llama"), torch.arange(3, 3 + LENGTH)[None] % 90 + 1
    with torch.no_grad():
        expected = model(ids).logits
        model.set_attn_implementation("tokensparse")
        spans = ts.mask(1, LENGTH, LENGTH, config=model.config)
        found = torch.compile(model, backend="eager")(ids, attention_mask=spans).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
