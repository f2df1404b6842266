/* From sampled tokens to events of text: joins their bytes to whole code points, looks for stop strings and decides how much
 * may leave now. Knows nothing of jobs, channels or models. Owned by one thread. */
#ifndef WEIR_SCHED_ANSWER_H
#define WEIR_SCHED_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "sched/channel.h"
#include "sched/stop.h"
#include "tok/tok.h"

typedef struct answer {
    stop_set *stops;
    int32_t n_top; /* alternatives for each token; -1 = no log probabilities */
    tok_stream utf8;
    buf text;     /* whole code points that have not left */
    size_t n_fed; /* bytes of `text` that the stop strings have seen */
    /* Tokens that no event has carried yet, one entry of each for a token. */
    buf tokens, logprobs, top; /* of int32_t, of float, of weir_top_logprob[n_top] */
    buf starts;                /* of size_t: where in `text` the token's own text begins */
    uint32_t n_events;
    size_t stop_index; /* the stop string that was found */
} answer;

void answer_init(answer *a, stop_set *stops, int32_t n_top);
void answer_free(answer *a);
/* Takes a token with its bytes; `logprob` and top[n_top] are read only if log probabilities are kept. Returns 1 when a stop
 * string is now complete (the text then ends before it, and stop_index says which it was), 0 = none, WEIR_E_NOMEM. */
int answer_push(answer *a, int32_t token, const char *bytes, size_t n_bytes, float logprob, const weir_top_logprob *top);
/* The last token has come: an unfinished code point becomes U+FFFD. Returns as answer_push. */
int answer_finish(answer *a);
/* The event that can leave now: all text that cannot begin a stop string, or all text there is if `all`. False = no text. It
 * carries the tokens whose own text begins in it. The record is valid until answer_sent, which says that it has left. */
bool answer_take(answer *a, bool all, channel_record *record);
void answer_sent(answer *a, const channel_record *record);

#endif
