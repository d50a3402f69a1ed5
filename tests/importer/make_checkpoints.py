#!/usr/bin/env python3
"""Makes tests/importer/checkpoints: one small model in every layout, written by PyTorch itself.

    make_checkpoints.py OUT [--official PATH]      needs torch, safetensors, PyYAML; about a minute

OUT/expected.npz holds the tensors; OUT/LAYOUT what the trainer's checkpointer writes for them. Sharded layouts come
from two processes of FSDP over gloo, saved by the calls that the official checkpointers make. --official: a checkout of
the authors' repository, whose safetensors_util then writes the safetensors export (else the same few lines here)."""
import argparse
import base64
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from torch import nn

PARTS = 2
MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 32, "vocab_size": 24, "embedding_size": 24,
         "max_sequence_length": 32, "rope": True, "layer_norm_type": "rms", "activation_type": "swiglu",
         "include_bias": False, "weight_tying": True, "attention_layer_norm": False, "block_type": "sequential",
         "mem_type": "ultramem_v2", "mem_insert_way": "full", "mem_knum": 6, "mem_kdim": 8, "mem_vdim": 8, "mem_knn": 4,
         "mem_head": 1, "mem_pre_vdim": 4, "mem_key_expand_time": 1, "mem_value_expand_time": 1, "mem_share_ratio": 1.0,
         "mem_use_glu_act": False, "mem_tucker_rank": 2, "mem_tucker_multihead": 1,
         "mem_q_for_each_tucker_rank": False, "eos_token_id": 0, "pad_token_id": 1, "init_device": "meta",
         "vertical_parallel": False, "mem_parallel_size": 1}
SHAPES = {"transformer.wte.weight": (24, 16), "transformer.ln_f.weight": (16,),
          "transformer.blocks.0.attn_norm.weight": (16,), "transformer.blocks.0.ff_norm.weight": (16,),
          "transformer.blocks.0.att_proj.weight": (48, 16), "transformer.blocks.0.attn_out.weight": (16, 16),
          "transformer.blocks.0.ff_proj.weight": (32, 16), "transformer.blocks.0.ff_out.weight": (16, 16),
          "transformer.mem_blocks.0.query_proj.weight": (16, 16), "transformer.mem_blocks.0.keys": (1, 2, 6, 8, 2),
          "transformer.mem_blocks.0.query_norm.weight": (8,), "transformer.mem_blocks.0.keys_norm.weight": (8,),
          "transformer.mem_blocks.0.values_proj.weight": (16, 8),
          "transformer.mem_blocks.0.pre_values_proj.weight": (4, 16),
          "transformer.mem_blocks.0.tucker_core.0": (1, 2, 2), "transformer.mem_blocks.0.tucker_core_u": (1, 1, 1, 2),
          "transformer.mem_blocks.0.tucker_core_v": (1, 1, 1, 2),
          "transformer.full_memory_layer.values_for_look_up": (36, 8),
          "transformer.full_memory_layer.pre_values_for_look_up": (36, 4)}


def state_dict():
    torch.manual_seed(5)
    state = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    state["transformer.mem_blocks.0.shuffle_index"] = torch.randperm(36)
    return state


class Holder(nn.Module):
    """A module tree whose state_dict has the given names."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            owner, parts = self, name.split(".")
            for part in parts[:-1]:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            if tensor.is_floating_point() and not parts[-1].startswith("tucker_core_"):
                owner.register_parameter(parts[-1], nn.Parameter(tensor.clone()))
            else:
                owner.register_buffer(parts[-1], tensor.clone())


def write_config(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "test", "seed": 1, "model": {**MODEL, **changes}}))


def write_export(state, path, official):
    if official:
        sys.path.insert(0, str(official))
        from olmo.safetensors_util import state_dict_to_safetensors_file
        state_dict_to_safetensors_file(state, str(path))
        return
    from safetensors.torch import save_file
    encode = lambda name: base64.urlsafe_b64encode(pickle.dumps(((name,), False))).decode()
    save_file({encode(name): tensor for name, tensor in state.items()}, str(path))


FLAT_METADATA = ("_fqns", "_shard_param_offsets", "_shard_indices", "_numels", "_numels_with_padding", "_shapes",
                 "_shard_numel_padded", "_shard_param_infos")


def sharded_rank(rank, out):
    """What one rank of the trainer saves, in three layouts."""
    import torch.distributed.checkpoint as dist_cp
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp import StateDictType
    from torch.distributed.fsdp.api import ShardedStateDictConfig
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29537")
    dist.init_process_group("gloo", rank=rank, world_size=PARTS)
    torch.manual_seed(0)
    holder = Holder(state_dict())
    block = holder._modules["transformer"]._modules["blocks"]._modules["0"]
    holder._modules["transformer"]._modules["blocks"]._modules["0"] = FSDP(block, device_id=torch.device("cpu"),
                                                                          use_orig_params=True)
    model = FSDP(holder, device_id=torch.device("cpu"), use_orig_params=True)
    with FSDP.state_dict_type(model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)):
        state = {"model": model.state_dict(), "optim": {}}
        torch.save(state, out / "sharded" / f"rank{rank}.pt")
        dist_cp.save_state_dict(state, dist_cp.FileSystemWriter(str(out / "distcp" / "model_and_optim")))
    modules = []
    for name, module in model.named_modules():
        if isinstance(module, FSDP):
            data = {"flat_param.data": module._handle.flat_param.detach()}
            for key in FLAT_METADATA:
                if hasattr(module._handle.flat_param, key):
                    data[f"flat_param.{key}"] = getattr(module._handle.flat_param, key)
            modules.append({"handles": [data], "name": name})
    (out / "flat" / "model").mkdir(parents=True, exist_ok=True)
    torch.save({"modules": modules}, out / "flat" / "model" / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def write_meta(out):
    """Meta's Memory+: the state_dict that its code has, consolidated and as torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dist_cp
    torch.manual_seed(9)
    dim, heads, n, knn_dim = 16, 2, 6, 8
    shapes = {"tok_embeddings.weight": (24, dim), "norm.weight": (dim,), "output.weight": (24, dim)}
    for layer in range(3):
        block = f"layers.{layer}."
        shapes.update({block + "attention.wq.weight": (dim, dim), block + "attention.wk.weight": (8, dim),
                       block + "attention.wv.weight": (8, dim), block + "attention.wo.weight": (dim, dim),
                       block + "attention_norm.weight": (dim,), block + "ffn_norm.weight": (dim,)})
        if layer == 1:
            shapes.update({block + "feed_forward.w1.weight": (32, dim), block + "feed_forward.w3.weight": (32, dim),
                           block + "feed_forward.w2.weight": (dim, 32)})
            continue
        memory = block + "feed_forward."
        shapes.update({memory + "keys": (2 * heads * n, knn_dim // 2),
                       memory + "query_proj.query_mlps.0.weight": (heads * knn_dim, dim),
                       memory + "query_proj.query_mlps.0.bias": (heads * knn_dim,),
                       memory + "value_proj.weight": (dim, dim), memory + "value_proj.bias": (dim,),
                       memory + "swilu_projection.weight": (dim, dim), memory + "swilu_projection.bias": (dim,)})
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    state["layers.0.feed_forward.values.weight"] = torch.randn(n * n, dim).bfloat16()
    params = {"name": "test", "model": {"dim": dim, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
                                        "rope_theta": 500000.0, "max_seqlen": 64, "vocab_size": 24, "multiple_of": 32,
                                        "productkey_args": {"is_enabled": True, "layers": "0,2", "mem_n_keys": n,
                                                            "mem_heads": heads, "mem_knn": 3, "mem_k_dim": knn_dim,
                                                            "mem_v_dim": -1, "mem_share_values": True,
                                                            "swilu_projection": True}},
              "data": {"seq_len": 64}}
    for name in ("meta", "meta_distcp"):
        (out / name).mkdir()
        (out / name / "params.json").write_text(json.dumps(params))
    torch.save({"model": state, "optim": {}}, out / "meta" / "consolidated.pth")
    dist_cp.save_state_dict({"model": state}, dist_cp.FileSystemWriter(str(out / "meta_distcp")), no_dist=True)
    np.savez_compressed(out / "expected_meta.npz", **{name: tensor.float().numpy() for name, tensor in state.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--official", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    state = state_dict()
    for layout in ("full", "export", "sharded", "flat", "distcp"):
        write_config(args.out / layout)
    write_config(args.out / "columns", vertical_parallel=True, mem_parallel_size=PARTS)
    torch.save(state, args.out / "full" / "model.pt")
    write_export(state, args.out / "export" / "model.safetensors", args.official)
    for rank in range(2 * PARTS):  # data-parallel twice
        part = dict(state)
        for name in state:
            if name.endswith("values_for_look_up"):
                width = state[name].shape[1] // PARTS
                first = rank % PARTS * width
                part[name] = state[name][:, first:first + width].contiguous()
        (args.out / "columns" / f"rank_{rank}").mkdir()
        torch.save(part, args.out / "columns" / f"rank_{rank}" / "model.pt")
    mp.spawn(sharded_rank, (args.out,), PARTS)
    np.savez_compressed(args.out / "expected.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    write_meta(args.out)


if __name__ == "__main__":
    main()
