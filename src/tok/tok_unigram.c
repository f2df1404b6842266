/* Unigram as T5 uses it: text is normalised by a table of replacements, spaces become U+2581, and of all ways to cover the text
 * with tokens the most probable is taken (Viterbi; Kudo 2018). Where no token covers a code point, an unknown token does. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_internal.h"

/* The table is a double array (Kanda 2018) over bytes, stored as 32-bit units: bits 0-7 the byte that leads to a node, bit 8
 * whether a string ends there, bits 10-30 the offset to its children (times 256 if bit 9 is set). Where a string ends, the
 * child over byte 0 holds the offset of its replacement, a NUL-terminated string. Indices are checked at each step: a table
 * that leads outside itself replaces nothing there. */
static uint32_t unit_offset(uint32_t unit) {
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* Goes from `*node` over `byte`; false if nothing leads there. *unit is the new node, *node the place of its children. */
static bool charsmap_step(const tok_charsmap *map, size_t *node, unsigned char byte, uint32_t *unit) {
    const size_t child = *node ^ byte;
    if (child >= map->n_units || (map->units[child] & ((1u << 31) | 0xFF)) != byte) return false;
    *unit = map->units[child];
    *node = child ^ unit_offset(*unit);
    return true;
}

/* The longest prefix of the text that the table replaces: its length (0 = none) and what stands for it. */
static size_t find_replacement(const tok_charsmap *map, const char *text, size_t n_bytes, const char **replacement) {
    if (map->n_units == 0) return 0;
    size_t found = 0, node = unit_offset(map->units[0]);
    uint32_t unit;
    for (size_t i = 0; i < n_bytes && i < TOK_LONGEST_MATCH && text[i]; i++) {
        if (!charsmap_step(map, &node, (unsigned char)text[i], &unit)) break;
        if (!(unit >> 8 & 1)) continue;
        const uint32_t offset = node < map->n_units ? map->units[node] & ((1u << 31) - 1) : UINT32_MAX;
        if (offset >= map->n_replacements) break;
        *replacement = map->replacements + offset;
        found = i + 1;
    }
    return found;
}

/* Whether no rule can change the character `byte`, ASCII, where ASCII or nothing follows it. */
static bool is_plain(const tok *t, unsigned char byte) {
    const char first = (char)byte;
    const char *replacement;
    uint32_t unit;
    if (t->special[false].starts[byte] || find_replacement(&t->charsmap, &first, 1, &replacement) > 0) return false;
    if (t->charsmap.n_units == 0) return true;
    size_t node = unit_offset(t->charsmap.units[0]);
    bool leads_on = false; /* whether an entry has another ASCII character after this one */
    if (charsmap_step(&t->charsmap, &node, byte, &unit)) {
        for (unsigned char next = 1; next < 0x80; next++) {
            size_t child = node;
            leads_on = leads_on || charsmap_step(&t->charsmap, &child, next, &unit);
        }
    }
    return !leads_on;
}

/* The normalised form of the text's beginning, with *consumed set. */
static tok_string normalise_next(const tok *t, const char *text, size_t n_bytes, size_t *consumed) {
    size_t length;
    const char *replacement = NULL;
    uint32_t c;
    if (tok_trie_longest(&t->special[false], text, n_bytes, &length) >= 0) {
        *consumed = length;
        return (tok_string){text, length};
    }
    if ((length = find_replacement(&t->charsmap, text, n_bytes, &replacement)) > 0) {
        *consumed = length;
        return (tok_string){replacement, strlen(replacement)};
    }
    *consumed = length = utf8_decode(text, n_bytes, &c);
    if (utf8_valid(text, length)) return (tok_string){text, length};
    return (tok_string){"\xef\xbf\xbd", 3};
}

/* Begins a word: U+2581, if one is due. */
static void begin_word(const tok *t, tok_work *w, bool *prefixed) {
    if (*prefixed && !t->remove_extra_whitespaces) return;
    buf_append(&w->text, TOK_SPACE, 3);
    *prefixed = true;
}

/* Bytes of the run of plain characters at the begin of the text: those that nothing replaces. */
static size_t plain_run(const tok *t, const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes && t->plain[(unsigned char)text[n]]) n++;
    /* A combining mark may follow the last one. */
    return n < n_bytes && (unsigned char)text[n] >= 0x80 && n > 0 ? n - 1 : n;
}

static void normalise(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    bool in_word = false, prefixed = !t->add_space_prefix;
    buf_clear(&w->text);
    for (size_t at = 0, consumed; at < n_bytes; at += consumed) {
        consumed = plain_run(t, text + at, n_bytes - at);
        if (consumed > 0) {
            if (!in_word) begin_word(t, w, &prefixed);
            in_word = true;
            buf_append(&w->text, text + at, consumed);
            continue;
        }
        const tok_string s = normalise_next(t, text + at, n_bytes - at, &consumed);
        for (size_t i = 0; i < s.n_bytes; i++) {
            if (s.text[i] == ' ') {
                in_word = false;
                if (!t->remove_extra_whitespaces) buf_append(&w->text, TOK_SPACE, 3);
                continue;
            }
            if (!in_word) begin_word(t, w, &prefixed);
            in_word = true;
            buf_putc(&w->text, s.text[i]);
        }
    }
    w->failed |= w->text.failed;
}

typedef struct best_cover {
    double score;
    uint32_t start; /* of the last token of the best cover of what ends here */
    int32_t id;
} best_cover;

static void improve(best_cover *b, double score, size_t start, int32_t id) {
    if (score > b->score) *b = (best_cover){score, (uint32_t)start, id};
}

static void cover(const tok *t, const char *text, size_t n_bytes, best_cover *best) {
    const tok_trie *words = &t->words;
    for (size_t at = 0, length; at < n_bytes; at += length) {
        const double score = best[at].score;
        uint32_t node = 0, c;
        bool single = false; /* whether a token covers exactly this code point */
        length = (unsigned char)text[at] < 0x80 ? 1 : utf8_decode(text + at, n_bytes - at, &c);
        for (size_t end = at; end < n_bytes && (node = tok_trie_step(words, node, (unsigned char)text[end])) != 0; end++) {
            const tok_trie_node *token = &words->nodes[node];
            if (token->id < 0) continue;
            single = single || end + 1 - at == length;
            improve(&best[end + 1], score + (double)token->score, at, token->id);
        }
        if (!single) improve(&best[at + length], score + (double)t->unknown_score, at, t->unk);
    }
}

void tok_unigram_encode(const tok *t, tok_work *w, const char *text, size_t n_bytes) {
    normalise(t, w, text, n_bytes);
    const size_t n = w->text.n_bytes;
    if (n == 0 || w->failed) return;
    best_cover *best = malloc((n + 1) * sizeof *best);
    if (best == NULL) {
        w->failed = true;
        return;
    }
    best[0] = (best_cover){0, 0, t->unk};
    for (size_t i = 1; i <= n; i++) best[i] = (best_cover){-DBL_MAX, 0, t->unk};
    cover(t, w->text.data, n, best);
    /* The cover is walked from its end: count, then fill in. Neighbouring unknown tokens become one. */
    size_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        const int64_t first = w->n_ids;
        size_t left = count;
        bool unknown = false;
        for (size_t at = n; at > 0; at = best[at].start) {
            const int32_t id = best[at].id;
            if (id == t->unk && unknown) continue;
            unknown = id == t->unk;
            if (pass == 0) {
                count++;
            } else if ((uint64_t)first + --left < w->capacity) {
                w->ids[(size_t)first + left] = id;
            }
        }
    }
    w->n_ids += (int64_t)count;
    free(best);
}

int tok_charsmap_open(tok_charsmap *map, arena *memory, const unsigned char *bytes, size_t n, weir_error *err) {
    static const char place[] = "tokenizer.ggml.precompiled_charsmap";
    *map = (tok_charsmap){0};
    if (bytes == NULL || n == 0) return 0;
    FAIL_IF(n < 4, err, WEIR_E_FORMAT, place, "%zu bytes are too few for a header of 4", n);
    const unsigned char *p = bytes;
    const size_t n_array = (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
    FAIL_IF(n_array % 4 != 0 || n_array + 4 >= n, err, WEIR_E_FORMAT, place, "an array of %zu bytes does not fit in %zu",
            n_array, n);
    FAIL_IF(p[n - 1] != 0, err, WEIR_E_FORMAT, place, "the last replacement does not end in NUL");
    uint32_t *units = arena_array(memory, n_array / 4 + 1, sizeof *units);
    char *replacements = arena_strndup(memory, (const char *)p + 4 + n_array, n - 4 - n_array);
    FAIL_IF(units == NULL || replacements == NULL, err, WEIR_E_NOMEM, place, "out of memory");
    for (size_t i = 0; i < n_array / 4; i++) {
        const unsigned char *u = p + 4 + 4 * i;
        units[i] = (uint32_t)u[0] | (uint32_t)u[1] << 8 | (uint32_t)u[2] << 16 | (uint32_t)u[3] << 24;
    }
    *map = (tok_charsmap){units, n_array / 4, replacements, n - 4 - n_array};
    return 0;
}

int tok_unigram_open(tok *t, const tok_vocab *vocab, weir_error *err) {
    const uint16_t usable = TOK_IS_NORMAL | TOK_IS_USER_DEFINED | TOK_IS_UNUSED;
    const float unknown_penalty = 10.0f; /* below the least probable token, as in SentencePiece */
    float least = FLT_MAX;
    FAIL_IF(t->unk < 0, err, WEIR_E_FORMAT, "tokenizer.ggml.unknown_token_id", "a Unigram vocabulary needs an unknown token");
    TRY(tok_charsmap_open(&t->charsmap, &t->memory, vocab->charsmap, vocab->n_charsmap, err));
    for (int32_t id = 0; id < t->n_vocab; id++) {
        FAIL_IF(!(t->scores[id] >= -FLT_MAX && t->scores[id] <= FLT_MAX), err, WEIR_E_FORMAT, "tokenizer.ggml.scores",
                "the score of token %d is not a finite number", id);
        if ((t->attributes[id] & TOK_IS_NORMAL) && t->scores[id] < least) least = t->scores[id];
    }
    t->unknown_score = (least == FLT_MAX ? 0.0f : least) - unknown_penalty;
    FAIL_IF(!tok_trie_open(&t->words, t, usable, 0), err, WEIR_E_NOMEM, "tokenizer.ggml.tokens", "out of memory");
    for (unsigned char byte = '!'; byte < 0x7F; byte++) t->plain[byte] = is_plain(t, byte);
    return 0;
}
