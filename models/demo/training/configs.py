"""The three models, with every field of the official flat ModelConfig."""

BASE = dict(
    d_model=256, n_heads=4, n_kv_heads=2, clip_qkv=None, n_layers=4, mlp_ratio=4, mlp_hidden_size=None,
    activation_type="swiglu", block_type="sequential", block_group_size=1, alibi=False, alibi_bias_max=8.0,
    rope=True, rope_full_precision=True, rope_theta=10000, flash_attention=False, attention_dropout=0.0,
    multi_query_attention=None, attention_layer_norm=True, residual_dropout=0.0, embedding_dropout=0.0,
    embedding_layer_norm=False, layer_norm_type="rms", layer_norm_with_affine=True, layer_norm_eps=1e-05,
    attention_layer_norm_with_affine=True, max_sequence_length=256, include_bias=False,
    bias_for_layer_norm=False, scale_logits=False, vocab_size=4096, embedding_size=None, weight_tying=True,
    eos_token_id=5, pad_token_id=1, init_device="cpu", init_fn="normal", init_std=0.03,
    init_cutoff_factor=None, precision=None, moe_num_experts=8, moe_top_k=2, moe_mlp_impl="sparse",
    moe_log_expert_assignment=True, moe_shared_expert=False, moe_lbl_in_fp32=False, moe_interleave=False,
    moe_loss_weight=0.01, moe_zloss_weight=0.001, moe_dropless=True, moe_capacity_factor=1.25,
    scale_emb_init=False, emb_init_std=None, norm_after=False, convert2fp32=True, mem_knum=128, mem_kdim=512,
    mem_vdim=512, mem_knn=16, mem_head=1, mem_tucker_rank_penalty=0.0, mem_insert_way="no_mem",
    mem_share_ratio=1.0, mem_type="ultramem_v2", mem_value_expand_time=1, mem_key_expand_time=1,
    mem_pre_vdim=512, mem_log_interval=10, mem_key_balance_reg_coef=0.0, mem_q_for_each_tucker_rank=True,
    mem_final_top_expand_time=1, mem_output_dropout_rate=0.0, mem_use_glu_act=False, vertical_parallel=False,
    mem_parallel_size=1, mem_tucker_rank=2, mem_tucker_multihead=2)

CONFIGS = {
    "ultramemv2": dict(BASE, mlp_hidden_size=768, mem_insert_way="full", mem_knum=104, mem_kdim=64, mem_vdim=128,
                       mem_pre_vdim=128, mem_knn=16, mem_head=1, mem_share_ratio=0.5, mem_use_glu_act=True),
    "dense": dict(BASE, mlp_hidden_size=1248),
    "moe": dict(BASE, mlp_hidden_size=624, block_type="moe", moe_num_experts=12, moe_top_k=2,
                moe_normalize_expert_weights=1),
}
