/* See small_vocab.h. */
#include "small_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

void small_vocab_init(small_vocab *v, const char *model, const char *pre) {
    *v = (small_vocab){0};
    v->vocab = (tok_vocab){.model = {model, strlen(model)},
                           .pre = {pre, strlen(pre)},
                           .bos = -1,
                           .eos = -1,
                           .eot = -1,
                           .eom = -1,
                           .unk = -1,
                           .sep = -1,
                           .pad = -1,
                           .mask = -1,
                           .nl = -1};
    v->vocab.tokens = v->tokens;
    v->vocab.merges = v->merges;
    v->vocab.scores = v->scores;
    v->vocab.types = v->types;
}

void small_vocab_free(small_vocab *v) { arena_free(&v->memory); }

static tok_string copy(small_vocab *v, const char *text) {
    const char *s = arena_strndup(&v->memory, text, strlen(text));
    if (s == NULL) abort();
    return (tok_string){s, strlen(text)};
}

int32_t small_vocab_add(small_vocab *v, const char *text, tok_type type, float score) {
    const size_t id = v->vocab.n_tokens++;
    if (id >= SMALL_VOCAB_MAX) abort();
    v->tokens[id] = copy(v, text);
    v->types[id] = (int32_t)type;
    v->scores[id] = score;
    return (int32_t)id;
}

void small_vocab_merge(small_vocab *v, const char *merge) {
    if (v->vocab.n_merges >= SMALL_VOCAB_MAX) abort();
    v->merges[v->vocab.n_merges++] = copy(v, merge);
}

void small_vocab_add_alphabet(small_vocab *v) {
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text[5] = {0};
        const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        utf8_encode(printable ? byte : next++, text);
        small_vocab_add(v, text, TOK_NORMAL, 0);
    }
}

void small_vocab_add_bytes(small_vocab *v) {
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        small_vocab_add(v, text, TOK_BYTE, 0);
    }
}

/* Merges that build words; each makes a token unless it is marked with '-' (then it is only a step). */
static void add_merges(small_vocab *v, const char *const *merges, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const bool step = merges[i][0] == '-';
        char joined[64];
        const char *merge = merges[i] + step, *space = strchr(merge + 1, ' ');
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - merge), merge, space + 1);
        small_vocab_merge(v, merge);
        if (!step) small_vocab_add(v, joined, TOK_NORMAL, 0);
    }
}

void small_vocab_gpt2(small_vocab *v, const char *pre) {
    static const char *const merges[] = {
        "h e",          "l l", "he ll", "hell o",        "\u0120 w", "o r",   "\u0120w or",    "-\u0120wor l",
        "\u0120worl d", "1 2", "12 3",  "\u0120 \u0120", "a a",      "aa aa", "\u00e4 \u00b8", "\u010a \u010a"};
    small_vocab_init(v, "gpt2", pre);
    small_vocab_add_alphabet(v);
    add_merges(v, merges, sizeof merges / sizeof merges[0]);
    v->vocab.eos = small_vocab_add(v, "<|end|>", TOK_CONTROL, 0);
    v->vocab.bos = small_vocab_add(v, "<|x|>", TOK_CONTROL, 0);
    small_vocab_add(v, "@@", TOK_USER_DEFINED, 0);
}

void small_vocab_gemma4(small_vocab *v) {
    static const char *const merges[] = {"h i", "\u2581 h", "\u2581 \u2581", "\u2581 hi", "\u00e9 \u00e9", "\n \n"};
    small_vocab_init(v, "gemma4", "");
    v->vocab.bos = small_vocab_add(v, "<bos>", TOK_CONTROL, 0);
    v->vocab.eos = small_vocab_add(v, "<eos>", TOK_CONTROL, 0);
    small_vocab_add_bytes(v);
    static const char *const letters[] = {"h", "i", "\u2581", "\u00e9", "\n"};
    for (size_t i = 0; i < 5; i++) small_vocab_add(v, letters[i], TOK_NORMAL, 0);
    add_merges(v, merges, sizeof merges / sizeof merges[0]);
    small_vocab_add(v, "\n\n\n", TOK_NORMAL, 0);
}

void small_vocab_llama(small_vocab *v) {
    static const struct {
        const char *text;
        float score;
    } words[] = {{"\u2581", -1},
                 {"a", -2},
                 {"b", -2},
                 {"c", -2},
                 {"h", -2},
                 {"e", -2},
                 {"l", -2},
                 {"o", -2},
                 {"ab", -3},
                 {"bc", -2.5f},
                 {"abc", -9},
                 {"\u2581a", -4},
                 {"he", -5},
                 {"ll", -6},
                 {"hell", -7},
                 {"hello", -8},
                 {"\u2581hello", -8.5f},
                 {"\u2581\u2581", -3},
                 {"\u00e9", -5},
                 {"\u4e2d", -5},
                 {"\u4e2d\u6587", -6}};
    small_vocab_init(v, "llama", "default");
    v->vocab.unk = small_vocab_add(v, "<unk>", TOK_UNKNOWN, 0);
    v->vocab.bos = small_vocab_add(v, "<s>", TOK_CONTROL, 0);
    v->vocab.eos = small_vocab_add(v, "</s>", TOK_CONTROL, 0);
    small_vocab_add_bytes(v);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) small_vocab_add(v, words[i].text, TOK_NORMAL, words[i].score);
    small_vocab_add(v, "<tag>", TOK_USER_DEFINED, 0);
}

void small_vocab_bert(small_vocab *v) {
    static const char *const words[] = {"\u2581hello", "\u2581world",  "\u2581un", "aff",     "able",    "s",
                                        "\u2581it",    "\u2581'",      "\u2581s",  "\u2581,", "\u2581!", "\u2581.",
                                        "\u2581cafe",  "\u2581\u4e2d", "\u2581a",  "a"};
    small_vocab_init(v, "bert", "");
    v->vocab.pad = small_vocab_add(v, "[PAD]", TOK_CONTROL, 0);
    v->vocab.unk = small_vocab_add(v, "[UNK]", TOK_UNKNOWN, 0);
    v->vocab.bos = small_vocab_add(v, "[CLS]", TOK_CONTROL, 0);
    v->vocab.sep = small_vocab_add(v, "[SEP]", TOK_CONTROL, 0);
    v->vocab.mask = small_vocab_add(v, "[MASK]", TOK_CONTROL, 0);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) small_vocab_add(v, words[i], TOK_NORMAL, 0);
}

void small_vocab_t5(small_vocab *v) {
    static const struct {
        const char *text;
        float score;
    } words[] = {
        {"\u2581", -2},          {"h", -6},        {"e", -6}, {"l", -6}, {"o", -6}, {"he", -5}, {"llo", -5}, {"hello", -9},
        {"\u2581hello", -10.5f}, {"\u2581he", -4}, {"x", -7}};
    small_vocab_init(v, "t5", "");
    v->vocab.pad = small_vocab_add(v, "<pad>", TOK_CONTROL, 0);
    v->vocab.eos = small_vocab_add(v, "</s>", TOK_CONTROL, 0);
    v->vocab.unk = small_vocab_add(v, "<unk>", TOK_UNKNOWN, 0);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) small_vocab_add(v, words[i].text, TOK_NORMAL, words[i].score);
    small_vocab_add(v, "<extra>", TOK_USER_DEFINED, 0);
    v->vocab.has_add_space_prefix = v->vocab.add_space_prefix = true;
    v->vocab.remove_extra_whitespaces = true;
}
