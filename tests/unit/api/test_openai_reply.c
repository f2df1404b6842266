/* Chunks, final objects, errors and metrics of the OpenAI surface, byte for byte. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "api/metrics.h"
#include "api/openai_reply.h"
#include "test_openai_fake.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define HEAD_CHAT                                                                                                              \
    "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"tiny\",\"system_"          \
    "fingerprint\":\"" OPENAI_FINGERPRINT "\",\"choices\":["
#define HEAD_TEXT                                                                                                              \
    "{\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"tiny\",\"system_fingerprint\":"      \
    "\"" OPENAI_FINGERPRINT "\",\"choices\":["
#define TIMINGS                                                                                                                \
    "\"timings\":{\"cache_n\":2,\"prompt_n\":8,\"prompt_ms\":20.000,\"prompt_per_token_ms\":2.500,\"prompt_per_second\":400."  \
    "000,\"predicted_n\":5,\"predicted_ms\":40.000,\"predicted_per_token_ms\":10.000,\"predicted_per_second\":100.000}"

static openai_reply reply_for(openai_endpoint endpoint, int32_t n_top, bool include_usage) {
    openai_reply reply = {.endpoint = endpoint,
                          .created = 1700000000,
                          .model = "tiny",
                          .weights = fake_model(),
                          .n_top = n_top,
                          .include_usage = include_usage};
    strcpy(reply.id, endpoint == OPENAI_CHAT ? "chatcmpl-1" : "cmpl-1");
    return reply;
}

static weir_event token_event(const char *text, const int32_t *tokens, uint32_t n, const float *logprobs,
                              const weir_top_logprob *tops) {
    return (weir_event){.type = WEIR_EVENT_TOKEN,
                        .text = text,
                        .text_bytes = strlen(text),
                        .n_tokens = n,
                        .tokens = tokens,
                        .logprobs = logprobs,
                        .top_logprobs = tops};
}

static const weir_event end_event = {
    .type = WEIR_EVENT_END,
    .stop_reason = WEIR_STOP_LENGTH,
    .timings = {.n_prompt = 10, .n_cached = 2, .n_output = 5, .queue_us = 1000, .prefill_us = 20000, .decode_us = 40000},
};

/* The text must be what is expected and be JSON. */
static void check(buf *out, const char *expected) {
    assert_false(out->failed);
    assert_string_equal(out->data, expected);
    json_t *parsed = json_loadb(out->data, out->n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    assert_non_null(parsed);
    json_decref(parsed);
    buf_clear(out);
}

static void strings(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n_bytes;
        const char *expected;
    } cases[] = {
        {"", 0, "\"\""},
        {"plain", 5, "\"plain\""},
        {"\"\\/", 3, "\"\\\"\\\\/\""},
        {"\n\r\t\b\f", 5, "\"\\n\\r\\t\\b\\f\""},
        {"\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\\u007f\""},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""},
        {"\xef\xbf\xbd", 3, "\"\xef\xbf\xbd\""},
        {"a\xff", 2, "\"a\xef\xbf\xbd\""},
        {"\xe2\x82", 2, "\"\xef\xbf\xbd\""},
        {"\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"\xc0\x80x", 3, "\"\xef\xbf\xbd\xef\xbf\xbdx\""},
        {"\xf0\x9f\x98z", 4, "\"\xef\xbf\xbdz\""},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        buf out = BUF_INIT;
        openai_write_string(&out, cases[i].text, cases[i].n_bytes);
        assert_string_equal(out.data, cases[i].expected);
        buf_free(&out);
    }
}

static void numbers(void **state) {
    (void)state;
    buf out = BUF_INIT;
    openai_write_number(&out, 1.5, 3);
    buf_putc(&out, ' ');
    openai_write_number(&out, INFINITY, 1);
    buf_putc(&out, ' ');
    openai_write_logprob(&out, -INFINITY);
    buf_putc(&out, ' ');
    openai_write_logprob(&out, NAN);
    buf_putc(&out, ' ');
    openai_write_logprob(&out, 1e-7f);
    buf_putc(&out, ' ');
    openai_write_logprob(&out, -0.125f);
    assert_string_equal(out.data, "1.500 0.0 -9999 -9999 0 -0.125");
    buf_free(&out);
}

static void chat_stream(void **state) {
    (void)state;
    openai_reply reply = reply_for(OPENAI_CHAT, -1, false);
    openai_choice choice = {0};
    static const int32_t tokens[] = {FAKE_BYTE + 'H'};
    weir_event event = token_event("H\"", tokens, 1, NULL, NULL);
    openai_usage usage = {.prompt_tokens = 10, .completion_tokens = 5, .cached_tokens = 2};
    buf out = BUF_INIT;
    openai_write_role_chunk(&out, &reply, 0);
    check(&out, HEAD_CHAT "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,"
                          "\"finish_reason\":null}]}");
    openai_write_token_chunk(&out, &reply, &choice, 0, &event);
    check(&out, HEAD_CHAT "{\"index\":0,\"delta\":{\"content\":\"H\\\"\"},\"logprobs\":null,\"finish_reason\":null}]}");
    openai_choice_end(&choice, &end_event);
    openai_write_final_chunk(&out, &reply, &choice, 0);
    check(&out, HEAD_CHAT "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]," TIMINGS "}");
    openai_write_usage_chunk(&out, &reply, &usage);
    check(&out, HEAD_CHAT "],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15,\"prompt_tokens_"
                          "details\":{\"cached_tokens\":2}}}");
    reply.include_usage = true;
    openai_write_role_chunk(&out, &reply, 1);
    check(&out, HEAD_CHAT "{\"index\":1,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,"
                          "\"finish_reason\":null}],\"usage\":null}");
    openai_write_final_chunk(&out, &reply, &choice, 1);
    check(&out,
          HEAD_CHAT "{\"index\":1,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":null," TIMINGS "}");
    openai_choice_free(&choice);
    buf_free(&out);
}

static void finish_reasons(void **state) {
    (void)state;
    static const struct {
        weir_stop_reason reason;
        const char *expected;
    } cases[] = {{WEIR_STOP_EOS, "stop"}, {WEIR_STOP_LENGTH, "length"}, {WEIR_STOP_SEQUENCE, "stop"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        openai_choice choice = {0};
        weir_event event = end_event;
        event.stop_reason = cases[i].reason;
        openai_choice_end(&choice, &event);
        assert_string_equal(choice.finish_reason, cases[i].expected);
    }
}

static void chat_logprobs(void **state) {
    (void)state;
    openai_reply reply = reply_for(OPENAI_CHAT, 2, false);
    openai_choice choice = {0};
    /* The two bytes of an e with an acute accent, held back until whole. */
    static const int32_t tokens[] = {FAKE_BYTE + 0xc3, FAKE_BYTE + 0xa9};
    static const float logprobs[] = {-0.5f, -INFINITY};
    static const weir_top_logprob tops[] = {
        {FAKE_BYTE + 0xc3, -0.5f}, {FAKE_EOS, -1.0f}, {FAKE_BYTE + 'a', -0.25f}, {FAKE_BYTE + '"', -2.0f}};
    weir_event event = token_event("\xc3\xa9", tokens, 2, logprobs, tops);
    buf out = BUF_INIT;
    openai_write_token_chunk(&out, &reply, &choice, 0, &event);
    check(&out,
          HEAD_CHAT "{\"index\":0,\"delta\":{\"content\":\"\xc3\xa9\"},\"logprobs\":{\"content\":["
                    "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.5,\"bytes\":[195],\"top_logprobs\":["
                    "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.5,\"bytes\":[195]},{\"token\":\"</"
                    "s>\",\"logprob\":-1,\"bytes\":[60,47,115,62]}]},"
                    "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-9999,\"bytes\":[169],\"top_logprobs\":["
                    "{\"token\":\"a\",\"logprob\":-0.25,\"bytes\":[97]},{\"token\":\"\\\"\",\"logprob\":-2,\"bytes\":[34]}]}"
                    "],\"refusal\":null},\"finish_reason\":null}]}");
    /* The next chunk has its own token only. */
    static const int32_t next[] = {FAKE_BYTE + 'b'};
    static const float next_logprob[] = {-1.5f};
    event = token_event("b", next, 1, next_logprob, NULL);
    reply.n_top = 0;
    openai_write_token_chunk(&out, &reply, &choice, 0, &event);
    check(&out, HEAD_CHAT
          "{\"index\":0,\"delta\":{\"content\":\"b\"},\"logprobs\":{\"content\":["
          "{\"token\":\"b\",\"logprob\":-1.5,\"bytes\":[98],\"top_logprobs\":[]}],\"refusal\":null},\"finish_reason\":null}]}");
    openai_choice_free(&choice);
    buf_free(&out);
}

static void completion_stream(void **state) {
    (void)state;
    openai_reply reply = reply_for(OPENAI_COMPLETION, 1, false);
    openai_choice choice = {0};
    static const int32_t tokens[] = {FAKE_BYTE + 'a', FAKE_BYTE + 0xe2};
    static const float logprobs[] = {-0.5f, -0.75f};
    static const weir_top_logprob tops[] = {{FAKE_BYTE + 'a', -0.5f}, {FAKE_BYTE + 'z', -0.25f}};
    weir_event event = token_event("a\xef\xbf\xbd", tokens, 2, logprobs, tops);
    buf out = BUF_INIT;
    openai_write_echo_chunk(&out, &reply, &choice, 0, "\xc3\xa9!", 3);
    check(&out, HEAD_TEXT "{\"index\":0,\"text\":\"\xc3\xa9!\",\"logprobs\":null,\"finish_reason\":null}]}");
    openai_write_token_chunk(&out, &reply, &choice, 0, &event);
    check(&out, HEAD_TEXT
          "{\"index\":0,\"text\":\"a\xef\xbf\xbd\",\"logprobs\":{\"text_offset\":[2,3],\"token_logprobs\":[-0.5,-0.75],"
          "\"tokens\":[\"a\",\"bytes:\\\\xe2\"],\"top_logprobs\":[{\"a\":-0.5},{\"z\":-0.25,\"bytes:\\\\xe2\":-0.75}]},"
          "\"finish_reason\":null}]}");
    static const int32_t last[] = {FAKE_BYTE + 'b'};
    static const float last_logprob[] = {-1};
    reply.n_top = 0;
    event = token_event("b", last, 1, last_logprob, NULL);
    openai_write_token_chunk(&out, &reply, &choice, 0, &event);
    check(&out,
          HEAD_TEXT "{\"index\":0,\"text\":\"b\",\"logprobs\":{\"text_offset\":[4],\"token_logprobs\":[-1],\"tokens\":[\"b\"],"
                    "\"top_logprobs\":[{\"b\":-1}]},\"finish_reason\":null}]}");
    openai_choice_end(&choice, &end_event);
    openai_write_final_chunk(&out, &reply, &choice, 0);
    check(&out, HEAD_TEXT "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}]," TIMINGS "}");
    openai_choice_free(&choice);
    buf_free(&out);
}

static void whole_answers(void **state) {
    (void)state;
    static const int32_t tokens[] = {FAKE_BYTE + 'o', FAKE_BYTE + 'k'};
    static const float logprobs[] = {-0.5f, -1};
    openai_usage usage = {.prompt_tokens = 10, .completion_tokens = 5};
    buf out = BUF_INIT;
    openai_choice choices[2] = {0};
    openai_reply reply = reply_for(OPENAI_CHAT, -1, false);
    weir_event event = token_event("ok", tokens, 2, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k <= i; k++) openai_choice_add(&choices[i], &reply, &event);
        openai_choice_end(&choices[i], &end_event);
        assert_true(openai_choice_complete(&choices[i]));
    }
    openai_write_body(&out, &reply, choices, 2, &usage);
    check(&out,
          "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"tiny\",\"system_"
          "fingerprint\":\"" OPENAI_FINGERPRINT "\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
                                                "\"ok\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"length\"},"
          "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"okok\",\"refusal\":null},\"logprobs\":null,\"finish_"
          "reason\":\"length\"}],"
          "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15,\"prompt_tokens_details\":{\"cached_"
          "tokens\":0}}," TIMINGS "}");
    for (int i = 0; i < 2; i++) openai_choice_free(&choices[i]);

    reply = reply_for(OPENAI_COMPLETION, 0, false);
    event = token_event("ok", tokens, 2, logprobs, NULL);
    openai_choice choice = {0};
    openai_choice_echo(&choice, "is it ", 6);
    openai_choice_add(&choice, &reply, &event);
    openai_choice_end(&choice, &end_event);
    openai_write_body(&out, &reply, &choice, 1, &usage);
    check(&out, HEAD_TEXT "{\"index\":0,\"text\":\"is it "
                          "ok\",\"logprobs\":{\"text_offset\":[6,7],\"token_logprobs\":[-0.5,-1],\"tokens\":[\"o\",\"k\"],"
                          "\"top_logprobs\":[{\"o\":-0.5},{\"k\":-1}]},\"finish_reason\":\"length\"}],"
                          "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15,\"prompt_tokens_"
                          "details\":{\"cached_tokens\":0}}," TIMINGS "}");
    openai_choice_free(&choice);

    /* An answer without a single token. */
    openai_choice empty = {0};
    reply = reply_for(OPENAI_CHAT, 0, false);
    weir_event end = {.type = WEIR_EVENT_END, .stop_reason = WEIR_STOP_EOS};
    openai_choice_end(&empty, &end);
    openai_write_body(&out, &reply, &empty, 1, &usage);
    assert_non_null(strstr(
        out.data,
        "\"content\":\"\",\"refusal\":null},\"logprobs\":{\"content\":[],\"refusal\":null},\"finish_reason\":\"stop\"}]"));
    assert_non_null(strstr(out.data, "\"predicted_per_second\":0.000"));
    buf_free(&out);
}

static void ids_are_fresh(void **state) {
    (void)state;
    openai_request request = {.endpoint = OPENAI_CHAT, .n_top = -1};
    openai_reply a, b;
    assert_int_equal(openai_reply_init(&a, &request, fake_model(), "tiny"), 0);
    assert_int_equal(openai_reply_init(&b, &request, fake_model(), "tiny"), 0);
    assert_memory_equal(a.id, "chatcmpl-", 9);
    assert_int_equal(strlen(a.id), 9 + 32);
    assert_string_not_equal(a.id, b.id);
    assert_true(a.created > 1700000000);
    request.endpoint = OPENAI_COMPLETION;
    assert_int_equal(openai_reply_init(&a, &request, fake_model(), "tiny"), 0);
    assert_memory_equal(a.id, "cmpl-", 5);
}

static void errors(void **state) {
    (void)state;
    buf out = BUF_INIT;
    openai_error_write_weir(&out, WEIR_E_QUEUE_FULL, "the queue holds 4096 requests");
    check(&out, "{\"error\":{\"message\":\"the queue holds 4096 "
                "requests\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":\"queue_full\"}}");
    openai_error_write_weir(&out, WEIR_E_CLOSED, NULL);
    check(
        &out,
        "{\"error\":{\"message\":\"shutting down\",\"type\":\"unavailable_error\",\"param\":null,\"code\":\"shutting_down\"}}");
    openai_error_write_weir(&out, -999, "x");
    check(&out, "{\"error\":{\"message\":\"x\",\"type\":\"server_error\",\"param\":null,\"code\":\"internal_error\"}}");
    openai_error none = {0};
    openai_error_write(&out, &none);
    check(&out,
          "{\"error\":{\"message\":\"internal error\",\"type\":\"server_error\",\"param\":null,\"code\":\"internal_error\"}}");
    /* A message too long for its place ends in a whole code point. */
    openai_error error = {0};
    char text[2 * sizeof error.problems[0].message];
    for (size_t i = 0; i + 2 < sizeof text; i += 2) memcpy(text + i, "\xc3\xa9", 3);
    openai_error_add(&error, 400, "invalid_value", NULL, "x%s", text);
    openai_error_write(&out, &error);
    assert_null(strstr(out.data, "\xef\xbf\xbd"));
    assert_non_null(strstr(out.data, "\xc3\xa9\",\"type\""));
    buf_free(&out);
}

/* ---- metrics ------------------------------------------------------------------------------------------------------------- */

static void expect_line(const buf *out, const char *line) {
    const char *at = strstr(out->data, line);
    if (!at || (at != out->data && at[-1] != '\n') || at[strlen(line)] != '\n')
        fail_msg("no line '%s' in\n%s", line, out->data);
}

static void metrics_text(void **state) {
    (void)state;
    metrics m = {0};
    metrics_job job = {.arrived_us = 1000000};
    weir_stats stats = {.n_running = 3,
                        .n_waiting = 7,
                        .prompt_tokens = 100,
                        .cached_tokens = 50,
                        .output_tokens = 200,
                        .n_steps = 20,
                        .prompt_us = 500000,
                        .output_us = 2000000,
                        .kv_tokens_used = 256,
                        .kv_tokens_total = 1024,
                        .n_preemptions = 3,
                        .kv_page_tokens = 32,
                        .cache_type_k = "f16",
                        .cache_type_v = "q8_0"};
    static const int32_t tokens[] = {5};
    weir_event token = token_event("x", tokens, 1, NULL, NULL);
    metrics_event(&m, &job, &token, 1030000);
    metrics_event(&m, &job, &token, 1034000);
    metrics_event(&m, &job, &token, 1038000);
    metrics_event(&m, &job, &end_event, 1050000);
    metrics_job lost = {.arrived_us = 1000000};
    weir_event error = {.type = WEIR_EVENT_ERROR, .code = WEIR_E_CANCELLED};
    metrics_event(&m, &lost, &error, 2000000);
    metrics_event(NULL, &lost, &error, 2000000);
    buf out = BUF_INIT;
    metrics_write(&out, &m, &stats, "a\"b\\c\nd");
    assert_false(out.failed);
    static const char *const lines[] = {
        "# HELP llamacpp:prompt_tokens_total Prompt tokens processed.",
        "# TYPE llamacpp:prompt_tokens_total counter",
        "llamacpp:prompt_tokens_total 100",
        "llamacpp:prompt_seconds_total 0.5",
        "llamacpp:prompt_tokens_seconds 200",
        "llamacpp:predicted_tokens_seconds 100",
        "llamacpp:requests_processing 3",
        "llamacpp:requests_deferred 7",
        "llamacpp:kv_cache_usage_ratio 0.25",
        "# TYPE vllm:num_requests_waiting gauge",
        "vllm:num_requests_waiting{model_name=\"a\\\"b\\\\c\\nd\"} 7",
        "vllm:kv_cache_usage_perc{model_name=\"a\\\"b\\\\c\\nd\"} 0.25",
        "vllm:request_success_total{model_name=\"a\\\"b\\\\c\\nd\",finished_reason=\"length\"} 1",
        "vllm:request_success_total{model_name=\"a\\\"b\\\\c\\nd\",finished_reason=\"abort\"} 1",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"0.02\"} 0",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"0.04\"} 1",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"+Inf\"} 1",
        "vllm:time_to_first_token_seconds_sum{model_name=\"a\\\"b\\\\c\\nd\"} 0.03",
        "vllm:inter_token_latency_seconds_count{model_name=\"a\\\"b\\\\c\\nd\"} 2",
        "vllm:inter_token_latency_seconds_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"0.005\"} 2",
        "vllm:e2e_request_latency_seconds_sum{model_name=\"a\\\"b\\\\c\\nd\"} 0.05",
        "vllm:request_queue_time_seconds_count{model_name=\"a\\\"b\\\\c\\nd\"} 2",
        "vllm:request_prompt_tokens_sum{model_name=\"a\\\"b\\\\c\\nd\"} 10",
        "vllm:num_preemptions_total{model_name=\"a\\\"b\\\\c\\nd\"} 3",
        "vllm:gpu_cache_usage_perc{model_name=\"a\\\"b\\\\c\\nd\"} 0.25",
        "vllm:cache_config_info{model_name=\"a\\\"b\\\\c\\nd\",block_size=\"32\",num_gpu_blocks=\"32\",cache_dtype=\"f16/q8_0\"} 1",
        "vllm:time_per_output_token_seconds_count{model_name=\"a\\\"b\\\\c\\nd\"} 2",
        "# TYPE vllm:request_inference_time_seconds histogram",
        "# TYPE vllm:request_time_per_output_token_seconds histogram",
    };
    for (size_t i = 0; i < COUNT(lines); i++) expect_line(&out, lines[i]);
    buf_free(&out);
}

static void histogram_edges(void **state) {
    (void)state;
    for (int s = 0; s < METRICS_N_SERIES; s++) {
        metrics m = {0};
        size_t n;
        const double *bounds = metrics_buckets((metrics_series)s, &n);
        assert_true(n > 0 && n <= METRICS_MAX_BUCKETS);
        for (size_t i = 0; i < n; i++) {
            if (i) assert_true(bounds[i] > bounds[i - 1]);
            metrics_observe(&m, (metrics_series)s, bounds[i]); /* a bound belongs to its own bucket */
            assert_int_equal(m.series[s].counts[i], 1);
        }
        metrics_observe(&m, (metrics_series)s, INFINITY);
        metrics_observe(&m, (metrics_series)s, NAN); /* dropped */
        assert_int_equal(m.series[s].counts[n], 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings),        cmocka_unit_test(numbers),         cmocka_unit_test(chat_stream),
        cmocka_unit_test(finish_reasons), cmocka_unit_test(chat_logprobs),   cmocka_unit_test(completion_stream),
        cmocka_unit_test(whole_answers),  cmocka_unit_test(ids_are_fresh),   cmocka_unit_test(errors),
        cmocka_unit_test(metrics_text),   cmocka_unit_test(histogram_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
