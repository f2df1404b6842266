/* Tokens that are found in the text before anything else, and what their names tell: which ones end a generation, which ones
 * are control tokens although the file says otherwise. Files name few of them by id, so the names of known models decide. */
#include <string.h>

#include "base/error.h"
#include "tok/tok_internal.h"

/* Tokens that end a generation. */
static const char *const end_names[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
};

/* Fill in the middle, in the order of tok_vocab.fim: where the file names none, the first of these that there is. */
static const struct {
    const char *names[9];
    bool ends; /* the token also ends a generation */
} fim_kinds[TOK_N_FIM] = {
    {{"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>",
      "<|code_prefix|>", "<|prefix|>"},
     false},
    {{"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>",
      "<|code_suffix|>", "<|suffix|>"},
     false},
    {{"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>", "<|code_middle|>",
      "<|middle|>"},
     false},
    {{"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}, true},
    {{"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}, true},
    {{"<|file_sep|>"}, true},
};

/* The parts of a Harmony message: their text is always shown. */
static const char *const shown_names[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static int32_t find(const tok *t, const char *name) { return tok_find(t, name, strlen(name)); }

static bool ends(const tok *t, const char *name) {
    const int32_t id = find(t, name);
    return id >= 0 && (t->attributes[id] & TOK_IS_EOG);
}

static void mark_fim(tok *t, const tok_vocab *vocab) {
    for (size_t kind = 0; kind < TOK_N_FIM; kind++) {
        int32_t id = vocab->fim ? vocab->fim[kind] : -1;
        for (size_t i = 0; id < 0 && i < COUNT(fim_kinds[kind].names) && fim_kinds[kind].names[i]; i++) {
            id = find(t, fim_kinds[kind].names[i]);
            if (id >= 0) t->attributes[id] |= TOK_IS_CONTROL;
        }
        if (id >= 0 && fim_kinds[kind].ends) t->attributes[id] |= TOK_IS_EOG;
    }
}

static void set_kind(tok *t, int32_t id, uint16_t kind) {
    if (id >= 0) t->attributes[id] = kind;
}

static void mark_ends(tok *t, const tok_vocab *vocab) {
    for (size_t i = 0; i < COUNT(end_names); i++) {
        const int32_t id = find(t, end_names[i]);
        if (id >= 0) t->attributes[id] |= TOK_IS_CONTROL | TOK_IS_EOG;
    }
    for (size_t i = 0; i < COUNT(shown_names); i++) set_kind(t, find(t, shown_names[i]), TOK_IS_USER_DEFINED);
    const int32_t given[] = {t->eos, vocab->eot, vocab->eom};
    for (size_t i = 0; i < COUNT(given); i++)
        if (given[i] >= 0) t->attributes[given[i]] |= TOK_IS_EOG;
    for (size_t i = 0; i < vocab->n_ends; i++)
        if (vocab->ends[i] >= 0 && vocab->ends[i] < t->n_vocab) t->attributes[vocab->ends[i]] |= TOK_IS_EOG;
    /* In Harmony and Solar <|end|> ends a message, not the answer. */
    const bool calls = ends(t, "<|call|>") || ends(t, "<|calls|>");
    if (calls && (ends(t, "<|return|>") || ends(t, "<|flush|>")) && ends(t, "<|end|>"))
        set_kind(t, find(t, "<|end|>"), TOK_IS_USER_DEFINED);
    /* In Gemma 4 and PLaMo </s> is ordinary text. */
    if ((ends(t, "<|tool_response>") || ends(t, "<|plamo:eos|>")) && ends(t, "</s>"))
        set_kind(t, find(t, "</s>"), TOK_IS_NORMAL);
}

static void mark_strip(tok *t, const tok_vocab *vocab) {
    static const char *const kept[] = {"<unk>", "<s>", "<|endoftext|>"};
    const uint16_t special = TOK_IS_CONTROL | TOK_IS_UNKNOWN | TOK_IS_USER_DEFINED;
    for (int32_t id = 0; id < t->n_vocab && vocab->special_rstrip; id++)
        if (t->attributes[id] & special) t->attributes[id] |= TOK_HAS_RSTRIP;
    for (size_t i = 0; i < COUNT(kept); i++) {
        const int32_t id = find(t, kept[i]);
        if (id >= 0) t->attributes[id] &= (uint16_t)~TOK_HAS_RSTRIP;
    }
    if (!vocab->mask_lstrip) return;
    const int32_t masks[] = {find(t, "<mask>"), find(t, "[MASK]")};
    for (size_t i = 0; i < COUNT(masks); i++)
        if (masks[i] >= 0) t->attributes[masks[i]] |= TOK_HAS_LSTRIP;
}

int tok_special_open(tok *t, const tok_vocab *vocab, weir_error *err) {
    const uint16_t hidden = TOK_IS_CONTROL | TOK_IS_UNKNOWN;
    mark_fim(t, vocab);
    mark_ends(t, vocab);
    mark_strip(t, vocab);
    FAIL_IF(!tok_trie_open(&t->special[true], t, hidden | TOK_IS_USER_DEFINED, 0) ||
                !tok_trie_open(&t->special[false], t, TOK_IS_USER_DEFINED, hidden),
            err, WEIR_E_NOMEM, "tokenizer.ggml.tokens", "out of memory");
    return 0;
}
