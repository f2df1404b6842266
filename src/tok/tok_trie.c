/* The trie of tok_internal.h, built once from the tokens of a vocabulary. The nodes are placed level by level, so that the
 * short prefixes, which every look-up passes, lie together. Reading is for any thread. */
#include <stdlib.h>
#include <string.h>

#include "tok/tok_internal.h"

/* Children of a node share a block of 256 places. A block is tried for later nodes as long as it is among the last few that
 * were opened: that bounds the work and the waste, whatever the strings. */
enum { BLOCK = 256, N_OPEN_BLOCKS = 16 };

typedef struct trie_key {
    uint64_t prefix; /* the first 8 bytes, most significant first: most comparisons end here */
    tok_string text;
    int32_t id;
} trie_key;

/* The keys from `begin` on to `end` begin with what leads to `node`. */
typedef struct trie_range {
    uint32_t node, begin, end;
} trie_range;

typedef struct trie_builder {
    const tok *t; /* whose scores the nodes get, or NULL */
    tok_trie *trie;
    trie_key *keys;
    size_t n_keys;
    size_t capacity;                            /* of trie->nodes */
    uint64_t places[N_OPEN_BLOCKS][BLOCK / 64]; /* of the last blocks: which places are free */
    trie_range *ranges[2];
    size_t n_ranges[2], ranges_capacity[2];
} trie_builder;

static uint64_t prefix_of(tok_string s) {
    uint64_t prefix = 0;
    for (size_t i = 0; i < 8; i++) prefix = prefix << 8 | (i < s.n_bytes ? (unsigned char)s.text[i] : 0);
    return prefix;
}

static int compare_keys(const void *a, const void *b) {
    const trie_key *x = a, *y = b;
    if (x->prefix != y->prefix) return x->prefix < y->prefix ? -1 : 1;
    const size_t n = x->text.n_bytes < y->text.n_bytes ? x->text.n_bytes : y->text.n_bytes;
    const int order = memcmp(x->text.text, y->text.text, n);
    if (order) return order;
    if (x->text.n_bytes != y->text.n_bytes) return x->text.n_bytes < y->text.n_bytes ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bool collect_keys(trie_builder *b, uint16_t any_of, uint16_t none_of) {
    const tok *t = b->t;
    b->keys = malloc((size_t)t->n_vocab * sizeof *b->keys);
    if (b->keys == NULL) return false;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        const tok_string s = t->texts[id];
        if (s.n_bytes == 0 || s.n_bytes > TOK_LONGEST_MATCH) continue;
        if ((any_of && !(t->attributes[id] & any_of)) || (t->attributes[id] & none_of)) continue;
        b->keys[b->n_keys++] = (trie_key){prefix_of(s), s, id};
    }
    return true;
}

static bool add_block(trie_builder *b) {
    tok_trie *trie = b->trie;
    if (trie->n_nodes > UINT32_MAX - BLOCK) return false;
    if (trie->n_nodes == b->capacity) {
        const size_t capacity = b->capacity ? b->capacity * 2 : 2 * BLOCK;
        tok_trie_node *nodes = realloc(trie->nodes, capacity * sizeof *nodes);
        if (nodes == NULL) return false;
        trie->nodes = nodes;
        b->capacity = capacity;
    }
    uint64_t *places = b->places[trie->n_nodes / BLOCK % N_OPEN_BLOCKS];
    for (size_t i = 0; i < BLOCK / 64; i++) places[i] = UINT64_MAX;
    for (size_t i = 0; i < BLOCK; i++)
        trie->nodes[trie->n_nodes++] = (tok_trie_node){.base = 0, .parent = UINT32_MAX, .id = -1};
    return true;
}

static bool fits(const uint64_t places[BLOCK / 64], size_t base, const unsigned char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const size_t place = base ^ bytes[i];
        if (!(places[place / 64] >> place % 64 & 1)) return false;
    }
    return true;
}

/* A base in the block, counted from its begin, whose places for bytes[n] are all free; BLOCK = none. */
static size_t find_base_in(const uint64_t places[BLOCK / 64], const unsigned char *bytes, size_t n) {
    for (size_t i = 0; i < BLOCK / 64; i++)
        for (uint64_t left = places[i]; left; left &= left - 1) {
            const size_t base = (i * 64 + (size_t)__builtin_ctzll(left)) ^ bytes[0];
            if (fits(places, base, bytes + 1, n - 1)) return base;
        }
    return BLOCK;
}

/* Takes places for the children over bytes[n] in one of the open blocks or a new one: their base; SIZE_MAX = out of memory. */
static size_t take_places(trie_builder *b, const unsigned char *bytes, size_t n) {
    const size_t n_blocks = b->trie->n_nodes / BLOCK;
    size_t block = n_blocks > N_OPEN_BLOCKS ? n_blocks - N_OPEN_BLOCKS : 0, base = BLOCK;
    for (; block < n_blocks; block++) {
        base = find_base_in(b->places[block % N_OPEN_BLOCKS], bytes, n);
        if (base < BLOCK) break;
    }
    if (base == BLOCK) {
        if (!add_block(b)) return SIZE_MAX;
        base = 0;
    }
    uint64_t *places = b->places[block % N_OPEN_BLOCKS];
    for (size_t i = 0; i < n; i++) places[(base ^ bytes[i]) / 64] &= ~((uint64_t)1 << (base ^ bytes[i]) % 64);
    return block * BLOCK + base;
}

static bool push_range(trie_builder *b, int list, trie_range range) {
    if (b->n_ranges[list] == b->ranges_capacity[list]) {
        const size_t capacity = b->ranges_capacity[list] ? b->ranges_capacity[list] * 2 : 1024;
        trie_range *ranges = realloc(b->ranges[list], capacity * sizeof *ranges);
        if (ranges == NULL) return false;
        b->ranges[list] = ranges;
        b->ranges_capacity[list] = capacity;
    }
    b->ranges[list][b->n_ranges[list]++] = range;
    return true;
}

/* Places the children of a node at `depth` and lists them for the next level. */
static bool place_children(trie_builder *b, trie_range of, size_t depth, int next) {
    unsigned char bytes[BLOCK];
    uint32_t begins[BLOCK + 1], n = 0, at = of.begin;
    while (at < of.end && b->keys[at].text.n_bytes == depth) at++; /* what ends here is no child */
    if (at == of.end) return true;
    for (; at < of.end; at++) {
        const unsigned char byte = (unsigned char)b->keys[at].text.text[depth];
        if (n > 0 && bytes[n - 1] == byte) continue;
        bytes[n] = byte;
        begins[n++] = at;
    }
    begins[n] = of.end;
    const size_t base = take_places(b, bytes, n);
    if (base == SIZE_MAX) return false;
    b->trie->nodes[of.node].base = (uint32_t)base;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t child = (uint32_t)base ^ bytes[i];
        const trie_key *key = &b->keys[begins[i]];
        tok_trie_node *node = &b->trie->nodes[child];
        node->parent = of.node;
        if (key->text.n_bytes == depth + 1) { /* the first of equal tokens, as the keys are sorted by id then */
            node->id = key->id;
            if (b->t) node->score = b->t->attributes[key->id] & TOK_IS_USER_DEFINED ? 0.0f : b->t->scores[key->id];
        }
        if (!push_range(b, next, (trie_range){child, begins[i], begins[i + 1]})) return false;
    }
    return true;
}

/* Makes the trie of b->keys and frees all but the trie. */
static bool build(trie_builder *b) {
    if (b->keys) qsort(b->keys, b->n_keys, sizeof *b->keys, compare_keys);
    bool done = b->keys && add_block(b);
    b->places[0][0] &= ~(uint64_t)1; /* the root's */
    for (size_t i = 0; done && i < b->n_keys; i++) b->trie->starts[(unsigned char)b->keys[i].text.text[0]] = true;
    done = done && push_range(b, 0, (trie_range){0, 0, (uint32_t)b->n_keys});
    for (size_t depth = 0; done && b->n_ranges[depth & 1] > 0; depth++) {
        const int list = (int)(depth & 1);
        b->n_ranges[!list] = 0;
        for (size_t i = 0; i < b->n_ranges[list] && done; i++) done = place_children(b, b->ranges[list][i], depth, !list);
    }
    free(b->keys);
    free(b->ranges[0]);
    free(b->ranges[1]);
    return done;
}

bool tok_trie_open(tok_trie *trie, const tok *t, uint16_t any_of, uint16_t none_of) {
    trie_builder b = {.t = t, .trie = trie};
    (void)collect_keys(&b, any_of, none_of); /* without memory there are no keys */
    return build(&b);
}

bool tok_trie_make(tok_trie *trie, const tok_string *strings, size_t n) {
    trie_builder b = {.trie = trie};
    b.keys = malloc((n ? n : 1) * sizeof *b.keys);
    for (size_t i = 0; b.keys && i < n; i++) {
        const tok_string s = strings[i];
        if (s.n_bytes > 0 && s.n_bytes <= TOK_LONGEST_MATCH) b.keys[b.n_keys++] = (trie_key){prefix_of(s), s, (int32_t)i};
    }
    return build(&b);
}

void tok_trie_free(tok_trie *trie) {
    free(trie->nodes);
    *trie = (tok_trie){0};
}

int32_t tok_trie_longest(const tok_trie *trie, const char *text, size_t n_bytes, size_t *length) {
    int32_t found = -1;
    uint32_t node = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        node = tok_trie_step(trie, node, (unsigned char)text[i]);
        if (node == 0) break;
        if (trie->nodes[node].id >= 0) {
            found = trie->nodes[node].id;
            *length = i + 1;
        }
    }
    return found;
}
