"""The UltraMem model family in float64 numpy, written from tests/golden/README.md alone.

Shares no code with the engine: plain array expressions in the order of the formulas. weights: dict of
float64 (int64 for shuffle_index) arrays under the official names; config: the official fields.
"""
import math

import numpy as np


def norm(x, w, config):
    eps = config["layer_norm_eps"]
    if config["layer_norm_type"] == "rms":
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * w
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps) * w


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return (0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class NearTie(Exception):
    """Two candidates are too close for any fp32 engine to be held to a choice."""


GAP = 1e-4  # relative distance of the last one in to the first one out


def top(scores, k):
    """Indices of the k largest, best first; refuses a near tie at the edge, which decides who is in."""
    order = np.argsort(-scores, kind="stable")[:k + 1]
    s = scores[order]
    if len(order) > k and s[k - 1] - s[k] < GAP * np.abs(s[:k]).max():
        raise NearTie
    return order[:k]


def edge_only(scores, k):
    return np.sort(top(scores, k))


def attention(x, w, prefix, config):
    b, t, d = x.shape
    heads, kv = config["n_heads"], config["n_kv_heads"] or config["n_heads"]
    hd = d // heads
    q, k, v = np.split(x @ w[prefix + "att_proj.weight"].T, [d, d + kv * hd], -1)
    q, k, v = (m.reshape(b, t, -1, hd) for m in (q, k, v))
    if config["attention_layer_norm"]:
        q, k = norm(q, w[prefix + "q_norm.weight"], config), norm(k, w[prefix + "k_norm.weight"], config)
    angle = np.arange(t)[:, None] * config["rope_theta"] ** (-np.arange(0, hd, 2) / hd)
    cos, sin = (m[:, None].astype(x.dtype) for m in (np.cos(angle), np.sin(angle)))

    def rope(m):
        a, c = m[..., :hd // 2], m[..., hd // 2:]
        return np.concatenate([a * cos - c * sin, c * cos + a * sin], -1)

    q, k = rope(q), rope(k)
    group = heads // kv
    out = np.zeros((b, t, heads, hd), x.dtype)
    for h in range(heads):
        s = q[:, :, h] @ k[:, :, h // group].transpose(0, 2, 1) / math.sqrt(hd)
        s = np.where(np.tril(np.ones((t, t), bool)), s, -np.inf)
        out[:, :, h] = softmax(s) @ v[:, :, h // group]
    return out.reshape(b, t, d) @ w[prefix + "attn_out.weight"].T


def moe(f, w, prefix, config):
    p = softmax(f @ w[prefix + "ffn.router.layer.weight"].T)
    k, hidden = config["moe_top_k"], config["mlp_hidden_size"] // 2
    w1, v1, w2 = (w[prefix + f"ffn.experts.mlp.{n}"].reshape(-1, hidden, f.shape[-1]) for n in ("w1", "v1", "w2"))
    out = np.zeros_like(f)
    for n in range(len(f)):
        chosen = top(p[n], k)
        g = p[n][chosen]
        if config.get("moe_normalize_expert_weights"):
            g = g / g.sum()
        for e, weight in zip(chosen, g):
            out[n] += weight * ((silu(f[n] @ w1[e].T) * (f[n] @ v1[e].T)) @ w2[e])
    return out


def product_keys(f, w, m, config):
    """pkm and memory_plus: per token rows and softmax weights, [head * knn]."""
    head, kdim, knn, n = config["mem_head"], config["mem_kdim"], config["mem_knn"], config["mem_knum"]
    keys = w[m + "keys"].reshape(head, 2, n, kdim)
    if config["mem_type"] == "pkm":
        q = f @ w[m + "query_proj.query_mlps.0.weight"].T
        if m + "query_proj.query_mlps.0.bias" in w:
            q = q + w[m + "query_proj.query_mlps.0.bias"]
        q = q.reshape(-1, head, 2, kdim)
    else:
        q = norm((f @ w[m + "query_proj.weight"].T).reshape(-1, head, 2, kdim), w[m + "query_norm.weight"], config)
    for token in q:
        rows, weights = [], []
        for h in range(head):
            s1, s2 = keys[h, 0] @ token[h, 0], keys[h, 1] @ token[h, 1]
            i, j = edge_only(s1, knn), edge_only(s2, knn)
            grid = (s1[i][:, None] + s2[j][None]).ravel()
            best = top(grid, knn)
            rows += list(i[best // knn] * n + j[best % knn])
            weights += list(softmax(grid[best]))
        yield np.array(rows), np.array(weights)


def ultramem(f, w, m, config, layer, layers):
    """v1 and v2."""
    v2 = config["mem_type"] == "ultramem_v2"
    head, kdim, knn, knum = (config[k] for k in ("mem_head", "mem_kdim", "mem_knn", "mem_knum"))
    vdim = config["mem_vdim"]
    keys = norm(w[m + "keys"].transpose(0, 1, 2, 4, 3), w[m + "keys_norm.weight"], config)  # h s n r k
    cores = []
    while f"{m}tucker_core.{len(cores)}" in w:
        cores.append(w[f"{m}tucker_core.{len(cores)}"])
    u, v = w[m + "tucker_core_u"].reshape(head, -1), w[m + "tucker_core_v"].reshape(head, -1)
    if v2:
        table = w["transformer.full_memory_layer.values_for_look_up"]
        reach = int(math.sqrt(len(table) * config["mem_share_ratio"])) ** 2
        slots = config["mem_key_expand_time"] ** 2
        offset = layer * knum * knum
    else:
        table = w[m + "values_for_look_up"]
        reach, offset = knum * knum, 0
        slots = w[m + "values_proj.weight"].shape[1] // vdim
    n = keys.shape[2]
    assert n * n == slots * reach
    q = norm((f @ w[m + "query_proj.weight"].T).reshape(len(f), -1, 2, kdim), w[m + "query_norm.weight"], config)
    core_of = np.arange(vdim) // (vdim // len(cores))
    out = np.zeros((len(f), slots, vdim), f.dtype)
    for t in range(len(f)):
        for h in range(head):
            s1, s2 = keys[h, 0] @ q[t, h // 2, 0], keys[h, 1] @ q[t, h // 2, 1]  # [n, R]
            i, j = edge_only(s1 @ u[h], knn), edge_only(s2 @ v[h], knn)
            s = np.stack([(s1[i] @ core[h] @ s2[j].T).ravel() for core in cores])
            best = top(s.sum(0), knn)
            p = w[m + "shuffle_index"][i[best // knn] * n + j[best % knn]]
            slot, row = p // reach, (p % reach + offset) % len(table)
            weight = s[:, best]
            if v2 and config["mem_pre_vdim"] > 0:
                x = f[t] @ w[m + "pre_values_proj.weight"].T
                gate = w["transformer.full_memory_layer.pre_values_for_look_up"][row] @ x
                weight = weight * (gelu(gate) if config["mem_use_glu_act"] else gate)
            for e in range(knn):
                out[t, slot[e]] += weight[core_of, e] * table[row[e]]
    summed = v2 and config["mem_value_expand_time"] == 1
    pooled = out.sum(1) if summed else out.reshape(len(f), -1)
    return pooled @ w[m + "values_proj.weight"].T


def memory(f, w, config, layer, layers):
    m = f"transformer.mem_blocks.{layer}."
    if config["mem_type"] in ("ultramem_v1", "ultramem_v2"):
        return ultramem(f, w, m, config, layer, layers)
    pkm = config["mem_type"] == "pkm"
    table = w[m + "values.weight"] if pkm else w["transformer.full_memory_layer.values_for_look_up"]
    o = np.stack([weights @ table[rows] for rows, weights in product_keys(f, w, m, config)])
    if pkm:
        return o
    return (o * silu(f @ w[m + "swilu_projection.weight"].T)) @ w[m + "values_proj.weight"].T


def insertions(config):
    way = config["mem_insert_way"]
    if way == "no_mem":
        return []
    if way == "full":
        return [(i, i) for i in range(config["n_layers"])]
    return [tuple(int(x) for x in pair.split(":")) for pair in way.split("/")]


def forward(ids, w, config):
    """Logits [B, T, V]."""
    x = w["transformer.wte.weight"][ids]
    b, t, d = x.shape
    pairs, slot = insertions(config), None
    for block in range(config["n_layers"]):
        prefix = f"transformer.blocks.{block}."
        x = x + attention(norm(x, w[prefix + "attn_norm.weight"], config), w, prefix, config)
        f = norm(x, w[prefix + "ff_norm.weight"], config).reshape(b * t, d)
        if config["block_type"] == "moe":
            y = moe(f, w, prefix, config)
        else:
            value, gate = np.split(f @ w[prefix + "ff_proj.weight"].T, 2, -1)
            y = (silu(gate) * value) @ w[prefix + "ff_out.weight"].T
        x = x + y.reshape(b, t, d)
        for layer, (source, destination) in enumerate(pairs):
            if source == block:
                slot = (destination, memory(f, w, config, layer, len(pairs)))
        if slot and slot[0] == block:
            x = x + slot[1].reshape(b, t, d)
    head = w["transformer.wte.weight" if config["weight_tying"] else "transformer.ff_out.weight"]
    return norm(x, w["transformer.ln_f.weight"], config) @ head.T
