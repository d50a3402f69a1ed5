"""The UltraMem model family in plain PyTorch: dense, MoE and UltraMemV2 blocks.

Parameter names and shapes are the official ones, so a state dict can be written to safetensors
as it is and read by any loader of official checkpoints.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    def __init__(self, size, eps, kind="rms"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.kind = eps, kind

    def forward(self, x):
        if self.kind == "rms":
            return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x.float(), self.weight.shape, self.weight, None, self.eps)


def rope_tables(length, head_dim, theta):
    inv = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), inv)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class MoE(nn.Module):
    """Router over all experts, top-k, nothing dropped."""

    def __init__(self, cfg):
        super().__init__()
        d, f, n = cfg["d_model"], cfg["mlp_hidden_size"] // 2, cfg["moe_num_experts"]
        self.n, self.f, self.k = n, f, cfg["moe_top_k"]
        self.normalize = cfg.get("moe_normalize_expert_weights") is not None
        self.router = nn.Module()
        self.router.layer = nn.Linear(d, n, bias=False)
        self.experts = nn.Module()
        self.experts.mlp = nn.Module()
        for name in ("w1", "v1", "w2"):
            setattr(self.experts.mlp, name, nn.Parameter(torch.empty(n * f, d)))
        self.aux = None

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        logits = F.linear(x.float(), self.router.layer.weight.float()).float()
        p = logits.softmax(-1)
        g, idx = p.topk(self.k, dim=-1)
        if self.normalize:
            g = g / g.sum(-1, keepdim=True)
        if self.training:
            load = torch.zeros(self.n).scatter_add_(0, idx.reshape(-1), torch.ones(idx.numel())) / idx.numel()
            self.aux = self.n * (load * p.mean(0)).sum(), logits.logsumexp(-1).square().mean()
        order = idx.reshape(-1).argsort(stable=True)
        counts = torch.bincount(idx.reshape(-1), minlength=self.n)
        token, gate = order // self.k, g.reshape(-1)[order]
        if self.training:
            # Whole groups of 32 rows per expert, filled with rows of gate 0: few distinct matrix shapes run faster.
            padded = (counts + 31) // 32 * 32
            shift = (padded - counts).cumsum(0) - (padded - counts)
            at = torch.arange(order.numel()) + shift.repeat_interleave(counts)
            rows = int(padded.sum())
            token = torch.zeros(rows, dtype=torch.long).index_copy(0, at, token)
            gate = torch.zeros(rows).index_copy(0, at, gate)
            counts = padded
        counts = counts.tolist()
        xs = x[token].split(counts)
        w1 = self.experts.mlp.w1.view(self.n, self.f, -1).unbind(0)
        v1 = self.experts.mlp.v1.view(self.n, self.f, -1).unbind(0)
        w2 = self.experts.mlp.w2.view(self.n, self.f, -1).unbind(0)
        ys = []
        for e in range(self.n):
            if counts[e]:
                h = F.silu(F.linear(xs[e], w1[e])) * F.linear(xs[e], v1[e])
                ys.append(h @ w2[e].to(h.dtype))
        y = torch.cat(ys).float() * gate.unsqueeze(-1)
        return torch.zeros(x.shape).index_add(0, token, y).view(shape)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d, heads = cfg["d_model"], cfg["n_heads"]
        self.heads, self.kv = heads, cfg["n_kv_heads"] or heads
        self.hd = d // heads
        eps, kind = cfg["layer_norm_eps"], cfg["layer_norm_type"]
        self.attn_norm, self.ff_norm = Norm(d, eps, kind), Norm(d, eps, kind)
        self.att_proj = nn.Linear(d, d + 2 * self.kv * self.hd, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.qk_norm = cfg["attention_layer_norm"]
        if self.qk_norm:
            self.q_norm, self.k_norm = Norm(self.hd, eps, kind), Norm(self.hd, eps, kind)
        self.moe = cfg["block_type"] == "moe"
        if self.moe:
            self.ffn = MoE(cfg)
        else:
            self.ff_proj = nn.Linear(d, cfg["mlp_hidden_size"], bias=False)
            self.ff_out = nn.Linear(cfg["mlp_hidden_size"] // 2, d, bias=False)

    def attention(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = self.att_proj(self.attn_norm(x)).split([d, self.kv * self.hd, self.kv * self.hd], dim=-1)
        q, k, v = q.view(b, t, self.heads, self.hd), k.view(b, t, self.kv, self.hd), v.view(b, t, self.kv, self.hd)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q, k, v = rotate(q, cos, sin), rotate(k, cos, sin), v.float()
        if self.kv != self.heads:
            k = k.repeat_interleave(self.heads // self.kv, dim=1)
            v = v.repeat_interleave(self.heads // self.kv, dim=1)
        with torch.autocast("cpu", enabled=False):
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.attn_out(a.transpose(1, 2).reshape(b, t, d))

    def feed_forward(self, f):
        if self.moe:
            return self.ffn(f)
        y, g = self.ff_proj(f).chunk(2, dim=-1)
        return self.ff_out(F.silu(g) * y)


class Rows(torch.autograd.Function):
    """table[row]; the gradient is added in place to table.grad, which every layer shares."""

    @staticmethod
    def forward(ctx, row, table):
        ctx.save_for_backward(row)
        ctx.table = table
        return table[row]

    @staticmethod
    def backward(ctx, grad):
        (row,), table = ctx.saved_tensors, ctx.table
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad.index_add_(0, row.reshape(-1), grad.reshape(-1, table.shape[1]).float())
        return None, None


class FullMemory(nn.Module):
    """The one table that every UltraMemV2 layer reads."""

    def __init__(self, rows, vdim, pre_vdim):
        super().__init__()
        self.values_for_look_up = nn.Parameter(torch.empty(rows, vdim))
        if pre_vdim > 0:
            self.pre_values_for_look_up = nn.Parameter(torch.empty(rows, pre_vdim))


class MemoryV2(nn.Module):
    def __init__(self, cfg, layer, layers):
        super().__init__()
        d, kdim = cfg["d_model"], cfg["mem_kdim"]
        self.head, self.knn, self.kdim, self.vdim = cfg["mem_head"], cfg["mem_knn"], kdim, cfg["mem_vdim"]
        self.rank, self.cores = cfg.get("mem_tucker_rank", 2), cfg.get("mem_tucker_multihead", 2)
        self.pre_vdim, self.glu = cfg["mem_pre_vdim"], cfg["mem_use_glu_act"]
        self.all_rows = cfg["mem_knum"] ** 2 * layers
        self.offset = cfg["mem_knum"] ** 2 * layer
        side = int((self.all_rows * cfg["mem_share_ratio"]) ** 0.5)
        self.reach = side * side
        kx = cfg["mem_key_expand_time"]
        self.slots, self.n = kx * kx, kx * side
        self.sum_slots = cfg["mem_value_expand_time"] == 1
        groups = self.rank if cfg["mem_q_for_each_tucker_rank"] else 1
        self.used_groups = (self.head + 1) // 2
        assert self.used_groups <= groups
        self.query_proj = nn.Linear(d, 2 * groups * kdim, bias=False)
        self.keys = nn.Parameter(torch.empty(self.head, 2, self.n, kdim, self.rank))
        self.values_proj = nn.Linear(self.vdim if self.sum_slots else self.slots * self.vdim, d, bias=False)
        if self.pre_vdim > 0:
            self.pre_values_proj = nn.Linear(d, self.pre_vdim, bias=False)
        eps, kind = cfg["layer_norm_eps"], cfg["layer_norm_type"]
        self.query_norm, self.keys_norm = Norm(kdim, eps, kind), Norm(kdim, eps, kind)
        self.tucker_core = nn.ParameterList([nn.Parameter(torch.empty(self.head, self.rank, self.rank))
                                             for _ in range(self.cores)])
        self.register_buffer("shuffle_index", torch.zeros(self.slots * self.reach, dtype=torch.long))
        self.register_buffer("tucker_core_u", torch.zeros(1, self.head, 1, self.rank))
        self.register_buffer("tucker_core_v", torch.zeros(1, self.head, 1, self.rank))

    @torch.no_grad()
    def refresh_uv(self):
        """Leading singular vectors of the summed cores; the sign follows the previous pair."""
        u, _, vh = torch.linalg.svd(torch.stack(list(self.tucker_core)).sum(0).float())
        u, v = u[:, :, 0], vh[:, 0, :]
        old_u, old_v = self.tucker_core_u.view(self.head, -1), self.tucker_core_v.view(self.head, -1)
        along = (u * old_u).sum(-1) + (v * old_v).sum(-1)
        along = torch.where(along == 0, u.sum(-1) + v.sum(-1), along)
        sign = torch.where(along < 0, -1.0, 1.0).unsqueeze(-1)
        self.tucker_core_u.copy_((u * sign).view_as(self.tucker_core_u))
        self.tucker_core_v.copy_((v * sign).view_as(self.tucker_core_v))

    def retrieve(self, f):
        """f [N,d] -> virtual indices [N,head*knn], scores [N,head*knn,cores]."""
        count = f.shape[0]
        used = self.query_proj.weight[: self.used_groups * 2 * self.kdim]
        q = self.query_norm(F.linear(f, used).view(count, self.used_groups, 2, self.kdim))
        keys = self.keys_norm(self.keys.transpose(3, 4))                       # [head,2,n,R,kdim]
        indices, scores = [], []
        for h in range(self.head):
            side = [F.linear(q[:, h // 2, s], keys[h, s].reshape(self.n * self.rank, self.kdim)).float()
                    .view(count, self.n, self.rank) for s in (0, 1)]
            kept, place = [], []
            for s, direction in ((0, self.tucker_core_u), (1, self.tucker_core_v)):
                line = (side[s].detach() * direction[0, h, 0]).sum(-1)
                at = line.topk(self.knn, dim=-1).indices
                place.append(at)
                kept.append(side[s].gather(1, at.unsqueeze(-1).expand(-1, -1, self.rank)))
            # all cores at once: [N,knn,R] x [R,M*R] -> [N,knn*M,R] x [N,R,knn]
            core = torch.stack([c[h] for c in self.tucker_core], dim=1)        # [R,M,R]
            left = (kept[0].reshape(-1, self.rank) @ core.reshape(self.rank, -1)).view(
                count, self.knn, self.cores, self.rank)
            grid = torch.einsum("nimt,njt->nijm", left, kept[1]).reshape(count, self.knn * self.knn, self.cores)
            best = grid.detach().sum(-1).topk(self.knn, dim=-1).indices
            scores.append(grid.gather(1, best.unsqueeze(-1).expand(-1, -1, self.cores)))
            row = place[0].gather(1, best // self.knn)
            col = place[1].gather(1, best % self.knn)
            indices.append(row * self.n + col)
        return torch.cat(indices, 1), torch.cat(scores, 1)

    def forward(self, f, table, seen=None):
        shape = f.shape
        f = f.reshape(-1, shape[-1])
        with torch.autocast("cpu", enabled=False):          # the choice of rows is made in float32
            index, score = self.retrieve(f)
        p = self.shuffle_index[index]
        slot, row = p // self.reach, (p % self.reach + self.offset) % self.all_rows
        if self.pre_vdim > 0:
            rows = Rows.apply(row, table.pre_values_for_look_up)
            pre = torch.bmm(rows, self.pre_values_proj(f).float().unsqueeze(-1)).squeeze(-1)
            score = score * (F.gelu(pre) if self.glu else pre).unsqueeze(-1)
        values = Rows.apply(row, table.values_for_look_up)
        count, width = f.shape[0], self.vdim // self.cores
        if self.slots > 1 and not self.sum_slots:
            spread = F.one_hot(slot, self.slots).to(score.dtype)               # [N,K,slots]
            weight = torch.einsum("nkm,nks->nmsk", score, spread)
            v = values.view(count, -1, self.cores, width)
            out = torch.einsum("nmsk,nkmc->nsmc", weight, v).reshape(count, -1)
        else:
            v = values.view(count, -1, self.cores, width).transpose(1, 2)      # [N,M,K,width]
            out = torch.matmul(score.transpose(1, 2).unsqueeze(2), v).reshape(count, -1)
        if seen is not None:
            seen.append(dict(index=index, row=row, slot=slot, score=score, lookup=out))
        return self.values_proj(out).view(shape)


class Transformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        d = cfg["d_model"]
        vocab = cfg["embedding_size"] or cfg["vocab_size"]
        self.transformer = t = nn.Module()
        t.wte = nn.Embedding(vocab, d)
        t.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg["n_layers"])])
        t.ln_f = Norm(d, cfg["layer_norm_eps"], cfg["layer_norm_type"])
        if not cfg["weight_tying"]:
            t.ff_out = nn.Linear(d, vocab, bias=False)
        self.places = []
        if cfg["mem_insert_way"] != "no_mem":
            assert cfg["mem_type"] == "ultramem_v2"
            if cfg["mem_insert_way"] == "full":
                self.places = [(i, i) for i in range(cfg["n_layers"])]
            else:
                self.places = [tuple(map(int, p.split(":"))) for p in cfg["mem_insert_way"].split("/")]
            layers = len(self.places)
            t.mem_blocks = nn.ModuleList([MemoryV2(cfg, i, layers) for i in range(layers)])
            t.full_memory_layer = FullMemory(t.mem_blocks[0].all_rows, cfg["mem_vdim"], cfg["mem_pre_vdim"])
        cos, sin = rope_tables(cfg["max_sequence_length"], d // cfg["n_heads"], cfg["rope_theta"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def memories(self):
        return self.transformer.mem_blocks if self.places else []

    def refresh_uv(self):
        for m in self.memories():
            m.refresh_uv()

    def hidden(self, ids, seen=None):
        t = self.transformer
        x = F.embedding(ids, t.wte.weight)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        pending = None
        for i, block in enumerate(t.blocks):
            x = block.attention(x, cos, sin)
            f = block.ff_norm(x)
            for j, (src, dst) in enumerate(self.places):
                if src == i:
                    pending = dst, t.mem_blocks[j](f, t.full_memory_layer, seen)
            x = x + block.feed_forward(f)
            if pending is not None and pending[0] == i:
                x = x + pending[1]
                pending = None
        return t.ln_f(x)

    def head(self, x):
        w = self.transformer.wte.weight if self.cfg["weight_tying"] else self.transformer.ff_out.weight
        return F.linear(x, w)

    def forward(self, ids, seen=None):
        return self.head(self.hidden(ids, seen))

    @torch.no_grad()
    def initialise(self, seed):
        g = torch.Generator().manual_seed(seed)
        d, layers = self.cfg["d_model"], self.cfg["n_layers"]
        residual = 1 / math.sqrt(2 * layers)
        for name, p in self.named_parameters():
            def normal(std):
                p.copy_(torch.randn(p.shape, generator=g) * std)
            if name.endswith("norm.weight") or name.endswith("ln_f.weight"):
                p.fill_(self.cfg["mem_kdim"] ** -0.4 if "query_norm" in name or "keys_norm" in name else 1.0)
            elif "wte" in name:
                normal(0.03)
            elif name.endswith("tucker_core.0") or "tucker_core." in name:
                p.copy_(torch.rand(p.shape, generator=g))
            elif name.endswith(".keys"):
                normal(self.cfg["mem_kdim"] ** -0.5)
            elif "pre_values_for_look_up" in name:
                normal(self.cfg["mem_pre_vdim"] ** -0.5)
            elif "values_for_look_up" in name:
                normal(0.05)
            elif "pre_values_proj" in name or "query_proj" in name:
                normal(d ** -0.5)
            elif "values_proj" in name:
                normal(p.shape[1] ** -0.5 * residual)
            elif name.endswith("w2") or name.endswith("attn_out.weight") or name.endswith("ff_out.weight"):
                fan = self.cfg["mlp_hidden_size"] // 2 if not name.endswith("attn_out.weight") else d
                normal(fan ** -0.5 * residual)
            else:
                normal(d ** -0.5)
        for m in self.memories():
            m.shuffle_index.copy_(torch.randperm(m.shuffle_index.numel(), generator=g))
            m.query_proj.weight[m.used_groups * 2 * m.kdim:] = 0
        self.refresh_uv()

    def parameter_counts(self):
        """(all, active per token): active counts what one token multiplies with or looks up."""
        total = active = 0
        for name, p in self.named_parameters():
            n = p.numel()
            total += n
            if "for_look_up" in name:
                continue
            if ".experts." in name:
                n = n * self.cfg["moe_top_k"] // self.cfg["moe_num_experts"]
            active += n
        for m in self.memories():
            active += m.head * m.knn * (m.vdim + m.pre_vdim)
            active -= m.query_proj.weight[m.used_groups * 2 * m.kdim:].numel()
        return total, active
