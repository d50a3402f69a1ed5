#!/usr/bin/env python3
"""Golden cases of Meta's Memory+: tiny random models and what its published code computes for them on a CPU.

    tests/golden/make_meta.py CHECKOUT [OUT]      CHECKOUT: facebookresearch/memory; needs PyPI's torch and safetensors

The published model class is run in float32. Only what a CPU has not is replaced: xformers' attention bias, which
is not reached, and the Triton kernel of the embedding bag, by a gather and a weighted sum. The state_dict is saved as
consolidated.pth with params.json, tools/import-ultramem turns it into the model folder, and expected.safetensors holds
input_ids [3,40] and the logits. A seed is taken whose top-k choices are no near ties."""
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
GAP = 2e-5
CASES = {"meta_shared": dict(layers="0,2", mem_share_values=True, swilu_projection=True, mem_v_dim=-1, mem_heads=4),
         "meta_own": dict(layers="1,3", mem_share_values=False, swilu_projection=False, mem_v_dim=40, mem_heads=2)}


def stand_ins():
    """Modules that the code imports and a CPU has not."""
    for name in ("xformers", "xformers.ops"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["xformers.ops"].fmha = types.SimpleNamespace(memory_efficient_attention=None)
    sys.modules["xformers.ops"].AttentionBias = type("AttentionBias", (), {})
    probe = types.ModuleType("lingua.probe")
    probe.log_stats = lambda x, name=None: x
    sys.modules["lingua.probe"] = probe
    bag = types.ModuleType("lingua.product_key.xformer_embeddingbag")
    bag.xformers_embedding_bag = lambda indices, weight, per_sample_weights, mode: torch.einsum(
        "bk,bkd->bd", per_sample_weights, weight[indices])
    sys.modules["lingua.product_key.xformer_embeddingbag"] = bag


def make_model(transformer, memory, fields, seed):
    memory.HashingMemory.VALUES = None
    keys = memory.ProductKeyArgs(is_enabled=True, mem_n_keys=12, mem_knn=6, mem_k_dim=16, **fields)
    args = transformer.LMTransformerArgs(dim=32, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=96, multiple_of=8,
                                         rope_theta=20000.0, max_seqlen=128, productkey_args=keys)
    torch.manual_seed(seed)
    original = transformer.LMTransformer.init_weights
    transformer.LMTransformer.init_weights = lambda self: None  # values of shared memories are set below
    model = transformer.LMTransformer(args)
    transformer.LMTransformer.init_weights = original
    memories = [layer.feed_forward for layer in model.layers if isinstance(layer.feed_forward, memory.HashingMemory)]
    for item in memories:
        item.values = item.values or memories[0].values
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape)
            if "norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise if "embed" in name or "values" in name else noise * 1.2 / weight.shape[-1] ** 0.5)
        model.rope_embeddings.reset_parameters()
    return model, args


def smallest_gap(model, memory, ids):
    """The smallest distance between a score that is taken and one that is not, of every top-k."""
    gaps, topk = [], torch.topk

    def watched(scores, k, dim=-1, **rest):
        best = topk(scores, k + 1, dim=dim).values
        gaps.append((best.narrow(dim, k - 1, 1) - best.narrow(dim, k, 1)).min().item())
        return topk(scores, k, dim=dim, **rest)

    method = torch.Tensor.topk
    torch.topk = watched
    torch.Tensor.topk = lambda self, k, dim=-1, **rest: watched(self, k, dim, **rest)
    try:
        with torch.no_grad():
            logits = model(ids, attn_impl="sdpa")
    finally:
        torch.topk, torch.Tensor.topk = topk, method
    return min(gaps), logits


def main():
    checkout, out = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    sys.path.insert(0, checkout)
    stand_ins()
    from apps.main import transformer
    from lingua.product_key import memory
    for name, fields in CASES.items():
        for seed in range(1, 200):
            model, args = make_model(transformer, memory, fields, seed)
            ids = torch.randint(0, 96, (3, 40), generator=torch.Generator().manual_seed(seed))
            gap, logits = smallest_gap(model, memory, ids)
            if gap > GAP:
                break
        assert gap > GAP
        params = {"model": {"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "rope_theta": 20000.0,
                            "norm_eps": args.norm_eps, "max_seqlen": 128, "vocab_size": 96, "multiple_of": 8,
                            "productkey_args": dict(vars(args.productkey_args))}}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "params.json").write_text(json.dumps(params))
            torch.save({"model": model.state_dict()}, Path(folder, "consolidated.pth"))
            tool = HERE.parent.parent / "tools" / "import-ultramem"
            subprocess.run([sys.executable, tool, folder, out / name], check=True)
        save_file({"input_ids": ids, "logits": logits.float().contiguous()}, out / name / "expected.safetensors",
                  metadata={"case": name, "seed": str(seed), "gap": f"{gap:.1e}"})
        print(f"{name}: seed {seed}, smallest top-k gap {gap:.1e}, largest logit {logits.abs().max():.2f}")


if __name__ == "__main__":
    main()
