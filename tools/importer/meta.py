"""Meta's Memory+ code (facebookresearch/memory, built on lingua): params.json and its weights.

A block whose number is in productkey_args.layers has a memory in the place of its feed-forward part. The model folder
gets Llama's names for what is Llama's, and model.layers.N.memory.* for the rest. Rotary pairs are neighbours there and
halves here: rows of wq and wk are put in order once."""
import json
from pathlib import Path

import numpy as np

from . import layouts
from .errors import ImportRefused
from .tensors import Made, whole

PLAIN = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
BLOCK = {"attention.wv.weight": "self_attn.v_proj.weight", "attention.wo.weight": "self_attn.o_proj.weight",
         "attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
         "feed_forward.w1.weight": "mlp.gate_proj.weight", "feed_forward.w3.weight": "mlp.up_proj.weight",
         "feed_forward.w2.weight": "mlp.down_proj.weight"}
MEMORY = {"feed_forward.query_proj.query_mlps.0.weight": "memory.query_proj.weight",
          "feed_forward.query_proj.query_mlps.0.bias": "memory.query_proj.bias",
          "feed_forward.value_proj.weight": "memory.value_proj.weight",
          "feed_forward.value_proj.bias": "memory.value_proj.bias",
          "feed_forward.swilu_projection.weight": "memory.swilu_projection.weight",
          "feed_forward.swilu_projection.bias": "memory.swilu_projection.bias"}


def is_one(folder):
    return (Path(folder) / "params.json").is_file()


def _number(owner, key, default=None, least=1):
    value = owner.get(key, default)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise ImportRefused(f"params.json: {key} is {value!r}")
    return value


def _halves(tensor, heads, head_dim, name):
    """Rows of wq or wk with the two of each rotary pair half a head apart."""
    if tensor.shape[0] != heads * head_dim:
        raise ImportRefused(f"{name} has {tensor.shape[0]} rows, {heads} heads of {head_dim} are expected")
    order = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).transpose(0, 2, 1).reshape(-1)
    return Made(tensor.dtype, whole(tensor)[order])


def _config(params, tensors):
    model = params.get("model") if isinstance(params, dict) else None
    if not isinstance(model, dict):
        raise ImportRefused("params.json has no `model` part")
    keys = model.get("productkey_args") or {}
    for name, value in (("sliding_window", model.get("sliding_window")), ("weight_tying", model.get("weight_tying")),
                        ("productkey_args.peer_variant", keys.get("peer_variant")),
                        ("productkey_args.mem_gated", keys.get("mem_gated"))):
        if value:
            raise ImportRefused(f"params.json: {name} is {value!r}, which is not implemented")
    dim, layers = int(_number(model, "dim", 512)), int(_number(model, "n_layers", 8))
    heads = model.get("n_heads") or dim // int(_number(model, "head_dim"))
    head_dim = model.get("head_dim") or dim // heads
    data = params.get("data") or {}
    embedding = tensors.get("tok_embeddings.weight")
    if embedding is None:
        raise ImportRefused("the checkpoint has no tok_embeddings.weight")
    memory_layers = sorted({int(part) for part in str(keys.get("layers") or "").split(",") if part.strip()})
    if not keys.get("is_enabled"):
        memory_layers = []
    hidden = next((t.shape[0] for n, t in tensors.items() if n.endswith("feed_forward.w1.weight")), 4 * dim)
    config = {"architectures": ["MemoryPlusForCausalLM"], "model_type": "memory_plus", "hidden_size": dim,
              "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
              "num_key_value_heads": model.get("n_kv_heads") or heads, "head_dim": head_dim,
              "rms_norm_eps": float(_number(model, "norm_eps", 1e-5, 0)),
              "rope_theta": float(_number(model, "rope_theta", 10000.0)), "hidden_act": "silu",
              "max_position_embeddings": int(max(_number(model, "max_seqlen", 1024), data.get("seq_len") or 0)),
              "vocab_size": embedding.shape[0], "tie_word_embeddings": False}
    if memory_layers:
        shared = keys.get("mem_share_values", True)
        config.update({"memory_layers": memory_layers, "memory_share_values": bool(shared),
                       "memory_keys": int(_number(keys, "mem_n_keys", 1024)),
                       "memory_heads": int(_number(keys, "mem_heads", 4)),
                       "memory_knn": int(_number(keys, "mem_knn", 32)),
                       "memory_key_dim": int(_number(keys, "mem_k_dim", 512)) // 2,
                       "memory_value_dim": keys.get("mem_v_dim", -1) if keys.get("mem_v_dim", -1) > 0 else dim,
                       "memory_swilu_projection": bool(keys.get("swilu_projection", True)),
                       "memory_value_projection": keys.get("mem_v_dim", -1) > 0 or
                       bool(keys.get("swilu_projection", True))})
    return config


def _keys(tensor, config, name):
    """[2 heads n][half] as [heads][2][n][half]: the same bytes."""
    heads, n, half = config["memory_heads"], config["memory_keys"], config["memory_key_dim"]
    if tensor.shape != (2 * heads * n, half):
        raise ImportRefused(f"{name} has shape {list(tensor.shape)}, expected [{2 * heads * n}, {half}]")
    return Made(tensor.dtype, whole(tensor).reshape(heads, 2, n, half))


def _values(values, config):
    """One table of all memory layers, or one each. Shared ones may be listed under every layer."""
    if not config["memory_share_values"]:
        missing = [layer for layer in config["memory_layers"] if layer not in values]
        if missing:
            raise ImportRefused(f"layer {missing[0]} has no values and mem_share_values is false")
        return {f"model.layers.{layer}.memory.values.weight": tensor for layer, tensor in values.items()}
    if not values:
        raise ImportRefused("no layer has feed_forward.values.weight")
    first = values[min(values)]
    for layer, tensor in values.items():
        if tensor.shape != first.shape or not np.array_equal(tensor.rows(0, 1), first.rows(0, 1)):
            raise ImportRefused(f"mem_share_values is true, but layer {layer} has other values than layer "
                                f"{min(values)}")
    return {"model.memory.values.weight": first}


def convert(folder):
    """(description, config.json's object, {name: tensor})."""
    folder = Path(folder)
    try:
        params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefused(f"{folder / 'params.json'}: {error}") from None
    layout, tensors = layouts.find(folder)
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    config = _config(params, tensors)
    result, values = {}, {}
    for name, tensor in tensors.items():
        if name in PLAIN:
            result[PLAIN[name]] = tensor
            continue
        parts = name.split(".", 2)
        if parts[0] != "layers" or len(parts) != 3 or not parts[1].isdigit():
            if name.startswith("rope_embeddings."):
                continue
            raise ImportRefused(f"tensor {name} has no place in a Memory+ model")
        block, rest = f"model.layers.{int(parts[1])}.", parts[2]
        if rest == "attention.wq.weight":
            result[block + "self_attn.q_proj.weight"] = _halves(tensor, config["num_attention_heads"],
                                                                config["head_dim"], name)
        elif rest == "attention.wk.weight":
            result[block + "self_attn.k_proj.weight"] = _halves(tensor, config["num_key_value_heads"],
                                                                config["head_dim"], name)
        elif rest == "feed_forward.keys":
            result[block + "memory.keys"] = _keys(tensor, config, name)
        elif rest == "feed_forward.values.weight":
            values[int(parts[1])] = tensor
        elif rest in BLOCK or rest in MEMORY:
            result[block + (BLOCK.get(rest) or MEMORY[rest])] = tensor
        else:
            raise ImportRefused(f"tensor {name} has no place in a Memory+ model")
    if config.get("memory_layers"):
        result.update(_values(values, config))
    return f"Meta's Memory+ checkpoint ({layout})", config, result
