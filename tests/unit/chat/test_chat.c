/* The public chat templates and the built-in ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "chat/builtin.h"
#include "weir/weir.h"

#define CONVERSATION                                                                                                           \
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Hi\"},"                   \
    "{\"role\":\"assistant\",\"content\":\"Hello\"},{\"role\":\"user\",\"content\":\"Bye\"}],\"add_generation_prompt\":true}"

static char *render(const char *source, const char *json) {
    weir_chat *chat = NULL;
    weir_error e = {0};
    char *text = NULL;
    size_t n = 0;
    if (weir_chat_open(&chat, source, "<s>", "</s>", &e) < 0) fail_msg("%s: %s", e.place, e.message);
    if (weir_chat_render(chat, json, strlen(json), &text, &n, &e) < 0) fail_msg("%s: %s", e.place, e.message);
    assert_int_equal(n, strlen(text));
    weir_chat_close(&chat);
    assert_null(chat);
    return text;
}

static void test_special_tokens(void **state) {
    (void)state;
    char *own = render("{{ bos_token }}{{ eos_token }}", "{}"),
         *given = render("{{ bos_token }}{{ eos_token }}", "{\"bos_token\":\"B\"}");
    assert_string_equal(own, "<s></s>");
    assert_string_equal(given, "B</s>");
    free(own), free(given);
}

static void test_failures(void **state) {
    (void)state;
    weir_chat *chat = (weir_chat *)1;
    weir_error e = {0};
    char *text = (char *)1;
    size_t n = 1;
    assert_int_equal(weir_chat_open(&chat, "{% if %}", "", "", &e), WEIR_E_FORMAT);
    assert_null(chat);
    assert_non_null(strstr(e.place, "line 1, column 7"));
    assert_int_equal(weir_chat_open(&chat, "{{ raise_exception('roles must alternate') }}", NULL, NULL, &e), 0);
    assert_int_equal(weir_chat_render(chat, "{}", 2, &text, &n, &e), WEIR_E_INVALID);
    assert_string_equal(e.message, "roles must alternate");
    assert_null(text);
    assert_int_equal(n, 0);
    assert_int_equal(weir_chat_render(chat, "{}", 2, &text, NULL, NULL), WEIR_E_INVALID); /* no error object: still an error */
    assert_int_equal(weir_chat_render(chat, "5", 1, &text, &n, &e), WEIR_E_INVALID);
    assert_int_equal(weir_chat_render(chat, "", 0, &text, &n, &e), WEIR_E_INVALID);
    weir_chat_close(&chat);
    weir_chat_close(&chat);
}

static void test_builtin_formats(void **state) {
    (void)state;
    static const struct {
        const char *name, *text;
    } rows[] = {
        {"chatml",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
         "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"},
        {"gemma", "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
                  "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"},
        {"llama2", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]"},
        {"llama3",
         "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi"
         "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>user<|end_header_id|>"
         "\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"llama2-sys-bos", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]Hello</s><s>[INST] Bye [/INST]"},
        {"mistral-v1", " [INST] Be brief.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]"},
        {"mistral-v3", "[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST]"},
        {"mistral-v7", "[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] Hi[/INST] Hello</s>[INST] Bye[/INST]"},
        {"orion", "Human: Be brief.\n\nHi\n\nAssistant: </s>Hello</s>Human: Bye\n\nAssistant: </s>"},
        {"gpt-oss", "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant<|message|>Hello"
                    "<|return|><|start|>user<|message|>Bye<|end|><|start|>assistant"},
        {"mistral", "<s>[INST] Hi [/INST] Hello</s>[INST] Be brief.\n\nBye [/INST]"},
        {"phi3", "<|system|>\nBe "
                 "brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n"},
        {"zephyr", "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = render(chat_builtin_template(rows[i].name), CONVERSATION);
        assert_string_equal(text, rows[i].text);
        free(text);
    }
}

/* Every listed name has a template that shows every message; names are in order and there is nothing else. */
static void test_builtin_names(void **state) {
    (void)state;
    for (size_t i = 0; chat_builtin_name(i); i++) {
        if (i) assert_true(strcmp(chat_builtin_name(i - 1), chat_builtin_name(i)) < 0);
        char *text = render(chat_builtin_template(chat_builtin_name(i)), CONVERSATION);
        assert_non_null(strstr(text, "Be brief."));
        assert_non_null(strstr(text, "Hello"));
        assert_non_null(strstr(text, "Bye"));
        free(text);
    }
    assert_null(chat_builtin_template("no such format"));
}

static void test_speed(void **state) {
    (void)state;
    weir_chat *chat;
    int64_t best = INT64_MAX;
    assert_int_equal(weir_chat_open(&chat, chat_builtin_template("llama3"), "<s>", "", NULL), 0);
    for (int i = 0; i < 50; i++) {
        char *text;
        int64_t start = clock_now_us();
        assert_int_equal(weir_chat_render(chat, CONVERSATION, strlen(CONVERSATION), &text, NULL, NULL), 0);
        int64_t taken = clock_now_us() - start;
        if (taken < best) best = taken;
        free(text);
    }
    assert_true(best < 1000);
    weir_chat_close(&chat);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_special_tokens), cmocka_unit_test(test_failures), cmocka_unit_test(test_builtin_formats),
        cmocka_unit_test(test_builtin_names),  cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
