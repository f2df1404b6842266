/* See answer.h. */
#include "sched/answer.h"

#include <string.h>

void answer_init(answer *a, stop_set *stops, int32_t n_top) {
    *a = (answer){.stops = stops, .n_top = n_top, .utf8 = TOK_STREAM_INIT};
}

void answer_free(answer *a) {
    buf_free(&a->text);
    buf_free(&a->tokens);
    buf_free(&a->logprobs);
    buf_free(&a->top);
    buf_free(&a->starts);
}

/* Shows the new text to the stop strings and cuts it before the first match. */
static int find_stop(answer *a) {
    if (a->text.failed || a->tokens.failed || a->logprobs.failed || a->top.failed || a->starts.failed) return WEIR_E_NOMEM;
    if (a->stops->n == 0) return 0;
    while (a->n_fed < a->text.n_bytes) {
        int64_t found = stop_feed(a->stops, a->text.data[a->n_fed++]);
        if (found < 0) continue;
        /* A match begins in what was held back, so all of it is still here. */
        a->text.n_bytes = a->n_fed -= a->stops->strings[found].n_bytes;
        a->stop_index = (size_t)found;
        return 1;
    }
    return 0;
}

int answer_push(answer *a, int32_t token, const char *bytes, size_t n_bytes, float logprob, const weir_top_logprob *top) {
    buf_append(&a->starts, &a->text.n_bytes, sizeof a->text.n_bytes);
    buf_append(&a->tokens, &token, sizeof token);
    if (a->n_top >= 0) buf_append(&a->logprobs, &logprob, sizeof logprob);
    if (a->n_top > 0) buf_append(&a->top, top, (size_t)a->n_top * sizeof *top);
    if (n_bytes > 0) tok_stream_push(&a->utf8, bytes, n_bytes, &a->text);
    return find_stop(a);
}

int answer_finish(answer *a) {
    tok_stream_finish(&a->utf8, &a->text);
    return find_stop(a);
}

bool answer_take(answer *a, bool all, channel_record *r) {
    size_t n_bytes = a->text.n_bytes - (all ? 0 : stop_held(a->stops)), n_tokens = 0;
    const size_t *starts = (const size_t *)a->starts.data;
    if (n_bytes == 0) return false;
    while (n_tokens < a->starts.n_bytes / sizeof *starts && starts[n_tokens] < n_bytes) n_tokens++;
    *r = (channel_record){
        .index = a->n_events,
        .text = a->text.data,
        .text_bytes = (uint32_t)n_bytes,
        .n_tokens = (uint32_t)n_tokens,
        .tokens = (const int32_t *)a->tokens.data,
        .logprobs = a->n_top >= 0 ? (const float *)a->logprobs.data : NULL,
        .top = a->n_top > 0 ? (const weir_top_logprob *)a->top.data : NULL,
        .n_top = a->n_top > 0 ? (uint32_t)a->n_top : 0,
    };
    return true;
}

void answer_sent(answer *a, const channel_record *r) {
    size_t n_bytes = r->text_bytes, n_tokens = r->n_tokens;
    a->n_events++;
    buf_consume(&a->text, n_bytes);
    a->n_fed = a->n_fed > n_bytes ? a->n_fed - n_bytes : 0;
    buf_consume(&a->starts, n_tokens * sizeof(size_t));
    buf_consume(&a->tokens, n_tokens * sizeof(int32_t));
    if (a->n_top >= 0) buf_consume(&a->logprobs, n_tokens * sizeof(float));
    if (a->n_top > 0) buf_consume(&a->top, n_tokens * (size_t)a->n_top * sizeof(weir_top_logprob));
    size_t *starts = (size_t *)a->starts.data;
    for (size_t i = 0; i < a->starts.n_bytes / sizeof *starts; i++) starts[i] -= n_bytes;
}
