/* Model folders with one thing wrong: each is refused with a message that names the place and the reason, and nothing leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hf/hf.h"
#include "hf/safetensors.h"
#include "unit/hf/folder.h"
#include "weir/weir.h"

/* ---- safetensors
 * ---------------------------------------------------------------------------------------------------------------- */

/* A file of this header and n bytes of data, parsed from memory of exactly its size. */
static int parse(const char *header, size_t n_data, weir_error *err) {
    const uint64_t n_header = strlen(header);
    const size_t n = 8 + (size_t)n_header + n_data;
    unsigned char *bytes = calloc(n, 1);
    safetensors s;
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(n_header >> 8 * i);
    memcpy(bytes + 8, header, n_header);
    *err = (weir_error){0};
    const int rc = safetensors_parse(&s, bytes, n, "x.safetensors", err);
    safetensors_free(&s);
    free(bytes);
    return rc;
}

#define T(name, dtype, shape, begin, end)                                                                                      \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static const struct {
    const char *header;
    size_t n_data;
    const char *says; /* in place or message; NULL: the file is good */
} files[] = {
    {"{}", 0, NULL},
    {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "BF16", "[2,2]", "8", "16") "}   ", 16, NULL},
    {"{\"__metadata__\":{\"format\":\"pt\"}," T("a", "F32", "[]", "0", "4") "," T("e", "F32", "[0,3]", "4", "4") "}", 4, NULL},
    {"[]", 0, "byte 8"},
    {" {}", 0, "byte 8"},
    {"{\"a\":1}", 0, "tensor 'a'"},
    {"{" T("a", "F32", "[2]", "0", "8") "," T("a", "F32", "[2]", "8", "16") "}", 16, "duplicate object key"},
    {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[2]", "4", "12") "}", 12, "overlap"},
    {"{" T("a", "F32", "[2]", "0", "8") "," T("b", "F32", "[1]", "12", "16") "}", 16, "belong to no tensor"},
    {"{" T("a", "F32", "[2]", "4", "12") "}", 12, "belong to no tensor"},
    {"{" T("a", "F32", "[2]", "0", "8") "}", 9, "last 1 bytes"},
    {"{" T("a", "F32", "[2]", "0", "16") "}", 8, "do not lie"},
    {"{" T("a", "F32", "[2]", "8", "0") "}", 8, "do not lie"},
    {"{" T("a", "F32", "[3]", "0", "8") "}", 8, "3 values of type F32 have 12"},
    {"{" T("a", "F33", "[2]", "0", "8") "}", 8, "dtype 'F33'"},
    {"{" T("a", "F32", "[-2]", "0", "8") "}", 8, "dimension 0"},
    {"{" T("a", "F32", "[2.0]", "0", "8") "}", 8, "dimension 0"},
    {"{" T("a", "F32", "[4294967296,4294967296]", "0", "8") "}", 8, "too many values"},
    {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,2]", "0", "8") "}", 8, "dimensions"},
    {"{" T("a", "F32", "\"2\"", "0", "8") "}", 8, "shape"},
    {"{" T("a", "F32", "[2]", "\"0\"", "8") "}", 8, "data_offsets"},
    {"{" T("a", "F4", "[3]", "0", "1") "}", 1, "3 values of type F4"},
    {"{" T("", "F32", "[2]", "0", "8") "}", 8, "name of 0 bytes"},
    {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype is missing"},
    {"{\"a\":", 0, "no JSON"},
};

static bool mentions(const weir_error *err, const char *words) {
    return strstr(err->place, words) || strstr(err->message, words);
}

static void bad_files(void **state) {
    (void)state;
    weir_error err;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        const int rc = parse(files[i].header, files[i].n_data, &err);
        if (files[i].says == NULL ? rc != 0 : rc >= 0 || !mentions(&err, files[i].says))
            fail_msg("file %zu (%s): %d, '%s: %s', wanted '%s'", i, files[i].header, rc, err.place, err.message,
                     files[i].says ? files[i].says : "success");
    }
    /* Lengths of the header that lie. */
    static const unsigned char huge[] = {0, 0, 0, 0, 1, 0, 0, 0, '{', '}'}, cut[] = {3, 0, 0, 0, 0, 0, 0, 0, '{', '}'},
                               empty[] = {0, 0, 0, 0, 0, 0, 0, 0};
    safetensors s;
    assert_int_equal(safetensors_parse(&s, huge, sizeof huge, "x", &err), WEIR_E_FORMAT);
    assert_true(mentions(&err, "the limit is"));
    assert_int_equal(safetensors_parse(&s, cut, sizeof cut, "x", &err), WEIR_E_FORMAT);
    assert_true(mentions(&err, "cut off"));
    assert_int_equal(safetensors_parse(&s, empty, sizeof empty, "x", &err), WEIR_E_FORMAT);
    assert_int_equal(safetensors_parse(&s, empty, 3, "x", &err), WEIR_E_FORMAT);
}

/* ---- folders
 * --------------------------------------------------------------------------------------------------------------------- */

static json_t *spec;

/* Opens the folder, which must be refused with these words, or open (NULL). */
static void expect(const char *folder, const char *words, const char *what) {
    weir_model *model = NULL;
    weir_error err = {0};
    const int rc = weir_model_open(&model, folder, NULL, &err);
    if (words == NULL ? rc != 0 : rc >= 0 || !mentions(&err, words))
        fail_msg("%s: %d, '%s: %s', wanted '%s'", what, rc, err.place, err.message, words ? words : "success");
    weir_model_close(&model);
}

/* A case with one member of config.json set (value NULL: taken away). */
static void config_with(const char *key, json_t *value, const char *words) {
    json_t *config = json_deep_copy(json_object_get(spec, "config"));
    char *folder = folder_make();
    if (value)
        json_object_set_new(config, key, value);
    else
        json_object_del(config, key);
    folder_write_case(folder, spec, "BF16", 1);
    folder_write_json(folder, "config.json", config);
    expect(folder, words, key);
    folder_remove(folder);
    json_decref(config);
}

static void bad_configs(void **state) {
    (void)state;
    config_with("model_type", json_string("mamba"), "'mamba' is not supported");
    config_with("model_type", NULL, "config.json: model_type");
    config_with("hidden_size", NULL, "config.json: hidden_size");
    config_with("hidden_size", json_integer(65), "the shape is");
    config_with("hidden_size", json_string("64"), "config.json: hidden_size");
    config_with("num_hidden_layers", json_integer(0), "config.json: num_hidden_layers");
    config_with("num_hidden_layers", json_integer(2), "has no such tensor");
    config_with("num_hidden_layers", json_integer(4), "blk.3");
    config_with("num_attention_heads", json_real(1e300), "config.json: num_attention_heads");
    config_with("num_key_value_heads", json_integer(3), "config.json: num_key_value_heads");
    config_with("vocab_size", json_integer(63), "[64, 64]; config.json asks for [63, 64]");
    config_with("hidden_act", json_string("relu"), "'relu' is not supported");
    config_with("quantization_config", json_object(), "quantised folders are not read");
    config_with("rope_parameters", json_pack("{s:s,s:f}", "rope_type", "ntk", "rope_theta", 1e4), "'ntk' is not supported");
    config_with("rope_parameters", json_pack("{s:s,s:f}", "rope_type", "linear", "factor", 0.5), "at least 1");
    config_with("rope_parameters", json_pack("{s:s,s:f}", "rope_type", "default", "rope_theta", 0.0), "rope_theta");
    config_with("rope_parameters", json_pack("{s:s,s:[f]}", "rope_type", "longrope", "short_factor", 1.0),
                "original_max_position_embeddings");
}

static void bad_folders(void **state) {
    (void)state;
    char *folder = folder_make(), path[1024];
    static const char bad[] = "{\"weight_map\":{\"model.norm.weight\":\"../model.safetensors\"}}",
                      missing[] = "{\"weight_map\":{\"a\":\"b.safetensors\"}}";
    static const char wrong[] = "{\"weight_map\":{\"model.norm.weight\":\"model.safetensors\"}}";
    expect(folder, "no config.json", "an empty folder");
    folder_write_case(folder, spec, "BF16", 1);
    expect(folder, NULL, "a good folder");
    folder_write(folder, "config.json", "{\"a\": ", 6);
    expect(folder, "line 1", "a cut config.json");
    folder_write_json(folder, "config.json", json_object_get(spec, "config"));
    folder_write(folder, "model.safetensors.index.json", bad, strlen(bad));
    expect(folder, "same folder", "a path in the index");
    folder_write(folder, "model.safetensors.index.json", missing, strlen(missing));
    expect(folder, "b.safetensors, which it names, is missing", "a missing shard");
    folder_write(folder, "model.safetensors.index.json", wrong, strlen(wrong));
    expect(folder, "the index says that it lies in no file", "a tensor that the index does not know");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    unlink(path);
    expect(folder, "no tokenizer.json", "no tokeniser");
    folder_write(folder, "tokenizer.model", "x", 1);
    expect(folder, "SentencePiece files are not read", "tokenizer.model");
    folder_write(folder, "tokenizer.json", "{\"model\": {\"type\": \"X\"}}", 24);
    expect(folder, "the model 'X' is not supported", "a tokenizer.json of another kind");
    folder_write_tokenizer(folder, 70);
    expect(folder, "64 rows for the tokeniser's 70 tokens", "more tokens than rows");
    folder_write_tokenizer(folder, 60);
    expect(folder, NULL, "fewer tokens than rows");
    folder_write(folder, "generation_config.json", "{\"eos_token_id\": [64]}", 22);
    expect(folder, "generation_config.json: eos_token_id", "an id beyond the vocabulary");
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    truncate(path, 5000);
    expect(folder, "model.safetensors", "a cut file");
    unlink(path);
    expect(folder, "no model.safetensors", "no weights");
    folder_write(folder, "pytorch_model.bin", "x", 1);
    expect(folder, "save the model as safetensors", "weights of another kind");
    folder_remove(folder);
}

/* Caches hold links to files elsewhere. */
static void links(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    char *store = folder_make(), *folder = folder_make(), from[1024], to[1024];
    folder_write_case(store, spec, "BF16", 1);
    for (size_t i = 0; i < 3; i++) {
        snprintf(from, sizeof from, "%s/%s", store, names[i]);
        snprintf(to, sizeof to, "%s/%s", folder, names[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    expect(folder, NULL, "links");
    snprintf(to, sizeof to, "%s/config.json", store);
    unlink(to);
    expect(folder, "no config.json", "a link to nothing");
    folder_remove(folder);
    folder_remove(store);
}

/* Tensors that are wrong for the model. */
static void bad_tensors(void **state) {
    (void)state;
    char *folder = folder_make();
    json_t *tensors = json_deep_copy(json_object_get(spec, "tensors"));
    folder_write_case(folder, spec, "BF16", 1);
    json_object_set_new(tensors, "model.layers.0.self_attn.q_proj.weight", json_pack("[i,i]", 32, 64));
    folder_write_safetensors(folder, "model.safetensors", tensors, "BF16", false);
    expect(folder, "model.layers.0.self_attn.q_proj.weight", "a wrong shape");
    json_object_set_new(tensors, "model.layers.0.self_attn.q_proj.weight", json_pack("[i,i]", 64, 64));
    folder_write_safetensors(folder, "model.safetensors", tensors, "I16", false);
    expect(folder, "type I16 cannot be computed with", "a wrong type");
    json_object_set_new(tensors, "model.layers.00.mlp.up_proj.weight", json_pack("[i,i]", 96, 64));
    folder_write_safetensors(folder, "model.safetensors", tensors, "BF16", false);
    expect(folder, "model.layers.00.mlp.up_proj.weight", "a layer's number with a zero in front");
    json_object_del(tensors, "model.layers.00.mlp.up_proj.weight");
    json_object_del(tensors, "lm_head.weight");
    folder_write_safetensors(folder, "model.safetensors", tensors, "BF16", false);
    expect(folder, "lm_head.weight", "no output matrix");
    folder_remove(folder);
    json_decref(tensors);
}

/* A vocabulary that GGUF's keys cannot say runs from the folder, and is not converted. */
static void not_convertible(void **state) {
    (void)state;
    static const char words[] = "{\"model\":{\"type\":\"WordLevel\",\"vocab\":{\"a\":0,\"b\":1},\"unk_token\":\"a\"}}";
    static const char upper[] = "{\"normalizer\":{\"type\":\"Lowercase\"},"
                                "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"A\":1},\"merges\":[]}}";
    static const char *const texts[][2] = {{words, "its model is WordLevel, and only BPE is written"}, {upper, "equals none of the known ones"}};
    char *folder = folder_make(), path[1024];
    weir_error err = {0};
    folder_write_case(folder, spec, "BF16", 1);
    snprintf(path, sizeof path, "%s/out.gguf", folder);
    for (size_t i = 0; i < 2; i++) {
        folder_write(folder, "tokenizer.json", texts[i][0], strlen(texts[i][0]));
        expect(folder, NULL, texts[i][0]);
        assert_int_equal(hf_convert(folder, path, NULL, NULL, &err), WEIR_E_UNSUPPORTED);
        if (!mentions(&err, texts[i][1])) fail_msg("'%s: %s', wanted '%s'", err.place, err.message, texts[i][1]);
        assert_int_equal(access(path, F_OK), -1);
    }
    assert_int_equal(hf_convert(path, path, NULL, NULL, &err), WEIR_E_INVALID);
    folder_remove(folder);
}

int main(int argc, char **argv) {
    char path[1024];
    if (argc != 2) return 2;
    snprintf(path, sizeof path, "%s/qwen2.json", argv[1]);
    spec = json_load_file(path, 0, NULL);
    if (spec == NULL) return 3;
    const struct CMUnitTest tests[] = {cmocka_unit_test(bad_files), cmocka_unit_test(bad_configs),
                                       cmocka_unit_test(bad_folders), cmocka_unit_test(links), cmocka_unit_test(bad_tensors),
                                       cmocka_unit_test(not_convertible)};
    const int rc = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(spec);
    return rc;
}
