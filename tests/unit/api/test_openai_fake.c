/* See test_openai_fake.h. */
#include "test_openai_fake.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/error.h"

struct weir_model {
    weir_model_info info;
};

struct weir_chat {
    fake_template mode;
};

static weir_model model = {.info = {.path = "fake.gguf",
                                    .architecture = "fake",
                                    .name = "fake",
                                    .file_type = "F32",
                                    .cpu_level = "reference",
                                    .n_vocab = FAKE_N_VOCAB,
                                    .n_ctx_train = 256}};
static weir_chat chats[] = {{FAKE_TEMPLATE_TEXT}, {FAKE_TEMPLATE_EITHER}, {FAKE_TEMPLATE_PARTS}, {FAKE_TEMPLATE_RAISES}};
static char *last_variables;
static int n_tokenized;
static char byte_values[256];

const weir_model *fake_model(void) {
    return &model;
}
const weir_chat *fake_chat(fake_template mode) {
    return &chats[mode];
}
void fake_set_chat_template(const char *source) {
    model.info.chat_template = source;
}
int fake_n_tokenized(void) {
    return n_tokenized;
}
const char *fake_last_variables(void) {
    return last_variables;
}

const weir_model_info *weir_model_get_info(const weir_model *m) {
    return &m->info;
}
int32_t weir_token_bos(const weir_model *m) {
    return m ? FAKE_BOS : -1;
}
bool weir_token_is_eog(const weir_model *m, int32_t token) {
    (void)m;
    return token == FAKE_EOS;
}
int32_t weir_token_eos(const weir_model *m) {
    return m ? FAKE_EOS : -1;
}
bool weir_model_adds_bos(const weir_model *m) {
    return m != NULL;
}

static const char *const special_texts[] = {"<unk>", "<s>", "</s>"};

const char *weir_token_bytes(const weir_model *m, int32_t token, bool special, size_t *n_bytes) {
    *n_bytes = 0;
    if (!m || token < 0 || token >= FAKE_N_VOCAB) return NULL;
    if (token < FAKE_BYTE) {
        *n_bytes = special ? strlen(special_texts[token]) : 0;
        return special_texts[token];
    }
    byte_values[token - FAKE_BYTE] = (char)(token - FAKE_BYTE);
    *n_bytes = 1;
    return &byte_values[token - FAKE_BYTE];
}

int64_t weir_tokenize(const weir_model *m, const char *text, size_t n_bytes, bool add_special, bool parse_special,
                      int32_t *tokens, size_t capacity) {
    size_t n = 0;
    (void)m;
    n_tokenized++;
    if (add_special && n++ < capacity) tokens[n - 1] = FAKE_BOS;
    for (size_t i = 0; i < n_bytes;) {
        int32_t id = FAKE_BYTE + (unsigned char)text[i];
        size_t length = 1;
        for (int32_t s = 0; parse_special && s < FAKE_BYTE; s++)
            if (n_bytes - i >= strlen(special_texts[s]) && memcmp(text + i, special_texts[s], strlen(special_texts[s])) == 0) {
                id = s;
                length = strlen(special_texts[s]);
            }
        if (n++ < capacity) tokens[n - 1] = id;
        i += length;
    }
    return (int64_t)n;
}

int weir_detokenize(const weir_model *m, const int32_t *tokens, size_t n, bool special, char **text, size_t *n_bytes,
                    weir_error *err) {
    buf out = BUF_INIT;
    buf_reserve(&out, 1);
    for (size_t i = 0; i < n; i++) {
        size_t length;
        const char *bytes = weir_token_bytes(m, tokens[i], special, &length);
        if (!bytes) {
            buf_free(&out);
            FAIL(err, WEIR_E_INVALID, "tokens", "token %d is not in the vocabulary", tokens[i]);
        }
        buf_append(&out, bytes, length);
    }
    buf_putc(&out, 0);
    *n_bytes = out.n_bytes - 1;
    *text = buf_take(&out, NULL);
    return 0;
}

void weir_request_init(weir_request *request) {
    *request = (weir_request){.max_tokens = -1,
                              .n_top_logprobs = -1,
                              .sampling = {.temperature = 0.8f,
                                           .top_k = 40,
                                           .top_p = 0.95f,
                                           .min_p = 0.05f,
                                           .repetition_penalty = 1.0f,
                                           .penalty_last_n = 64}};
}

static void show_content(buf *out, fake_template mode, const json_t *content) {
    if (json_is_string(content) && mode != FAKE_TEMPLATE_PARTS)
        buf_append(out, json_string_value(content), json_string_length(content));
    for (size_t i = 0; i < json_array_size(content) && mode >= FAKE_TEMPLATE_EITHER; i++) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        if (text) buf_append(out, json_string_value(text), json_string_length(text));
    }
    if (json_is_array(content) && mode == FAKE_TEMPLATE_TEXT) {
        char *dump = json_dumps(content, JSON_COMPACT);
        buf_puts(out, dump);
        free(dump);
    }
}

const char *weir_chat_source(const weir_chat *chat) {
    (void)chat;
    return model.info.chat_template ? model.info.chat_template : "";
}

int weir_chat_render(const weir_chat *chat, const char *variables_json, size_t n_bytes, char **text, size_t *text_bytes,
                     weir_error *err) {
    json_t *variables = json_loadb(variables_json, n_bytes, JSON_ALLOW_NUL, NULL);
    buf out = BUF_INIT;
    free(last_variables);
    last_variables = strndup(variables_json, n_bytes);
    const json_t *messages = json_object_get(variables, "messages");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *message = json_array_get(messages, i);
        const char *content = json_string_value(json_object_get(message, "content"));
        if (chat->mode == FAKE_TEMPLATE_RAISES && content && strcmp(content, "raise") == 0) {
            buf_free(&out);
            json_decref(variables);
            FAIL(err, WEIR_E_INVALID, "", "Conversation roles must alternate");
        }
        buf_printf(&out, "%s:", json_string_value(json_object_get(message, "role")));
        show_content(&out, chat->mode, json_object_get(message, "content"));
        buf_putc(&out, '\n');
    }
    if (json_is_true(json_object_get(variables, "add_generation_prompt"))) buf_puts(&out, "assistant:");
    json_decref(variables);
    buf_putc(&out, 0);
    *text_bytes = out.n_bytes - 1;
    *text = buf_take(&out, NULL);
    return 0;
}

/* ---- jobs ---------------------------------------------------------------------------------------------------------------- */

struct weir_job {
    const char *const *script;
    int32_t n_output;
    char text[64];
    bool with_logprobs;
};

static const char *const *const *job_scripts;
static size_t n_job_scripts;
static int refusal_code, refusal_from, n_submitted, n_alive;
static uint64_t seeds_seen[64];

void fake_set_scripts(const char *const *const *scripts, size_t n) {
    job_scripts = scripts;
    n_job_scripts = n;
    n_submitted = 0;
    refusal_code = refusal_from = 0;
}

void fake_refuse_jobs(int code) {
    refusal_code = code;
}
void fake_refuse_from(int k) {
    refusal_from = k;
}
int fake_jobs_alive(void) {
    return n_alive;
}
int fake_jobs_submitted(void) {
    return n_submitted;
}
uint64_t fake_job_seed(int k) {
    return seeds_seen[k];
}

int weir_job_submit(weir_engine *engine, const weir_request *request, weir_job **out, weir_error *err) {
    (void)engine;
    *out = NULL;
    if (refusal_code && n_submitted >= refusal_from) FAIL(err, refusal_code, "", "refused by the test");
    weir_job *job = calloc(1, sizeof *job);
    if (!job) return WEIR_E_NOMEM;
    job->script = job_scripts[(size_t)n_submitted % n_job_scripts];
    job->with_logprobs = request->n_top_logprobs >= 0;
    if (n_submitted < 64) seeds_seen[n_submitted] = request->sampling.seed;
    n_submitted++;
    n_alive++;
    *out = job;
    return 0;
}

int weir_job_poll(weir_job *job, weir_event *event) {
    static const int32_t token = FAKE_BYTE + 'x';
    static const float logprob = -0.5f;
    const char *step = *job->script;
    *event = (weir_event){0};
    if (!step) return 0;
    job->script++;
    if (strcmp(step, "-") == 0) return 0;
    event->timings =
        (weir_timings){.n_prompt = 3, .n_cached = 1, .n_output = job->n_output, .prefill_us = 1000, .decode_us = 2000};
    if (strncmp(step, "t:", 2) == 0) {
        snprintf(job->text, sizeof job->text, "%s", step + 2);
        event->type = WEIR_EVENT_TOKEN;
        event->index = (uint32_t)job->n_output++;
        event->text = job->text;
        event->text_bytes = strlen(job->text);
        event->n_tokens = 1;
        event->tokens = &token;
        event->logprobs = job->with_logprobs ? &logprob : NULL;
    } else if (strncmp(step, "error:", 6) == 0) {
        snprintf(job->text, sizeof job->text, "%s", step + 6);
        event->type = WEIR_EVENT_ERROR;
        event->code = strcmp(job->text, "cancelled") == 0 ? WEIR_E_CANCELLED : WEIR_E_INTERNAL;
        event->message = job->text;
    } else {
        event->type = WEIR_EVENT_END;
        event->stop_reason = strcmp(step, "end:length") == 0 ? WEIR_STOP_LENGTH
                             : strcmp(step, "end:stop") == 0 ? WEIR_STOP_SEQUENCE
                                                             : WEIR_STOP_EOS;
    }
    return 1;
}

void weir_job_release(weir_job **job) {
    if (*job) n_alive--;
    free(*job);
    *job = NULL;
}
