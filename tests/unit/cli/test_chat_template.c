/* Which chat template a model gets: --chat-template by name, as text, as a file; its own; the fallback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "chat/builtin.h"
#include "cli/commands.h"
#include "fault/gguf_builder.h"

static char path[] = "/tmp/weir-template-XXXXXX";
static settings s; /* large */

/* A model whose third token is `marker` and whose template is `source`, or none. */
static weir_model *open_model(const char *marker, const char *source) {
    const weir_model_options only = {.vocab_only = true};
    gguf_builder b;
    weir_model *model = NULL;
    weir_error err = {0};
    gguf_builder_init(&b);
    gguf_builder_llama(&b, NULL);
    const int32_t types[] = {2, 3, 3, 3, 1};
    gguf_builder_strings(&b, "tokenizer.ggml.tokens", (const char *const[]){"<unk>", "<s>", "</s>", marker, "a"}, 5);
    gguf_builder_array(&b, "tokenizer.ggml.token_type", GGUF_INT32, types, 5, sizeof types[0]);
    gguf_builder_string(&b, "tokenizer.ggml.model", "llama");
    gguf_builder_drop_key(&b, "tokenizer.ggml.pre");
    if (source)
        gguf_builder_string(&b, "tokenizer.chat_template", source);
    else
        gguf_builder_drop_key(&b, "tokenizer.chat_template");
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
    if (weir_model_open(&model, path, &only, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return model;
}

static void expect(const char *marker, const char *own, const char *given, const char *expected) {
    weir_model *model = open_model(marker, own);
    char *source = NULL;
    weir_error err = {0};
    s.chat_template = given;
    if (command_chat_template(&s, model, &source, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_string_equal(source, expected);
    free(source);
    weir_model_close(&model);
}

static void test_given(void **state) {
    (void)state;
    char file[] = "/tmp/weir-jinja-XXXXXX";
    const int fd = mkstemp(file);
    assert_true(fd >= 0 && write(fd, "from a file", 11) == 11);
    close(fd);
    expect("[INST]", "own", NULL, "own");
    expect("[INST]", "own", "chatml", chat_builtin_template("chatml"));
    expect("[INST]", "own", "{{ 'text' }}", "{{ 'text' }}");
    expect("[INST]", "own", file, "from a file");
    s.chat_template_file = file;
    expect("[INST]", "own", NULL, "from a file");
    s.chat_template_file = NULL;
    unlink(file);
}

static void test_wrong_name(void **state) {
    (void)state;
    weir_model *model = open_model("[INST]", "own");
    char *source = NULL;
    weir_error err = {0};
    s.chat_template = "chat-ml";
    assert_int_equal(command_chat_template(&s, model, &source, &err), WEIR_E_INVALID);
    assert_null(source);
    assert_string_equal(err.place, "--chat-template");
    assert_non_null(strstr(err.message, "did you mean chatml?"));
    s.chat_template = NULL;
    weir_model_close(&model);
}

static void test_fallback(void **state) {
    (void)state;
    expect("<|im_start|>", NULL, NULL, chat_builtin_template("chatml"));
    expect("<start_of_turn>", NULL, NULL, chat_builtin_template("gemma"));
    expect("<|start_header_id|>", NULL, NULL, chat_builtin_template("llama3"));
    expect("[INST]", NULL, NULL, chat_builtin_template("mistral-v3"));
    expect("<|end|>", NULL, NULL, chat_builtin_template("phi3"));
    expect("<other>", NULL, NULL, chat_builtin_template("chatml"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_given), cmocka_unit_test(test_wrong_name),
                                       cmocka_unit_test(test_fallback)};
    const int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    const int failed = cmocka_run_group_tests_name("chat template", tests, NULL, NULL);
    unlink(path);
    return failed;
}
