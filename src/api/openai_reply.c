/* Chunks and final objects of the OpenAI surface; see openai_reply.h. */
#include "api/openai_reply.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/utf8.h"

/* What differs between the two endpoints. */
static const struct {
    const char *id_prefix, *object, *chunk_object;
} shapes[] = {
    [OPENAI_CHAT] = {"chatcmpl-", "chat.completion", "chat.completion.chunk"},
    [OPENAI_COMPLETION] = {"cmpl-", "text_completion", "text_completion"},
};

static const char *const finish_reasons[] = {
    [WEIR_STOP_NONE] = NULL,
    [WEIR_STOP_EOS] = "stop",
    [WEIR_STOP_LENGTH] = "length",
    [WEIR_STOP_SEQUENCE] = "stop",
};

int openai_reply_init(openai_reply *reply, const openai_request *request, const weir_model *weights, const char *model) {
    unsigned char random[16];
    ssize_t got;
    do {
        got = getrandom(random, sizeof random, 0);
    } while (got < 0 && errno == EINTR);
    *reply = (openai_reply){.endpoint = request->endpoint,
                            .created = clock_unix_us() / 1000000,
                            .model = model,
                            .weights = weights,
                            .n_top = request->n_top,
                            .include_usage = request->stream && request->include_usage};
    if (got != sizeof random) return WEIR_E_INTERNAL;
    int length = snprintf(reply->id, sizeof reply->id, "%s", shapes[reply->endpoint].id_prefix);
    for (size_t i = 0; i < sizeof random; i++)
        length += snprintf(reply->id + length, sizeof reply->id - (size_t)length, "%02x", random[i]);
    return 0;
}

/* ---- log probabilities --------------------------------------------------------------------------------------------------- */

static void logprobs_clear(openai_logprobs *logprobs) {
    buf_clear(&logprobs->items);
    buf_clear(&logprobs->values);
    buf_clear(&logprobs->tops);
    buf_clear(&logprobs->offsets);
}

static void comma(buf *out) {
    if (out->n_bytes) buf_putc(out, ',');
}

static const char *token_bytes(const openai_reply *reply, int32_t token, size_t *n_bytes) {
    const char *bytes = weir_token_bytes(reply->weights, token, true, n_bytes);
    return bytes ? bytes : "";
}

/* "token":"...","logprob":-0.5,"bytes":[...] */
static void write_chat_token(buf *out, const openai_reply *reply, int32_t token, float logprob) {
    size_t n_bytes = 0;
    const char *bytes = token_bytes(reply, token, &n_bytes);
    buf_puts(out, "\"token\":");
    openai_write_string(out, bytes, n_bytes);
    buf_puts(out, ",\"logprob\":");
    openai_write_logprob(out, logprob);
    buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < n_bytes; i++) buf_printf(out, i ? ",%u" : "%u", (unsigned char)bytes[i]);
    buf_putc(out, ']');
}

static void add_chat_logprobs(buf *out, const openai_reply *reply, const weir_event *event) {
    size_t n_top = (size_t)reply->n_top;
    for (uint32_t t = 0; t < event->n_tokens; t++) {
        comma(out);
        buf_putc(out, '{');
        write_chat_token(out, reply, event->tokens[t], event->logprobs[t]);
        buf_puts(out, ",\"top_logprobs\":[");
        for (size_t i = 0; i < n_top && event->top_logprobs; i++) {
            const weir_top_logprob *top = &event->top_logprobs[t * n_top + i];
            buf_puts(out, i ? ",{" : "{");
            write_chat_token(out, reply, top->token, top->logprob);
            buf_putc(out, '}');
        }
        buf_puts(out, "]}");
    }
}

/* A token's text; as in OpenAI's API one that is not whole code points is written out as bytes:\xe2\x80, so that names differ.
 */
static void write_legacy_token(buf *out, const openai_reply *reply, int32_t token) {
    size_t n_bytes = 0;
    const char *bytes = token_bytes(reply, token, &n_bytes);
    /* Not every JSON reader takes U+0000 in a member's name. */
    if (utf8_valid(bytes, n_bytes) && !memchr(bytes, 0, n_bytes)) {
        openai_write_string(out, bytes, n_bytes);
        return;
    }
    buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < n_bytes; i++) buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    buf_putc(out, '"');
}

/* {"text":logprob, ...}: the most probable tokens, and the sampled one when it is not among them. */
static void write_legacy_tops(buf *out, const openai_reply *reply, const weir_top_logprob *tops, int32_t token, float logprob) {
    size_t n_top = tops ? (size_t)reply->n_top : 0;
    bool sampled_seen = false;
    buf_putc(out, '{');
    for (size_t i = 0; i <= n_top; i++) {
        bool sampled = i == n_top;
        if (sampled && sampled_seen) break;
        if (i) buf_putc(out, ',');
        write_legacy_token(out, reply, sampled ? token : tops[i].token);
        buf_putc(out, ':');
        openai_write_logprob(out, sampled ? logprob : tops[i].logprob);
        sampled_seen = sampled_seen || (!sampled && tops[i].token == token);
    }
    buf_putc(out, '}');
}

static void add_legacy_logprobs(openai_logprobs *logprobs, const openai_reply *reply, const weir_event *event, size_t offset) {
    size_t passed = 0; /* bytes of the event's text before the token */
    for (uint32_t t = 0; t < event->n_tokens; t++) {
        size_t n_bytes = 0, before = passed < event->text_bytes ? passed : event->text_bytes;
        token_bytes(reply, event->tokens[t], &n_bytes);
        passed += n_bytes;
        comma(&logprobs->items);
        write_legacy_token(&logprobs->items, reply, event->tokens[t]);
        comma(&logprobs->values);
        openai_write_logprob(&logprobs->values, event->logprobs[t]);
        comma(&logprobs->offsets);
        size_t whole = utf8_complete_prefix(event->text, before);
        buf_printf(&logprobs->offsets, "%zu", offset + utf8_count(event->text, whole));
        comma(&logprobs->tops);
        const weir_top_logprob *tops = event->top_logprobs ? event->top_logprobs + (size_t)t * (size_t)reply->n_top : NULL;
        write_legacy_tops(&logprobs->tops, reply, tops, event->tokens[t], event->logprobs[t]);
    }
}

static void add_logprobs(openai_choice *choice, const openai_reply *reply, const weir_event *event) {
    if (reply->n_top >= 0 && event->logprobs) {
        if (reply->endpoint == OPENAI_CHAT)
            add_chat_logprobs(&choice->logprobs.items, reply, event);
        else
            add_legacy_logprobs(&choice->logprobs, reply, event, choice->n_code_points);
    }
    choice->n_code_points += utf8_count(event->text, event->text_bytes);
}

static void append(buf *out, const buf *more) {
    if (more->failed) out->failed = true;
    if (more->n_bytes) buf_append(out, more->data, more->n_bytes);
}

static void write_logprobs(buf *out, const openai_reply *reply, const openai_logprobs *logprobs) {
    if (reply->n_top < 0) {
        buf_puts(out, "\"logprobs\":null");
    } else if (reply->endpoint == OPENAI_CHAT) {
        buf_puts(out, "\"logprobs\":{\"content\":[");
        append(out, &logprobs->items);
        buf_puts(out, "],\"refusal\":null}");
    } else {
        buf_puts(out, "\"logprobs\":{\"text_offset\":[");
        append(out, &logprobs->offsets);
        buf_puts(out, "],\"token_logprobs\":[");
        append(out, &logprobs->values);
        buf_puts(out, "],\"tokens\":[");
        append(out, &logprobs->items);
        buf_puts(out, "],\"top_logprobs\":[");
        append(out, &logprobs->tops);
        buf_puts(out, "]}");
    }
}

/* ---- parts of every object ----------------------------------------------------------------------------------------------- */

/* {"id":...,"choices":[ */
static void write_head(buf *out, const openai_reply *reply, bool chunk) {
    buf_puts(out, "{\"id\":");
    openai_write_text(out, reply->id);
    buf_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":",
               chunk ? shapes[reply->endpoint].chunk_object : shapes[reply->endpoint].object, (long long)reply->created);
    openai_write_text(out, reply->model);
    buf_puts(out, ",\"system_fingerprint\":\"" OPENAI_FINGERPRINT "\",\"choices\":[");
}

static void write_usage(buf *out, const openai_usage *usage) {
    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
               (long long)usage->prompt_tokens, (long long)usage->completion_tokens,
               (long long)(usage->prompt_tokens + usage->completion_tokens), (long long)usage->cached_tokens);
}

/* Times of one phase: n tokens in `us`, of which `n_timed` were made within it. */
static void write_phase(buf *out, const char *name, int32_t n, int32_t n_timed, int64_t us) {
    double ms = (double)us / 1000.0;
    buf_printf(out, ",\"%s_n\":%d,\"%s_ms\":", name, n, name);
    openai_write_number(out, ms, 3);
    buf_printf(out, ",\"%s_per_token_ms\":", name);
    openai_write_number(out, n_timed > 0 ? ms / n_timed : 0.0, 3);
    buf_printf(out, ",\"%s_per_second\":", name);
    openai_write_number(out, n_timed > 0 && us > 0 ? 1e6 * n_timed / (double)us : 0.0, 3);
}

/* llama-server's object. The first token belongs to the prompt's time, so the decode rate counts the others. */
static void write_timings(buf *out, const weir_timings *timings) {
    buf_printf(out, "\"timings\":{\"cache_n\":%d", timings->n_cached);
    int32_t n_prompt = timings->n_prompt - timings->n_cached;
    write_phase(out, "prompt", n_prompt, n_prompt, timings->prefill_us);
    write_phase(out, "predicted", timings->n_output, timings->n_output - 1, timings->decode_us);
    if (timings->n_draft > 0) buf_printf(out, ",\"draft_n\":%d,\"draft_n_accepted\":%d", timings->n_draft, timings->n_draft_accepted);
    buf_putc(out, '}');
}

/* ---- streaming ----------------------------------------------------------------------------------------------------------- */

static void write_chunk_end(buf *out, const openai_reply *reply) {
    buf_puts(out, reply->include_usage ? "}],\"usage\":null" : "}]");
}

void openai_write_role_chunk(buf *out, const openai_reply *reply, size_t index) {
    write_head(out, reply, true);
    buf_printf(out,
               "{\"index\":%zu,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},\"logprobs\":null,"
               "\"finish_reason\":null",
               index);
    write_chunk_end(out, reply);
    buf_putc(out, '}');
}

static void write_text_chunk(buf *out, const openai_reply *reply, const openai_logprobs *logprobs, size_t index,
                             const char *member, const char *text, size_t n_bytes) {
    bool chat = reply->endpoint == OPENAI_CHAT;
    write_head(out, reply, true);
    buf_printf(out, chat ? "{\"index\":%zu,\"delta\":{\"%s\":" : "{\"index\":%zu,\"%s\":", index, member);
    openai_write_string(out, text, n_bytes);
    buf_puts(out, chat ? "}," : ",");
    if (logprobs)
        write_logprobs(out, reply, logprobs);
    else
        buf_puts(out, "\"logprobs\":null");
    buf_puts(out, ",\"finish_reason\":null");
    write_chunk_end(out, reply);
    buf_putc(out, '}');
}

void openai_write_echo_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *text,
                             size_t n_bytes) {
    choice->n_code_points += utf8_count(text, n_bytes);
    write_text_chunk(out, reply, NULL, index, "text", text, n_bytes);
}

void openai_write_token_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index,
                              const weir_event *event) {
    logprobs_clear(&choice->logprobs);
    add_logprobs(choice, reply, event);
    write_text_chunk(out, reply, &choice->logprobs, index, reply->endpoint == OPENAI_CHAT ? "content" : "text", event->text, event->text_bytes);
}

void openai_choice_logprobs(openai_choice *choice, const openai_reply *reply, const weir_event *event) {
    add_logprobs(choice, reply, event);
}

void openai_write_part_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *member,
                             const char *text, size_t n_bytes) {
    write_text_chunk(out, reply, choice->logprobs.items.n_bytes ? &choice->logprobs : NULL, index, member, text, n_bytes);
    logprobs_clear(&choice->logprobs);
}

/* "id":"call_...","type":"function","function":{...} */
static void write_call(buf *out, const openai_reply *reply, size_t index, size_t call, const char *name, const char *arguments,
                       size_t n_bytes) {
    buf_printf(out, "\"id\":\"call_%.24s%02zx%02zx\",\"type\":\"function\",\"function\":{\"name\":", reply->id + strlen(shapes[OPENAI_CHAT].id_prefix),
               index, call);
    openai_write_text(out, name);
    buf_puts(out, ",\"arguments\":");
    openai_write_string(out, arguments, n_bytes);
    buf_putc(out, '}');
}

void openai_write_call_chunk(buf *out, const openai_reply *reply, openai_choice *choice, size_t index, const char *name,
                             const char *arguments, size_t n_bytes) {
    write_head(out, reply, true);
    buf_printf(out, "{\"index\":%zu,\"delta\":{\"tool_calls\":[{\"index\":%zu,", index, choice->n_calls);
    write_call(out, reply, index, choice->n_calls++, name, arguments, n_bytes);
    buf_puts(out, "}]},\"logprobs\":null,\"finish_reason\":null");
    write_chunk_end(out, reply);
    buf_putc(out, '}');
}

void openai_choice_call(openai_choice *choice, const openai_reply *reply, size_t index, const char *name, const char *arguments,
                        size_t n_bytes) {
    buf_puts(&choice->calls, choice->n_calls ? ",{" : "{");
    write_call(&choice->calls, reply, index, choice->n_calls++, name, arguments, n_bytes);
    buf_putc(&choice->calls, '}');
}

void openai_write_final_chunk(buf *out, const openai_reply *reply, const openai_choice *choice, size_t index) {
    write_head(out, reply, true);
    buf_printf(out, "{\"index\":%zu,%s,\"logprobs\":null,\"finish_reason\":", index,
               reply->endpoint == OPENAI_CHAT ? "\"delta\":{}" : "\"text\":\"\"");
    openai_write_text(out, choice->finish_reason);
    write_chunk_end(out, reply);
    buf_putc(out, ',');
    write_timings(out, &choice->timings);
    buf_putc(out, '}');
}

void openai_write_usage_chunk(buf *out, const openai_reply *reply, const openai_usage *usage) {
    write_head(out, reply, true);
    buf_puts(out, "],");
    write_usage(out, usage);
    buf_putc(out, '}');
}

/* ---- not streaming ------------------------------------------------------------------------------------------------------- */

void openai_choice_echo(openai_choice *choice, const char *text, size_t n_bytes) {
    choice->n_code_points += utf8_count(text, n_bytes);
    buf_append(&choice->text, text, n_bytes);
}

void openai_choice_add(openai_choice *choice, const openai_reply *reply, const weir_event *event) {
    add_logprobs(choice, reply, event);
    buf_append(&choice->text, event->text, event->text_bytes);
}

void openai_choice_end(openai_choice *choice, const weir_event *event) {
    choice->finish_reason = finish_reasons[event->stop_reason];
    if (choice->n_calls && event->stop_reason != WEIR_STOP_LENGTH) choice->finish_reason = "tool_calls";
    choice->timings = event->timings;
}

bool openai_choice_complete(const openai_choice *choice) {
    const openai_logprobs *logprobs = &choice->logprobs;
    return !choice->text.failed && !choice->reasoning.failed && !choice->calls.failed && !logprobs->items.failed && !logprobs->values.failed && !logprobs->tops.failed &&
           !logprobs->offsets.failed;
}

void openai_write_body(buf *out, const openai_reply *reply, const openai_choice *choices, size_t n_choices,
                       const openai_usage *usage) {
    bool chat = reply->endpoint == OPENAI_CHAT;
    write_head(out, reply, false);
    for (size_t i = 0; i < n_choices; i++) {
        const openai_choice *choice = &choices[i];
        if (i) buf_putc(out, ',');
        buf_printf(out,
                   chat ? "{\"index\":%zu,\"message\":{\"role\":\"assistant\",\"content\":" : "{\"index\":%zu,\"text\":", i);
        if (choice->n_calls && choice->text.n_bytes == 0)
            buf_puts(out, "null");
        else
            openai_write_string(out, choice->text.data ? choice->text.data : "", choice->text.n_bytes);
        if (choice->reasoning.n_bytes) {
            buf_puts(out, ",\"reasoning_content\":");
            openai_write_string(out, choice->reasoning.data, choice->reasoning.n_bytes);
        }
        if (choice->n_calls) {
            buf_puts(out, ",\"tool_calls\":[");
            append(out, &choice->calls);
            buf_putc(out, ']');
        }
        buf_puts(out, chat ? ",\"refusal\":null}," : ",");
        write_logprobs(out, reply, &choice->logprobs);
        buf_puts(out, ",\"finish_reason\":");
        openai_write_text(out, choice->finish_reason);
        buf_putc(out, '}');
    }
    buf_puts(out, "],");
    write_usage(out, usage);
    if (n_choices) {
        buf_putc(out, ',');
        write_timings(out, &choices[0].timings);
    }
    buf_putc(out, '}');
}

void openai_choice_free(openai_choice *choice) {
    buf_free(&choice->text);
    buf_free(&choice->reasoning);
    buf_free(&choice->calls);
    buf_free(&choice->logprobs.items);
    buf_free(&choice->logprobs.values);
    buf_free(&choice->logprobs.tops);
    buf_free(&choice->logprobs.offsets);
}
