/* What a step has to do at least: multiply-accumulates and bytes of each operation. The limits of a machine divided by these are
 * the limits of a model on it; how long the operations take in fact, the forward pass measures. */
#include "model/model.h"

const char *model_op_name(model_op op) {
    static const char *const names[MODEL_N_OPS] = {"embedding", "norm, quantise", "QKV",     "attention", "output projection",
                                                   "gate, up",  "down",           "recurrent", "experts", "head",    "waiting"};
    return names[op];
}

/* One product of n_rows rows with a matrix that may be absent. */
static void add_matrix(const kern_matrix *w, double n_rows, double n_reads, model_work *work) {
    if (w->layout == NULL) return;
    const double macs = n_rows * (double)w->n_rows * (double)w->n_cols;
    if (w->layout->bits) work->int8_macs += macs;
    else work->f32_macs += macs;
    work->bytes += n_reads * (double)kern_matrix_bytes(w);
}

void model_add_weights_work(const weir_model *m, int32_t n_rows, int32_t n_outputs, model_work work[MODEL_N_OPS]) {
    const model_config *c = &m->config;
    const double n = n_rows, chosen = n * c->n_expert_used, read = chosen < c->n_expert ? chosen : c->n_expert;
    work[MODEL_OP_EMBED].bytes += n * (double)quant_row_bytes(m->embedding->format, (size_t)c->d_model);
    for (int32_t i = 0; i < c->n_layer; i++) {
        const model_layer *layer = &m->layers[i];
        const kern_matrix *qkv[] = {&layer->q, &layer->k, &layer->v};
        for (int k = 0; k < 3; k++) add_matrix(qkv[k], n, 1, &work[MODEL_OP_QKV]);
        add_matrix(&layer->q_down, n, 1, &work[MODEL_OP_QKV]);
        add_matrix(&layer->kv_down, n, 1, &work[MODEL_OP_QKV]);
        for (int32_t h = 0; layer->k_up && h < layer->n_head; h++) {
            add_matrix(&layer->k_up[h], n, 1, &work[MODEL_OP_ATTENTION]);
            add_matrix(&layer->v_up[h], n, 1, &work[MODEL_OP_ATTENTION]);
        }
        add_matrix(&layer->recurrent_in, n, 1, &work[MODEL_OP_QKV]);
        const kern_matrix *recurrent[] = {&layer->select, &layer->dt, &layer->recurrent_out};
        for (int k = 0; k < 3; k++) add_matrix(recurrent[k], n, 1, &work[MODEL_OP_RECURRENT]);
        add_matrix(&layer->o, n, 1, &work[MODEL_OP_OUT]);
        add_matrix(&layer->gate, n, 1, &work[MODEL_OP_GATE_UP]);
        add_matrix(&layer->up, n, 1, &work[MODEL_OP_GATE_UP]);
        add_matrix(&layer->down, n, 1, &work[MODEL_OP_DOWN]);
        add_matrix(&layer->router, n, 1, &work[MODEL_OP_EXPERTS]);
        add_matrix(&layer->shared_gate, n, 1, &work[MODEL_OP_EXPERTS]);
        const kern_matrix *experts[] = {layer->gate_experts, layer->up_experts, layer->down_experts};
        for (int k = 0; k < 3; k++)
            if (experts[k]) add_matrix(experts[k], chosen, read, &work[MODEL_OP_EXPERTS]);
    }
    if (n_outputs) add_matrix(&m->output, n_outputs, 1, &work[MODEL_OP_HEAD]);
}

void model_add_attention_work(const weir_model *m, const kern_kv *kv, int32_t n_past, int32_t n_tok, model_work work[MODEL_N_OPS]) {
    const model_config *c = &m->config;
    for (int32_t i = 0; i < c->n_layer; i++) {
        const double key_bytes = c->shapes[i].n_head_kv * (double)(kern_keys_bytes(kv) + kern_values_bytes(kv)) / KERN_PAGE;
        const double key_macs = (double)m->layers[i].n_head * (c->d_head + c->d_value);
        if (m->layers[i].n_head_kv == 0) continue;
        const int32_t window = m->layers[i].windowed ? c->window : INT32_MAX;
        const int32_t oldest = n_past + 1 > window ? n_past + 1 - window : 0; /* that the first new token sees */
        double n_seen = 0;
        for (int32_t t = 0; t < n_tok; t++) n_seen += n_past + t + 1 < window ? n_past + t + 1 : window;
        work[MODEL_OP_ATTENTION].f32_macs += n_seen * key_macs;
        work[MODEL_OP_ATTENTION].bytes += (double)(n_past + n_tok - oldest) * key_bytes;
    }
}
