#!/usr/bin/env python3
"""Bad model folders: each gets one clear sentence, exit status 1, and nothing else.

    tests/hostile/models.py BUILD_DIR

Method: copy a golden case, spoil one thing, run `memrack logits` on it. A crash (a signal), a hang, a
sanitizer's report, a missing sentence, or an OUT file that exists are failures. Python's standard library only.
"""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
LIMIT_S = 20
TESTS = []


def case(base, words):
    """Registers a spoiler; the sentence must hold all words."""
    def register(function):
        TESTS.append((function.__name__, base, words, function))
        return function
    return register


def load(folder):
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        data = f.read()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8:8 + length]), bytearray(data[8 + length:])


def store(folder, header, data, raw=None, pad=True, length=None):
    text = raw if raw is not None else json.dumps(header).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))


def config(folder, **changes):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        c = json.load(f)
    for key, value in changes.items():
        if value == "REMOVE":
            c.pop(key, None)
        else:
            c[key] = value
    with open(path, "w") as f:
        json.dump(c, f)


def config_text(folder, text):
    with open(os.path.join(folder, "config.json"), "wb") as f:
        f.write(text)


def floats(header, data, name, values, at=0):
    begin = header[name]["data_offsets"][0] + 4 * at
    data[begin:begin + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)


# --- safetensors ------------------------------------------------------------------------------------

@case("dense", ["model.safetensors"])
def file_missing(d):
    os.remove(os.path.join(d, "model.safetensors"))


@case("dense", ["too short"])
def file_empty(d):
    open(os.path.join(d, "model.safetensors"), "wb").close()


@case("dense", ["too short"])
def file_of_seven_bytes(d):
    open(os.path.join(d, "model.safetensors"), "wb").write(b"1234567")


@case("dense", ["cut short"])
def file_truncated(d):
    path = os.path.join(d, "model.safetensors")
    os.truncate(path, os.path.getsize(path) - 100)


@case("dense", ["header"])
def file_truncated_in_header(d):
    os.truncate(os.path.join(d, "model.safetensors"), 500)


@case("dense", ["belong to nothing"])
def file_with_a_tail(d):
    open(os.path.join(d, "model.safetensors"), "ab").write(b"x" * 64)


@case("dense", ["not a regular file"])
def file_is_a_fifo(d):
    path = os.path.join(d, "model.safetensors")
    os.remove(path)
    os.mkfifo(path)


@case("dense", ["not a regular file"])
def file_is_a_folder(d):
    path = os.path.join(d, "model.safetensors")
    os.remove(path)
    os.mkdir(path)


@case("dense", ["header"])
def header_length_zero(d):
    h, data = load(d)
    store(d, h, data, length=0)


@case("dense", ["header"])
def header_length_huge(d):
    h, data = load(d)
    store(d, h, data, length=2**63)


@case("dense", ["header"])
def header_length_all_ones(d):
    h, data = load(d)
    store(d, h, data, length=2**64 - 1)


@case("dense", ["{"])
def header_no_object(d):
    _, data = load(d)
    store(d, None, data, raw=b"[1,2,3]         ")


@case("dense", ["JSON"])
def header_bad_json(d):
    _, data = load(d)
    store(d, None, data, raw=b'{"a": {"dtype": "F32", ')


@case("dense", ["deeper"])
def header_nested_deeply(d):
    _, data = load(d)
    store(d, None, data, raw=b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}")


@case("dense", ["JSON"])
def header_not_utf8(d):
    _, data = load(d)
    store(d, None, data, raw=b'{"\xff\xfe": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}')


@case("dense", ["JSON"])
def header_duplicate_names(d):
    h, data = load(d)
    text = json.dumps(h)
    name = "transformer.ln_f.weight"
    store(d, None, data, raw=(text[:-1] + f', "{name}": {json.dumps(h[name])}}}').encode())


@case("dense", ["unknown dtype"])
def tensor_unknown_dtype(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["dtype"] = "F99"
    store(d, h, data)


@case("dense", ["dtype"])
def tensor_no_dtype(d):
    h, data = load(d)
    del h["transformer.ln_f.weight"]["dtype"]
    store(d, h, data)


@case("dense", ["offsets hold"])
def tensor_shape_too_large(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["shape"] = [65]
    store(d, h, data)


@case("dense", ["overflow"])
def tensor_shape_overflows(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["shape"] = [2**62, 2**62]
    store(d, h, data)


@case("dense", ["size"])
def tensor_shape_negative(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["shape"] = [-64]
    store(d, h, data)


@case("dense", ["dimensions"])
def tensor_shape_of_many_dims(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["shape"] = [1] * 50 + [64]
    store(d, h, data)


@case("dense", ["ascending"])
def tensor_offsets_reversed(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["data_offsets"].reverse()
    store(d, h, data)


@case("dense", ["ascending"])
def tensor_offsets_negative(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["data_offsets"] = [-256, 0]
    store(d, h, data)


@case("dense", ["ends at byte"])
def tensor_offsets_beyond(d):
    h, data = load(d)
    h["transformer.ln_f.weight"]["data_offsets"] = [2**40, 2**40 + 256]
    store(d, h, data)


@case("dense", ["overlaps"])
def tensor_overlap(d):
    h, data = load(d)
    h["transformer.twin"] = dict(h["transformer.ln_f.weight"])
    store(d, h, data)


@case("dense", ["belong to nothing"])
def tensor_gap(d):
    h, data = load(d)
    begin = h["transformer.ln_f.weight"]["data_offsets"][0]
    for t in h.values():
        if "data_offsets" in t and t["data_offsets"][0] >= begin:
            t["data_offsets"] = [x + 64 for x in t["data_offsets"]]
    store(d, h, data[:begin] + bytes(64) + data[begin:])


@case("dense", ["transformer.ln_f.weight", "missing"])
def tensor_missing(d):
    h, data = load(d)
    h["transformer.other.weight"] = h.pop("transformer.ln_f.weight")
    store(d, h, data)


@case("dense", ["transformer.extra", "no place"])
def tensor_too_many(d):
    h, data = load(d)
    h["transformer.extra"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    store(d, h, data + bytes(8))


@case("dense", ["transformer.ln_f.weight", "I16"])
def tensor_wrong_dtype(d):
    h, data = load(d)
    h["transformer.ln_f.weight"].update(dtype="I16", shape=[128])
    store(d, h, data)


@case("dense", ["transformer.blocks.0.att_proj.weight", "shape [64, 128]", "expected [128, 64]"])
def tensor_wrong_shape(d):
    h, data = load(d)
    h["transformer.blocks.0.att_proj.weight"]["shape"].reverse()
    store(d, h, data)


@case("v1_ive4_skip", ["shuffle_index", "twice"])
def shuffle_no_permutation(d):
    h, data = load(d)
    at = h["transformer.mem_blocks.0.shuffle_index"]["data_offsets"][0]
    data[at:at + 8] = data[at + 8:at + 16]
    store(d, h, data)


@case("v1_ive4_skip", ["shuffle_index", "outside"])
def shuffle_out_of_range(d):
    h, data = load(d)
    at = h["transformer.mem_blocks.0.shuffle_index"]["data_offsets"][0]
    data[at:at + 8] = struct.pack("<q", -1)
    store(d, h, data)


@case("v1_ive4_skip", ["shuffle_index", "I64"])
def shuffle_wrong_type(d):
    h, data = load(d)
    h["transformer.mem_blocks.0.shuffle_index"].update(dtype="F64")
    store(d, h, data)


@case("v2_peer_share05", ["values_for_look_up", "nan"])
def table_with_nan(d):
    h, data = load(d)
    floats(h, data, "transformer.full_memory_layer.values_for_look_up", [float("nan")], at=100)
    store(d, h, data)


@case("v2_peer_share05", ["pre_values_for_look_up", "inf", "row 3"])
def pre_table_with_infinity(d):
    h, data = load(d)
    floats(h, data, "transformer.full_memory_layer.pre_values_for_look_up", [float("inf")], at=3 * 32 + 5)
    store(d, h, data)


@case("dense", ["ff_out", "nan"])
def weight_with_nan(d):
    h, data = load(d)
    floats(h, data, "transformer.blocks.1.ff_out.weight", [float("nan")], at=9)
    store(d, h, data)


@case("v1_ive4_skip", ["memory layer"])
def scores_overflow(d):
    h, data = load(d)
    begin, end = h["transformer.mem_blocks.0.tucker_core.0"]["data_offsets"]
    floats(h, data, "transformer.mem_blocks.0.tucker_core.0", [3e38] * ((end - begin) // 4))
    store(d, h, data)


# --- tables of scales and codes -----------------------------------------------------------------------

def quantised(folder, kind, row_bytes, spoiled_row=None, spoil=None):
    """The value table as U8 rows of zeros but for one row; kind None: config.json does not say how."""
    name = "transformer.full_memory_layer.values_for_look_up"
    h, data = load(folder)
    if kind:
        config(folder, quantization_config={"quant_method": "memrack", "tables": kind})
    header, out = {}, bytearray()
    for tensor, entry in h.items():
        if tensor == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        blob = bytes(data[begin:end])
        if tensor == name:
            rows = entry["shape"][0]
            table = bytearray(rows * row_bytes)
            if spoil:
                table[spoiled_row * row_bytes:spoiled_row * row_bytes + len(spoil)] = spoil
            blob, entry = bytes(table), {"dtype": "U8", "shape": [rows, row_bytes]}
        header[tensor] = dict(entry, data_offsets=[len(out), len(out) + len(blob)])
        out += blob
    store(folder, header, out)


@case("v2_peer_share05", ["values_for_look_up", "row 5"])
def table_scale_is_infinite(d):
    quantised(d, "int8", 36, 5, struct.pack("<f", float("inf")) + bytes([1] * 32))


@case("v2_peer_share05", ["values_for_look_up", "row 9"])
def table_block_scale_is_nan(d):
    quantised(d, "int4", 18, 9, struct.pack("<e", float("nan")))


@case("v2_peer_share05", ["values_for_look_up", "nan", "row 7, column 3"])
def table_code_is_nan(d):
    quantised(d, "fp8", 36, 7, struct.pack("<f", 1) + bytes([0, 0, 0, 0x7f]))


@case("v2_peer_share05", ["values_for_look_up", "[1024, 35]", "expected [1024, 36]", "fp8-block"])
def table_row_too_short(d):
    quantised(d, "fp8-block", 35)


@case("v2_peer_share05", ["values_for_look_up", "U8", "quantization_config"])
def table_of_unknown_storage(d):
    quantised(d, None, 36)


@case("v2_peer_share05", ["values_for_look_up", "U8", "bf16"])
def table_of_plain_storage(d):
    quantised(d, "bf16", 64)


@case("v2_peer_share05", ["quantization_config", "int3"])
def quantization_unknown_type(d):
    quantised(d, "int3", 36)


@case("dense", ["quantization_config", "gptq"])
def quantization_foreign(d):
    config(d, quantization_config={"quant_method": "gptq", "bits": 4})


# --- index of several files -------------------------------------------------------------------------

def shard(d, weight_map=None, text=None):
    os.rename(os.path.join(d, "model.safetensors"), os.path.join(d, "a.safetensors"))
    with open(os.path.join(d, "a.safetensors"), "rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        names = [n for n in json.loads(f.read(length)) if n != "__metadata__"]
    whole = {n: "a.safetensors" for n in names}
    if weight_map:
        whole.update(weight_map)
    with open(os.path.join(d, "model.safetensors.index.json"), "w") as f:
        f.write(text if text is not None else json.dumps({"weight_map": whole}))


@case("dense", ["b.safetensors"])
def index_missing_shard(d):
    shard(d, {"transformer.ln_f.weight": "b.safetensors"})


@case("dense", ["no shard holds"])
def index_names_absent_tensor(d):
    shard(d, {"transformer.absent": "a.safetensors"})


@case("dense", ["plain file name"])
def index_path_traversal(d):
    shard(d, {"transformer.ln_f.weight": "../../../etc/passwd"})


@case("dense", ["plain file name"])
def index_absolute_path(d):
    shard(d, {"transformer.ln_f.weight": "/etc/passwd"})


@case("dense", ["plain file name"])
def index_number_for_file(d):
    shard(d, {"transformer.ln_f.weight": 7})


@case("dense", ["weight_map"])
def index_without_map(d):
    shard(d, text="{}")


@case("dense", ["in two files"])
def index_tensor_in_two_shards(d):
    shard(d)
    shutil.copy(os.path.join(d, "a.safetensors"), os.path.join(d, "b.safetensors"))
    with open(os.path.join(d, "model.safetensors.index.json")) as f:
        index = json.load(f)
    index["weight_map"]["transformer.ln_f.weight"] = "b.safetensors"
    with open(os.path.join(d, "model.safetensors.index.json"), "w") as f:
        json.dump(index, f)


# --- config.json ------------------------------------------------------------------------------------

@case("dense", ["config.json"])
def config_missing(d):
    os.remove(os.path.join(d, "config.json"))


@case("dense", ["not an object"])
def config_is_an_array(d):
    config_text(d, b"[]")


@case("dense", ["JSON"])
def config_truncated(d):
    path = os.path.join(d, "config.json")
    os.truncate(path, os.path.getsize(path) // 2)


@case("dense", ["JSON"])
def config_not_utf8(d):
    config_text(d, b'{"d_model": "\xff"}')


@case("dense", ["deeper"])
def config_nested_deeply(d):
    config_text(d, b'{"golden":' + b'{"a":' * 100000 + b"1" + b"}" * 100001)


@case("dense", ["JSON"])
def config_duplicate_keys(d):
    config_text(d, b'{"d_model": 64, "d_model": 128}')


@case("dense", ["bytes, more than"])
def config_huge(d):
    config_text(d, b'{"golden": "' + b"x" * (17 << 20) + b'"}')


def refused(name, base, words, **changes):
    TESTS.append((name, base, words, lambda d: config(d, **changes)))


for key, value in [("alibi", True), ("clip_qkv", 8.0), ("include_bias", True), ("norm_after", True),
                   ("scale_logits", True), ("embedding_layer_norm", True), ("rope", False),
                   ("bias_for_layer_norm", True), ("block_group_size", 2), ("activation_type", "gelu"),
                   ("layer_norm_type", "low_precision"), ("block_type", "llama"),
                   ("vertical_parallel", True), ("layer_norm_with_affine", False),
                   ("sliding_window", 128), ("rope_scaling", {"type": "linear", "factor": 2})]:
    refused(f"config_{key}_{value if not isinstance(value, dict) else 'set'}", "dense", [key], **{key: value})
for key, value in [("n_layers", -1), ("n_layers", 0), ("n_layers", 2**40), ("n_heads", 0), ("n_heads", 3),
                   ("n_kv_heads", 3), ("d_model", "64"), ("d_model", 64.5), ("d_model", None),
                   ("vocab_size", 0), ("vocab_size", 2**63 - 1), ("embedding_size", 3),
                   ("max_sequence_length", 0), ("layer_norm_eps", -1), ("layer_norm_eps", "x"),
                   ("rope_theta", 0), ("mlp_hidden_size", 3), ("weight_tying", "yes")]:
    refused(f"config_{key}_is_{value}", "dense", [key], **{key: value})
refused("config_vocab_does_not_fit_file", "dense", ["transformer.wte.weight", "shape"], vocab_size=289)
refused("config_untied_without_head", "dense", ["transformer.ff_out.weight", "missing"], weight_tying=False)
refused("config_layers_do_not_fit_file", "dense", ["no place"], n_layers=3)
refused("config_moe_shared_expert", "moe_topk_raw", ["moe_shared_expert"], moe_shared_expert=True)
refused("config_moe_capacity", "moe_topk_raw", ["moe_dropless"], moe_dropless=False)
refused("config_moe_normalize_2", "moe_topk_raw", ["moe_normalize_expert_weights"], moe_normalize_expert_weights=2)
refused("config_moe_top_k_too_large", "moe_topk_raw", ["moe_top_k"], moe_top_k=9)
refused("config_moe_with_memory", "moe_topk_raw", ["mem_insert_way"], mem_insert_way="full")
for key, value in [("mem_type", "engram"), ("mem_type", None), ("mem_insert_way", "1:2:3"),
                   ("mem_insert_way", "1:2/"), ("mem_insert_way", "a:b"), ("mem_insert_way", "9:9"),
                   ("mem_insert_way", "2:1"), ("mem_insert_way", ""), ("mem_knn", 0), ("mem_head", 0),
                   ("mem_knn", 2**31), ("mem_knum", 25), ("mem_kdim", 17), ("mem_vdim", 33), ("mem_head", 3),
                   ("mem_tucker_rank", 3), ("mem_tucker_multihead", 3)]:
    words = {"mem_knum": ["keys"], "mem_kdim": ["shape"], "mem_vdim": ["mem_vdim"]}.get(key, [key])
    refused(f"config_{key}_is_{value}", "v1_ive4_skip", words, **{key: value})
refused("config_knn_above_keys", "v1_ive4_skip", ["mem_knn", "keys a side"], mem_knn=49)
refused("config_v2_expand", "v2_glu_kx2_e4", ["mem_value_expand_time"], mem_value_expand_time=3)
refused("config_v2_heads", "v2_glu_kx2_e4", ["mem_head"], mem_head=5)
refused("config_v2_share", "v2_glu_kx2_e4", ["mem_share_ratio"], mem_share_ratio=0)
refused("config_v2_share_above_one", "v2_glu_kx2_e4", ["mem_share_ratio"], mem_share_ratio=1.5)
refused("config_v2_query_layout", "v2_glu_kx2_e4", ["mem_head"], mem_q_for_each_tucker_rank=False)


# --- Hugging Face configurations ---------------------------------------------------------------------

ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
for name, base, words, changes in [
        ("type", "hf_llama", ["model_type", "gpt2"], {"model_type": "gpt2"}),
        ("type_number", "hf_llama", ["model_type"], {"model_type": 7}),
        ("architecture", "hf_llama", ["LlamaForSequenceClassification"],
         {"architectures": ["LlamaForSequenceClassification"]}),
        ("architectures_text", "hf_llama", ["architectures"], {"architectures": "LlamaForCausalLM"}),
        ("activation", "hf_llama", ["hidden_act", "gelu"], {"hidden_act": "gelu"}),
        ("yarn", "hf_llama_3_old", ["rope_scaling", "yarn"], {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("dynamic", "hf_llama_3_old", ["rope_scaling", "dynamic"], {"rope_scaling": {"type": "dynamic", "factor": 4}}),
        ("rope_key", "hf_llama_3", ["beta_fast"], {"rope_parameters": dict(ROPE, beta_fast=32)}),
        ("rope_nested", "hf_llama_3", ["full_attention"], {"rope_parameters": {"full_attention": ROPE}}),
        ("rope_factor", "hf_llama_3", ["rope_parameters", "factor"], {"rope_parameters": dict(ROPE, factor=None)}),
        ("rope_factor_0", "hf_llama_3", ["factor"], {"rope_parameters": dict(ROPE, factor=0)}),
        ("rope_bands", "hf_llama_3", ["high_freq_factor"], {"rope_parameters": dict(ROPE, high_freq_factor=1.0)}),
        ("rope_list", "hf_llama_3", ["rope_parameters"], {"rope_parameters": [1]}),
        ("rope_twice", "hf_llama_3", ["rope_scaling", "rope_parameters"], {"rope_scaling": ROPE}),
        ("partial", "hf_llama", ["partial_rotary_factor"], {"partial_rotary_factor": 0.5}),
        ("gptq", "hf_llama", ["quantization_config", "gptq"], {"quantization_config": {"quant_method": "gptq"}}),
        ("unknown", "hf_llama", ["attention_multiplier"], {"attention_multiplier": 2.0}),
        ("of_others", "hf_llama", ["clip_qkv", "llama"], {"clip_qkv": 8.0}),
        ("window_of_others", "hf_llama", ["sliding_window"], {"sliding_window": 8}),
        ("heads", "hf_llama", ["num_key_value_heads"], {"num_key_value_heads": 3}),
        ("heads_many", "hf_llama", ["num_attention_heads"], {"num_attention_heads": 1 << 40}),
        ("head_dim_odd", "hf_qwen3", ["even"], {"head_dim": 15}),
        ("head_dim_huge", "hf_qwen3", ["131072"], {"head_dim": 131072}),
        ("head_dim_other", "hf_qwen3", ["q_proj", "shape"], {"head_dim": 8}),
        ("olmoe_width", "hf_olmoe", ["hidden_size"], {"head_dim": 12}),
        ("eos_text", "hf_llama_3", ["eos_token_id"], {"eos_token_id": [2, "x"]}),
        ("eos_many", "hf_llama_3", ["eos_token_id"], {"eos_token_id": list(range(40))}),
        ("window_0", "hf_mistral_window", ["sliding_window"], {"sliding_window": 0}),
        ("window_text", "hf_mistral_window", ["sliding_window"], {"sliding_window": "7"}),
        ("layer_types_few", "hf_qwen2_types", ["layer_types"], {"layer_types": ["full_attention"]}),
        ("layer_types_other", "hf_qwen2_types", ["linear_attention"], {"layer_types": ["linear_attention"] * 3}),
        ("layer_types_unused", "hf_qwen2_types", ["use_sliding_window"], {"use_sliding_window": False}),
        ("window_disputed", "hf_qwen2_moe", ["layer_types"],
         {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}),
        ("memory_beyond", "meta_shared", ["memory_layers"], {"memory_layers": [0, 4]}),
        ("memory_falling", "meta_shared", ["memory_layers"], {"memory_layers": [2, 0]}),
        ("memory_text", "meta_shared", ["memory_layers"], {"memory_layers": "0,2"}),
        ("memory_keys", "meta_shared", ["memory.keys", "shape"], {"memory_keys": 13}),
        ("memory_knn", "meta_shared", ["mem_knn"], {"memory_knn": 13}),
        ("memory_many", "meta_shared", ["entries"], {"memory_knn": 1024, "memory_heads": 64}),
        ("memory_width", "meta_own", ["shape"], {"memory_value_dim": 32}),
        ("memory_no_projection", "meta_own", ["memory_value_dim"], {"memory_value_projection": False}),
        ("memory_of_others", "hf_llama", ["memory_layers"], {"memory_layers": [1]}),
        ("experts_0", "hf_mixtral", ["num_local_experts"], {"num_local_experts": 0}),
        ("experts_few", "hf_mixtral", ["num_experts_per_tok"], {"num_experts_per_tok": 9}),
        ("experts_more", "hf_mixtral", ["gate.weight", "shape"], {"num_local_experts": 5}),
        ("experts_nowhere", "hf_qwen2_moe", ["experts", "decoder_sparse_step"], {"decoder_sparse_step": 9}),
        ("mlp_only_text", "hf_qwen2_moe", ["mlp_only_layers"], {"mlp_only_layers": ["1"]}),
        ("mlp_only_other", "hf_qwen2_moe", ["missing"], {"mlp_only_layers": [2]}),
        ("shared_other", "hf_qwen2_moe", ["shared_expert", "shape"], {"shared_expert_intermediate_size": 41}),
        ("bias_missing", "hf_llama", ["q_proj.bias", "missing"], {"attention_bias": True}),
        ("bias_left", "hf_llama_linear", ["bias", "no place"], {"mlp_bias": False}),
        ("untied", "hf_qwen3", ["lm_head.weight", "missing"], {"tie_word_embeddings": False}),
        ("layers", "hf_llama", ["no place"], {"num_hidden_layers": 2}),
        ("eps", "hf_llama", ["rms_norm_eps"], {"rms_norm_eps": -1}),
        ("olmo_eps", "hf_olmo", ["rms_norm_eps"], {"rms_norm_eps": 1e-5})]:
    refused(f"hf_config_{name}", base, words, **changes)


@case("hf_llama", ["k_proj.weight", "shape [8, 64]", "expected [16, 32]"])
def hf_tensor_shape(d):
    h, data = load(d)
    h["model.layers.1.self_attn.k_proj.weight"]["shape"] = [8, 64]
    store(d, h, data)


@case("hf_llama", ["lm_head.weight", "tied"])
def hf_tied_and_other(d):
    config(d, tie_word_embeddings=True)


@case("hf_mixtral", ["experts.3.w2.weight", "missing"])
def hf_expert_missing(d):
    h, data = load(d)
    h["model.layers.0.block_sparse_moe.experts.4.w2.weight"] = h.pop(
        "model.layers.0.block_sparse_moe.experts.3.w2.weight")
    store(d, h, data)


@case("hf_qwen2_window", ["q_proj.bias", "nan"])
def hf_bias_nan(d):
    h, data = load(d)
    floats(h, data, "model.layers.2.self_attn.q_proj.bias", [float("nan")], at=3)
    store(d, h, data)


# --- input ------------------------------------------------------------------------------------------

def write_ids(path, values, dtype="I64", shape=None):
    code = {"I64": "q", "I32": "i", "F32": "f"}[dtype]
    flat = [v for row in values for v in row]
    data = struct.pack(f"<{len(flat)}{code}", *flat)
    header = {"input_ids": {"dtype": dtype, "shape": shape or [len(values), len(values[0])],
                            "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


INPUTS = [
    ("ids_of_wrong_type", ["I64"], lambda p: write_ids(p, [[1, 2]], "I32")),
    ("ids_out_of_vocabulary", ["outside"], lambda p: write_ids(p, [[1, 288]])),
    ("ids_negative", ["outside"], lambda p: write_ids(p, [[1, -1]])),
    ("ids_longer_than_context", ["context"], lambda p: write_ids(p, [[1] * 129])),
    ("ids_of_one_dimension", ["[B,T]"], lambda p: write_ids(p, [[1, 2]], shape=[2])),
    ("ids_empty", ["nothing"], lambda p: write_ids(p, [[]], shape=[1, 0])),
    ("ids_no_file", ["No such file"], lambda p: None),
    ("ids_garbage", ["header"], lambda p: open(p, "wb").write(b"\xff" * 64)),
]


def run(build, model, input_path, folder):
    out = os.path.join(folder, "out.safetensors")
    try:
        done = subprocess.run([os.path.join(build, "memrack"), "logits", model, "--input", input_path, "--output", out],
                              capture_output=True, text=True, errors="replace", timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return None, "it hangs", False
    return done.returncode, done.stderr.strip(), os.path.exists(out)


def judge(code, text, wrote, words):
    if code is None:
        return text
    if code not in (1, 2):
        return f"exit status {code}: {text[-300:]}"
    if wrote:
        return "an OUT file exists"
    last = text.splitlines()[-1] if text else ""
    missing = [w for w in words if w.lower() not in last.lower()]
    if missing or not last.startswith("memrack logits: ") or "Sanitizer" in text:
        return f"'{last[-300:]}' lacks {missing}"
    return None


def main():
    build = sys.argv[1]
    passed = failed = 0
    for name, base, words, spoil in TESTS + [(n, "dense", w, s) for n, w, s in INPUTS]:
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "model")
            input_path = os.path.join(GOLDEN, base if base.startswith("hf_") else "dense", "expected.safetensors")
            shutil.copytree(os.path.join(GOLDEN, base), model, ignore=shutil.ignore_patterns("memrack-*"))
            if name.startswith("ids_"):
                input_path = os.path.join(folder, "in.safetensors")
                spoil(input_path)
            else:
                spoil(model)
            problem = judge(*run(build, model, input_path, folder), words)
        if problem:
            print(f"FAIL {name}: {problem}")
        passed, failed = passed + (not problem), failed + bool(problem)
    print(f"hostile models: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
