/* See channel.h.
 *
 * The two counters n_pushed and n_taken carry everything: what the producer wrote before it raised n_pushed is visible to a
 * reader that saw it raised, the list of chunks included. Both are sequentially consistent on both sides, because each end
 * writes its own counter and then looks at the other's: either the producer sees that the reader had taken all (and notifies),
 * or the reader sees the new event (and needs no notification). */
#include "sched/channel.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "weir/weir_error.h"

enum { FIRST_CHUNK_BYTES = 1024, CHUNK_BYTES = 8192 };

struct channel_chunk {
    channel_chunk *next;      /* written by the producer when it leaves the chunk */
    size_t capacity, n_bytes; /* n_bytes is the producer's */
    alignas(8) unsigned char bytes[];
};

/* A record in a chunk: this header, then log probabilities, alternatives, tokens, text, NUL, padding to 8 bytes. */
typedef struct record_header {
    uint32_t n_bytes; /* of the whole record; 0 = the chunk ends here and the next one goes on */
    uint32_t index, text_bytes, n_tokens, n_top;
    uint32_t has_logprobs; /* bit 0: log probabilities, bit 1: alternatives */
} record_header;

void channel_init(channel *c) {
    memset(c, 0, sizeof *c);
    atomic_init(&c->end_index, UINT64_MAX);
}

void channel_free(channel *c) {
    /* Relaxed: both ends are done, and whatever told the caller so has ordered their writes before this. */
    channel_chunk *chunk = c->head ? c->head : atomic_load_explicit(&c->first, memory_order_relaxed);
    while (chunk != NULL) {
        channel_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    free(atomic_load_explicit(&c->spare, memory_order_relaxed));
    channel_init(c);
}

/* ---- producer --------------------------------------------------------------------------------------------------------- */

static channel_chunk *make_chunk(channel *c, size_t needed) {
    /* Acquire: the reader's last use of the chunk comes before ours. */
    channel_chunk *chunk = atomic_exchange_explicit(&c->spare, NULL, memory_order_acquire);
    if (chunk == NULL || chunk->capacity < needed) {
        free(chunk);
        size_t capacity = c->tail == NULL ? FIRST_CHUNK_BYTES : CHUNK_BYTES, n_bytes;
        if (capacity < needed) capacity = needed;
        if (!checked_add(sizeof *chunk, capacity, &n_bytes) || (chunk = malloc(n_bytes)) == NULL) return NULL;
        chunk->capacity = capacity;
    }
    chunk->next = NULL;
    chunk->n_bytes = 0;
    return chunk;
}

/* Room for a record of n_bytes at the tail; a chunk always keeps room for the header that says that it ends. */
static unsigned char *make_room(channel *c, size_t n_bytes) {
    if (c->tail == NULL || c->tail->n_bytes + n_bytes + sizeof(record_header) > c->tail->capacity) {
        channel_chunk *chunk = make_chunk(c, n_bytes + sizeof(record_header));
        if (chunk == NULL) return NULL;
        if (c->tail == NULL) {
            /* Relaxed: the reader looks for it only after it saw n_pushed rise, which publishes it. */
            atomic_store_explicit(&c->first, chunk, memory_order_relaxed);
        } else {
            memset(c->tail->bytes + c->tail->n_bytes, 0, sizeof(record_header));
            c->tail->next = chunk;
        }
        c->tail = chunk;
    }
    unsigned char *room = c->tail->bytes + c->tail->n_bytes;
    c->tail->n_bytes += n_bytes;
    atomic_fetch_add(&c->bytes_pushed, n_bytes);
    return room;
}

static unsigned char *put(unsigned char *out, const void *bytes, size_t n_bytes) {
    if (n_bytes > 0) memcpy(out, bytes, n_bytes);
    return out + n_bytes;
}

static int publish(channel *c) {
    uint64_t before = atomic_fetch_add(&c->n_pushed, 1);
    return atomic_load(&c->n_taken) == before;
}

int channel_push(channel *c, const channel_record *r) {
    size_t n_logprobs = r->logprobs ? r->n_tokens : 0, n_top = r->top ? (size_t)r->n_tokens * r->n_top : 0;
    size_t n_bytes = sizeof(record_header) + n_logprobs * sizeof(float) + n_top * sizeof(weir_top_logprob) +
                     r->n_tokens * sizeof(int32_t) + (size_t)r->text_bytes + 1;
    if (!checked_round_up(n_bytes, 8, &n_bytes) || n_bytes > UINT32_MAX) return WEIR_E_NOMEM;
    unsigned char *out = make_room(c, n_bytes);
    if (out == NULL) return WEIR_E_NOMEM;
    record_header header = {(uint32_t)n_bytes, r->index, r->text_bytes,
                            r->n_tokens,       r->n_top, (r->logprobs != NULL) | (r->top != NULL) << 1};
    out = put(out, &header, sizeof header);
    out = put(out, r->logprobs, n_logprobs * sizeof(float));
    out = put(out, r->top, n_top * sizeof(weir_top_logprob));
    out = put(out, r->tokens, r->n_tokens * sizeof(int32_t));
    out = put(out, r->text, r->text_bytes);
    *out = '\0';
    return publish(c);
}

int channel_end(channel *c) {
    /* Relaxed, both: n_pushed is written by this thread only, and publishes end_index as it does a record. */
    uint64_t index = atomic_load_explicit(&c->n_pushed, memory_order_relaxed);
    atomic_store_explicit(&c->end_index, index, memory_order_relaxed);
    return publish(c);
}

/* Unread events and bytes at most the given bounds. */
static bool within(const channel *c, uint64_t max_events, uint64_t max_bytes) {
    return atomic_load(&c->n_pushed) - atomic_load(&c->n_taken) <= max_events &&
           atomic_load(&c->bytes_pushed) - atomic_load(&c->bytes_released) <= max_bytes;
}

bool channel_full(const channel *c) {
    return !within(c, CHANNEL_MAX_EVENTS - 1, CHANNEL_MAX_BYTES - 1);
}

bool channel_drained(const channel *c) {
    return within(c, CHANNEL_MAX_EVENTS / 2, CHANNEL_MAX_BYTES / 2);
}

/* ---- reader ----------------------------------------------------------------------------------------------------------- */

/* The header of the next record; moves to the next chunk where one ends. */
static const unsigned char *next_record(channel *c) {
    /* Relaxed: called only after n_pushed was seen to count a record, which published it. */
    if (c->head == NULL) c->head = atomic_load_explicit(&c->first, memory_order_relaxed);
    record_header header;
    memcpy(&header, c->head->bytes + c->head_offset, sizeof header);
    if (header.n_bytes == 0) {
        channel_chunk *done = c->head;
        c->head = done->next;
        c->head_offset = 0;
        /* Release: our reading of the chunk comes before the producer's reuse. Acquire: an older spare that comes back was
         * emptied by this same thread, so nothing is needed for it; the order is for the chunk handed over. */
        free(atomic_exchange_explicit(&c->spare, done, memory_order_acq_rel));
    }
    return c->head->bytes + c->head_offset;
}

bool channel_ready(const channel *c) {
    return atomic_load(&c->n_pushed) != atomic_load(&c->n_taken);
}

channel_taken channel_take(channel *c, channel_record *r) {
    if (c->outstanding > 0) {
        c->head_offset += c->outstanding;
        atomic_fetch_add(&c->bytes_released, c->outstanding);
        c->outstanding = 0;
    }
    /* Relaxed: only this thread writes n_taken. */
    uint64_t index = atomic_load_explicit(&c->n_taken, memory_order_relaxed);
    if (atomic_load(&c->n_pushed) == index) return CHANNEL_NONE;
    /* Relaxed: if this event is the end, n_pushed published end_index; if not, any value that can be read differs from index.
     */
    if (atomic_load_explicit(&c->end_index, memory_order_relaxed) == index) {
        atomic_store(&c->n_taken, index + 1);
        return CHANNEL_END;
    }
    const unsigned char *in = next_record(c);
    record_header header;
    memcpy(&header, in, sizeof header);
    *r = (channel_record){
        .index = header.index, .text_bytes = header.text_bytes, .n_tokens = header.n_tokens, .n_top = header.n_top};
    c->outstanding = header.n_bytes;
    in += sizeof header;
    if (header.has_logprobs & 1) {
        r->logprobs = (const float *)in;
        in += header.n_tokens * sizeof(float);
    }
    if (header.has_logprobs & 2) {
        r->top = (const weir_top_logprob *)in;
        in += (size_t)header.n_tokens * header.n_top * sizeof(weir_top_logprob);
    }
    r->tokens = (const int32_t *)in;
    r->text = (const char *)(in + header.n_tokens * sizeof(int32_t));
    atomic_store(&c->n_taken, index + 1);
    return CHANNEL_RECORD;
}
