/* Answers of a model, cut in pieces: the first byte chooses the notation and the cuts. Whole and in pieces the parser must say the
 * same, and whatever is not a call must come out as text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "chat/reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const templates[] = {"<tool_call><function=<think></think>", "[TOOL_CALLS]<|python_tag|>", "<|channel|>",
                                        "<\xEF\xBD\x9Ctool\xE2\x96\x81" "calls\xE2\x96\x81" "begin\xEF\xBD\x9C>\xEF\xBD\x9C" "DSML\xEF\xBD\x9C",
                                        "<|tool_calls_section_begin|>minimax:tool_call<|START_ACTION|><|START_THINKING|><|START_RESPONSE|>",
                                        "Action:<|tool_call|><think></think><response>", NULL};
enum { N_TEMPLATES = sizeof templates / sizeof templates[0] };
static const char tools_text[] = "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"s\":{\"type\":\"string\"}}}}}]";

typedef struct seen {
    buf out;
    int last;
} seen;

static void note(void *user, const reply_event *e) {
    seen *s = user;
    if (e->n_bytes == 0) abort();
    if (e->kind == REPLY_CALL || s->last != (int)e->kind) buf_printf(&s->out, "|%d%s:", e->kind, e->name ? e->name : "");
    s->last = e->kind == REPLY_CALL ? -1 : (int)e->kind;
    if (e->kind == REPLY_CALL) { /* arguments are a JSON object, always */
        json_t *arguments = json_loadb(e->text, e->n_bytes, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
        if (!json_is_object(arguments)) abort();
        json_decref(arguments);
    }
    buf_append(&s->out, e->text, e->n_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    json_t *tools = json_loads(tools_text, 0, NULL);
    const reply_options options = {.chat_template = templates[data[0] % N_TEMPLATES], .tools = tools, .reasoning = data[0] & 64, .in_reasoning = data[0] & 128};
    seen results[2] = {{.last = -1}, {.last = -1}};
    for (int round = 0; round < 2; round++) {
        reply_parser *p = reply_open(&options, note, &results[round]);
        size_t step = round == 0 ? size : 1 + (size_t)(data[0] / N_TEMPLATES % 7);
        for (size_t at = 1; at < size; at += step)
            if (!reply_push(p, (const char *)data + at, at + step < size ? step : size - at)) abort();
        if (!reply_finish(p)) abort();
        reply_close(&p);
    }
    if (results[0].out.n_bytes != results[1].out.n_bytes ||
        (results[0].out.n_bytes && memcmp(results[0].out.data, results[1].out.data, results[0].out.n_bytes) != 0))
        abort();
    buf_free(&results[0].out);
    buf_free(&results[1].out);
    json_decref(tools);
    return 0;
}
