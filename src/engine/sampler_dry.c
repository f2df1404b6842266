/* DRY: a token that would go on with a repetition of the recent text loses logit, exponentially in the length of what is
 * repeated already. After its author's description (text-generation-webui pull request 5637): with the last n tokens equal to n
 * earlier ones, the token that followed there gets -multiplier * base^(n - allowed_length) for n >= allowed_length; no repetition
 * reaches over a sequence breaker. Here the lengths of all repetitions are found in linear time as the Z-function of the
 * reversed window. See sampler_internal.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/sampler_internal.h"

static bool in_chain(const sampler *s) {
    for (int32_t i = 0; i < s->n_chain; i++)
        if (s->chain[i] == WEIR_SAMPLER_DRY) return true;
    return false;
}

int dry_open(sampler *s, weir_error *err) {
    const weir_sampling *p = &s->params;
    dry_state *dry = &s->dry;
    if (!(p->dry_multiplier > 0) || !(p->dry_base >= 1) || p->dry_penalty_last_n == 0 || !in_chain(s)) return 0;
    int32_t most = s->vocab.n_history > 0 ? s->vocab.n_history : 1 << 16;
    dry->capacity = p->dry_penalty_last_n < 0 || p->dry_penalty_last_n > most ? most : p->dry_penalty_last_n;
    size_t n = (size_t)dry->capacity, n_bytes = 1;
    for (size_t i = 0; i < p->n_dry_breakers; i++) {
        size_t length = strlen(p->dry_breakers[i]);
        n_bytes += length + 1;
        if (length > dry->longest_breaker) dry->longest_breaker = length;
    }
    dry->history = malloc(n * sizeof *dry->history);
    dry->lengths = malloc(n * sizeof *dry->lengths);
    dry->ids = malloc(n * sizeof *dry->ids);
    dry->longest = calloc((size_t)s->n_vocab, sizeof *dry->longest);
    dry->breakers = calloc(n_bytes, 1);
    dry->tail = malloc(dry->longest_breaker + 1);
    if (!dry->history || !dry->lengths || !dry->ids || !dry->longest || !dry->breakers || !dry->tail)
        FAIL(err, WEIR_E_NOMEM, "sampler", "no memory to find repetitions among %d tokens", dry->capacity);
    char *to = dry->breakers; /* ends in an empty one */
    for (size_t i = 0; i < p->n_dry_breakers; i++)
        if (p->dry_breakers[i][0]) to = stpcpy(to, p->dry_breakers[i]) + 1;
    return 0;
}

void dry_close(dry_state *dry) {
    free(dry->history);
    free(dry->lengths);
    free(dry->ids);
    free(dry->longest);
    free(dry->breakers);
    free(dry->tail);
}

/* Whether a breaker ends within the token: in its own text, or begun in the text before. */
static bool is_breaker(dry_state *dry, const char *bytes, size_t n_bytes) {
    bool found = false;
    for (const char *b = dry->breakers; *b && !found; b += strlen(b) + 1) {
        size_t n = strlen(b);
        found = n <= n_bytes && memmem(bytes, n_bytes, b, n);
        /* The first k bytes end the text before, the others begin the token. */
        for (size_t k = 1; k < n && !found; k++)
            found = k <= dry->tail_bytes && n - k <= n_bytes && memcmp(dry->tail + dry->tail_bytes - k, b, k) == 0 &&
                    memcmp(bytes, b + k, n - k) == 0;
    }
    size_t room = dry->longest_breaker, kept = n_bytes < room ? room - n_bytes : 0;
    if (kept > dry->tail_bytes) kept = dry->tail_bytes;
    memmove(dry->tail, dry->tail + dry->tail_bytes - kept, kept);
    size_t more = n_bytes < room - kept ? n_bytes : room - kept;
    memcpy(dry->tail + kept, bytes + n_bytes - more, more);
    dry->tail_bytes = kept + more;
    return found;
}

void dry_accept(sampler *s, int32_t token) {
    dry_state *dry = &s->dry;
    if (dry->history == NULL) return;
    dry->history[dry->next] = token;
    dry->next = dry->next + 1 == dry->capacity ? 0 : dry->next + 1;
    if (dry->n < dry->capacity) dry->n++;
    size_t n_bytes = 0;
    const char *bytes = s->vocab.piece ? s->vocab.piece(s->vocab.context, token, false, &n_bytes) : NULL;
    bool breaks = bytes && n_bytes && is_breaker(dry, bytes, n_bytes);
    dry->since_breaker = breaks ? 0 : dry->since_breaker < INT32_MAX ? dry->since_breaker + 1 : INT32_MAX;
}

/* The i-th token from the end. */
static int32_t back(const dry_state *dry, int32_t i) {
    int32_t at = dry->next - 1 - i;
    return dry->history[at < 0 ? at + dry->capacity : at];
}

/* lengths[i]: how many tokens that end at the i-th from the end equal as many that end the text. */
static void find_lengths(dry_state *dry) {
    int32_t n = dry->n, left = 0, right = 0;
    for (int32_t i = 1; i < n; i++) {
        int32_t z = 0;
        if (i < right) z = dry->lengths[i - left] < right - i ? dry->lengths[i - left] : right - i;
        while (i + z < n && back(dry, z) == back(dry, i + z)) z++;
        if (i + z > right) left = i, right = i + z;
        dry->lengths[i] = z;
    }
}

static void find_tokens(dry_state *dry, int32_t allowed, int32_t n_vocab) {
    dry->n_ids = 0;
    find_lengths(dry);
    for (int32_t i = 1; i < dry->n; i++) {
        int32_t length = dry->lengths[i] < dry->since_breaker ? dry->lengths[i] : dry->since_breaker;
        int32_t token = back(dry, i - 1);
        if (length < allowed || length == 0 || token < 0 || token >= n_vocab) continue;
        if (dry->longest[token] == 0) dry->ids[dry->n_ids++] = token;
        if (length > dry->longest[token]) dry->longest[token] = length;
    }
}

void dry_apply(drawing *d) {
    sampler *s = d->s;
    dry_state *dry = &s->dry;
    const weir_sampling *p = &s->params;
    if (dry->history == NULL || dry->since_breaker == 0) return;
    find_tokens(dry, p->dry_allowed_length, s->n_vocab);
    float *logits = d->n < 0 && dry->n_ids ? sampler_writable(d) : NULL;
    for (int32_t i = 0; i < dry->n_ids; i++) {
        int32_t id = dry->ids[i];
        /* A power that no float holds still leaves a finite logit. */
        double penalty = fmin((double)p->dry_multiplier * pow(p->dry_base, dry->longest[id] - p->dry_allowed_length), 1e30);
        if (logits) logits[id] = (float)((double)sampler_bounded(logits[id]) - penalty);
        for (int32_t k = 0; k < d->n; k++)
            if (d->c[k].id == id) d->c[k].logit = (float)((double)d->c[k].logit - penalty);
        dry->longest[id] = 0;
    }
    if (d->n >= 0 && dry->n_ids) {
        d->sorted = false;
        d->total = 0;
    }
}
