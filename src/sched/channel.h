/* The events of one job on their way from the one producer to the one reader: records of text bytes, token ids and log
 * probabilities in a list of chunks that grows with what is unread. Owns the memory of the records; knows nothing of jobs, text
 * or threads beyond its two ends. It is bounded by channel_full, which the producer asks before it makes more. The end needs no
 * room and so can always be sent.
 *
 * Threads: functions say which end may call them. No function blocks. */
#ifndef WEIR_SCHED_CHANNEL_H
#define WEIR_SCHED_CHANNEL_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/weir.h"

/* The answer of 2,048 tokens fits unread, with 20 alternatives for each token too. */
enum { CHANNEL_MAX_EVENTS = 4096, CHANNEL_MAX_BYTES = 512 * 1024 };

typedef struct channel_chunk channel_chunk;

typedef struct channel {
    /* Written by the producer. */
    alignas(64) atomic_uint_fast64_t n_pushed; /* events, the end included */
    atomic_uint_fast64_t end_index;            /* which event is the end; UINT64_MAX until it is sent */
    atomic_uint_fast64_t bytes_pushed;
    channel_chunk *tail;
    /* Written by the reader. */
    alignas(64) atomic_uint_fast64_t n_taken; /* events handed out */
    atomic_uint_fast64_t bytes_released;      /* of records that the reader no longer looks at */
    channel_chunk *head;
    size_t head_offset, outstanding; /* of the next record; bytes of the one handed out last, not yet released */
    /* Either end. */
    _Atomic(channel_chunk *) first; /* the producer's first chunk, until the reader has seen it */
    _Atomic(channel_chunk *) spare; /* an emptied chunk on its way back to the producer */
} channel;

/* What a record holds. The pointers of a taken record are valid until the next channel_take. */
typedef struct channel_record {
    uint32_t index;
    const char *text; /* text_bytes and a NUL */
    uint32_t text_bytes;
    uint32_t n_tokens;
    const int32_t *tokens;       /* [n_tokens] */
    const float *logprobs;       /* [n_tokens], or NULL */
    const weir_top_logprob *top; /* [n_tokens][n_top], or NULL */
    uint32_t n_top;
} channel_record;

typedef enum channel_taken { CHANNEL_NONE, CHANNEL_RECORD, CHANNEL_END } channel_taken;

void channel_init(channel *c);
/* Both ends are done. */
void channel_free(channel *c);

/* Producer. Copies the record. 1 = the reader had taken everything before (it may need a notification), 0 = it had not,
 * WEIR_E_NOMEM = nothing was sent. Never refuses for fullness. */
int channel_push(channel *c, const channel_record *record);
/* Producer. Sends the end, the last thing to be sent. Returns 1 or 0 as channel_push. */
int channel_end(channel *c);
/* Producer. More unread events or bytes than a reader should leave behind. */
bool channel_full(const channel *c);
/* Either end. At most half of the bounds is unread, so that it is worth while to produce again. */
bool channel_drained(const channel *c);

/* Reader. Releases the record taken before and takes the next event. CHANNEL_END is given once. */
channel_taken channel_take(channel *c, channel_record *record);
/* Reader. Whether channel_take would give something. */
bool channel_ready(const channel *c);

#endif
