/* Model files that are sound GGUF and still no model that can run: each is refused with the documented code, a place that names
 * the key or tensor, and a message that says what was wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/gguf_builder.h"
#include "weir/weir.h"

typedef struct bad_model {
    const char *name;
    void (*spoil)(gguf_builder *b);
    int code;
    const char *place;   /* a part of err.place; "" = any */
    const char *message; /* a part of err.message */
    const char *family;  /* of gguf_builder_family; NULL = llama */
} bad_model;

/* ---- ways to spoil a model -------------------------------------------------------------------------------------------- */

static void no_architecture(gguf_builder *b) { gguf_builder_drop_key(b, "general.architecture"); }
static void number_architecture(gguf_builder *b) { gguf_builder_u32(b, "general.architecture", 7); }
static void unknown_architecture(gguf_builder *b) { gguf_builder_string(b, "general.architecture", "perceptron"); }
static void no_layers_key(gguf_builder *b) { gguf_builder_drop_key(b, "llama.block_count"); }
static void zero_layers(gguf_builder *b) { gguf_builder_u32(b, "llama.block_count", 0); }
static void many_layers(gguf_builder *b) { gguf_builder_u32(b, "llama.block_count", 4000000000u); }
static void more_layers_than_tensors(gguf_builder *b) { gguf_builder_u32(b, "llama.block_count", 3); }
static void no_embedding_key(gguf_builder *b) { gguf_builder_drop_key(b, "llama.embedding_length"); }
static void zero_embedding(gguf_builder *b) { gguf_builder_u32(b, "llama.embedding_length", 0); }
static void other_embedding(gguf_builder *b) { gguf_builder_u32(b, "llama.embedding_length", 128); }
static void text_embedding(gguf_builder *b) { gguf_builder_string(b, "llama.embedding_length", "64"); }
static void zero_heads(gguf_builder *b) { gguf_builder_u32(b, "llama.attention.head_count", 0); }
static void absurd_heads(gguf_builder *b) { gguf_builder_u32(b, "llama.attention.head_count", 1000000); }
static void uneven_heads(gguf_builder *b) { gguf_builder_u32(b, "llama.attention.head_count_kv", 3); }
static void zero_kv_heads(gguf_builder *b) { gguf_builder_u32(b, "llama.attention.head_count_kv", 0); }
static void huge_head_size(gguf_builder *b) { gguf_builder_u32(b, "llama.attention.key_length", 1 << 20); }
static void odd_rope(gguf_builder *b) { gguf_builder_u32(b, "llama.rope.dimension_count", 7); }
static void long_rope(gguf_builder *b) { gguf_builder_u32(b, "llama.rope.dimension_count", 512); }
static void zero_base(gguf_builder *b) { gguf_builder_f32(b, "llama.rope.freq_base", 0.0f); }
static void nan_base(gguf_builder *b) { gguf_builder_f32(b, "llama.rope.freq_base", 0.0f / 0.0f); }
static void unknown_scaling(gguf_builder *b) { gguf_builder_string(b, "llama.rope.scaling.type", "spiral"); }
static void no_context(gguf_builder *b) { gguf_builder_drop_key(b, "llama.context_length"); }
static void no_width(gguf_builder *b) { gguf_builder_drop_key(b, "llama.feed_forward_length"); }
static void no_embedding_tensor(gguf_builder *b) { gguf_builder_drop_tensor(b, "token_embd.weight"); }
static void no_output_norm(gguf_builder *b) { gguf_builder_drop_tensor(b, "output_norm.weight"); }
static void no_query(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.1.attn_q.weight"); }
static void no_down(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.0.ffn_down.weight"); }
static void turned_matrix(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.ffn_up.weight", 2, (const uint64_t[]){128, 64}); }
static void flat_matrix(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_k.weight", 1, (const uint64_t[]){64 * 32}); }
static void deep_matrix(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_v.weight", 3, (const uint64_t[]){64, 32, 2}); }
static void short_norm(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_norm.weight", 1, (const uint64_t[]){63}); }
static void short_vocabulary(gguf_builder *b) { gguf_builder_reshape(b, "token_embd.weight", 2, (const uint64_t[]){64, 100}); }

static void integer_matrix(gguf_builder *b) {
    gguf_builder_drop_tensor(b, "blk.0.attn_q.weight");
    gguf_builder_add_tensor(b, "blk.0.attn_q.weight", QUANT_I32, 2, (const uint64_t[]){64, 64});
}

static void unknown_matrix(gguf_builder *b) { gguf_builder_find_tensor(b, "blk.0.attn_k.weight")->type = (quant_type)31; }
static void foreign_vector(gguf_builder *b) { gguf_builder_find_tensor(b, "blk.1.ffn_norm.weight")->type = (quant_type)139; }
static void made_up_embedding(gguf_builder *b) { gguf_builder_find_tensor(b, "token_embd.weight")->type = (quant_type)4711; }
static void misspelt_matrix(gguf_builder *b) {
    gguf_builder_drop_tensor(b, "blk.0.ffn_gate.weight");
    gguf_builder_add_tensor(b, "blk.0.ffn_gates.weight", QUANT_F32, 2, (const uint64_t[]){64, 128});
}

static void zero_rope_factor(gguf_builder *b) { gguf_builder_add_tensor(b, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){8}); }
static void short_rope_factors(gguf_builder *b) { gguf_builder_add_tensor(b, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){3}); }
static void long_bias(gguf_builder *b) { gguf_builder_add_tensor(b, "blk.0.attn_q.bias", QUANT_F32, 1, (const uint64_t[]){65}); }

static void experts_without_tensors(gguf_builder *b) {
    gguf_builder_u32(b, "llama.expert_count", 4);
    gguf_builder_u32(b, "llama.expert_used_count", 2);
}
static void more_experts_used(gguf_builder *b) {
    gguf_builder_u32(b, "llama.expert_count", 4);
    gguf_builder_u32(b, "llama.expert_used_count", 5);
}

static void no_tokenizer(gguf_builder *b) { gguf_builder_drop_key(b, "tokenizer.ggml.model"); }
static void unknown_tokenizer(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.model", "morse"); }
static void unknown_pre(gguf_builder *b) { gguf_builder_string(b, "tokenizer.ggml.pre", "no-such-splitter"); }
static void no_tokens(gguf_builder *b) { gguf_builder_drop_key(b, "tokenizer.ggml.tokens"); }
static void number_tokens(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.tokens", 5); }
static void far_bos(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.bos_token_id", 1000000); }
static void far_eos(gguf_builder *b) { gguf_builder_u32(b, "tokenizer.ggml.eos_token_id", GGUF_BUILDER_LLAMA_VOCAB); }
static void few_types(gguf_builder *b) {
    const int32_t types[3] = {1, 1, 1};
    gguf_builder_array(b, "tokenizer.ggml.token_type", GGUF_INT32, types, 3, sizeof types[0]);
}

static void no_latent_rank(gguf_builder *b) { gguf_builder_drop_key(b, "deepseek2.attention.kv_lora_rank"); }
static void wide_latent(gguf_builder *b) { gguf_builder_u32(b, "deepseek2.attention.kv_lora_rank", 1020); }
static void all_rotated(gguf_builder *b) { gguf_builder_u32(b, "deepseek2.rope.dimension_count", 40); }
static void no_latent_values(gguf_builder *b) { gguf_builder_drop_key(b, "deepseek2.attention.value_length_mla"); }
static void no_key_map(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.1.attn_k_b.weight"); }
static void flat_key_map(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_k_b.weight", 2, (const uint64_t[]){32, 64}); }
static void short_latent_norm(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_kv_a_norm.weight", 1, (const uint64_t[]){16}); }
static void short_kv_map(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.attn_kv_b.weight", 2, (const uint64_t[]){32, 160}); }

static void no_state_size(gguf_builder *b) { gguf_builder_drop_key(b, "mamba.ssm.state_size"); }
static void long_convolution(gguf_builder *b) { gguf_builder_u32(b, "mamba.ssm.conv_kernel", 65); }
static void uneven_scan_heads(gguf_builder *b) { gguf_builder_u32(b, "mamba2.ssm.time_step_rank", 7); }
static void uneven_scan_groups(gguf_builder *b) { gguf_builder_u32(b, "mamba2.ssm.group_count", 3); }
static void no_decay(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.1.ssm_a"); }
static void short_decay(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.ssm_a", 2, (const uint64_t[]){4, 96}); }
static void turned_convolution(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.ssm_conv1d.weight", 2, (const uint64_t[]){96, 4}); }
static void short_skip(gguf_builder *b) { gguf_builder_reshape(b, "blk.0.ssm_d", 2, (const uint64_t[]){1, 5}); }
static void one_norm_of_three(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.0.ssm_b_norm.weight"); }
static void few_head_counts(gguf_builder *b) {
    const int32_t counts[2] = {0, 2};
    gguf_builder_array(b, "lfm2.attention.head_count_kv", GGUF_INT32, counts, 2, sizeof counts[0]);
}
static void odd_head_count(gguf_builder *b) {
    const int32_t counts[3] = {0, 3, 0};
    gguf_builder_array(b, "lfm2.attention.head_count_kv", GGUF_INT32, counts, 3, sizeof counts[0]);
}
static void text_head_counts(gguf_builder *b) {
    static const char *const counts[3] = {"none", "two", "none"};
    gguf_builder_strings(b, "lfm2.attention.head_count_kv", counts, 3);
}
static void no_short_conv(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.2.shortconv.conv.weight"); }
static void no_cache_length(gguf_builder *b) { gguf_builder_drop_key(b, "lfm2.shortconv.l_cache"); }

static void no_sum_norm(gguf_builder *b) { gguf_builder_drop_tensor(b, "blk.1.layer_output_norm.weight"); }
static void no_positions(gguf_builder *b) { gguf_builder_drop_tensor(b, "position_embd.weight"); }
static void few_positions(gguf_builder *b) { gguf_builder_reshape(b, "position_embd.weight", 2, (const uint64_t[]){64, 100}); }
static void no_classifier(gguf_builder *b) {
    gguf_builder_drop_tensor(b, "cls.weight");
    gguf_builder_drop_tensor(b, "cls.output.weight");
}
static void wide_classifier(gguf_builder *b) { gguf_builder_reshape(b, "cls.weight", 2, (const uint64_t[]){64, 65}); }
static void unknown_pooling(gguf_builder *b) { gguf_builder_u32(b, "bert.pooling_type", 5); }
static void short_types(gguf_builder *b) { gguf_builder_reshape(b, "token_types.weight", 2, (const uint64_t[]){32, 2}); }
static void blind_scan(gguf_builder *b) { gguf_builder_bool(b, "jamba.attention.causal", false); }

static const bad_model cases[] = {
    {"no architecture", no_architecture, WEIR_E_FORMAT, "general.architecture", "missing"},
    {"architecture is a number", number_architecture, WEIR_E_FORMAT, "general.architecture", ""},
    {"unknown architecture", unknown_architecture, WEIR_E_UNSUPPORTED, "general.architecture", "'perceptron' is not supported; supported: llama"},
    {"no block_count", no_layers_key, WEIR_E_FORMAT, "llama.block_count", "missing"},
    {"no layers", zero_layers, WEIR_E_FORMAT, "llama.block_count", "out of range"},
    {"four billion layers", many_layers, WEIR_E_FORMAT, "llama.block_count", "out of range"},
    {"a layer without tensors", more_layers_than_tensors, WEIR_E_FORMAT, "blk.2.", "missing"},
    {"no embedding_length", no_embedding_key, WEIR_E_FORMAT, "llama.embedding_length", "missing"},
    {"embedding_length 0", zero_embedding, WEIR_E_FORMAT, "llama.embedding_length", "out of range"},
    {"embedding_length unlike the tensors", other_embedding, WEIR_E_FORMAT, "token_embd.weight", "the metadata ask for 128"},
    {"embedding_length is text", text_embedding, WEIR_E_FORMAT, "llama.embedding_length", ""},
    {"no heads", zero_heads, WEIR_E_FORMAT, "llama.attention.head_count", "out of range"},
    {"a million heads", absurd_heads, WEIR_E_FORMAT, "llama.attention.head_count", "out of range"},
    {"heads that do not share evenly", uneven_heads, WEIR_E_FORMAT, "head_count_kv", "4 heads"},
    {"no KV heads", zero_kv_heads, WEIR_E_FORMAT, "head_count_kv", "out of range"},
    {"huge heads", huge_head_size, WEIR_E_FORMAT, "llama.attention.key_length", "out of range"},
    {"odd rotation", odd_rope, WEIR_E_FORMAT, "llama.rope.dimension_count", "even"},
    {"rotation beyond the head", long_rope, WEIR_E_FORMAT, "llama.rope.dimension_count", "head size"},
    {"RoPE base 0", zero_base, WEIR_E_FORMAT, "llama.rope.freq_base", "not above 1"},
    {"RoPE base NaN", nan_base, WEIR_E_FORMAT, "llama.rope.freq_base", "finite"},
    {"unknown RoPE scaling", unknown_scaling, WEIR_E_UNSUPPORTED, "llama.rope.scaling.type", "'spiral'"},
    {"no context_length", no_context, WEIR_E_FORMAT, "llama.context_length", "missing"},
    {"no feed_forward_length", no_width, WEIR_E_FORMAT, "llama.feed_forward_length", "missing"},
    {"no embeddings", no_embedding_tensor, WEIR_E_FORMAT, "token_embd.weight", "missing"},
    {"no output norm", no_output_norm, WEIR_E_FORMAT, "output_norm.weight", "missing (architecture llama needs it, 64)"},
    {"no query matrix", no_query, WEIR_E_FORMAT, "blk.1.attn_q.weight",
     "missing (architecture llama needs it, 64 x 64); the nearest name in the file is blk.1.attn_k.weight"},
    {"no down matrix", no_down, WEIR_E_FORMAT, "blk.0.ffn_down.weight", "missing"},
    {"a turned matrix", turned_matrix, WEIR_E_FORMAT, "blk.0.ffn_up.weight", "128 x 64"},
    {"a flat matrix", flat_matrix, WEIR_E_FORMAT, "blk.0.attn_k.weight", "2048"},
    {"a matrix with depth", deep_matrix, WEIR_E_FORMAT, "blk.0.attn_v.weight", "64 x 32 x 2"},
    {"a short norm", short_norm, WEIR_E_FORMAT, "blk.0.attn_norm.weight", "63"},
    {"fewer embeddings than tokens", short_vocabulary, WEIR_E_FORMAT, "token_embd.weight", "100 rows"},
    {"a matrix of integers", integer_matrix, WEIR_E_UNSUPPORTED, "blk.0.attn_q.weight", "I32"},
    {"a repacked matrix", unknown_matrix, WEIR_E_UNSUPPORTED, "blk.0.attn_k.weight",
     "tensor type 31 is Q4_0_4_4, rows of a supported type interleaved for one processor, which ggml now does when it loads a file; it is "
     "not supported, the nearest supported type is Q4_0"},
    {"a vector of a fork's type", foreign_vector, WEIR_E_UNSUPPORTED, "blk.1.ffn_norm.weight", "tensor type 139 is IQ4_K"},
    {"embeddings of a type that nobody has", made_up_embedding, WEIR_E_UNSUPPORTED, "token_embd.weight",
     "tensor type 4711 is not known; supported are F32 F16 Q4_0 Q4_1"},
    {"a misspelt matrix", misspelt_matrix, WEIR_E_FORMAT, "blk.0.ffn_gate.weight",
     "the tensor is missing (architecture llama needs it, 64 x 128); the nearest name in the file is blk.0.ffn_gates.weight"},
    {"a RoPE factor of 0", zero_rope_factor, WEIR_E_FORMAT, "", "positive"},
    {"too few RoPE factors", short_rope_factors, WEIR_E_FORMAT, "rope_freqs.weight", "3"},
    {"a long bias", long_bias, WEIR_E_FORMAT, "blk.0.attn_q.bias", "65"},
    {"experts without tensors", experts_without_tensors, WEIR_E_FORMAT, "blk.0.ffn_gate_inp.weight", "missing (architecture llama needs it, 64 x "},
    {"more experts used than there are", more_experts_used, WEIR_E_FORMAT, "llama.expert_used_count", "out of range"},
    {"no tokeniser", no_tokenizer, WEIR_E_FORMAT, "tokenizer.ggml.model", ""},
    {"unknown tokeniser", unknown_tokenizer, WEIR_E_UNSUPPORTED, "tokenizer.ggml.model", "morse"},
    {"unknown pre-tokeniser", unknown_pre, WEIR_E_UNSUPPORTED, "tokenizer.ggml.pre", "no-such-splitter"},
    {"no tokens", no_tokens, WEIR_E_FORMAT, "tokenizer.ggml.tokens", ""},
    {"tokens that are a number", number_tokens, WEIR_E_FORMAT, "tokenizer.ggml.tokens", ""},
    {"BOS out of range", far_bos, WEIR_E_FORMAT, "bos_token_id", ""},
    {"EOS out of range", far_eos, WEIR_E_FORMAT, "eos_token_id", ""},
    {"too few token types", few_types, WEIR_E_FORMAT, "token_type", ""},
    {"no latent rank", no_latent_rank, WEIR_E_FORMAT, "deepseek2.attention.kv_lora_rank", "missing", "deepseek2"},
    {"a latent wider than a head can be", wide_latent, WEIR_E_FORMAT, "deepseek2.attention.kv_lora_rank", "1024", "deepseek2"},
    {"nothing but rotated values", all_rotated, WEIR_E_FORMAT, "deepseek2.attention.key_length_mla", "40", "deepseek2"},
    {"no value size of heads", no_latent_values, WEIR_E_FORMAT, "deepseek2.attention.value_length_mla", "missing", "deepseek2"},
    {"no map to keys", no_key_map, WEIR_E_FORMAT, "blk.1.attn_k_b.weight", "missing", "deepseek2"},
    {"a flat map to keys", flat_key_map, WEIR_E_FORMAT, "blk.0.attn_k_b.weight", "32 x 64", "deepseek2"},
    {"a short norm of the latent", short_latent_norm, WEIR_E_FORMAT, "blk.0.attn_kv_a_norm.weight", "16", "deepseek2"},
    {"no state size", no_state_size, WEIR_E_FORMAT, "mamba.ssm.state_size", "missing", "mamba"},
    {"a convolution over 65 tokens", long_convolution, WEIR_E_FORMAT, "mamba.ssm.conv_kernel", "1 to 64", "mamba"},
    {"heads that channels cannot fill", uneven_scan_heads, WEIR_E_FORMAT, "mamba2.ssm.time_step_rank", "80 channels", "mamba2"},
    {"groups that heads cannot fill", uneven_scan_groups, WEIR_E_FORMAT, "mamba2.ssm.group_count", "10 heads", "mamba2"},
    {"no decay", no_decay, WEIR_E_FORMAT, "blk.1.ssm_a", "missing", "mamba2"},
    {"a short decay", short_decay, WEIR_E_FORMAT, "blk.0.ssm_a", "4 x 96", "mamba"},
    {"a turned convolution", turned_convolution, WEIR_E_FORMAT, "blk.0.ssm_conv1d.weight", "96 x 4", "mamba"},
    {"a short skip", short_skip, WEIR_E_FORMAT, "blk.0.ssm_d", "1 x 5", "mamba2"},
    {"two norms where there are three", one_norm_of_three, WEIR_E_FORMAT, "blk.0.ssm_dt_norm.weight", "together", "jamba"},
    {"head counts for two of three layers", few_head_counts, WEIR_E_FORMAT, "lfm2.attention.head_count_kv", "2 numbers", "lfm2"},
    {"a head count that does not share evenly", odd_head_count, WEIR_E_FORMAT, "lfm2.attention.head_count_kv", "4 heads", "lfm2"},
    {"head counts in words", text_head_counts, WEIR_E_FORMAT, "lfm2.attention.head_count_kv", "no integer", "lfm2"},
    {"no short convolution", no_short_conv, WEIR_E_FORMAT, "blk.2.shortconv.conv.weight", "missing", "lfm2"},
    {"no length of the short convolution", no_cache_length, WEIR_E_FORMAT, "lfm2.shortconv.l_cache", "missing", "lfm2"},
    {"no norm after the feed-forward", no_sum_norm, WEIR_E_FORMAT, "blk.1.layer_output_norm.weight", "missing", "bert"},
    {"no position embeddings", no_positions, WEIR_E_FORMAT, "position_embd.weight", "missing", "bert"},
    {"too few position embeddings", few_positions, WEIR_E_FORMAT, "position_embd.weight", "64 x 100", "bert"},
    {"ranking without a classifier", no_classifier, WEIR_E_FORMAT, "cls.output.weight", "missing", "bert"},
    {"a classifier wider than the model", wide_classifier, WEIR_E_FORMAT, "cls.weight", "65", "bert"},
    {"unknown pooling", unknown_pooling, WEIR_E_FORMAT, "bert.pooling_type", "0 to 4", "bert"},
    {"short token types", short_types, WEIR_E_FORMAT, "token_types.weight", "32 x 2", "bert"},
    {"a scan that sees what follows", blind_scan, WEIR_E_UNSUPPORTED, "jamba.attention.causal", "recurrent", "jamba"},
    {"a short map to keys and values", short_kv_map, WEIR_E_FORMAT, "blk.0.attn_kv_b.weight", "32 x 160", "deepseek2-old"},
};

static char path[] = "/tmp/weir-test-bad-model-XXXXXX";

static int make_path(void **state) {
    (void)state;
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

static int remove_path(void **state) {
    (void)state;
    return unlink(path);
}

static void write_model(void (*spoil)(gguf_builder *b), const char *family) {
    gguf_builder b;
    gguf_builder_init(&b);
    if (family) assert_true(gguf_builder_family(&b, family));
    else gguf_builder_llama(&b, NULL);
    if (spoil) spoil(&b);
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
}

static void test_sound(void **state) {
    (void)state;
    weir_model *m = NULL;
    weir_error err = {0};
    write_model(NULL, NULL);
    if (weir_model_open(&m, path, NULL, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_int_equal(weir_model_get_info(m)->n_layer, 2);
    weir_model_close(&m);
    assert_null(m);
}

static void test_spoilt(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const bad_model *c = &cases[i];
        weir_model *m = NULL;
        weir_error err = {0};
        write_model(c->spoil, c->family);
        int rc = weir_model_open(&m, path, NULL, &err);
        if (rc != c->code || strstr(err.place, c->place) == NULL || strstr(err.message, c->message) == NULL || err.message[0] == '\0')
            fail_msg("%s: got %s at '%s': %s", c->name, weir_code_name(rc), err.place, err.message);
        assert_null(m);
    }
}

static void test_files(void **state) {
    (void)state;
    weir_model *m = NULL;
    weir_error err = {0};
    assert_int_equal(weir_model_open(&m, "/no/such/file.gguf", NULL, &err), WEIR_E_IO);
    assert_non_null(strstr(err.place, "/no/such/file.gguf"));
    assert_int_equal(weir_model_open(&m, "/tmp", NULL, &err), WEIR_E_IO);
    assert_int_equal(weir_model_open(&m, "", NULL, &err), WEIR_E_IO);
    FILE *f = fopen(path, "wb");
    fclose(f);
    assert_int_equal(weir_model_open(&m, path, NULL, &err), WEIR_E_FORMAT);
    assert_null(m);
}

/* A file without read permission, seen by a process that is not root. */
static void test_unreadable(void **state) {
    (void)state;
    write_model(NULL, NULL);
    chmod(path, 0);
    pid_t child = fork();
    if (child == 0) {
        weir_model *m = NULL;
        if (geteuid() == 0 && setuid(65534) != 0) _exit(3);
        _exit(weir_model_open(&m, path, NULL, NULL) == WEIR_E_IO ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    chmod(path, 0600);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static bool stop_at_once(void *user, uint64_t done, uint64_t total) {
    (void)done;
    (void)total;
    ++*(int *)user;
    return false;
}

static void test_stopped(void **state) {
    (void)state;
    int calls = 0;
    weir_model *m = NULL;
    weir_error err = {0};
    const weir_model_options options = {.n_threads = 1, .progress = stop_at_once, .progress_user = &calls};
    write_model(NULL, NULL);
    assert_int_equal(weir_model_open(&m, path, &options, &err), WEIR_E_CANCELLED);
    assert_null(m);
    assert_true(calls >= 1);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CAN_LIMIT_MEMORY = 0 }; /* the sanitizers' shadow memory needs the address space */
#else
enum { CAN_LIMIT_MEMORY = 1 };
#endif

/* Not enough memory for the weights is said with both numbers. */
static void test_memory(void **state) {
    (void)state;
    if (!CAN_LIMIT_MEMORY) skip();
    gguf_builder b;
    const gguf_builder_llama_shape shape = {.n_layer = 2, .d_model = 512, .n_head = 8, .n_head_kv = 8, .d_ff = 4096, .n_ctx = 64};
    gguf_builder_init(&b);
    gguf_builder_llama(&b, &shape);
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
    pid_t child = fork();
    if (child == 0) {
        weir_model *m = NULL;
        weir_error err = {0};
        /* Room to map the file (about 60 MB), not for the packed weights too. */
        unsigned long long pages = 0;
        FILE *f = fopen("/proc/self/statm", "r");
        if (f == NULL || fscanf(f, "%llu", &pages) != 1) _exit(3);
        fclose(f);
        const rlim_t most = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (80 << 20);
        const struct rlimit limit = {most, most};
        setrlimit(RLIMIT_AS, &limit);
        int rc = weir_model_open(&m, path, NULL, &err);
        if (rc != WEIR_E_NOMEM) fprintf(stderr, "%s: %s: %s\n", weir_code_name(rc), err.place, err.message);
        _exit(rc == WEIR_E_NOMEM && strstr(err.message, "MB of memory") ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),   cmocka_unit_test(test_spoilt), cmocka_unit_test(test_files), cmocka_unit_test(test_unreadable),
        cmocka_unit_test(test_stopped), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
