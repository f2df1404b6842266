/* Bodies of the OpenAI surface and of the native endpoints. The first byte picks the endpoint, the rest is the body. Every body
 * gets an answer that is JSON: a refusal that names a status, or what the session writes when its jobs yield text, a fault, or
 * nothing. */
#include <stdlib.h>
#include <string.h>

#include "api/native_body.h"
#include "api/openai_session.h"
#include "unit/api/test_openai_fake.h"

static void must(bool condition) {
    if (!condition) abort();
}

static void must_be_json(const char *text, size_t n_bytes) {
    json_t *parsed = json_loadb(text, n_bytes, JSON_ALLOW_NUL, NULL);
    must(parsed != NULL);
    json_decref(parsed);
}

static void check_error(const openai_error *error) {
    buf out = BUF_INIT;
    must(error->status >= 400 && error->n_problems > 0);
    openai_error_write(&out, error);
    must(!out.failed);
    must_be_json(out.data, out.n_bytes);
    buf_free(&out);
}

/* Frames: "data: " JSON "\n\n", and "data: [DONE]\n\n" last and only last. */
static void check_frames(const char *text, size_t n_bytes) {
    static const char done[] = "data: [DONE]\n\n";
    const char *end = text + n_bytes;
    while (text < end) {
        const char *stop = memmem(text, (size_t)(end - text), "\n\n", 2);
        must(stop != NULL && strncmp(text, "data: ", 6) == 0);
        bool is_done = strncmp(text, done, sizeof done - 1) == 0;
        must(is_done == (stop + 2 == end));
        if (!is_done) must_be_json(text + 6, (size_t)(stop - text) - 6);
        text = stop + 2;
    }
}

/* Plays 3 tokens and an end, or a failure, to each job. */
static int play(openai_session *session, buf *out, bool fail) {
    static const char *const texts[] = {"a\"b", "\xc3\xa9", "\n"};
    size_t n_jobs = openai_session_n_jobs(session);
    int status = openai_session_start(session, out);
    for (size_t step = 0; step < 4 && status == 0; step++)
        for (size_t i = 0; i < n_jobs && status == 0; i++) {
            weir_request job;
            int32_t token = (int32_t)(FAKE_BYTE + 40 * step);
            float logprobs[] = {-0.5f};
            weir_top_logprob tops[20];
            openai_session_job(session, i, &job);
            must(job.n_tokens > 0 && job.max_tokens != 0 && job.n_top_logprobs <= 20);
            for (int k = 0; k < 20; k++) tops[k] = (weir_top_logprob){.token = k + 200, .logprob = (float)-k};
            weir_event event = {.type = step < 3 ? WEIR_EVENT_TOKEN : fail ? WEIR_EVENT_ERROR : WEIR_EVENT_END};
            event.stop_reason = WEIR_STOP_EOS;
            event.code = WEIR_E_INTERNAL;
            event.message = "fault";
            event.n_tokens = 1;
            event.tokens = &token;
            event.text = step < 3 ? texts[step] : "";
            event.text_bytes = strlen(event.text);
            if (job.n_top_logprobs >= 0) {
                event.logprobs = logprobs;
                event.top_logprobs = job.n_top_logprobs ? tops : NULL;
            }
            status = openai_session_event(session, i, &event, out);
        }
    return status;
}

static void complete(const openai_context *context, openai_endpoint endpoint, const char *body, size_t n_bytes, bool fail) {
    openai_service service = {.context = context, .alias = "fuzz"};
    openai_session *session = NULL;
    openai_error error = {0};
    buf out = BUF_INIT;
    if (openai_session_open(&session, &service, endpoint, body, n_bytes, 0, &error) < 0) {
        check_error(&error);
        return;
    }
    must(error.n_problems == 0);
    must(play(session, &out, fail) != 0 && !out.failed);
    if (openai_session_streams(session))
        check_frames(out.data, out.n_bytes);
    else
        must_be_json(out.data, out.n_bytes);
    openai_session_close(&session);
    buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int (*const natives[])(buf *, const openai_context *, const char *, size_t,
                                  openai_error *) = {native_tokenize, native_detokenize, native_apply_template};
    openai_context context;
    if (size < 1) return 0;
    const char *body = (const char *)data + 1;
    unsigned pick = data[0] % 16u; /* ASCII digits and letters reach all */
    static weir_grammars *grammars; /* kept for all inputs */
    if (openai_context_init(&context, fake_model(), fake_chat((fake_template)(pick % 3u)), 256) < 0) return 0;
    if (!grammars && weir_grammars_open(&grammars, fake_model(), NULL) < 0) return 0;
    context.grammars = grammars;
    fake_set_chat_template(data[0] & 1 ? "<think></think><tool_call></tool_call>" : NULL);
    if (pick >= 3 && pick < 6) {
        buf out = BUF_INIT;
        openai_error error = {0};
        if (natives[pick - 3](&out, &context, body, size - 1, &error) < 0)
            check_error(&error);
        else
            must_be_json(out.data, out.n_bytes);
        buf_free(&out);
        return 0;
    }
    complete(&context, pick % 2u ? OPENAI_CHAT : OPENAI_COMPLETION, body, size - 1, pick >= 12);
    return 0;
}
