/* Sequences of the engine: their pages and states, and what the prefix tree gives to them and keeps of them. See engine.h. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/engine_internal.h"

/* ---- life ------------------------------------------------------------------------------------------------------------- */

int engine_seq_begin(engine *e, uint64_t salt, engine_seq **out, weir_error *err) {
    *out = NULL;
    FAIL_IF(e->state_bytes && e->n_seqs >= e->n_parallel, err, WEIR_E_LIMIT, "recurrent state", "all %d states are in use", e->n_parallel);
    engine_seq *s = calloc(1, sizeof *s);
    FAIL_IF(s == NULL, err, WEIR_E_NOMEM, NULL, "no memory for a sequence");
    s->owner = e;
    s->salt = salt;
    e->n_seqs++;
    *out = s;
    return 0;
}

int engine_seq_open(engine *e, int32_t n_tokens, engine_seq **out, weir_error *err) {
    *out = NULL;
    FAIL_IF(n_tokens < 1, err, WEIR_E_CONTEXT, NULL, "%d tokens do not fit the context of %d", n_tokens, e->n_ctx);
    TRY(engine_seq_begin(e, 0, out, err));
    int rc = engine_seq_reserve(*out, n_tokens, err);
    if (rc < 0) engine_seq_close(e, out);
    return rc;
}

void engine_set_state(engine_seq *s, unsigned char *state) {
    if (s->state) s->owner->free_states[s->owner->n_free_states++] = s->state;
    s->state = state;
}

/* From the last, as pages.h asks. */
static void drop_pages(engine_seq *s, int32_t from) {
    while (s->n_pages > from) pages_drop(s->owner->pages, s->numbers[--s->n_pages]);
    if (s->n_kept > from) s->n_kept = from;
}

void engine_seq_close(engine *e, engine_seq **ss) {
    engine_seq *s = *ss;
    if (s == NULL) return;
    engine_set_state(s, NULL);
    e->n_seqs--;
    drop_pages(s, 0);
    free(s->numbers);
    free(s->pages);
    free(s);
    *ss = NULL;
}

int32_t engine_seq_length(const engine_seq *s) { return s->length; }

/* ---- pages ------------------------------------------------------------------------------------------------------------ */

static unsigned char *address_of(const engine *e, int32_t page) { return e->slab + (size_t)page * e->page_bytes; }

static void set_page(engine_seq *s, int32_t i, int32_t page) {
    s->numbers[i] = page;
    s->pages[i] = address_of(s->owner, page);
}

static int grow_table(engine_seq *s, int32_t n_pages, weir_error *err) {
    if (n_pages <= s->capacity) return 0;
    int32_t capacity = s->capacity * 2 > n_pages ? s->capacity * 2 : n_pages;
    int32_t *numbers = realloc(s->numbers, (size_t)capacity * sizeof *numbers);
    if (numbers) s->numbers = numbers;
    unsigned char **addresses = realloc(s->pages, (size_t)capacity * sizeof *addresses);
    if (addresses) s->pages = addresses;
    FAIL_IF(!numbers || !addresses, err, WEIR_E_NOMEM, NULL, "no memory for a sequence of %d pages", n_pages);
    s->capacity = capacity;
    return 0;
}

int engine_seq_reserve(engine_seq *s, int32_t n_tokens, weir_error *err) {
    engine *e = s->owner;
    FAIL_IF(n_tokens > e->n_ctx, err, WEIR_E_CONTEXT, NULL, "%d tokens do not fit the context of %d", n_tokens, e->n_ctx);
    const int32_t n_pages = pages_for(n_tokens), n_more = n_pages - s->n_pages;
    if (n_more <= 0) return 0;
    FAIL_IF(n_more > pages_n_available(e->pages), err, WEIR_E_LIMIT, "KV cache", "%d pages are needed, %d are free", n_more,
            pages_n_available(e->pages));
    TRY(grow_table(s, n_pages, err));
    while (s->n_pages < n_pages) set_page(s, s->n_pages++, pages_take(e->pages));
    return 0;
}

/* Only after a truncation does a sequence write to a page that others hold, too. */
int engine_seq_own_pages(engine_seq *s, int32_t n_tok, weir_error *err) {
    engine *e = s->owner;
    for (int32_t i = s->length / KERN_PAGE; i < pages_for(s->length + n_tok); i++) {
        if (!pages_shared(e->pages, s->numbers[i])) continue;
        const int32_t page = pages_take(e->pages);
        FAIL_IF(page == PAGES_NONE, err, WEIR_E_LIMIT, "KV cache", "a page is needed, none is free");
        if (i * KERN_PAGE < s->length) memcpy(address_of(e, page), s->pages[i], e->page_bytes);
        pages_drop(e->pages, s->numbers[i]);
        set_page(s, i, page);
        if (s->n_kept > i) s->n_kept = i;
    }
    return 0;
}

bool engine_seq_can_truncate(const engine_seq *s, int32_t length) {
    return length >= 0 && length <= s->length && (s->owner->state_bytes == 0 || length == 0 || length == s->length);
}

void engine_seq_truncate(engine_seq *s, int32_t length) {
    if (!engine_seq_can_truncate(s, length)) return;
    s->length = length;
    if (s->n_kept > length / KERN_PAGE) s->n_kept = length / KERN_PAGE;
    if (length == 0) engine_set_state(s, NULL);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------------ */

struct engine_checkpoint {
    int32_t length;
    size_t n_bytes;
    unsigned char state[]; /* [n_bytes] */
};

int engine_checkpoint_make(int32_t length, const unsigned char *state, size_t n_bytes, engine_checkpoint **out, weir_error *err) {
    engine_checkpoint *c = *out = malloc(sizeof *c + n_bytes);
    FAIL_IF(c == NULL, err, WEIR_E_NOMEM, "recurrent state", "no memory for a checkpoint of %.1f MB", (double)n_bytes / 1e6);
    c->length = length;
    c->n_bytes = n_bytes;
    if (n_bytes) memcpy(c->state, state, n_bytes);
    return 0;
}

int engine_checkpoint_save(const engine_seq *s, engine_checkpoint **out, weir_error *err) {
    return engine_checkpoint_make(s->length, s->state, s->state ? s->owner->state_bytes : 0, out, err);
}

const unsigned char *engine_checkpoint_state(const engine_checkpoint *c) { return c->state; }

int32_t engine_checkpoint_length(const engine_checkpoint *c) { return c->length; }

/* Its tokens are in the pages already. */
static void take_state(engine_seq *s, const engine_checkpoint *c) {
    engine *e = s->owner;
    s->length = c->length;
    if (c->n_bytes && s->state == NULL) s->state = e->free_states[--e->n_free_states];
    if (c->n_bytes) memcpy(s->state, c->state, c->n_bytes);
    else engine_set_state(s, NULL);
}

bool engine_checkpoint_restore(engine_seq *s, const engine_checkpoint *c) {
    if (c->length > s->length || (c->n_bytes && c->n_bytes != s->owner->state_bytes)) return false;
    if (s->n_kept > c->length / KERN_PAGE) s->n_kept = c->length / KERN_PAGE;
    take_state(s, c);
    return true;
}

void engine_checkpoint_free(engine_checkpoint **c) {
    free(*c);
    *c = NULL;
}

void engine_drop_snapshot(void *user, void *snapshot) {
    engine *e = user;
    engine_checkpoint *c = snapshot;
    e->snapshot_bytes -= c->n_bytes;
    engine_checkpoint_free(&c);
}

/* ---- the prefix tree -------------------------------------------------------------------------------------------------- */

/* The page of the tree that the sequence's page i stands behind. */
static int32_t page_before(const engine_seq *s, int32_t i) { return i == 0 ? PAGES_NONE : s->numbers[i - 1]; }

/* Takes a page of the tree for page i, whose place may have a page already. */
static int take_kept(engine_seq *s, int32_t i, int32_t page, weir_error *err) {
    TRY(grow_table(s, i + 1, err));
    pages_hold(s->owner->pages, page);
    if (i < s->n_pages) pages_drop(s->owner->pages, s->numbers[i]);
    else s->n_pages++;
    set_page(s, i, page);
    return 0;
}

/* All full pages that the tree has of tokens[n_tok]. */
static void adopt_full(engine_seq *s, const int32_t *tokens, int32_t n_tok) {
    while ((s->n_kept + 1) * KERN_PAGE <= n_tok) {
        const int32_t i = s->n_kept, page = pages_find(s->owner->pages, s->salt, page_before(s, i), tokens + i * KERN_PAGE);
        if (page == PAGES_NONE || take_kept(s, i, page, NULL) < 0) return;
        s->n_kept++;
        if (s->length < s->n_kept * KERN_PAGE) s->length = s->n_kept * KERN_PAGE;
    }
}

/* A copy of what the tree has of the page after those, if it has more of it than the sequence. */
static void adopt_part(engine_seq *s, const int32_t *tokens, int32_t n_tok) {
    engine *e = s->owner;
    const int32_t i = s->n_kept, begin = i * KERN_PAGE, n_left = n_tok - begin < KERN_PAGE ? n_tok - begin : KERN_PAGE;
    int32_t n_common = 0;
    const int32_t part = n_left > 0 ? pages_find_part(e->pages, s->salt, page_before(s, i), tokens + begin, n_left, &n_common) : PAGES_NONE;
    if (part == PAGES_NONE || begin + n_common <= s->length) return;
    pages_hold(e->pages, part);
    if (engine_seq_reserve(s, begin + n_common, NULL) == 0) {
        memcpy(s->pages[i], address_of(e, part), e->page_bytes);
        s->length = begin + n_common;
    }
    pages_drop(e->pages, part);
}

/* With recurrent state: the pages up to the last snapshot of the text, and that. */
static void adopt_state(engine_seq *s, const int32_t *tokens, int32_t n_tok) {
    engine *e = s->owner;
    const engine_checkpoint *best = NULL;
    int32_t i = s->n_kept, after = page_before(s, i), n_common = 0;
    const int32_t first = i;
    for (; (i + 1) * KERN_PAGE <= n_tok; i++) {
        const int32_t page = pages_find(e->pages, s->salt, after, tokens + i * KERN_PAGE);
        if (page == PAGES_NONE) break;
        if (pages_snapshot(e->pages, page)) best = pages_snapshot(e->pages, page);
        after = page;
    }
    const int32_t begin = i * KERN_PAGE, n_left = n_tok - begin < KERN_PAGE ? n_tok - begin : KERN_PAGE;
    const int32_t part = n_left > 0 ? pages_find_part(e->pages, s->salt, after, tokens + begin, n_left, &n_common) : PAGES_NONE;
    const engine_checkpoint *last = part == PAGES_NONE ? NULL : pages_snapshot(e->pages, part);
    if (last && last->length == begin + n_common) best = last;
    if (best == NULL || best->length <= s->length) return;
    if (best == last) pages_hold(e->pages, part);
    after = page_before(s, first);
    for (i = first; (i + 1) * KERN_PAGE <= best->length; i++) {
        after = pages_find(e->pages, s->salt, after, tokens + i * KERN_PAGE);
        if (take_kept(s, i, after, NULL) < 0) break;
        s->n_kept++;
    }
    const bool whole = (i + 1) * KERN_PAGE > best->length && engine_seq_reserve(s, best->length, NULL) == 0;
    if (whole && best == last) memcpy(s->pages[i], address_of(e, part), e->page_bytes);
    if (whole) take_state(s, best);
    if (best == last) pages_drop(e->pages, part);
}

int32_t engine_seq_adopt(engine_seq *s, const int32_t *tokens, int32_t n_tok) {
    const int32_t before = s->length;
    if (n_tok <= before) return 0;
    if (s->owner->state_bytes) {
        adopt_state(s, tokens, n_tok);
    } else {
        adopt_full(s, tokens, n_tok);
        adopt_part(s, tokens, n_tok);
    }
    return s->length - before;
}

/* The state at the sequence's length, which is the end of the kept page. */
static void keep_state(engine_seq *s, int32_t page) {
    engine *e = s->owner;
    engine_checkpoint *c = NULL;
    if (e->state_bytes == 0 || pages_snapshot(e->pages, page)) return;
    while (e->snapshot_bytes + e->state_bytes > e->most_snapshot_bytes && pages_forget_one(e->pages)) {}
    if (e->snapshot_bytes + e->state_bytes > e->most_snapshot_bytes || engine_checkpoint_save(s, &c, NULL) < 0) return;
    e->snapshot_bytes += c->n_bytes;
    pages_attach(e->pages, page, c);
}

void engine_seq_keep(engine_seq *s, const int32_t *tokens, int32_t n_tok, bool last) {
    engine *e = s->owner;
    if (n_tok > s->length) n_tok = s->length;
    while ((s->n_kept + 1) * KERN_PAGE <= n_tok) {
        const int32_t i = s->n_kept, own = s->numbers[i];
        const int32_t kept = pages_keep(e->pages, s->salt, page_before(s, i), own, tokens + i * KERN_PAGE, KERN_PAGE);
        if (kept != own && take_kept(s, i, kept, NULL) < 0) return;
        s->n_kept++;
    }
    const int32_t begin = s->n_kept * KERN_PAGE, n_left = n_tok - begin;
    if (n_left < 0) return; /* more is kept than asked for */
    if (n_left == 0 && s->n_kept > 0 && s->length == n_tok) keep_state(s, s->numbers[s->n_kept - 1]);
    if (n_left == 0 || !last) return;
    const int32_t kept = pages_keep(e->pages, s->salt, page_before(s, s->n_kept), s->numbers[s->n_kept], tokens + begin, n_left);
    if (s->length == n_tok) keep_state(s, kept);
}
