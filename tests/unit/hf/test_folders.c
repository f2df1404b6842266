/* Folders of every family against the logits of transformers: one file and shards, F32 and BF16. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "hf/hf.h"
#include "kern/kern.h"
#include "model/quantise.h"
#include "unit/hf/folder.h"
#include "weir/weir.h"

static const char *cases_dir;

/* Sum of squared differences over sum of squares, both rows less their means. */
static double nmse(const json_t *reference, const float *x, size_t n) {
    double mean_r = 0, mean_x = 0, error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        mean_r += json_number_value(json_array_get(reference, i)) / (double)n;
        mean_x += (double)x[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        const double a = json_number_value(json_array_get(reference, i)) - mean_r, b = (double)x[i] - mean_x;
        error += (a - b) * (a - b);
        power += a * a;
    }
    return error / power;
}

/* Logits of all tokens, checked against the reference's by their NMSE; the caller frees them. */
static float *check_logits(const weir_model *model, const json_t *spec, const char *name, double limit) {
    const json_t *ids = json_object_get(spec, "ids"), *positions = json_object_get(spec, "positions"),
                 *logits = json_object_get(spec, "logits");
    const size_t n = json_array_size(ids), n_vocab = 64;
    int32_t tokens[256];
    engine *e = NULL;
    engine_seq *seq = NULL;
    weir_error err = {0};
    const weir_engine_options options = {.n_threads = 2, .n_ctx = 256, .n_parallel = 1, .n_batch = 64};
    float *out = calloc(n * n_vocab, sizeof *out);
    for (size_t i = 0; i < n; i++) tokens[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    assert_int_equal(engine_open(&e, model, &options, &err), 0);
    assert_int_equal(engine_seq_open(e, 256, &seq, &err), 0);
    engine_item item = {.seq = seq, .tokens = tokens, .n_tok = (int32_t)n};
    assert_int_equal(engine_step_all(e, &item, out, &err), 0);
    for (size_t i = 0; i < json_array_size(positions); i++) {
        const size_t at = (size_t)json_integer_value(json_array_get(positions, i));
        const double error = nmse(json_array_get(logits, i), out + at * n_vocab, n_vocab);
        if (!(error <= limit)) fail_msg("%s: NMSE %.2e at position %zu", name, error, at);
    }
    engine_seq_close(e, &seq);
    engine_close(&e);
    return out;
}

static json_t *load_case(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.json", cases_dir, name);
    json_t *spec = json_load_file(path, 0, NULL);
    assert_non_null(spec);
    return spec;
}

static void write_quantised(const char *folder, const char *type, const char *path) {
    gguf *g = NULL;
    pool *threads = NULL;
    quantise_plan plan = {0};
    weir_error err = {0};
    int rc = hf_open_for_gguf(&g, folder, &err);
    if (rc >= 0) rc = quantise_plan_make(&plan, g, quant_mix_named(type), &(quant_mix_options){0}, false, NULL, NULL, &err);
    if (rc >= 0) rc = pool_open(&threads, 2, &err);
    if (rc >= 0) rc = quantise_run(&plan, path, threads, NULL, NULL, &err);
    if (rc < 0) fail_msg("%s: %s: %s", type, err.place, err.message);
    pool_close(&threads);
    quantise_plan_free(&plan);
    gguf_close(&g);
}

/* Quantised, as it is loaded or by weir convert --quant, a folder is nearly the same. (The file's embeddings are quantised, those
 * of a loaded folder stay: the bits differ.) The rows of these models are no multiple of 256: of Q4_K_M they get the types that
 * take its place. */
static void check_quantised(const char *folder, const json_t *spec, const char *name) {
    static const struct {
        const char *type;
        double limit;
    } types[] = {{"F16", 1e-4}, {"Q8_0", 1e-2}, {"Q5_0", 0.2}, {"Q4_0", 0.6}, {"Q4_K_M", 0.2}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        weir_model *model = NULL;
        weir_error err = {0};
        char path[1100], what[64];
        snprintf(path, sizeof path, "%s/quantised.gguf", folder);
        snprintf(what, sizeof what, "%s, %s", name, types[i].type);
        if (weir_model_open(&model, folder, &(weir_model_options){.quantise = types[i].type}, &err) < 0)
            fail_msg("%s: %s: %s", what, err.place, err.message);
        free(check_logits(model, spec, what, types[i].limit));
        weir_model_close(&model);
        write_quantised(folder, types[i].type, path);
        if (weir_model_open(&model, path, NULL, &err) < 0) fail_msg("%s: %s: %s", what, err.place, err.message);
        free(check_logits(model, spec, what, types[i].limit));
        weir_model_close(&model);
    }
}

static void run_case(const char *name, const char *dtype, size_t n_shards) {
    json_t *spec = load_case(name);
    char *folder = folder_make();
    weir_model *model = NULL;
    weir_error err = {0};
    folder_write_case(folder, spec, dtype, n_shards);
    if (weir_model_open(&model, folder, NULL, &err) < 0) fail_msg("%s: %s: %s", name, err.place, err.message);
    /* Keys and values are F16: the limit of the kit for floating point files. */
    float *logits = check_logits(model, spec, name, 1e-4);
    weir_model_close(&model);
    check_quantised(folder, spec, name);
    /* The file made of the folder gives the same bits. */
    char path[1100];
    snprintf(path, sizeof path, "%s/converted.gguf", folder);
    if (hf_convert(folder, path, NULL, NULL, &err) < 0) fail_msg("%s: %s: %s", name, err.place, err.message);
    if (weir_model_open(&model, path, NULL, &err) < 0) fail_msg("%s: %s: %s", name, err.place, err.message);
    float *converted = check_logits(model, spec, name, 1e-4);
    if (memcmp(logits, converted, json_array_size(json_object_get(spec, "ids")) * 64 * sizeof *logits) != 0)
        fail_msg("%s: the converted file gives other bits than the folder", name);
    free(logits);
    free(converted);
    weir_model_close(&model);
    folder_remove(folder);
    json_decref(spec);
}

static void families(void **state) {
    static const char *const names[] = {"llama", "llama3",    "llama-yarn", "llama-linear", "mistral", "mistral-window",
                                        "phi3",  "phi3-long", "qwen2",      "qwen3",        "gemma3"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) run_case(names[i], i % 2 ? "BF16" : "F32", i % 3 + 1);
}

/* Special tokens and the template come from the small files. */
static void small_files(void **state) {
    json_t *spec = load_case("qwen2");
    char *folder = folder_make();
    weir_model *model = NULL;
    weir_error err = {0};
    (void)state;
    static const char generation[] = "{\"eos_token_id\": [5, 1], \"bos_token_id\": 0}";
    static const char config[] =
        "{\"model_max_length\": 1000000000000000019884624838656, \"eos_token\": {\"content\": \"</s>\"}, \"chat_template\": [{\"name\": \"tools\", \"template\": \"no\"},"
        "{\"name\": \"default\", \"template\": \"{{ bos_token }}yes\"}]}";
    folder_write_case(folder, spec, "BF16", 1);
    folder_write(folder, "generation_config.json", generation, strlen(generation));
    folder_write(folder, "tokenizer_config.json", config, strlen(config));
    assert_int_equal(weir_model_open(&model, folder, &(weir_model_options){.vocab_only = true}, &err), 0);
    assert_string_equal(weir_model_get_info(model)->chat_template, "{{ bos_token }}yes");
    assert_int_equal(weir_token_bos(model), 0);
    assert_int_equal(weir_token_eos(model), 1);
    assert_true(weir_token_is_eog(model, 1) && weir_token_is_eog(model, 5) && !weir_token_is_eog(model, 6));
    weir_model_close(&model);
    folder_write(folder, "chat_template.jinja", "file", 4);
    assert_int_equal(weir_model_open(&model, folder, &(weir_model_options){.vocab_only = true}, &err), 0);
    assert_string_equal(weir_model_get_info(model)->chat_template, "file");
    weir_model_close(&model);
    folder_remove(folder);
    json_decref(spec);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    cases_dir = argv[1];
    const struct CMUnitTest tests[] = {cmocka_unit_test(families), cmocka_unit_test(small_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
