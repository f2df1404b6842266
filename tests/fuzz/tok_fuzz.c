/* Tokenisers: the first byte chooses a vocabulary, the second flags, the rest is text (and, once more, token ids). Ids must be
 * in range, counting must agree with writing, byte-covering vocabularies must give back every text, and text that is streamed
 * in pieces must equal text that is decoded at once. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "unit/tok/small_vocab.h"

enum { GEMMA4 = 16, LLAMA, BERT, T5, N_VOCABULARIES }; /* before these: byte-level BPE, pres[] */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition) {
    if (!condition) abort();
}

static const char *const pres[] = {"default",     "gpt-2",  "smollm",    "llama-bpe", "qwen2",    "deepseek-llm",
                                   "deepseek-v3", "tekken", "gpt-4o",    "kimi-k2",   "superbpe", "tiny_aya",
                                   "afmoe",       "bloom",  "chameleon", "exaone-moe"};

/* The tokenisers live as long as the process. */
static const tok *vocabulary(size_t which) {
    static tok *opened[N_VOCABULARIES];
    static small_vocab v;
    if (opened[which]) return opened[which];
    if (which < GEMMA4) small_vocab_gpt2(&v, pres[which]);
    else if (which == GEMMA4) small_vocab_gemma4(&v);
    else if (which == LLAMA) small_vocab_llama(&v);
    else if (which == BERT) small_vocab_bert(&v);
    else small_vocab_t5(&v);
    require(tok_open(&opened[which], &v.vocab, NULL) == 0);
    small_vocab_free(&v);
    return opened[which];
}

static void check_ids(const tok *t, const int32_t *ids, int64_t n) {
    for (int64_t i = 0; i < n; i++) require(ids[i] >= 0 && ids[i] < tok_n_vocab(t));
}

/* What the streaming decoder makes of bytes in two pushes, for each place between. */
static void check_stream(const char *bytes, size_t n_bytes) {
    buf whole = BUF_INIT, parts = BUF_INIT;
    tok_stream s = TOK_STREAM_INIT;
    tok_stream_push(&s, bytes, n_bytes, &whole);
    tok_stream_finish(&s, &whole);
    require(utf8_valid(whole.data ? whole.data : "", whole.n_bytes));
    for (size_t cut = 0; cut <= n_bytes; cut += n_bytes > 256 ? 37 : 1) {
        buf_clear(&parts);
        tok_stream_push(&s, bytes, cut, &parts);
        require(utf8_valid(parts.data ? parts.data : "", parts.n_bytes));
        tok_stream_push(&s, bytes + cut, n_bytes - cut, &parts);
        tok_stream_finish(&s, &parts);
        require(parts.n_bytes == whole.n_bytes && (whole.n_bytes == 0 || memcmp(parts.data, whole.data, whole.n_bytes) == 0));
    }
    buf_free(&whole);
    buf_free(&parts);
}

static void check_text(const tok *t, size_t which, const char *text, size_t n_bytes, bool add_special, bool parse_special) {
    const int64_t n = tok_encode(t, text, n_bytes, add_special, parse_special, NULL, 0);
    require(n >= 0);
    int32_t *ids = malloc((size_t)n * sizeof *ids + 1);
    require(ids && tok_encode(t, text, n_bytes, add_special, parse_special, ids, (size_t)n) == n);
    check_ids(t, ids, n);
    buf out = BUF_INIT;
    require(tok_decode(t, ids, (size_t)n, true, &out, NULL) == 0);
    /* Byte-level BPE covers every byte. Gemma 4 and SPM too, but read U+2581 as a space; SPM also puts a space after each
     * special token. */
    bool exact = which <= LLAMA && !add_special;
    if (which >= GEMMA4) exact = exact && memmem(text, n_bytes, "\u2581", 3) == NULL;
    if (which == LLAMA) exact = exact && !parse_special && memmem(text, n_bytes, "<tag>", 5) == NULL;
    if (exact) require(out.n_bytes == n_bytes && (n_bytes == 0 || memcmp(out.data, text, n_bytes) == 0));
    check_stream(out.data ? out.data : "", out.n_bytes);
    buf_free(&out);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const size_t which = data[0] % N_VOCABULARIES;
    const tok *t = vocabulary(which);
    const char *text = (const char *)data + 2;
    check_text(t, which, text, size - 2, data[1] & 1, data[1] & 2);
    check_stream(text, size - 2);
    int32_t ids[64];
    size_t n = 0;
    for (size_t at = 2; at + 1 < size && n < 64; at += 2) ids[n++] = (int32_t)(int16_t)(data[at] | data[at + 1] << 8);
    buf out = BUF_INIT;
    bool valid = true;
    for (size_t i = 0; i < n; i++) valid = valid && ids[i] >= 0 && ids[i] < tok_n_vocab(t);
    require((tok_decode(t, ids, n, data[1] & 1, &out, NULL) == 0) == valid);
    buf_free(&out);
    return 0;
}
