/* `weir inspect --check`: nothing found in a sound file, and each kind of damage found with its place. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "cli/inspect_check.h"
#include "fault/gguf_builder.h"

static inspect_findings findings;

/* Builds, checks with two threads and renders; the caller frees the text. */
static char *check(gguf_builder *b, bool json) {
    const inspect_check_options options = {.n_threads = 2};
    buf file = BUF_INIT, out = BUF_INIT;
    gguf *g = NULL;
    weir_error err = {0};
    assert_true(gguf_builder_finish(b, &file));
    if (gguf_parse(&g, file.data, file.n_bytes, "dir/model.gguf", &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_int_equal(inspect_check(g, &options, &findings, &err), 0);
    inspect_check_render(g, &findings, json, &out);
    gguf_close(&g);
    buf_free(&file);
    gguf_builder_free(b);
    return buf_take(&out, NULL);
}

static void expect(gguf_builder *b, bool warning, const char *place, const char *message) {
    char *text = check(b, false);
    bool found = false;
    for (size_t i = 0; i < findings.n_items; i++)
        found = found || (findings.items[i].warning == warning && strcmp(findings.items[i].what.place, place) == 0 &&
                          strstr(findings.items[i].what.message, message));
    if (!found) fail_msg("no %s at %s with \"%s\" in:\n%s", warning ? "warning" : "problem", place, message, text);
    assert_int_equal(findings.n_problems, !warning);
    free(text);
}

static void begin(gguf_builder *b) {
    gguf_builder_init(b);
    gguf_builder_llama(b, NULL);
}

static void test_sound(void **state) {
    (void)state;
    gguf_builder b;
    begin(&b);
    char *text = check(&b, false);
    if (findings.n_problems || findings.n_warnings) fail_msg("%s", text);
    assert_int_equal(findings.n_tensors, 21);
    assert_true(findings.n_values > 64 * GGUF_BUILDER_LLAMA_VOCAB);
    free(text);
}

static void test_values(void **state) {
    (void)state;
    gguf_builder b;
    float value = NAN;
    begin(&b);
    memcpy(gguf_builder_find_tensor(&b, "blk.1.ffn_up.weight")->data + (5 * 64 + 17) * 4, &value, 4);
    expect(&b, false, "blk.1.ffn_up.weight",
           "1 of 8192 values are not finite numbers of at most 1e+08; the first is nan in row 5, column 17 (F32 block at byte");
    begin(&b);
    value = -INFINITY;
    memcpy(gguf_builder_find_tensor(&b, "output_norm.weight")->data + 4, &value, 4);
    value = 3e9f;
    memcpy(gguf_builder_find_tensor(&b, "output_norm.weight")->data + 252, &value, 4);
    expect(&b, false, "output_norm.weight",
           "2 of 64 values are not finite numbers of at most 1e+08; the first is -inf in row 0, column 1 (");
    /* The scale of a quantised block, in a tensor of several units of work: 4096 x 512 values. */
    gguf_builder_init(&b);
    gguf_builder_tensor *t = gguf_builder_add_tensor(&b, "wide", QUANT_Q8_0, 2, (uint64_t[]){4096, 512});
    t->data[(400 * 128 + 3) * 34 + 1] = 0x7e; /* F16: NaN */
    expect(&b, false, "wide",
           "32 of 2097152 values are not finite numbers of at most 1e+08; the first is nan in row 400, column 96 (Q8_0 block "
           "at byte");
    gguf_builder_init(&b);
    gguf_builder_add_tensor(&b, "numbers", QUANT_I32, 1, (uint64_t[]){8});
    expect(&b, true, "numbers", "values of type I32 are not checked");
    gguf_builder_init(&b);
    gguf_builder_add_tensor(&b, "old", QUANT_F32, 1, (uint64_t[]){8})->type = (quant_type)4;
    expect(&b, false, "old", "tensor type 4 is Q4_2");
}

static void test_vocabulary(void **state) {
    (void)state;
    gguf_builder b;
    begin(&b);
    gguf_builder_u32(&b, "tokenizer.ggml.eos_token_id", 70000);
    gguf_builder_drop_key(&b, "tokenizer.chat_template");
    expect(&b, false, "tokenizer.ggml.eos_token_id", "70000");
    begin(&b);
    gguf_builder_strings(&b, "tokenizer.ggml.merges", (const char *const[]){"h e", "he \xc4\xa0", "zz z"}, 3);
    expect(&b, true, "tokenizer.ggml.merges", "2 merges do not join two tokens to a third; the first is 1, 'he");
    begin(&b);
    gguf_builder_reshape(&b, "output.weight", 2, (uint64_t[]){64, 200});
    char *text = check(&b, false);
    assert_non_null(strstr(text, "PROBLEM  output.weight: 200 rows for 265 tokens"));
    free(text);
    gguf_builder_init(&b);
    gguf_builder_strings(&b, "tokenizer.ggml.tokens", (const char *const[]){"<unk>", "<s>", "</s>", "a", "a"}, 5);
    gguf_builder_string(&b, "tokenizer.ggml.model", "llama");
    expect(&b, true, "tokenizer.ggml.tokens", "1 tokens repeat the text of others; the first is 4, 'a', as 3");
}

static void test_template(void **state) {
    static const char key[] = "tokenizer.chat_template";
    (void)state;
    gguf_builder b;
    begin(&b);
    gguf_builder_string(&b, key, "{% if messages %}\n{{ messages[0]['content'] ");
    expect(&b, false, key, "does not compile: template line 2");
    begin(&b);
    gguf_builder_string(&b, key, "{{ messages | nope }}");
    expect(&b, false, key, "No filter named 'nope'");
    begin(&b);
    gguf_builder_string(&b, key, "{{ raise_exception('never') }}");
    expect(&b, false, key, "does not render a conversation: template line 1: never");
    begin(&b);
    gguf_builder_string(&b, key, "constant");
    expect(&b, false, key, "does not show the text of a user's message");
    begin(&b);
    gguf_builder_string(&b, key,
                        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                        "{{ m.content }}{% endfor %}");
    expect(&b, true, key, "refuses a system message: no system");
    begin(&b);
    gguf_builder_drop_key(&b, key);
    expect(&b, true, key, "no chat template");
}

static void test_model(void **state) {
    (void)state;
    gguf_builder b;
    begin(&b);
    gguf_builder_string(&b, "general.architecture", "lama");
    expect(&b, true, "general.architecture", "'lama' is not supported; the nearest name is llama");
    begin(&b);
    gguf_builder_drop_tensor(&b, "blk.0.attn_q.weight");
    expect(&b, false, "blk.0.attn_q.weight", "the tensor is missing (architecture llama needs it, 64 x 64)");
}

static void test_json(void **state) {
    (void)state;
    gguf_builder b;
    json_error_t error;
    begin(&b);
    gguf_builder_string(&b, "tokenizer.chat_template", "{% \"\x01");
    char *text = check(&b, true);
    json_t *report = json_loads(text, 0, &error);
    if (report == NULL) fail_msg("%s in %s", error.text, text);
    assert_int_equal(json_integer_value(json_object_get(report, "n_problems")), 1);
    assert_int_equal(json_integer_value(json_object_get(report, "n_tensors")), 21);
    const json_t *first = json_array_get(json_object_get(report, "findings"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "kind")), "problem");
    assert_string_equal(json_string_value(json_object_get(first, "place")), "tokenizer.chat_template");
    json_decref(report);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),    cmocka_unit_test(test_values), cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_template), cmocka_unit_test(test_model),  cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests_name("inspect check", tests, NULL, NULL);
}
