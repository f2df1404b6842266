/* Which tensors fill which slots of a model: names, shapes, and what may be fused, split, shared or absent. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/loader.h"

/* NAME.weight and NAME.bias of a norm; `wanted` false leaves it out. */
static int bind_norm(loader *l, model_norm_weights *norm, int64_t n, bool required, const char *name) {
    char full[GGUF_MAX_NAME];
    if (l->m->arch->unweighted_norms) {
        norm->present = true;
        return 1;
    }
    snprintf(full, sizeof full, "%s.weight", name);
    /* Files of Falcon-H1 name some norms without the suffix. */
    const bool bare = gguf_find_tensor(l->m->file, full) == NULL && gguf_find_tensor(l->m->file, name) != NULL;
    int found = loader_bind_vector(l, &norm->weight, n, required, bare ? name : full);
    if (found <= 0) return found;
    norm->present = true;
    snprintf(full, sizeof full, "%s.bias", name);
    int bias = loader_bind_vector(l, &norm->bias, n, false, full);
    return bias < 0 ? bias : 1;
}

/* blk.I.SUFFIX in a caller's buffer. */
static const char *layer_name(char buffer[GGUF_MAX_NAME], int32_t i, const char *suffix) {
    snprintf(buffer, GGUF_MAX_NAME, "blk.%d.%s", (int)i, suffix);
    return buffer;
}

/* q, k and v from tensors of their own or from the rows of one. */
static int bind_qkv(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const int64_t d = c->d_model;
    const struct {
        const char *weight, *bias;
        kern_matrix *matrix;
        const float **vector;
        int64_t n;
    } parts[] = {{"attn_q.weight", "attn_q.bias", &layer->q, &layer->q_bias, (int64_t)layer->n_head * c->d_head},
                 {"attn_k.weight", "attn_k.bias", &layer->k, &layer->k_bias, (int64_t)layer->n_head_kv * c->d_head},
                 {"attn_v.weight", "attn_v.bias", &layer->v, &layer->v_bias, (int64_t)layer->n_head_kv * c->d_value}};
    const int64_t n_whole = parts[0].n + parts[1].n + parts[2].n;
    char name[GGUF_MAX_NAME];
    const bool fused = gguf_find_tensor(l->m->file, layer_name(name, i, "attn_qkv.weight")) != NULL;
    int64_t first = 0;
    for (int p = 0; p < 3; first += parts[p].n, p++) {
        if (fused) {
            TRY(loader_bind_rows(l, parts[p].matrix, first, parts[p].n, n_whole, d, true, layer_name(name, i, "attn_qkv.weight")));
            TRY(loader_bind_part(l, parts[p].vector, first, parts[p].n, n_whole, false, layer_name(name, i, "attn_qkv.bias")));
        } else {
            TRY(loader_bind_matrix(l, parts[p].matrix, parts[p].n, d, true, layer_name(name, i, parts[p].weight)));
            TRY(loader_bind_vector(l, parts[p].vector, parts[p].n, false, layer_name(name, i, parts[p].bias)));
        }
    }
    return 0;
}

/* Latent attention. Older files have the maps to keys and values of each head as rows of one tensor: the first is then turned. */
static int bind_latent(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const int64_t n_head = layer->n_head, n_kv = c->d_nope + c->d_value_head, n_q = n_head * (c->d_nope + c->n_rot);
    char name[GGUF_MAX_NAME];
    /* Files of lite models may name a rank that they do not use. */
    if (c->d_latent_query && !gguf_find_tensor(l->m->file, layer_name(name, i, "attn_q.weight"))) {
        TRY(loader_bind_matrix(l, &layer->q_down, c->d_latent_query, c->d_model, true, layer_name(name, i, "attn_q_a.weight")));
        TRY(bind_norm(l, &layer->q_down_norm, c->d_latent_query, true, layer_name(name, i, "attn_q_a_norm")));
        TRY(loader_bind_matrix(l, &layer->q, n_q, c->d_latent_query, true, layer_name(name, i, "attn_q_b.weight")));
    } else {
        TRY(loader_bind_matrix(l, &layer->q, n_q, c->d_model, true, layer_name(name, i, "attn_q.weight")));
    }
    TRY(loader_bind_matrix(l, &layer->kv_down, c->d_latent + c->n_rot, c->d_model, true, layer_name(name, i, "attn_kv_a_mqa.weight")));
    TRY(bind_norm(l, &layer->kv_down_norm, c->d_latent, true, layer_name(name, i, "attn_kv_a_norm")));
    if (gguf_find_tensor(l->m->file, layer_name(name, i, "attn_kv_b.weight"))) {
        TRY(loader_bind_stack_transposed(l, &layer->k_up, n_head, 0, c->d_nope, n_kv, c->d_latent, name));
        return loader_bind_stack(l, &layer->v_up, n_head, c->d_nope, c->d_value_head, n_kv, c->d_latent, name);
    }
    TRY(loader_bind_stack(l, &layer->k_up, n_head, 0, c->d_latent, c->d_latent, c->d_nope, layer_name(name, i, "attn_k_b.weight")));
    return loader_bind_stack(l, &layer->v_up, n_head, 0, c->d_value_head, c->d_value_head, c->d_latent,
                             layer_name(name, i, "attn_v_b.weight"));
}

/* Norms of q and k: one for all heads, one for each head (a matrix [n_head][d_head]), or one for the whole row. */
static int bind_qk_norms(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const model_qk_norm kind = l->m->arch->qk_norm;
    char name[GGUF_MAX_NAME];
    if (l->m->arch->optional_qk_norm && !gguf_find_tensor(l->m->file, layer_name(name, i, "attn_q_norm.weight"))) return 0;
    if (kind == QK_NORM_HEAD) {
        TRY(bind_norm(l, &layer->q_norm, c->d_head, true, layer_name(name, i, "attn_q_norm")));
        TRY(bind_norm(l, &layer->k_norm, c->d_head, true, layer_name(name, i, "attn_k_norm")));
    } else if (kind == QK_NORM_ROW) {
        TRY(bind_norm(l, &layer->q_norm, (int64_t)layer->n_head * c->d_head, true, layer_name(name, i, "attn_q_norm")));
        TRY(bind_norm(l, &layer->k_norm, (int64_t)layer->n_head_kv * c->d_head, true, layer_name(name, i, "attn_k_norm")));
    } else if (l->m->arch->norm == NORM_LAYER && gguf_find_tensor(l->m->file, layer_name(name, i, "attn_q_norm.weight"))) {
        const gguf_tensor *t;
        TRY(loader_find(l, layer_name(name, i, "attn_q_norm.weight"), layer->n_head, c->d_head, true, &t));
        TRY(loader_add(l, (binding){.tensor = t, .n_values = (int64_t)t->n_values, .vector = &layer->q_norm.weight,
                                     .n_bytes = (size_t)(t->n_values + 16) * sizeof(float)}));
        TRY(loader_find(l, layer_name(name, i, "attn_k_norm.weight"), layer->n_head_kv, c->d_head, true, &t));
        TRY(loader_add(l, (binding){.tensor = t, .n_values = (int64_t)t->n_values, .vector = &layer->k_norm.weight,
                                     .n_bytes = (size_t)(t->n_values + 16) * sizeof(float)}));
        layer->q_norm.present = layer->k_norm.present = layer->per_head_norms = true;
    }
    return 0;
}

/* Gate, up and down of a dense feed-forward of width d_ff; gate and up may be the two halves of one tensor. `suffix` is "" or,
 * for a shared expert, "_shexp". */
static int bind_dense(loader *l, model_layer *layer, int32_t i, int64_t d_ff, const char *suffix) {
    const model_config *c = &l->m->config;
    char up[GGUF_MAX_NAME], gate[GGUF_MAX_NAME], down[GGUF_MAX_NAME], bias[GGUF_MAX_NAME];
    snprintf(up, sizeof up, "blk.%d.ffn_up%s.weight", (int)i, suffix);
    snprintf(gate, sizeof gate, "blk.%d.ffn_gate%s.weight", (int)i, suffix);
    snprintf(down, sizeof down, "blk.%d.ffn_down%s.weight", (int)i, suffix);
    const gguf_tensor *t = gguf_find_tensor(l->m->file, up);
    const bool has_gate = gguf_find_tensor(l->m->file, gate) != NULL, is_both = t && !has_gate && t->dims[1] == 2 * (uint64_t)d_ff;
    const bool plain = l->m->arch->plain_ffn || (l->m->arch->optional_gate && !has_gate && !is_both);
    layer_name(bias, i, "ffn_up.bias");
    if (!plain && is_both) {
        TRY(loader_bind_rows(l, &layer->gate, 0, d_ff, 2 * d_ff, c->d_model, true, up));
        TRY(loader_bind_rows(l, &layer->up, d_ff, d_ff, 2 * d_ff, c->d_model, true, up));
        TRY(loader_bind_part(l, &layer->gate_bias, 0, d_ff, 2 * d_ff, false, bias));
        TRY(loader_bind_part(l, &layer->up_bias, d_ff, d_ff, 2 * d_ff, false, bias));
    } else {
        if (!plain) TRY(loader_bind_matrix(l, &layer->gate, d_ff, c->d_model, true, gate));
        TRY(loader_bind_matrix(l, &layer->up, d_ff, c->d_model, true, up));
        TRY(loader_bind_vector(l, &layer->up_bias, d_ff, false, bias));
        if (!plain) TRY(loader_bind_vector(l, &layer->gate_bias, d_ff, false, layer_name(bias, i, "ffn_gate.bias")));
    }
    TRY(loader_bind_matrix(l, &layer->down, c->d_model, d_ff, true, down));
    return loader_bind_vector(l, &layer->down_bias, c->d_model, false, layer_name(bias, i, "ffn_down.bias"));
}

/* All experts of one kind: rows [first, first + n_rows) of each expert's n_rows_whole, and biases [n_expert][n_rows]. */
static int bind_experts(loader *l, kern_matrix **matrices, const float **biases, int64_t first, int64_t n_rows, int64_t n_rows_whole,
                        int64_t n_cols, int32_t i, const char *kind) {
    const model_config *c = &l->m->config;
    char name[GGUF_MAX_NAME];
    snprintf(name, sizeof name, "blk.%d.%s.weight", (int)i, kind);
    TRY(loader_bind_stack(l, matrices, c->n_expert, first, n_rows, n_rows_whole, n_cols, name));
    snprintf(name, sizeof name, "blk.%d.%s.bias", (int)i, kind);
    const gguf_tensor *bias;
    if (gguf_find_tensor(l->m->file, name) == NULL || n_rows != n_rows_whole) return 0;
    TRY(loader_find(l, name, c->n_expert, n_rows, true, &bias));
    return loader_add(l, (binding){.tensor = bias, .n_values = (int64_t)bias->n_values, .vector = biases,
                                    .n_bytes = (size_t)(bias->n_values + 16) * sizeof(float)});
}

/* Gate and up of all experts, from a tensor each or from the halves of one. */
static int bind_experts_up(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const int64_t n = c->d_ff_expert, d = c->d_model;
    char name[GGUF_MAX_NAME];
    if (gguf_find_tensor(l->m->file, layer_name(name, i, "ffn_gate_up_exps.weight"))) {
        TRY(bind_experts(l, &layer->gate_experts, &layer->gate_experts_bias, 0, n, 2 * n, d, i, "ffn_gate_up_exps"));
        return bind_experts(l, &layer->up_experts, &layer->up_experts_bias, n, n, 2 * n, d, i, "ffn_gate_up_exps");
    }
    if (gguf_find_tensor(l->m->file, layer_name(name, i, "ffn_gate_exps.weight")))
        TRY(bind_experts(l, &layer->gate_experts, &layer->gate_experts_bias, 0, n, n, d, i, "ffn_gate_exps"));
    return bind_experts(l, &layer->up_experts, &layer->up_experts_bias, 0, n, n, d, i, "ffn_up_exps");
}

static int bind_routed(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    char name[GGUF_MAX_NAME];
    TRY(loader_bind_matrix(l, &layer->router, c->n_expert, c->d_model, true, layer_name(name, i, "ffn_gate_inp.weight")));
    TRY(loader_bind_vector(l, &layer->router_bias, c->n_expert, false, layer_name(name, i, "ffn_gate_inp.bias")));
    TRY(loader_bind_vector(l, &layer->selection_bias, c->n_expert, false, layer_name(name, i, "exp_probs_b.bias")));
    TRY(bind_experts_up(l, layer, i));
    TRY(bind_experts(l, &layer->down_experts, &layer->down_experts_bias, 0, c->d_model, c->d_model, c->d_ff_expert, i, "ffn_down_exps"));
    const gguf_tensor *shared = gguf_find_tensor(l->m->file, layer_name(name, i, "ffn_up_shexp.weight"));
    if (shared == NULL) return 0;
    FAIL_IF(shared->dims[1] != (uint64_t)c->d_ff_shared, l->err, WEIR_E_FORMAT, name, "%llu rows; the metadata ask for %d",
            (unsigned long long)shared->dims[1], c->d_ff_shared);
    TRY(bind_dense(l, layer, i, c->d_ff_shared, "_shexp"));
    return loader_bind_matrix(l, &layer->shared_gate, 1, c->d_model, false, layer_name(name, i, "ffn_gate_inp_shexp.weight"));
}

/* Whether a layer has routed experts. */
static bool is_routed(const loader *l, int32_t i) {
    const model_config *c = &l->m->config;
    char name[GGUF_MAX_NAME];
    if (c->n_expert == 0) return false;
    if (l->m->arch->experts_where_routed) return gguf_find_tensor(l->m->file, layer_name(name, i, "ffn_gate_inp.weight")) != NULL;
    return i >= c->n_layer_dense && (i + 1) % c->expert_step == 0;
}

static int bind_feed_forward(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    if (c->shapes[i].d_ff == 0) return 0;
    return is_routed(l, i) ? bind_routed(l, layer, i) : bind_dense(l, layer, i, c->shapes[i].d_ff, "");
}

static int bind_norms(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const model_arch *arch = l->m->arch;
    char name[GGUF_MAX_NAME];
    const bool mixes = layer->n_head_kv || layer->recurrent, feeds = c->shapes[i].d_ff != 0;
    if (arch->single_blocks) return bind_norm(l, mixes ? &layer->attn_norm : &layer->ffn_norm, c->d_model, true, layer_name(name, i, "attn_norm"));
    if (!arch->no_pre_norms) {
        /* Some models norm twice: attn_norm_2 for attention, attn_norm for the feed-forward (Falcon-40B). */
        const bool twice = arch->second_attn_norm && gguf_find_tensor(l->m->file, layer_name(name, i, "attn_norm_2.weight"));
        const char *ffn_norm = twice ? "attn_norm" : arch->ffn_norm_after_attention ? "post_attention_norm" : "ffn_norm";
        TRY(bind_norm(l, &layer->attn_norm, c->d_model, true, layer_name(name, i, twice ? "attn_norm_2" : "attn_norm")));
        /* Parallel blocks may share the attention's norm. */
        if (feeds) TRY(bind_norm(l, &layer->ffn_norm, c->d_model, !c->parallel, layer_name(name, i, ffn_norm)));
    }
    if (arch->sum_norms) {
        TRY(bind_norm(l, &layer->attn_sum_norm, c->d_model, true, layer_name(name, i, "attn_output_norm")));
        TRY(bind_norm(l, &layer->attn_again_norm, c->d_model, false, layer_name(name, i, "attn_norm_2")));
        TRY(bind_norm(l, &layer->ffn_sum_norm, c->d_model, true, layer_name(name, i, "layer_output_norm")));
    }
    if (arch->post_norms) {
        TRY(bind_norm(l, &layer->attn_post_norm, c->d_model, true, layer_name(name, i, "post_attention_norm")));
        TRY(bind_norm(l, &layer->ffn_post_norm, c->d_model, true, layer_name(name, i, "post_ffw_norm")));
    }
    return 0;
}

/* Attention of any kind. */
static int bind_attention(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    char name[GGUF_MAX_NAME];
    if (c->d_latent) {
        TRY(bind_latent(l, layer, i));
    } else {
        TRY(bind_qkv(l, layer, i));
        TRY(bind_qk_norms(l, layer, i));
    }
    TRY(loader_bind_matrix(l, &layer->o, c->d_model, (int64_t)layer->n_head * (c->d_latent ? c->d_value_head : c->d_value), true,
                           layer_name(name, i, "attn_output.weight")));
    TRY(loader_bind_vector(l, &layer->o_bias, c->d_model, false, layer_name(name, i, "attn_output.bias")));
    return loader_bind_vector(l, &layer->sinks, layer->n_head, false, layer_name(name, i, "attn_sinks.weight"));
}

/* ---- recurrent layers ------------------------------------------------------------------------------------------------- */

/* [n_conv][d_conv] to [d_conv][n_conv rounded up]. */
static void make_conv(const model_config *c, const float *values, float *out) {
    const model_recurrence *r = &c->recurrence;
    const size_t stride = (size_t)kern_pad16(r->n_conv);
    for (int32_t i = 0; i < r->n_conv; i++)
        for (int32_t k = 0; k < r->d_conv; k++) out[(size_t)k * stride + (size_t)i] = values[(size_t)i * (size_t)r->d_conv + (size_t)k];
}

/* n values for each run of `share` channels to [blocks][n][16]. */
static void make_blocks(const model_recurrence *r, const float *values, int32_t share, int32_t n, float *out) {
    const int32_t width = r->d_inner / r->n_group, per_group = model_scan_blocks(r) / r->n_group;
    for (int32_t channel = 0; channel < r->d_inner; channel++) {
        const int32_t block = channel / width * per_group + channel % width / 16, lane = channel % width % 16;
        for (int32_t k = 0; k < n; k++)
            out[((size_t)block * (size_t)n + (size_t)k) * 16 + (size_t)lane] = values[(size_t)(channel / share) * (size_t)n + (size_t)k];
    }
}

static void make_channel_values(const model_config *c, const float *values, float *out) { make_blocks(&c->recurrence, values, 1, 1, out); }

static void make_state_values(const model_config *c, const float *values, float *out) {
    make_blocks(&c->recurrence, values, 1, c->recurrence.d_state, out);
}

static void make_head_values(const model_config *c, const float *values, float *out) {
    make_blocks(&c->recurrence, values, c->recurrence.d_inner / c->recurrence.dt_rank, 1, out);
}

/* Norm of one of Mamba's parameters: with weights, without, or none. */
static int bind_parameter_norm(loader *l, model_norm_weights *norm, int64_t n, int32_t i, const char *suffix) {
    char name[GGUF_MAX_NAME];
    TRY(bind_norm(l, norm, n, false, layer_name(name, i, suffix)));
    norm->present = norm->present || l->m->config.recurrence.norm_parameters;
    return 0;
}

static int bind_selection(loader *l, model_layer *layer, int32_t i) {
    const model_recurrence *r = &l->m->config.recurrence;
    char name[GGUF_MAX_NAME];
    TRY(loader_bind_matrix(l, &layer->select, r->dt_rank + 2 * r->d_state, r->d_inner, true, layer_name(name, i, "ssm_x.weight")));
    TRY(loader_bind_matrix(l, &layer->dt, r->d_inner, r->dt_rank, true, layer_name(name, i, "ssm_dt.weight")));
    TRY(loader_bind_vector(l, &layer->dt_bias, r->d_inner, true, layer_name(name, i, "ssm_dt.bias")));
    TRY(bind_parameter_norm(l, &layer->dt_norm, r->dt_rank, i, "ssm_dt_norm"));
    TRY(bind_parameter_norm(l, &layer->b_norm, r->d_state, i, "ssm_b_norm"));
    TRY(bind_parameter_norm(l, &layer->c_norm, r->d_state, i, "ssm_c_norm"));
    FAIL_IF(layer->dt_norm.present != layer->b_norm.present || layer->dt_norm.present != layer->c_norm.present, l->err, WEIR_E_FORMAT,
            layer_name(name, i, "ssm_dt_norm.weight"), "norms of dt, B and C come together or not at all");
    TRY(loader_bind_made(l, &layer->decay, (size_t)model_scan_blocks(r) * (size_t)r->d_state * 16, make_state_values, r->d_inner, r->d_state,
                         layer_name(name, i, "ssm_a")));
    return loader_bind_made(l, &layer->skip, (size_t)model_scan_blocks(r) * 16, make_channel_values, r->d_inner, 1,
                            layer_name(name, i, "ssm_d"));
}

static int bind_heads_of_scan(loader *l, model_layer *layer, int32_t i) {
    const model_recurrence *r = &l->m->config.recurrence;
    const size_t n = (size_t)model_scan_blocks(r) * 16;
    char name[GGUF_MAX_NAME];
    const gguf_tensor *t;
    TRY(loader_bind_vector(l, &layer->dt_bias, r->dt_rank, true, layer_name(name, i, "ssm_dt.bias")));
    TRY(loader_bind_made(l, &layer->decay, n, make_head_values, r->dt_rank, 1, layer_name(name, i, "ssm_a")));
    TRY(loader_bind_made(l, &layer->skip, n, make_head_values, r->dt_rank, 1, layer_name(name, i, "ssm_d")));
    int found = loader_find(l, layer_name(name, i, "ssm_norm.weight"), r->n_group, r->d_inner / r->n_group, false, &t);
    if (found <= 0) return found;
    layer->scan_norm.present = true;
    return loader_add(l, (binding){.tensor = t, .n_values = r->d_inner, .vector = &layer->scan_norm.weight,
                                    .n_bytes = (size_t)(r->d_inner + 16) * sizeof(float)});
}

static int bind_recurrent(loader *l, model_layer *layer, int32_t i) {
    const model_config *c = &l->m->config;
    const model_recurrence *r = &c->recurrence;
    const bool short_conv = layer->recurrent == RECURRENT_SHORT_CONV;
    char name[GGUF_MAX_NAME];
    TRY(loader_bind_matrix(l, &layer->recurrent_in, r->n_in, c->d_model, true,
                           layer_name(name, i, short_conv ? "shortconv.in_proj.weight" : "ssm_in.weight")));
    TRY(loader_bind_matrix(l, &layer->recurrent_out, c->d_model, r->d_inner, true,
                           layer_name(name, i, short_conv ? "shortconv.out_proj.weight" : "ssm_out.weight")));
    TRY(loader_bind_made(l, &layer->conv, (size_t)r->d_conv * (size_t)kern_pad16(r->n_conv), make_conv, r->n_conv, r->d_conv,
                         layer_name(name, i, short_conv ? "shortconv.conv.weight" : "ssm_conv1d.weight")));
    TRY(loader_bind_vector(l, &layer->conv_bias, r->n_conv, false, layer_name(name, i, short_conv ? "shortconv.conv.bias" : "ssm_conv1d.bias")));
    if (short_conv) return 0;
    return layer->recurrent == RECURRENT_MAMBA ? bind_selection(l, layer, i) : bind_heads_of_scan(l, layer, i);
}

/* ---- the whole -------------------------------------------------------------------------------------------------------- */

static int bind_layer(loader *l, int32_t i) {
    const model_config *c = &l->m->config;
    const model_arch *arch = l->m->arch;
    model_layer *layer = &l->m->layers[i];
    layer->n_head = c->shapes[i].n_head;
    layer->n_head_kv = c->shapes[i].n_head_kv;
    for (int32_t k = 0; k < i; k++) layer->first_head_kv += c->shapes[k].n_head_kv;
    if (c->shapes[i].recurrent) layer->recurrent = arch->recurrent;
    layer->state_offset = model_state_offset(c, i);
    layer->windowed = c->window_pattern && (i + 1) % c->window_pattern != 0;
    layer->has_rope = arch->rope != ROPE_NONE && c->n_rot > 0 && (!arch->rope_in_windows_only || layer->windowed) &&
                      (c->no_rope_pattern == 0 || (i + 1) % c->no_rope_pattern != 0);
    TRY(bind_norms(l, layer, i));
    if (layer->n_head_kv) TRY(bind_attention(l, layer, i));
    if (layer->recurrent) TRY(bind_recurrent(l, layer, i));
    return bind_feed_forward(l, layer, i);
}

static int bind_rope_factors(loader *l) {
    model_config *c = &l->m->config;
    if (c->n_rot == 0) return 0;
    /* Files with long factors do not always name the scaling. */
    const bool long_rope = c->rope[0].scaling == ROPE_SCALING_LONG;
    int found = loader_bind_vector(l, &c->rope[0].factors, c->n_rot / 2, long_rope, "rope_factors_short.weight");
    TRY(found);
    if (!found) TRY(loader_bind_vector(l, &c->rope[0].factors, c->n_rot / 2, false, "rope_freqs.weight"));
    return loader_bind_vector(l, &c->rope[0].long_factors, c->n_rot / 2, long_rope, "rope_factors_long.weight");
}

static int bind_embeddings(loader *l) {
    weir_model *m = l->m;
    model_config *c = &m->config;
    const gguf_tensor *embedding = gguf_find_tensor(m->file, "token_embd.weight");
    if (embedding == NULL) {
        char shape[64];
        snprintf(shape, sizeof shape, "%d x the number of tokens", c->d_model);
        return loader_missing(l, "token_embd.weight", shape);
    }
    FAIL_IF(embedding->dims[1] > INT32_MAX / 64, l->err, WEIR_E_FORMAT, "token_embd.weight", "%llu rows are more than a vocabulary can have",
            (unsigned long long)embedding->dims[1]);
    c->n_vocab = (int32_t)embedding->dims[1];
    const int32_t n_tokens = m->tokenizer ? tok_n_vocab(m->tokenizer) : 0;
    FAIL_IF(n_tokens > c->n_vocab, l->err, WEIR_E_FORMAT, "token_embd.weight", "%d rows for the tokeniser's %d tokens", c->n_vocab, n_tokens);
    TRY(loader_find(l, "token_embd.weight", c->n_vocab, c->d_model, true, &m->embedding));
    if (m->arch->positions == POSITIONS_LEARNED)
        TRY(loader_find(l, "position_embd.weight", c->n_ctx_train, c->d_model, true, &m->positions));
    /* All tokens are of the first type ("sentence A"). */
    const gguf_tensor *types = m->arch->encoder ? gguf_find_tensor(m->file, "token_types.weight") : NULL;
    if (types) {
        TRY(loader_find(l, "token_types.weight", (int64_t)(types->dims[1] & INT32_MAX), c->d_model, true, &types));
        TRY(loader_add(l, (binding){.tensor = types, .n_values = c->d_model, .vector = &m->token_type,
                                    .n_bytes = (size_t)kern_pad16(c->d_model) * sizeof(float)}));
    }
    if (m->arch->embedding_norm) TRY(bind_norm(l, &m->embedding_norm, c->d_model, true, "token_embd_norm"));
    return 0;
}

/* The norm before the head, and the head, which may be the embeddings again. */
static int bind_head(loader *l) {
    weir_model *m = l->m;
    model_config *c = &m->config;
    /* Files of some families name the norm otherwise, but not all of them. */
    const bool renamed = m->arch->output_norm && !gguf_find_tensor(m->file, "output_norm.weight");
    const bool untied = gguf_find_tensor(m->file, "output.weight") != NULL;
    TRY(bind_norm(l, &m->output_norm, c->d_model, true, renamed ? m->arch->output_norm : "output_norm"));
    TRY(loader_bind_matrix(l, &m->output, c->n_vocab, c->d_model, true, untied ? "output.weight" : "token_embd.weight"));
    return loader_bind_vector(l, &m->output_bias, c->n_vocab, false, "output.bias");
}

/* The classifier of a reranking model: a matrix with tanh, another, or both. */
static int bind_classifier(loader *l) {
    weir_model *m = l->m;
    int64_t width = m->config.d_model;
    const struct {
        const char *weight, *bias;
        kern_matrix *matrix;
        const float **vector;
    } parts[] = {{"cls.weight", "cls.bias", &m->classifier, &m->classifier_bias},
                 {"cls.output.weight", "cls.output.bias", &m->classifier_out, &m->classifier_out_bias}};
    for (int i = 0; i < 2; i++) {
        const gguf_tensor *t = gguf_find_tensor(m->file, parts[i].weight);
        if (t == NULL) continue;
        FAIL_IF(t->dims[1] > (uint64_t)m->config.d_model, l->err, WEIR_E_FORMAT, parts[i].weight, "%llu rows are more than the model's width",
                (unsigned long long)t->dims[1]);
        const int64_t n = (int64_t)t->dims[1];
        TRY(loader_bind_matrix(l, parts[i].matrix, n, width, true, parts[i].weight));
        TRY(loader_bind_vector(l, parts[i].vector, n, false, parts[i].bias));
        width = n;
    }
    FAIL_IF(m->config.pooling == POOLING_RANK && model_n_classes(m) == 0, l->err, WEIR_E_FORMAT, "cls.output.weight",
            "the tensor is missing: the file asks for ranking by a classifier");
    return 0;
}

static int bind_all(loader *l) {
    weir_model *m = l->m;
    model_config *c = &m->config;
    TRY(bind_embeddings(l));
    TRY(m->arch->encoder ? bind_classifier(l) : bind_head(l));
    TRY(bind_rope_factors(l));
    for (int32_t i = 0; i < c->n_layer; i++) TRY(bind_layer(l, i));
    return 0;
}

static int check_rope_factors(loader *l) {
    model_config *c = &l->m->config;
    const float *all[] = {c->rope[0].factors, c->rope[0].long_factors};
    for (int k = 0; k < 2; k++)
        for (int32_t i = 0; all[k] && i < c->n_rot / 2; i++)
            FAIL_IF(!(all[k][i] > 0.0f), l->err, WEIR_E_FORMAT, "RoPE factors", "factor %d is %g; it must be positive", i, (double)all[k][i]);
    if (!l->m->arch->window_rope_unscaled) {
        c->rope[1].factors = c->rope[0].factors;
        c->rope[1].long_factors = c->rope[0].long_factors;
    }
    return 0;
}

/* Slopes of ALiBi: a geometric sequence from 2^(-max/n), n the power of two up to n_head, then odd steps of half the rate. */
static int make_alibi(weir_model *m, weir_error *err) {
    const model_config *c = &m->config;
    if (c->alibi_max_bias <= 0.0f) return 0;
    float *slopes = arena_array(&m->strings, (size_t)c->n_head, sizeof(float));
    FAIL_IF(slopes == NULL, err, WEIR_E_NOMEM, NULL, "no memory for %d slopes", c->n_head);
    int32_t power = 1;
    while (power * 2 <= c->n_head) power *= 2;
    for (int32_t h = 0; h < c->n_head; h++)
        slopes[h] = h < power ? powf(2.0f, -c->alibi_max_bias * (float)(h + 1) / (float)power)
                              : powf(2.0f, -c->alibi_max_bias / 2.0f * (float)(2 * (h - power) + 1) / (float)power);
    m->alibi = slopes;
    return 0;
}

int model_bind(loader *l) {
    weir_model *m = l->m;
    m->layers = calloc((size_t)m->config.n_layer, sizeof *m->layers);
    return m->layers ? bind_all(l) : error_set(l->err, WEIR_E_NOMEM, NULL, "no memory for %d layers", m->config.n_layer);
}

int model_bind_finish(loader *l) {
    TRY(check_rope_factors(l));
    return make_alibi(l->m, l->err);
}
