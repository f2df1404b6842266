/* Whole answers of the OpenAI surface from scripted jobs: order of frames, several choices, failures, refusals; and the native
 * endpoints' bodies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "api/native_body.h"
#include "api/openai_session.h"
#include "test_openai_fake.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define SCRIPT(...)                                                                                                            \
    (const char *const[]) {                                                                                                    \
        __VA_ARGS__, NULL                                                                                                      \
    }

static openai_context context;
static metrics measured;
static openai_service service;

static int setup(void **state) {
    (void)state;
    openai_context_init(&context, fake_model(), fake_chat(FAKE_TEMPLATE_TEXT), 64);
    measured = (metrics){0};
    service = (openai_service){.context = &context, .metrics = &measured, .alias = "tiny"};
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return fake_jobs_alive() == 0 ? 0 : -1;
}

/* Plays the part of the HTTP core: submits the jobs of a session and hands in their events. */
typedef struct player {
    openai_session *session;
    weir_job *jobs[8];
    size_t n_jobs;
    int status; /* of the finished answer; 0 before */
    buf out;
} player;

static int open_player(player *p, openai_endpoint endpoint, const char *body, openai_error *error) {
    *p = (player){0};
    int result = openai_session_open(&p->session, &service, endpoint, body, strlen(body), 0, error);
    if (result < 0) return result;
    p->n_jobs = openai_session_n_jobs(p->session);
    assert_true(p->n_jobs <= COUNT(p->jobs));
    for (size_t i = 0; i < p->n_jobs; i++) {
        weir_request job;
        weir_error cause = {0};
        openai_session_job(p->session, i, &job);
        result = weir_job_submit(NULL, &job, &p->jobs[i], &cause);
        if (result == 0) continue;
        openai_session_refused(p->session, i, &cause, error);
        return result;
    }
    p->status = openai_session_start(p->session, &p->out);
    return 0;
}

static void close_player(player *p) {
    for (size_t i = 0; i < p->n_jobs; i++) weir_job_release(&p->jobs[i]);
    openai_session_close(&p->session);
    openai_session_close(&p->session);
    buf_free(&p->out);
}

static player start(openai_endpoint endpoint, const char *body) {
    player p;
    openai_error error = {0};
    if (open_player(&p, endpoint, body, &error) < 0) fail_msg("%s: %s", body, error.problems[0].message);
    return p;
}

/* One event of each job, in turn; false once nothing came. */
static bool play_round(player *p) {
    bool any = false;
    for (size_t i = 0; i < p->n_jobs && p->status == 0; i++) {
        weir_event event;
        if (weir_job_poll(p->jobs[i], &event) <= 0) continue;
        p->status = openai_session_event(p->session, i, &event, &p->out);
        any = true;
    }
    return any;
}

/* A short form of a streamed answer: R role, "text" with its choice's number, F finish reason, U usage, E error, D done. */
static void shorten(const char *frames, buf *out) {
    while (*frames) {
        const char *end = strstr(frames, "\n\n");
        assert_non_null(end);
        assert_memory_equal(frames, "data: ", 6);
        json_t *chunk = json_loadb(frames + 6, (size_t)(end - frames - 6), 0, NULL);
        const json_t *choice = json_array_get(json_object_get(chunk, "choices"), 0), *delta = json_object_get(choice, "delta");
        const json_t *text = delta ? json_object_get(delta, "content") : json_object_get(choice, "text");
        int index = (int)json_integer_value(json_object_get(choice, "index"));
        if (!chunk) {
            assert_memory_equal(frames, "data: [DONE]\n\n", 14);
            buf_puts(out, "D");
        } else if (json_object_get(chunk, "error")) {
            buf_puts(out, "E ");
        } else if (!choice) {
            buf_printf(out, "U%lld ",
                       (long long)json_integer_value(json_object_get(json_object_get(chunk, "usage"), "completion_tokens")));
        } else if (json_object_get(delta, "role")) {
            buf_printf(out, "R%d ", index);
        } else if (json_is_string(json_object_get(choice, "finish_reason"))) {
            buf_printf(out, "F%d=%s ", index, json_string_value(json_object_get(choice, "finish_reason")));
        } else {
            buf_printf(out, "%d'%s' ", index, json_string_value(text));
        }
        json_decref(chunk);
        frames = end + 2;
    }
}

static int play_all(player *p) {
    for (int i = 0; i < 100 && p->status == 0; i++) play_round(p); /* scripts are shorter */
    assert_int_not_equal(p->status, 0);
    return p->status;
}

static const struct {
    openai_endpoint endpoint;
    const char *body, *expected;
    const char *const *scripts[2];
    size_t n_scripts;
    int status;
} streams[] = {
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true}",
     "R0 0'a' 0'b' F0=stop D",
     {SCRIPT("t:a", "-", "t:b", "-", "end:eos")},
     1,
     200},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
     "R0 0'a' F0=length U1 D",
     {SCRIPT("t:a", "end:length")},
     1,
     200},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true}",
     "R0 F0=stop D",
     {SCRIPT("end:stop")},
     1,
     200},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,\"n\":2}",
     "R0 R1 0'a' 1'b' 0'c' F1=stop F0=length D",
     {SCRIPT("t:a", "t:c", "end:length"), SCRIPT("t:b", "end:eos")},
     2,
     200},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true}",
     "R0 0'a' E D",
     {SCRIPT("t:a", "error:broken", "t:never")},
     1,
     500},
    {OPENAI_CHAT,
     "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,\"n\":2}",
     "R0 R1 0'a' E D",
     {SCRIPT("t:a", "t:never"), SCRIPT("error:broken")},
     2,
     500},
    {OPENAI_COMPLETION, "{\"prompt\":\"x\",\"stream\":true}", "0'a' F0=stop D", {SCRIPT("t:a", "end:eos")}, 1, 200},
    {OPENAI_COMPLETION,
     "{\"prompt\":[\"x\",\"y\"],\"stream\":true,\"echo\":true}",
     "0'x' 1'y' 0'a' 1'b' F0=stop F1=stop D",
     {SCRIPT("t:a", "end:eos"), SCRIPT("t:b", "end:eos")},
     2,
     200},
    {OPENAI_COMPLETION,
     "{\"prompt\":\"x\",\"stream\":true,\"echo\":true,\"max_tokens\":0}",
     "0'x' F0=length D",
     {SCRIPT("t:a")},
     1,
     200},
};

static void streams_keep_their_order(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(streams); i++) {
        buf shape = BUF_INIT;
        fake_set_scripts(streams[i].scripts, streams[i].n_scripts);
        player p = start(streams[i].endpoint, streams[i].body);
        assert_true(openai_session_streams(p.session));
        assert_int_equal(play_all(&p), streams[i].status);
        shorten(p.out.data, &shape);
        if (strcmp(shape.data, streams[i].expected)) fail_msg("%s\nexpected %s", shape.data, streams[i].expected);
        /* Nothing comes after the end. */
        size_t n_bytes = p.out.n_bytes;
        weir_event late = {.type = WEIR_EVENT_TOKEN, .text = "late", .text_bytes = 4};
        openai_session_event(p.session, 0, &late, &p.out);
        assert_int_equal(p.out.n_bytes, n_bytes);
        close_player(&p);
        buf_free(&shape);
    }
}

static void whole_answers(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("t:a", "-", "t:b", "end:eos"), SCRIPT("-", "t:c", "end:length")};
    fake_set_scripts(scripts, 2);
    player p = start(OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":2,\"seed\":7}");
    assert_true(play_round(&p));
    assert_int_equal(p.out.n_bytes, 0); /* nothing before the end */
    assert_int_equal(play_all(&p), 200);
    json_t *answer = json_loads(p.out.data, 0, NULL);
    const char *first, *second, *reason;
    int prompt, completion, cached;
    assert_int_equal(json_unpack(answer, "{s:[{s:{s:s}}, {s:{s:s}, s:s}], s:{s:i, s:i, s:{s:i}}}", "choices", "message",
                                 "content", &first, "message", "content", &second, "finish_reason", &reason, "usage",
                                 "prompt_tokens", &prompt, "completion_tokens", &completion, "prompt_tokens_details",
                                 "cached_tokens", &cached),
                     0);
    assert_string_equal(first, "ab");
    assert_string_equal(second, "c");
    assert_string_equal(reason, "length");
    assert_int_equal(prompt, strlen("user:x\nassistant:") + 1);
    assert_int_equal(completion, 3);
    assert_int_equal(cached, 1);
    assert_true(fake_job_seed(0) == 7 && fake_job_seed(1) == 8);
    json_decref(answer);
    close_player(&p);
}

static void seeds_of_batches(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("end:eos")};
    fake_set_scripts(scripts, 1);
    player p = start(OPENAI_COMPLETION, "{\"prompt\":[\"x\",\"x\"],\"n\":2,\"seed\":7}");
    assert_true(fake_job_seed(0) == 7 && fake_job_seed(1) == 8 && fake_job_seed(2) == 7 && fake_job_seed(3) == 8);
    close_player(&p);
    fake_set_scripts(scripts, 1);
    p = start(OPENAI_COMPLETION, "{\"prompt\":[\"x\",\"x\"],\"n\":2}");
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < i; k++) assert_true(fake_job_seed(i) != fake_job_seed(k));
    close_player(&p);
}

static void failures_are_plain_errors_when_not_streaming(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("t:a", "error:it \"broke\"")};
    fake_set_scripts(scripts, 1);
    player p = start(OPENAI_COMPLETION, "{\"prompt\":\"x\"}");
    assert_int_equal(play_all(&p), 500);
    assert_string_equal(
        p.out.data,
        "{\"error\":{\"message\":\"it \\\"broke\\\"\",\"type\":\"server_error\",\"param\":null,\"code\":\"internal_error\"}}");
    assert_int_equal(measured.finished[2], 1);
    close_player(&p);
    assert_int_equal(measured.finished[2], 1);
}

static void a_cancelled_job_means_shutdown(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("t:a", "error:cancelled")};
    fake_set_scripts(scripts, 1);
    player p = start(OPENAI_COMPLETION, "{\"prompt\":\"x\"}");
    assert_int_equal(play_all(&p), 503);
    assert_non_null(strstr(p.out.data, "\"type\":\"unavailable_error\",\"param\":null,\"code\":\"shutting_down\""));
    close_player(&p);
}

static void refused_jobs(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("end:eos")};
    static const struct {
        int code, from, status;
        const char *name, *type;
    } cases[] = {
        {WEIR_E_QUEUE_FULL, 0, 429, "queue_full", "rate_limit_error"},
        {WEIR_E_QUEUE_FULL, 2, 429, "queue_full", "rate_limit_error"},
        {WEIR_E_CLOSED, 0, 503, "shutting_down", "unavailable_error"},
        {WEIR_E_CONTEXT, 0, 400, "context_length_exceeded", "exceed_context_size_error"},
        {WEIR_E_NOMEM, 1, 503, "out_of_memory", "unavailable_error"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        static const char body[] = "{\"prompt\":\"x\",\"n\":3,\"stream\":true}";
        player p;
        openai_error error = {0};
        fake_set_scripts(scripts, 1);
        fake_refuse_jobs(cases[i].code);
        fake_refuse_from(cases[i].from);
        assert_int_equal(open_player(&p, OPENAI_COMPLETION, body, &error), cases[i].code);
        assert_int_equal(fake_jobs_submitted(), cases[i].from);
        close_player(&p);
        assert_int_equal(measured.finished[2], 0); /* what never began was not aborted */
        assert_int_equal(error.status, cases[i].status);
        assert_string_equal(error.problems[0].code, cases[i].name);
        assert_string_equal(error.type, cases[i].type);
        assert_true((error.n_ctx > 0) == (cases[i].code == WEIR_E_CONTEXT));
    }
    fake_refuse_jobs(0);
}

static void a_lost_client_counts_as_aborted(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("t:a", "-", "t:b")};
    fake_set_scripts(scripts, 1);
    player p = start(OPENAI_COMPLETION, "{\"prompt\":\"x\",\"n\":4,\"stream\":true}");
    play_round(&p);
    close_player(&p);
    assert_int_equal(measured.finished[2], 4);
}

/* ---- native endpoints ---------------------------------------------------------------------------------------------------- */

typedef int (*native_fn)(buf *out, const openai_context *context, const char *body, size_t n_bytes, openai_error *error);

static const struct {
    native_fn call;
    const char *body;
    const char *expected; /* the answer, or NULL for a refusal */
    const char *param;    /* of the refusal */
} native_cases[] = {
    {native_tokenize, "{\"content\":\"AB\"}", "{\"tokens\":[68,69]}", NULL},
    {native_tokenize, "{\"content\":\"AB\",\"add_special\":true}", "{\"tokens\":[1,68,69]}", NULL},
    {native_tokenize, "{\"content\":\"</s>\"}", "{\"tokens\":[2]}", NULL},
    {native_tokenize, "{\"content\":\"</\",\"parse_special\":false}", "{\"tokens\":[63,50]}", NULL},
    {native_tokenize, "{\"content\":\"\"}", "{\"tokens\":[]}", NULL},
    {native_tokenize, "{\"content\":[\"A\",5,\"B\"],\"add_special\":true}", "{\"tokens\":[1,68,5,69]}", NULL},
    {native_tokenize, "{\"content\":\"A\xc3\xa9</s>\",\"with_pieces\":true}",
     "{\"tokens\":[{\"id\":68,\"piece\":\"A\"},{\"id\":198,\"piece\":[195]},{\"id\":172,\"piece\":[169]},{\"id\":2,\"piece\":"
     "\"</s>\"}]}",
     NULL},
    {native_tokenize, "{}", NULL, "content"},
    {native_tokenize, "{\"content\":5}", NULL, "content"},
    {native_tokenize, "{\"content\":[1.5]}", NULL, "content[0]"},
    {native_tokenize, "{\"content\":[\"a\",999]}", NULL, "content[1]"},
    {native_tokenize, "{\"content\":\"a\",\"add_special\":1}", NULL, "add_special"},
    {native_tokenize, "[]", NULL, ""},
    {native_detokenize, "{\"tokens\":[68,69,2]}", "{\"content\":\"AB</s>\"}", NULL},
    {native_detokenize, "{\"tokens\":[]}", "{\"content\":\"\"}", NULL},
    {native_detokenize, "{\"tokens\":[198]}", "{\"content\":\"\xef\xbf\xbd\"}", NULL},
    {native_detokenize, "{}", NULL, "tokens"},
    {native_detokenize, "{\"tokens\":\"AB\"}", NULL, "tokens"},
    {native_detokenize, "{\"tokens\":[\"A\"]}", NULL, "tokens[0]"},
    {native_detokenize, "{\"tokens\":[1,-1]}", NULL, "tokens[1]"},
    {native_detokenize, "{\"tokens\":[1,1e30]}", NULL, "tokens[1]"},
    {native_apply_template, "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", "{\"prompt\":\"user:hi\\nassistant:\"}",
     NULL},
    {native_apply_template, "{\"messages\":5}", NULL, "messages"},
};

static void native_bodies(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(native_cases); i++) {
        buf out = BUF_INIT;
        openai_error error = {0};
        int result = native_cases[i].call(&out, &context, native_cases[i].body, strlen(native_cases[i].body), &error);
        if ((result == 0) != (native_cases[i].expected != NULL))
            fail_msg("%s: %d %s", native_cases[i].body, result, error.problems[0].message);
        if (native_cases[i].expected) {
            assert_string_equal(out.data, native_cases[i].expected);
        } else {
            assert_int_equal(out.n_bytes, 0);
            assert_int_equal(error.status, 400);
            assert_string_equal(error.problems[0].param, native_cases[i].param);
        }
        buf_free(&out);
    }
}

static void native_information(void **state) {
    (void)state;
    native_info info = {.context = &context, .alias = "tiny", .started = 1700000000, .n_slots = 3};
    buf out = BUF_INIT;
    native_write_props(&out, &info);
    json_t *props = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_integer_value(json_object_get(props, "total_slots")), 3);
    assert_string_equal(json_string_value(json_object_get(props, "bos_token")), "<s>");
    assert_string_equal(json_string_value(json_object_get(props, "eos_token")), "</s>");
    assert_string_equal(json_string_value(json_object_get(props, "model_path")), "fake.gguf");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(props, "default_generation_settings"), "n_ctx")), 64);
    json_decref(props);
    buf_clear(&out);
    native_write_slots(&out, &info, NULL, 0, 1);
    assert_string_equal(out.data,
                        "[{\"id\":0,\"n_ctx\":64,\"is_processing\":true},{\"id\":1,\"n_ctx\":64,\"is_processing\":false},"
                        "{\"id\":2,\"n_ctx\":64,\"is_processing\":false}]");
    buf_clear(&out);
    const native_slot slots[] = {{"new", 8, {true, 5, 3, 3}, 0.25}, {"a\"b", 7, {true, 20, 2, 10}, 1.5}};
    native_write_slots(&out, &info, slots, 2, 2);
    assert_string_equal(out.data,
                        "[{\"id\":0,\"n_ctx\":64,\"is_processing\":true,\"id_task\":7,\"request_id\":\"a\\\"b\",\"seconds\":1.500,"
                        "\"n_prompt_tokens\":20,\"next_token\":[{\"has_next_token\":true,\"n_remain\":8,\"n_decoded\":2}]},"
                        "{\"id\":1,\"n_ctx\":64,\"is_processing\":true,\"id_task\":8,\"request_id\":\"new\",\"seconds\":0.250,"
                        "\"n_prompt_tokens\":5,\"next_token\":[{\"has_next_token\":false,\"n_remain\":0,\"n_decoded\":3}]},"
                        "{\"id\":2,\"n_ctx\":64,\"is_processing\":false}]");
    buf_clear(&out);
    native_write_models(&out, &info);
    json_t *models = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    const json_t *model = json_array_get(json_object_get(models, "data"), 0);
    assert_string_equal(json_string_value(json_object_get(model, "id")), "tiny");
    assert_string_equal(json_string_value(json_object_get(model, "object")), "model");
    json_decref(models);
    buf_free(&out);
}

/* ---- calls and reasoning ------------------------------------------------------------------------------------------------- */

#define ADD "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\"}}]"
#define ASK "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void calls_and_reasoning_have_their_members(void **state) {
    (void)state;
    const char *const *const scripts[] = {SCRIPT("t:<thi", "t:nk>Hm", "t:m.</think>\n", "t:Ok. <tool_call>{\"name\":\"add\",", "t:\"arguments\":{\"a\":1}}</tool_call>",
                                                 "t:<tool_call>{\"name\":\"add\"}</tool_call>", "end:eos")};
    fake_set_chat_template("<think></think><tool_call>");
    static const struct {
        const char *fields;
        size_t n_calls;
        const char *content, *reasoning, *finish;
    } cases[] = {
        {ADD, 2, "Ok.", "Hmm.", "tool_calls"},
        {ADD ",\"parallel_tool_calls\":false", 1, "Ok.", "Hmm.", "tool_calls"},
        {ADD ",\"reasoning_format\":\"none\"", 2, "<think>Hmm.</think>\nOk.", NULL, "tool_calls"},
        {"\"n\":1", 0, "Ok. <tool_call>{\"name\":\"add\",\"arguments\":{\"a\":1}}</tool_call><tool_call>{\"name\":\"add\"}</tool_call>", "Hmm.", "stop"},
        {ADD ",\"tool_choice\":\"none\",\"reasoning_format\":\"none\"", 0, NULL, NULL, "stop"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        char body[400];
        snprintf(body, sizeof body, "{" ASK ",%s}", cases[i].fields);
        fake_set_scripts(scripts, 1);
        player p = start(OPENAI_CHAT, body);
        while (play_round(&p)) {}
        assert_int_equal(p.status, 200);
        json_t *answer = json_loadb(p.out.data, p.out.n_bytes, 0, NULL);
        const json_t *choice = json_array_get(json_object_get(answer, "choices"), 0), *message = json_object_get(choice, "message");
        assert_string_equal(json_string_value(json_object_get(choice, "finish_reason")), cases[i].finish);
        assert_int_equal(json_array_size(json_object_get(message, "tool_calls")), cases[i].n_calls);
        if (cases[i].content) assert_string_equal(json_string_value(json_object_get(message, "content")), cases[i].content);
        if (cases[i].reasoning) assert_string_equal(json_string_value(json_object_get(message, "reasoning_content")), cases[i].reasoning);
        else assert_null(json_object_get(message, "reasoning_content"));
        const json_t *function = json_object_get(json_array_get(json_object_get(message, "tool_calls"), 0), "function");
        if (function) assert_string_equal(json_string_value(json_object_get(function, "arguments")), "{\"a\":1}");
        json_decref(answer);
        close_player(&p);
        /* Streamed: the same members, piece by piece. */
        snprintf(body, sizeof body, "{" ASK ",\"stream\":true,%s}", cases[i].fields);
        fake_set_scripts(scripts, 1);
        p = start(OPENAI_CHAT, body);
        while (play_round(&p)) {}
        buf_putc(&p.out, '\0');
        size_t n_calls = 0;
        for (const char *at = p.out.data; (at = strstr(at, "\"type\":\"function\"")); at++) n_calls++;
        assert_int_equal(n_calls, cases[i].n_calls);
        assert_int_equal(strstr(p.out.data, "\"reasoning_content\":\"Hm\"") != NULL, cases[i].reasoning != NULL);
        assert_non_null(strstr(p.out.data, cases[i].finish));
        close_player(&p);
    }
    fake_set_chat_template(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(calls_and_reasoning_have_their_members, setup, teardown),
        cmocka_unit_test_setup_teardown(streams_keep_their_order, setup, teardown),
        cmocka_unit_test_setup_teardown(whole_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(seeds_of_batches, setup, teardown),
        cmocka_unit_test_setup_teardown(failures_are_plain_errors_when_not_streaming, setup, teardown),
        cmocka_unit_test_setup_teardown(a_cancelled_job_means_shutdown, setup, teardown),
        cmocka_unit_test_setup_teardown(refused_jobs, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lost_client_counts_as_aborted, setup, teardown),
        cmocka_unit_test_setup_teardown(native_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(native_information, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
