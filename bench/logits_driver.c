/* For bench/convert: `logits_driver MODEL.gguf ID...` reads the token ids with llama.cpp, in one batch, and writes the logits of all
 * positions to standard output: floats [ids][vocabulary], as this machine stores them. Links with libllama only. */
#include <stdio.h>
#include <stdlib.h>

#include <llama.h>

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level >= GGML_LOG_LEVEL_WARN) fputs(text, stderr);
}

int main(int argc, char **argv) {
    const int n = argc - 2;
    if (n < 1) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) return 1;
    struct llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = 256;
    parameters.n_batch = parameters.n_ubatch = 256;
    parameters.n_threads = parameters.n_threads_batch = 1;
    parameters.type_k = parameters.type_v = GGML_TYPE_F32;
    parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context *context = llama_init_from_model(model, parameters);
    if (context == NULL) return 1;
    struct llama_batch batch = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        batch.token[i] = atoi(argv[i + 2]);
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    batch.n_tokens = n;
    if (llama_decode(context, batch) != 0) return 1;
    const size_t n_vocab = (size_t)llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int i = 0; i < n; i++)
        if (fwrite(llama_get_logits_ith(context, i), sizeof(float), n_vocab, stdout) != n_vocab) return 1;
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
