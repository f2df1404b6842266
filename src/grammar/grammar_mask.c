/* Token masks.
 *
 * What a token does inside the rule in which the text stands does not depend on the stack around it. So for each state of the
 * automaton a walk over the tries, begun in a frame that stands for an unknown one, finds once and for all the tokens that end
 * inside and the trie nodes at which the rule is left ("escapes": in a JSON string those after its closing quote). The mask of
 * a text's state is then the union of its items' local masks, and of short walks from the escapes with the real frame; it is
 * kept by the hash of the state, as the next token inside the same string needs it again. */
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar_state.h"
#include "grammar/grammar_vocab.h"

enum { N_KEPT = 256, MAX_CACHE_BYTES = 48 << 20 };

typedef struct escape {
    uint32_t node;
    uint8_t kind; /* trie */
} escape;

/* The mask of one automaton state, as far as it does not depend on the frame. */
typedef struct local_mask {
    const uint32_t *plain; /* [n_words] tokens of TRIE_PLAIN besides, or NULL */
    uint32_t *bits;   /* [n_words], or NULL if few tokens are in it: */
    uint32_t *tokens; /* [n_tokens] */
    uint32_t n_tokens;
    escape *escapes; /* with subtrees only */
    uint32_t n_escapes;
} local_mask;

typedef struct kept_mask {
    uint64_t hash[2];
    uint32_t *bits; /* [n_words]; NULL: free */
} kept_mask;

struct grammar_masks {
    const grammar *g;
    const grammar_vocab *v;
    local_mask **locals; /* [n_states] */
    size_t local_bytes;
    kept_mask kept[N_KEPT];
    grammar_matcher local; /* frames 0 and 1 between walks */
    uint32_t *work;        /* [n_words]: the local mask being made */
    /* The walk: items of each depth one after another, and where each depth begins; frames made so far at each depth. */
    grammar_items stack, reached;
    size_t *begins, *frames;
    size_t depth_capacity;
    escape *escapes;
    size_t n_escapes, escapes_capacity;
};

static int nomem(weir_error *err) {
    return error_set(err, WEIR_E_NOMEM, NULL, "out of memory for token masks");
}

int grammar_masks_open(grammar_masks **out, const grammar *g, const grammar_vocab *v, weir_error *err) {
    *out = NULL;
    grammar_masks *m = calloc(1, sizeof *m);
    if (m == NULL) return nomem(err);
    m->g = g;
    m->v = v;
    m->locals = calloc(g->n_states, sizeof *m->locals);
    m->work = calloc(v->n_words + 1, sizeof *m->work);
    if (m->locals == NULL || m->work == NULL || grammar_matcher_init(&m->local, g) < 0) {
        grammar_masks_close(&m);
        return nomem(err);
    }
    *out = m;
    return 0;
}

static void free_locals(grammar_masks *m) {
    for (uint32_t i = 0; i < m->g->n_states && m->locals; i++) {
        if (m->locals[i] == NULL) continue;
        free(m->locals[i]->bits);
        free(m->locals[i]->tokens);
        free(m->locals[i]->escapes);
        free(m->locals[i]);
        m->locals[i] = NULL;
    }
    m->local_bytes = 0;
}

void grammar_masks_close(grammar_masks **m) {
    if (m == NULL || *m == NULL) return;
    free_locals(*m);
    for (size_t i = 0; i < N_KEPT; i++) free((*m)->kept[i].bits);
    grammar_matcher_free(&(*m)->local);
    free((*m)->locals);
    free((*m)->work);
    free((*m)->stack.items);
    free((*m)->reached.items);
    free((*m)->begins);
    free((*m)->frames);
    free((*m)->escapes);
    free(*m);
    *m = NULL;
}

/* ---- walks -------------------------------------------------------------------------------------------------------------- */

/* Sets the tokens that end at the nodes [first, last). */
static void set_tokens(const trie *t, uint32_t first, uint32_t last, uint32_t *bits) {
    for (uint32_t i = t->nodes[first].tokens; i < t->nodes[last].tokens; i++)
        bits[t->tokens[i] / 32] |= 1u << t->tokens[i] % 32;
}

static bool note_escape(grammar_masks *m, uint32_t node, trie_kind kind) {
    if (!grammar_grow((void **)&m->escapes, m->n_escapes, &m->escapes_capacity, sizeof *m->escapes)) return false;
    m->escapes[m->n_escapes++] = (escape){node, (uint8_t)kind};
    return true;
}

static bool reserve_depth(grammar_masks *m, size_t depth) {
    if (depth + 2 <= m->depth_capacity) return true;
    const size_t capacity = 2 * depth + 64;
    size_t *begins = realloc(m->begins, capacity * sizeof *begins);
    if (begins) m->begins = begins;
    size_t *frames = realloc(m->frames, capacity * sizeof *frames);
    if (frames) m->frames = frames;
    if (begins == NULL || frames == NULL) return false;
    m->depth_capacity = capacity;
    return true;
}

/* One byte from the items of the depth that ends the stack, pushed as a new depth: 1 = some are left, 0 = none. */
static int push_step(grammar_masks *m, grammar_matcher *matcher, size_t begin, size_t end, uint8_t byte) {
    const grammar_item *from = m->stack.items + begin;
    if (end - begin == 1) { /* the common case: one item that stays one */
        const int32_t to = grammar_step(m->g, from->state, byte);
        if (to == STEP_DEAD) return 0;
        if (to >= 0 && m->g->states[to].n_calls == 0 && !m->g->states[to].final)
            return grammar_items_add(&m->stack, (grammar_item){(uint32_t)to, from->frame}) ? 1 : WEIR_E_NOMEM;
    }
    m->reached.n = 0;
    const int code = grammar_matcher_step(matcher, from, end - begin, byte, &m->reached);
    if (code < 0) return code;
    for (size_t i = 0; i < m->reached.n; i++)
        if (!grammar_items_add(&m->stack, m->reached.items[i])) return WEIR_E_NOMEM;
    return m->reached.n > 0;
}

/* Whether one of the items goes on over any so many plain code points: then all tokens of the subtree are in the mask, and
 * where they would leave the rule does not matter. */
static bool takes_rest(const grammar_masks *m, size_t begin, uint8_t rest) {
    for (size_t i = begin; i < m->stack.n; i++)
        if (rest <= m->g->states[m->stack.items[i].state].freedom) return true;
    return false;
}

static bool has_escape(const grammar_items *stack, size_t begin) {
    for (size_t i = begin; i < stack->n; i++)
        if (stack->items[i].state == STATE_ESCAPE) return true;
    return false;
}

/* Walks nodes [first, last) of a trie, siblings with their subtrees, from the n_base items at the bottom of the stack; sets the
 * tokens that live in bits, notes the escapes. The stack and the frames are as before in the end. */
static int walk(grammar_masks *m, grammar_matcher *matcher, trie_kind kind, uint32_t first, uint32_t last, size_t n_base,
                uint32_t *bits) {
    const trie_node *nodes = m->v->tries[kind].nodes;
    if (first == last) return 0;
    const size_t base_depth = nodes[first].depth - 1u;
    if (!reserve_depth(m, 1)) return WEIR_E_NOMEM;
    m->begins[0] = 0;
    m->frames[0] = matcher->n_frames;
    m->begins[1] = n_base;
    for (uint32_t i = first; i < last;) {
        const trie_node *node = &nodes[i];
        const size_t depth = node->depth - base_depth; /* this node's items go there */
        if (!reserve_depth(m, depth)) return WEIR_E_NOMEM;
        m->stack.n = m->begins[depth];
        grammar_matcher_drop(matcher, m->frames[depth - 1]);
        const int alive = push_step(m, matcher, m->begins[depth - 1], m->begins[depth], node->byte);
        if (alive < 0) return alive;
        if (!alive) {
            i = node->end;
            continue;
        }
        m->begins[depth + 1] = m->stack.n;
        m->frames[depth] = matcher->n_frames;
        if (takes_rest(m, m->begins[depth], node->rest)) {
            set_tokens(&m->v->tries[kind], i, node->end, bits);
            i = node->end;
            continue;
        }
        set_tokens(&m->v->tries[kind], i, i + 1, bits);
        if (node->end > i + 1 && has_escape(&m->stack, m->begins[depth]) && !note_escape(m, i, kind)) return WEIR_E_NOMEM;
        i++;
    }
    m->stack.n = n_base;
    grammar_matcher_drop(matcher, m->frames[0]);
    return 0;
}

/* ---- local masks -------------------------------------------------------------------------------------------------------- */

static local_mask *keep_local(grammar_masks *m, const uint32_t *plain) {
    const size_t n_words = m->v->n_words;
    local_mask *l = calloc(1, sizeof *l);
    if (l == NULL) return NULL;
    l->plain = plain;
    size_t n = 0;
    for (size_t i = 0; i < n_words; i++) n += (size_t)__builtin_popcount(m->work[i]);
    if (n < n_words / 4) {
        l->tokens = malloc((n + 1) * sizeof *l->tokens);
        for (size_t i = 0; i < n_words && l->tokens; i++)
            for (uint32_t word = m->work[i]; word; word &= word - 1)
                l->tokens[l->n_tokens++] = (uint32_t)(32 * i) + (uint32_t)__builtin_ctz(word);
    } else {
        l->bits = malloc(n_words * sizeof *l->bits);
        if (l->bits) memcpy(l->bits, m->work, n_words * sizeof *l->bits);
    }
    l->escapes = malloc((m->n_escapes + 1) * sizeof *l->escapes);
    if ((l->bits == NULL && l->tokens == NULL) || l->escapes == NULL) {
        free(l->bits);
        free(l->tokens);
        free(l->escapes);
        free(l);
        return NULL;
    }
    if (m->n_escapes) memcpy(l->escapes, m->escapes, m->n_escapes * sizeof *l->escapes);
    l->n_escapes = (uint32_t)m->n_escapes;
    m->local_bytes += sizeof *l + (l->bits ? n_words : n) * sizeof *l->bits + m->n_escapes * sizeof *l->escapes;
    return l;
}

static int local_of(grammar_masks *m, uint32_t state, const local_mask **out) {
    if (m->locals[state] == NULL) {
        const grammar_state_row *row = &m->g->states[state];
        /* Plain tokens that need no walk: all, or those that are short enough, which leaves none of the long ones either. */
        const bool all = row->freedom == MAX_FREEDOM;
        const uint32_t *plain = row->freedom && (all || row->exact) ? m->v->plain + (row->freedom - 1) * m->v->n_words : NULL;
        if (m->local_bytes > MAX_CACHE_BYTES) free_locals(m);
        memset(m->work, 0, m->v->n_words * sizeof *m->work);
        m->n_escapes = 0;
        for (int kind = all ? TRIE_LONG : row->exact ? TRIE_OTHER : TRIE_PLAIN; kind < N_TRIES; kind++) {
            m->stack.n = 0;
            if (!grammar_items_add(&m->stack, (grammar_item){state, FRAME_LOCAL})) return WEIR_E_NOMEM;
            const int code = walk(m, &m->local, (trie_kind)kind, 0, m->v->tries[kind].n_nodes, 1, m->work);
            if (code < 0) {
                grammar_matcher_drop(&m->local, FRAME_LOCAL + 1);
                return code;
            }
        }
        m->locals[state] = keep_local(m, plain);
        if (m->locals[state] == NULL) return WEIR_E_NOMEM;
    }
    *out = m->locals[state];
    return 0;
}

/* ---- the mask of a state ------------------------------------------------------------------------------------------------ */

/* Adds the tokens that leave the rule of `at`: walks on from the escapes with what follows in its frame. */
static int add_escapes(grammar_masks *m, grammar_state *s, grammar_item at, const local_mask *l, uint32_t *bits) {
    const grammar_frame *f = &s->m.frames[at.frame];
    const size_t n_frames = s->m.n_frames;
    m->stack.n = 0;
    int code = grammar_matcher_close(&s->m, s->m.entries + f->first, f->n, &m->stack);
    const size_t n_base = m->stack.n;
    uint32_t next[8];
    grammar_items_bytes(m->g, m->stack.items, n_base, next);
    for (uint32_t i = 0; i < l->n_escapes && code == 0; i++) {
        const trie_kind kind = (trie_kind)l->escapes[i].kind;
        const trie_node *nodes = m->v->tries[kind].nodes;
        const uint32_t node = l->escapes[i].node;
        for (uint32_t child = node + 1; child < nodes[node].end && code == 0; child = nodes[child].end)
            if (next[nodes[child].byte / 32] >> nodes[child].byte % 32 & 1)
                code = walk(m, &s->m, kind, child, nodes[child].end, n_base, bits);
    }
    grammar_matcher_drop(&s->m, n_frames);
    return code;
}

static int make_mask(grammar_masks *m, grammar_state *s, uint32_t *bits) {
    const size_t n_words = m->v->n_words;
    memset(bits, 0, n_words * sizeof *bits);
    for (size_t i = 0; i < s->now.n; i++) {
        const grammar_item at = s->now.items[i];
        const local_mask *l;
        if (at.state < FIRST_STATE) continue;
        TRY(local_of(m, at.state, &l));
        for (uint32_t k = 0; k < l->n_tokens; k++) bits[l->tokens[k] / 32] |= 1u << l->tokens[k] % 32;
        for (size_t k = 0; k < n_words && l->bits; k++) bits[k] |= l->bits[k];
        for (size_t k = 0; k < n_words && l->plain; k++) bits[k] |= l->plain[k];
        if (l->n_escapes) TRY(add_escapes(m, s, at, l, bits));
    }
    return 0;
}

static void state_hash(const grammar_state *s, uint64_t hash[2]) {
    hash[0] = hash[1] = s->now.n;
    for (size_t i = 0; i < s->now.n; i++) {
        const grammar_item at = s->now.items[i];
        for (int lane = 0; lane < 2; lane++) {
            uint64_t h = (s->m.frames[at.frame].hash[lane] ^ (at.state + 1) * 0x9E3779B97F4A7C15u) * 0xFF51AFD7ED558CCDu;
            h = (h ^ h >> 31) * 0xD6E8FEB86659FD93u;
            hash[lane] += h ^ h >> 32;
        }
    }
}

int grammar_mask(grammar_masks *m, grammar_state *s, uint32_t *bits, weir_error *err) {
    FAIL_IF(s->m.g != m->g, err, WEIR_E_INVALID, NULL, "the state belongs to another grammar than the masks");
    uint64_t hash[2];
    state_hash(s, hash);
    kept_mask *kept = &m->kept[hash[0] % N_KEPT];
    if (kept->bits && kept->hash[0] == hash[0] && kept->hash[1] == hash[1]) {
        memcpy(bits, kept->bits, m->v->n_words * sizeof *bits);
        return 0;
    }
    const size_t n_frames = s->m.n_frames;
    const int code = make_mask(m, s, bits);
    if (code < 0) {
        grammar_matcher_drop(&s->m, n_frames);
        if (code == WEIR_E_LIMIT)
            return error_set(err, code, NULL, "the grammar is too ambiguous: too many ways to read the text so far");
        return nomem(err);
    }
    if (kept->bits == NULL) kept->bits = malloc((m->v->n_words + 1) * sizeof *kept->bits);
    if (kept->bits) { /* without memory it is simply not kept */
        memcpy(kept->bits, bits, m->v->n_words * sizeof *bits);
        memcpy(kept->hash, hash, sizeof hash);
    }
    return 0;
}
