/* See pages.h. */
#include "engine/pages.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/error.h"

enum { MAX_SIBLINGS = 64 };

/* Of a page that the tree keeps; its number is the page's. */
typedef struct node {
    uint64_t salt, hash;    /* of the tokens and all before them */
    int32_t parent;         /* PAGES_NONE: at the beginning */
    int32_t next_in_bucket; /* full pages only */
    int32_t first_child, next_sibling, previous_sibling; /* the child kept last is first */
    int32_t n_tok;
    void *snapshot;
} node;

struct pages {
    int32_t n_pages, page_tokens;
    void (*drop)(void *user, void *snapshot);
    void *user;
    int32_t *n_holders;  /* [n_pages] */
    bool *kept;          /* [n_pages] the tree is one of them */
    int32_t *free_stack; /* [n_free] */
    int32_t n_free;
    atomic_int n_used, n_idle; /* held by sequences; held by the tree alone */
    /* The tree. Lists of numbers, ended by PAGES_NONE. */
    node *nodes;     /* [n_pages] */
    int32_t *tokens; /* [n_pages][page_tokens] */
    int32_t *buckets; /* [n_buckets] first full node of a hash, + 1 */
    uint64_t n_buckets; /* a power of two */
    int32_t first_root; /* first child of the beginning */
    /* Pages that only the tree holds, the least recently used first. As sequences hold all pages before one that they hold, and drop
     * the last first, a page comes later here than all pages behind it: the first has none behind it. */
    int32_t *newer, *older; /* [n_pages] */
    int32_t oldest, newest;
    size_t bytes;        /* of the mapping that all arrays are in */
    unsigned char *memory;
};

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

/* One mapping without a reservation: what is never used costs nothing. */
static int allocate(pages *p, weir_error *err) {
    const size_t n = (size_t)p->n_pages, sizes[] = {
        n * sizeof *p->nodes, n * (size_t)p->page_tokens * sizeof *p->tokens, (size_t)p->n_buckets * sizeof *p->buckets,
        n * sizeof *p->n_holders, n * sizeof *p->free_stack, n * sizeof *p->newer, n * sizeof *p->older, n * sizeof *p->kept,
    };
    size_t at[sizeof sizes / sizeof sizes[0]];
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        at[i] = p->bytes;
        p->bytes += (sizes[i] + 63) / 64 * 64;
    }
    void *memory = mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FAIL_IF(memory == MAP_FAILED, err, WEIR_E_NOMEM, "KV cache", "no memory to keep account of %d pages", p->n_pages);
    p->memory = memory;
    p->nodes = (node *)(p->memory + at[0]);
    p->tokens = (int32_t *)(p->memory + at[1]);
    p->buckets = (int32_t *)(p->memory + at[2]);
    p->n_holders = (int32_t *)(p->memory + at[3]);
    p->free_stack = (int32_t *)(p->memory + at[4]);
    p->newer = (int32_t *)(p->memory + at[5]);
    p->older = (int32_t *)(p->memory + at[6]);
    p->kept = (bool *)(p->memory + at[7]);
    return 0;
}

int pages_open(pages **out, int32_t n_pages, int32_t page_tokens, void (*drop)(void *user, void *snapshot), void *user,
               weir_error *err) {
    *out = NULL;
    size_t most;
    FAIL_IF(n_pages < 1 || page_tokens < 1 || !checked_mul((size_t)n_pages, (size_t)page_tokens * sizeof(int32_t) + 256, &most) ||
                most > SIZE_MAX / 2,
            err, WEIR_E_INVALID, "KV cache", "%d pages of %d tokens", n_pages, page_tokens);
    pages *p = calloc(1, sizeof *p);
    FAIL_IF(p == NULL, err, WEIR_E_NOMEM, "KV cache", "no memory to keep account of %d pages", n_pages);
    *p = (pages){.n_pages = n_pages, .page_tokens = page_tokens, .drop = drop, .user = user, .n_buckets = 16, .first_root = PAGES_NONE,
                 .oldest = PAGES_NONE, .newest = PAGES_NONE};
    while (p->n_buckets < (uint64_t)n_pages) p->n_buckets *= 2;
    int rc = allocate(p, err);
    if (rc < 0) {
        free(p);
        return rc;
    }
    for (int32_t i = 0; i < n_pages; i++) p->free_stack[p->n_free++] = n_pages - 1 - i;
    *out = p;
    return 0;
}

void pages_close(pages **pp) {
    pages *p = *pp;
    if (p == NULL) return;
    while (pages_forget_one(p)) {}
    munmap(p->memory, p->bytes);
    free(p);
    *pp = NULL;
}

/* ---- the list of idle pages ------------------------------------------------------------------------------------------- */

static void append_idle(pages *p, int32_t page) {
    p->older[page] = p->newest;
    p->newer[page] = PAGES_NONE;
    if (p->newest != PAGES_NONE)
        p->newer[p->newest] = page;
    else
        p->oldest = page;
    p->newest = page;
    atomic_fetch_add(&p->n_idle, 1);
}

static void remove_idle(pages *p, int32_t page) {
    const int32_t older = p->older[page], newer = p->newer[page];
    if (older != PAGES_NONE)
        p->newer[older] = newer;
    else
        p->oldest = newer;
    if (newer != PAGES_NONE)
        p->older[newer] = older;
    else
        p->newest = older;
    atomic_fetch_sub(&p->n_idle, 1);
}

/* ---- holders ---------------------------------------------------------------------------------------------------------- */

int32_t pages_take(pages *p) {
    if (p->n_free == 0 && !pages_forget_one(p)) return PAGES_NONE;
    const int32_t page = p->free_stack[--p->n_free];
    p->n_holders[page] = 1;
    atomic_fetch_add(&p->n_used, 1);
    return page;
}

void pages_hold(pages *p, int32_t page) {
    if (p->kept[page] && p->n_holders[page] == 1) {
        remove_idle(p, page);
        atomic_fetch_add(&p->n_used, 1);
    }
    p->n_holders[page]++;
}

void pages_drop(pages *p, int32_t page) {
    const int32_t left = --p->n_holders[page];
    assert(left >= p->kept[page]);
    if (left > p->kept[page]) return;
    atomic_fetch_sub(&p->n_used, 1);
    if (left == 1)
        append_idle(p, page);
    else
        p->free_stack[p->n_free++] = page;
}

bool pages_shared(const pages *p, int32_t page) { return p->n_holders[page] > 1; }
int32_t pages_n_available(const pages *p) { return p->n_free + atomic_load(&((pages *)p)->n_idle); }
int32_t pages_n_used(const pages *p) { return atomic_load(&((pages *)p)->n_used); }
int32_t pages_n_kept(const pages *p) { return atomic_load(&((pages *)p)->n_idle); }

/* ---- the tree --------------------------------------------------------------------------------------------------------- */

/* A step of a 64-bit mixing function (the finaliser of MurmurHash3, public domain); only spread matters, as tokens are compared. */
static uint64_t mix(uint64_t h) {
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return h ^ h >> 33;
}

static uint64_t hash_of(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens) {
    uint64_t h = after == PAGES_NONE ? mix(salt + 1) : p->nodes[after].hash;
    for (int32_t i = 0; i < p->page_tokens; i++) h = mix(h + 0x9e3779b97f4a7c15u + (uint32_t)tokens[i]);
    return h;
}

static const int32_t *tokens_of(const pages *p, int32_t page) { return p->tokens + (size_t)page * (size_t)p->page_tokens; }

static int32_t *bucket_of(const pages *p, uint64_t hash) { return &p->buckets[hash & (p->n_buckets - 1)]; }

static int32_t find(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens, uint64_t hash) {
    for (int32_t i = *bucket_of(p, hash) - 1; i != PAGES_NONE; i = p->nodes[i].next_in_bucket) {
        const node *n = &p->nodes[i];
        if (n->hash == hash && n->parent == after && n->salt == salt &&
            memcmp(tokens_of(p, i), tokens, (size_t)p->page_tokens * sizeof *tokens) == 0)
            return i;
    }
    return PAGES_NONE;
}

int32_t pages_find(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens) {
    return find(p, salt, after, tokens, hash_of(p, salt, after, tokens));
}

static int32_t first_behind(const pages *p, int32_t after) { return after == PAGES_NONE ? p->first_root : p->nodes[after].first_child; }

static int32_t n_alike(const int32_t *a, const int32_t *b, int32_t n) {
    int32_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

int32_t pages_find_part(const pages *p, uint64_t salt, int32_t after, const int32_t *tokens, int32_t n_tok, int32_t *n_common) {
    int32_t best = PAGES_NONE, left = MAX_SIBLINGS;
    *n_common = 0;
    for (int32_t i = first_behind(p, after); i != PAGES_NONE && left > 0; i = p->nodes[i].next_sibling, left--) {
        const node *n = &p->nodes[i];
        if (n->salt != salt) continue;
        const int32_t alike = n_alike(tokens_of(p, i), tokens, n->n_tok < n_tok ? n->n_tok : n_tok);
        if (alike <= *n_common) continue;
        *n_common = alike;
        best = i;
    }
    return best;
}

static void link_node(pages *p, int32_t page) {
    node *n = &p->nodes[page];
    int32_t *first = n->parent == PAGES_NONE ? &p->first_root : &p->nodes[n->parent].first_child;
    n->previous_sibling = PAGES_NONE;
    n->next_sibling = *first;
    if (*first != PAGES_NONE) p->nodes[*first].previous_sibling = page;
    *first = page;
    if (n->n_tok < p->page_tokens) return;
    int32_t *bucket = bucket_of(p, n->hash);
    n->next_in_bucket = *bucket - 1;
    *bucket = page + 1;
}

static void unlink_node(pages *p, int32_t page) {
    const node *n = &p->nodes[page];
    if (n->previous_sibling != PAGES_NONE)
        p->nodes[n->previous_sibling].next_sibling = n->next_sibling;
    else if (n->parent == PAGES_NONE)
        p->first_root = n->next_sibling;
    else
        p->nodes[n->parent].first_child = n->next_sibling;
    if (n->next_sibling != PAGES_NONE) p->nodes[n->next_sibling].previous_sibling = n->previous_sibling;
    if (n->n_tok < p->page_tokens) return;
    int32_t *bucket = bucket_of(p, n->hash);
    if (*bucket == page + 1) {
        *bucket = n->next_in_bucket + 1;
        return;
    }
    int32_t at = *bucket - 1;
    while (p->nodes[at].next_in_bucket != page) at = p->nodes[at].next_in_bucket;
    p->nodes[at].next_in_bucket = n->next_in_bucket;
}

/* Gives up an idle page that nothing stands behind. */
static void forget(pages *p, int32_t page) {
    node *n = &p->nodes[page];
    assert(n->first_child == PAGES_NONE && p->n_holders[page] == 1);
    remove_idle(p, page);
    unlink_node(p, page);
    if (n->snapshot) p->drop(p->user, n->snapshot);
    n->snapshot = NULL;
    p->kept[page] = false;
    p->n_holders[page] = 0;
    p->free_stack[p->n_free++] = page;
}

bool pages_forget_one(pages *p) {
    if (p->oldest == PAGES_NONE) return false;
    forget(p, p->oldest);
    return true;
}

/* Behind `after`, a part of a page that begins tokens[n_tok] is of no more use once these are kept. The same tokens: returned. */
static int32_t replace_parts(pages *p, uint64_t salt, int32_t after, const int32_t *tokens, int32_t n_tok) {
    int32_t left = MAX_SIBLINGS, next;
    for (int32_t i = first_behind(p, after); i != PAGES_NONE && left > 0; i = next, left--) {
        const node *n = &p->nodes[i];
        next = n->next_sibling;
        if (n->salt != salt || n->n_tok > n_tok || n_alike(tokens_of(p, i), tokens, n->n_tok) < n->n_tok) continue;
        if (n->n_tok == n_tok) return i;
        if (p->n_holders[i] == 1 && n->snapshot == NULL) forget(p, i);
    }
    return PAGES_NONE;
}

int32_t pages_keep(pages *p, uint64_t salt, int32_t after, int32_t page, const int32_t *tokens, int32_t n_tok) {
    const bool full = n_tok == p->page_tokens;
    const uint64_t hash = full ? hash_of(p, salt, after, tokens) : 0;
    int32_t there = full ? find(p, salt, after, tokens, hash) : PAGES_NONE;
    if (there == PAGES_NONE) there = replace_parts(p, salt, after, tokens, n_tok);
    if (there != PAGES_NONE || p->kept[page]) return there == PAGES_NONE ? page : there;
    p->nodes[page] = (node){.salt = salt, .hash = hash, .parent = after, .next_in_bucket = PAGES_NONE, .first_child = PAGES_NONE, .n_tok = n_tok};
    memcpy(p->tokens + (size_t)page * (size_t)p->page_tokens, tokens, (size_t)n_tok * sizeof *tokens);
    link_node(p, page);
    p->kept[page] = true;
    p->n_holders[page]++;
    return page;
}

bool pages_full(const pages *p, int32_t page) { return p->kept[page] && p->nodes[page].n_tok == p->page_tokens; }

void pages_attach(pages *p, int32_t page, void *snapshot) {
    if (p->nodes[page].snapshot) p->drop(p->user, p->nodes[page].snapshot);
    p->nodes[page].snapshot = snapshot;
}

void *pages_snapshot(const pages *p, int32_t page) { return p->nodes[page].snapshot; }

/* Depth first without recursion: down to the first child, else to the next sibling, else up. */
bool pages_visit(const pages *p, pages_visit_fn visit, void *user) {
    int32_t at = p->first_root;
    while (at != PAGES_NONE) {
        const node *n = &p->nodes[at];
        const pages_entry entry = {.page = at, .after = n->parent, .n_tok = n->n_tok, .salt = n->salt, .tokens = tokens_of(p, at)};
        if (!visit(user, &entry)) return false;
        if (n->first_child != PAGES_NONE) {
            at = n->first_child;
            continue;
        }
        while (at != PAGES_NONE && p->nodes[at].next_sibling == PAGES_NONE) at = p->nodes[at].parent;
        if (at != PAGES_NONE) at = p->nodes[at].next_sibling;
    }
    return true;
}
