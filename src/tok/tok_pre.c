/* Pre-tokenisers: how text is cut into words, between which nothing is ever merged. One table row for each scheme, one for each
 * name that tokenizer.ggml.pre may have. A scheme is a list of rules; each rule cuts the pieces that the ones before it left.
 * Owns the compiled expressions. Knows nothing of vocabularies. Compiled rules may be used by any thread.
 *
 * The expressions are those that the models were trained with (the `pre_tokenizer` of their tokenizer.json), where \s is spelt
 * out as Unicode's White_Space, because PCRE2 also counts U+180E, and \p{Han} is \p{sc:Han}, because PCRE2 would take the
 * script extensions, which have punctuation. What a rule does not match between two matches is a piece of its own. Rules for
 * which no expression takes linear time are functions. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/error.h"
#include "base/nearest.h"
#include "base/utf8.h"
#include "tok/tok_internal.h"

enum { MAX_RULES = 6 };

#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S "[" SPACES "]"
#define S_TAIL S "+(?![^" SPACES "])|" S "+" /* leaves the last space of a run to the word after it */
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NEWLINES S "*[\\r\\n]+|"
#define WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define OTHER " ?[^" SPACES "\\p{L}\\p{N}]+"

#define RE_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" OTHER "|" S_TAIL
#define RE_LLAMA3 CONTRACTION "|" WORD "\\p{N}{1,3}|" OTHER "[\\r\\n]*|" NEWLINES S_TAIL
#define RE_QWEN2 CONTRACTION "|" WORD "\\p{N}|" OTHER "[\\r\\n]*|" NEWLINES S_TAIL

/* Words in camel case: capitals and what has no case, then small letters and what has no case. */
#define CAPITAL "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(capital, small, suffix)                                                                                          \
    "[^\\r\\n\\p{L}\\p{N}]?" capital "*" small "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" capital "+" small "*" suffix "|"
#define RE_GPT4O CASED(CAPITAL, SMALL, CONTRACTION "?") "\\p{N}{1,3}|" OTHER "[\\r\\n/]*|" NEWLINES S_TAIL
/* The same without Han, written as the complement of everything else, for lack of an intersection of classes. */
#define CAPITAL_NOT_HAN "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"
#define SMALL_NOT_HAN "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"

#define ASCII_PUNCTUATION "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
#define RE_DEEPSEEK3_WORDS                                                                                                     \
    ASCII_PUNCTUATION "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" NEWLINES S_TAIL
#define RE_KANA "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+"
#define RE_DEEPSEEK_CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define RE_BLOOM " ?[^(" SPACES "|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"

/* The cased letters of an older Unicode, as DeepSeek LLM lists them. */
#define RE_DEEPSEEK_LETTERS                                                                                                    \
    S "?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}"       \
      "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}"           \
      "\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}"             \
      "\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}"     \
      "\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}"      \
      "\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}"      \
      "\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"      \
      "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}"       \
      "\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}"       \
      "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}"      \
      "\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}"     \
      "\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"              \
      "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+"

/* Rules that are functions, named where an expression would stand. */
#define FN_TRAILING_SPACE "trailing space" /* \s+$ */
#define FN_NUMBERS_BY_3 "numbers by 3"     /* \p{N} in groups of three, counted from the right */
#define FN_DIGITS_BY_3 "digits by 3"       /* \d{1,3}(?=(?:\d{3})*\b) */
#define FN_NUMBER_RUNS_BY_3 "number runs"  /* \p{N}+, then a cut wherever (?=(\d{3})+(?!\d)) holds */

typedef struct scheme {
    const char *name;
    const char *rules[MAX_RULES];
    tok_pre_traits traits;
} scheme;

static const scheme schemes[] = {
    {"default", {"[\\p{P}\\$\\+<=>\\^~\\|]+", RE_GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"gpt-2", {RE_GPT2}},
    {"digits+gpt-2", {"\\p{N}", RE_GPT2}},
    {"llama-bpe", {RE_LLAMA3}, {.ignore_merges = true, .add_bos = true}},
    {"llama-bpe with merges", {RE_LLAMA3}},
    {"glm4", {RE_LLAMA3}, {.ignore_merges = true}},
    {"jais-2",
     {CONTRACTION "|" WORD "\\p{N}{1,3}|" OTHER "[\\r\\n]*|" NEWLINES S "{512}(?![^" SPACES "])|" S "{256}(?![^" SPACES "])|" S
                  "{128}(?![^" SPACES "])|" S "{64}(?![^" SPACES "])|" S "{32}(?![^" SPACES "])|" S "{16}(?![^" SPACES "])|" S
                  "{8}(?![^" SPACES "])|" S "{4}(?![^" SPACES "])|" S "{1,2}(?![^" SPACES "])|" S}},
    {"minicpm5", {"\\p{N}{1,3}", CONTRACTION "|" WORD "\\p{N}+|" OTHER "[\\r\\n]*|" NEWLINES S_TAIL}, {.ignore_merges = true}},
    {"qwen2", {RE_QWEN2}},
    {"qwen35",
     {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" SPACES
                  "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" NEWLINES S_TAIL}},
    {"ufakzeka", {WORD "\\p{N}|" OTHER "[\\r\\n]*|" NEWLINES S_TAIL}},
    {"laguna", {"[^\\n]+|[\\n]+", RE_QWEN2}},
    {"exaone-moe",
     {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}\\p{M}*(?: ?\\p{L}\\p{M}*)*+|\\p{N}|" OTHER "[\\r\\n/]?|" S
                  "*[\\r\\n]|" S_TAIL}},
    {"bailingmoe",
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" SPACES "\\p{L}\\p{N}]++[\\r\\n]*|" S
      "*[\\r\\n]|" S_TAIL}},
    {"seed-coder", {CONTRACTION "|" WORD "\\p{N}| ?[^" SPACES "\\p{L}\\p{N}\\r\\n]+|" NEWLINES S_TAIL}},
    {"deepseek-llm",
     {"[\\r\\n]", RE_DEEPSEEK_LETTERS,
      S "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+", FN_TRAILING_SPACE,
      RE_DEEPSEEK_CJK, "\\p{N}+"}},
    {"deepseek-coder", {"[\\r\\n]", S "?\\p{L}+", S "?\\p{P}+", RE_DEEPSEEK_CJK, "\\p{N}"}},
    {"deepseek-v3", {"\\p{N}{1,3}", RE_KANA, RE_DEEPSEEK3_WORDS}},
    {"spark2_5",
     {"\\p{N}{1,3}", RE_KANA,
      ASCII_PUNCTUATION "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+|[\\r\\n]|" S_TAIL, "\\p{N}"}},
    {"youtu",
     {"[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}\\x{2019}\\x{2014}\\x{ff1a}"
      "\\x{ff1b}\\x{ff0c}\\x{3001}-\\x{303f}\\x{fe30}-\\x{fe4f}]+|[\\x{3105}-\\x{312f}]+|" RE_KANA,
      CASED(CAPITAL, SMALL, CONTRACTION "?") "\\p{N}|" OTHER "[\\r\\n/]*|" NEWLINES S_TAIL},
     {.ignore_merges = true}},
    {"falcon", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", RE_GPT2, "[0-9][0-9][0-9]"}},
    {"bloom", {RE_BLOOM}},
    {"viking", {RE_BLOOM, "\\p{N}"}},
    {"tekken",
     {CASED(CAPITAL, SMALL, "") "\\p{N}|" OTHER "[\\r\\n/]*|" NEWLINES S_TAIL},
     {.ignore_merges = true, .add_bos = true}},
    {"gpt-4o", {RE_GPT4O}},
    {"granite-embed-multi-97m", {RE_GPT4O}, {.ignore_merges = true}},
    {"tiny_aya", {FN_DIGITS_BY_3, RE_GPT4O}},
    {"chameleon",
     {"<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\\t\\n]|    |  ", "\\p{N}", "[\\p{P}!-/:-@\\[-`{-~]", RE_GPT2},
     {.add_bos = true}},
    {"kimi-k2",
     {"\\p{sc:Han}+|" CASED(CAPITAL_NOT_HAN, SMALL_NOT_HAN, CONTRACTION "?") "\\p{N}{1,3}|" OTHER
                                                                             "[\\r\\n]*|" NEWLINES S_TAIL}},
    {"superbpe", {FN_NUMBER_RUNS_BY_3}},
    {"afmoe",
     {FN_NUMBERS_BY_3,
      "[\\x{4e00}-\\x{9fff}\\x{3400}-\\x{4dbf}\\x{f900}-\\x{faff}\\x{3040}-\\x{30ff}\\x{ff65}-\\x{ff9f}\\x{2f00}-\\x{2fdf}"
      "\\x{e40}-\\x{eff}\\x{1780}-\\x{17ff}\\x{1000}-\\x{109f}\\x{aa60}-\\x{aa7f}\\x{a9e0}-\\x{a9ff}\\x{ac00}-\\x{d7af}"
      "\\x{1100}-\\x{11ff}]+",
      RE_DEEPSEEK3_WORDS}},
    {"gemma4",
     {"[^\\n]+|[\\n]+"},
     {.raw = true, .escape_spaces = true, .whole_newlines = true, .add_bos = true, .force_bos = true}},
    {"sarvam-moe", {"[^\\n]+|[\\n]+"}, {.raw = true, .escape_spaces = true}},
    {"whitespace", {"[^" SPACES "]+"}, {.raw = true, .drop_spaces = true}},
};

/* Names of tokenizer.ggml.pre that are not the name of their scheme. */
static const struct {
    const char *name, *scheme;
} aliases[] = {
    {"", "default"},
    {"phi-2", "gpt-2"},
    {"jina-es", "gpt-2"},
    {"jina-de", "gpt-2"},
    {"gigachat", "gpt-2"},
    {"jina-v2-es", "gpt-2"},
    {"jina-v2-de", "gpt-2"},
    {"a.x-4.0", "gpt-2"},
    {"mellum", "gpt-2"},
    {"modern-bert", "gpt-2"},
    {"jina-v1-en", "gpt-2"},
    {"jina-v2-code", "gpt-2"},
    {"roberta-bpe", "gpt-2"},
    {"mpt", "gpt-2"},
    {"olmo", "gpt-2"},
    {"jais", "gpt-2"},
    {"exaone4", "gpt-2"},
    {"trillion", "gpt-2"},
    {"granite-docling", "gpt-2"},
    {"starcoder", "digits+gpt-2"},
    {"refact", "digits+gpt-2"},
    {"command-r", "digits+gpt-2"},
    {"smollm", "digits+gpt-2"},
    {"codeshell", "digits+gpt-2"},
    {"exaone", "digits+gpt-2"},
    {"minerva-7b", "digits+gpt-2"},
    {"mellum2", "digits+gpt-2"},
    {"llama3", "llama-bpe"},
    {"llama-v3", "llama-bpe"},
    {"falcon3", "llama-bpe"},
    {"falcon-h1", "llama-bpe"},
    {"pixtral", "llama-bpe"},
    {"midm-2.0", "llama-bpe"},
    {"lfm2", "llama-bpe"},
    {"jina-v5-nano", "llama-bpe"},
    {"dbrx", "llama-bpe with merges"},
    {"smaug-bpe", "llama-bpe with merges"},
    {"chatglm-bpe", "llama-bpe with merges"},
    {"glm5", "glm4"},
    {"deepseek-r1-qwen", "qwen2"},
    {"kormo", "qwen2"},
    {"f2llmv2", "qwen2"},
    {"stablelm2", "qwen2"},
    {"megrez", "qwen2"},
    {"hunyuan", "qwen2"},
    {"solar-open", "qwen2"},
    {"grok-2", "qwen2"},
    {"hunyuan-dense", "deepseek-v3"},
    {"joyai-llm", "deepseek-v3"},
    {"hy_v4", "deepseek-v3"},
    {"poro-chat", "bloom"},
    {"gpt3-finnish", "bloom"},
    {"llama4", "gpt-4o"},
    {"kanana2", "gpt-4o"},
    {"talkie", "gpt-4o"},
    {"minimax-m2", "gpt-4o"},
    {"cohere2moe", "tiny_aya"},
    {"bailingmoe2", "bailingmoe"},
    {"llada-moe", "bailingmoe"},
    {"granite-embed-multi-311m", "gemma4"},
};

/* ---- compiled rules ----------------------------------------------------------------------------------------------------- */

typedef void (*split_fn)(tok_work *w, const char *text, size_t begin, size_t end);

typedef struct rule {
    split_fn split; /* or NULL: */
    pcre2_code *code;
} rule;

struct tok_pre {
    rule rules[MAX_RULES];
    size_t n_rules;
};

/* Ends a piece in the list that is being made; the loop over the rules has reserved nothing, so that this may fail. */
static void push_end(tok_work *w, size_t end) {
    if (tok_work_grow(w, (void **)&w->ends[0], &w->ends_capacity[0], w->n_ends + 1, sizeof(size_t)))
        w->ends[0][w->n_ends++] = end;
}

bool tok_is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static void split_trailing_space(tok_work *w, const char *text, size_t begin, size_t end) {
    size_t last = begin; /* end of the last character that is no space */
    for (size_t at = begin; at < end;) {
        uint32_t c;
        at += utf8_decode(text + at, end - at, &c);
        if (!tok_is_space(c)) last = at;
    }
    if (last > begin && last < end) push_end(w, last);
    push_end(w, end);
}

enum { CLASS_DIGIT = 1, CLASS_NUMBER = 2, CLASS_WORD = 4 };

static int class_of(uint32_t c) {
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_ND: return CLASS_DIGIT | CLASS_NUMBER | CLASS_WORD;
    case UTF8PROC_CATEGORY_NL: return CLASS_NUMBER | CLASS_WORD;
    case UTF8PROC_CATEGORY_NO: return CLASS_NUMBER;
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC: return CLASS_WORD;
    default: return 0;
    }
}

/* Cuts the run text[begin, end) of `n` characters so that all groups but the first have three. */
static void push_groups(tok_work *w, const char *text, size_t begin, size_t end, size_t n) {
    for (size_t at = begin; at < end;) {
        uint32_t c;
        at += utf8_decode(text + at, end - at, &c);
        if (--n % 3 == 0) push_end(w, at);
    }
}

/* Runs of characters of `class` become pieces: in groups of three from the right or, where `word_end` is asked for and a word
 * character follows, left as they are and joined with what is around them. */
static void split_runs(tok_work *w, const char *text, size_t begin, size_t end, int class, bool word_end) {
    size_t piece = begin;
    for (size_t at = begin; at < end;) {
        uint32_t c;
        size_t n = 0, run = at;
        int after = 0;
        while (at < end) {
            const size_t length = utf8_decode(text + at, end - at, &c);
            after = class_of(c);
            if (!(after & class)) break;
            at += length;
            n++;
        }
        if (n > 0 && (at == end || !word_end || !(after & CLASS_WORD))) {
            if (run > piece) push_end(w, run);
            push_groups(w, text, run, at, n);
            piece = at;
        }
        if (n == 0) at += utf8_decode(text + at, end - at, &c);
    }
    if (end > piece) push_end(w, end);
}

static void split_numbers_by_3(tok_work *w, const char *text, size_t begin, size_t end) {
    split_runs(w, text, begin, end, CLASS_NUMBER, false);
}

static void split_digits_by_3(tok_work *w, const char *text, size_t begin, size_t end) {
    split_runs(w, text, begin, end, CLASS_DIGIT, true);
}

/* Cuts text[begin, end), a run of numbers, wherever a multiple of three ASCII digits follows, and at its end. */
static void push_number_run(tok_work *w, const char *text, size_t begin, size_t end) {
    size_t piece = begin;
    for (size_t at = begin; at < end;) {
        size_t n = 0;
        while (at + n < end && text[at + n] >= '0' && text[at + n] <= '9') n++;
        for (; n > 0; n--, at++)
            if (n % 3 == 0 && at > piece) push_end(w, piece = at);
        if (at < end) at++; /* the rest of another character is no digit */
    }
    push_end(w, end);
}

static void split_number_runs(tok_work *w, const char *text, size_t begin, size_t end) {
    size_t piece = begin;
    for (size_t at = begin; at < end;) {
        uint32_t c;
        const size_t run = at;
        size_t length = 0;
        while (at < end && (length = utf8_decode(text + at, end - at, &c), class_of(c) & CLASS_NUMBER)) at += length;
        if (at > run) {
            if (run > piece) push_end(w, run);
            push_number_run(w, text, run, at);
            piece = at;
        } else {
            at += length;
        }
    }
    if (end > piece) push_end(w, end);
}

/* 1 = matched at *from..*to; 0 = no match in the rest, or the matcher gave up: the rest then stays one piece. */
static int next_match(const rule *r, tok_work *w, const char *text, size_t n_bytes, size_t start, size_t *from, size_t *to) {
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text, n_bytes, start, PCRE2_NO_UTF_CHECK, w->match_data, NULL);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->code, (PCRE2_SPTR)text, n_bytes, start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, w->match_data, NULL);
    if (rc == PCRE2_ERROR_NOMEMORY) w->failed = true;
    if (rc < 0) return 0;
    const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(w->match_data);
    *from = ovector[0];
    *to = ovector[1];
    return *to > *from;
}

static void split_by_expression(const rule *r, tok_work *w, const char *text, size_t begin, size_t end) {
    size_t from, to, at = 0;
    const size_t n_bytes = end - begin;
    while (at < n_bytes && next_match(r, w, text + begin, n_bytes, at, &from, &to)) {
        if (from > at) push_end(w, begin + from);
        push_end(w, begin + to);
        at = to;
    }
    if (at < n_bytes) push_end(w, end);
}

bool tok_pre_split(const tok_pre *pre, tok_work *w, const char *text, size_t n_bytes) {
    if (w->match_data == NULL) w->match_data = pcre2_match_data_create(1, NULL);
    if (w->match_data == NULL) {
        w->failed = true;
        return false;
    }
    w->n_ends = 0;
    push_end(w, n_bytes);
    for (size_t i = 0; i < pre->n_rules && !w->failed; i++) {
        size_t *ends = w->ends[0], capacity = w->ends_capacity[0], n = w->n_ends, begin = 0;
        w->ends[0] = w->ends[1];
        w->ends_capacity[0] = w->ends_capacity[1];
        w->ends[1] = ends;
        w->ends_capacity[1] = capacity;
        w->n_ends = 0;
        for (size_t piece = 0; piece < n && !w->failed; begin = ends[piece++]) {
            if (pre->rules[i].split) pre->rules[i].split(w, text, begin, ends[piece]);
            else split_by_expression(&pre->rules[i], w, text, begin, ends[piece]);
        }
    }
    return !w->failed;
}

void tok_pre_work_free(tok_work *w) {
    pcre2_match_data_free(w->match_data);
    free(w->ends[0]);
    free(w->ends[1]);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    split_fn split;
} functions[] = {
    {FN_TRAILING_SPACE, split_trailing_space},
    {FN_NUMBERS_BY_3, split_numbers_by_3},
    {FN_DIGITS_BY_3, split_digits_by_3},
    {FN_NUMBER_RUNS_BY_3, split_number_runs},
};

static int compile_rule(rule *r, const char *source, weir_error *err) {
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (strcmp(source, functions[i].name) == 0) r->split = functions[i].split;
    if (r->split) return 0;
    int code;
    PCRE2_SIZE offset;
    r->code = pcre2_compile((PCRE2_SPTR)source, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &code,
                            &offset, NULL);
    FAIL_IF(r->code == NULL && code == PCRE2_ERROR_HEAP_FAILED, err, WEIR_E_NOMEM, "tokenizer.ggml.pre", "out of memory");
    if (r->code == NULL) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        FAIL(err, WEIR_E_INTERNAL, "tokenizer.ggml.pre", "expression does not compile: %s at offset %zu", (char *)text,
             (size_t)offset);
    }
    /* Where the system forbids executable memory this fails, and matching is interpreted: slower, with the same result. */
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    return 0;
}

static bool is_name(tok_string s, const char *name) {
    return strlen(name) == s.n_bytes && (s.n_bytes == 0 || memcmp(s.text, name, s.n_bytes) == 0);
}

static const scheme *find_scheme(tok_string name) {
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++) {
        if (!is_name(name, aliases[i].name)) continue;
        name = (tok_string){aliases[i].scheme, strlen(aliases[i].scheme)};
        break;
    }
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (is_name(name, schemes[i].name)) return &schemes[i];
    return NULL;
}

/* Schemes with a blank or a plus in their name are reached by aliases only. */
static bool is_public(const scheme *s) { return strpbrk(s->name, "+ ") == NULL; }

const char *tok_pre_name(size_t index) {
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (is_public(&schemes[i]) && index-- == 0) return schemes[i].name;
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (aliases[i].name[0] && index-- == 0) return aliases[i].name;
    return NULL;
}

static int unknown_name(tok_string name, weir_error *err) {
    nearest near;
    buf known = {.limit = 320};
    nearest_begin(&near, name.text, name.n_bytes);
    for (size_t i = 0; tok_pre_name(i); i++) nearest_try(&near, tok_pre_name(i));
    for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
        if (is_public(&schemes[i])) buf_printf(&known, "%s%s", known.n_bytes ? ", " : "", schemes[i].name);
    error_set(err, WEIR_E_UNSUPPORTED, "tokenizer.ggml.pre",
              "pre-tokeniser '%.*s' is not known%s%s; supported are %s and the names that mean the same as one of them",
              (int)(name.n_bytes < 40 ? name.n_bytes : 40), name.text, near.best ? "; the nearest name is " : "",
              near.best ? near.best : "", known.data ? known.data : "");
    buf_free(&known);
    return WEIR_E_UNSUPPORTED;
}

int tok_pre_open(tok_pre **out, tok_string name, tok_pre_traits *traits, weir_error *err) {
    const scheme *found = find_scheme(name);
    *out = NULL;
    if (found == NULL) return unknown_name(name, err);
    tok_pre *pre = calloc(1, sizeof *pre);
    FAIL_IF(pre == NULL, err, WEIR_E_NOMEM, "tokenizer.ggml.pre", "out of memory");
    int rc = 0;
    for (size_t i = 0; i < MAX_RULES && found->rules[i] && rc == 0; i++) {
        rc = compile_rule(&pre->rules[i], found->rules[i], err);
        pre->n_rules = i + 1;
    }
    *traits = found->traits;
    if (rc == 0) *out = pre;
    else tok_pre_close(&pre);
    return rc;
}

void tok_pre_close(tok_pre **pre) {
    if (*pre == NULL) return;
    for (size_t i = 0; i < (*pre)->n_rules; i++) pcre2_code_free((*pre)->rules[i].code);
    free(*pre);
    *pre = NULL;
}
