/* Builds small vocabularies for tests, token by token. The result's `vocab` may be changed before tok_open. */
#ifndef WEIR_TESTS_SMALL_VOCAB_H
#define WEIR_TESTS_SMALL_VOCAB_H

#include "base/arena.h"
#include "tok/tok.h"

enum { SMALL_VOCAB_MAX = 2048 };

typedef struct small_vocab {
    tok_vocab vocab; /* its arrays are those below */
    tok_string tokens[SMALL_VOCAB_MAX], merges[SMALL_VOCAB_MAX];
    float scores[SMALL_VOCAB_MAX];
    int32_t types[SMALL_VOCAB_MAX];
    arena memory;
} small_vocab;

/* Empty, of the given tokenizer.ggml.model and pre, all ids -1. */
void small_vocab_init(small_vocab *v, const char *model, const char *pre);
void small_vocab_free(small_vocab *v);
/* Appends a token and returns its id. The text is copied. */
int32_t small_vocab_add(small_vocab *v, const char *text, tok_type type, float score);
void small_vocab_merge(small_vocab *v, const char *merge);
void small_vocab_add_alphabet(
    small_vocab *v); /* the 256 characters that stand for bytes in GPT-2's alphabet: ids follow the bytes */
void small_vocab_add_bytes(small_vocab *v); /* <0x00>..<0xFF> */

/* Complete vocabularies. */
void small_vocab_gpt2(small_vocab *v, const char *pre); /* bytes 0..255, words, <|end|>, <|x|>, a user-defined token "@@" */
void small_vocab_gemma4(small_vocab *v);
void small_vocab_llama(small_vocab *v);
void small_vocab_bert(small_vocab *v);
void small_vocab_t5(small_vocab *v);

#endif
