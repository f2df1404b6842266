/* See reply.h. An answer is text in which markers open blocks. Text leaves at once, but for what may be the beginning of a marker and
 * for white space that may turn out to stand before a call; reasoning leaves as it comes; a block of calls is collected to its end and
 * then read as a whole (reply_calls.c), so that a malformed one can be given as text. Every byte is looked at a bounded number of
 * times. */
#include "chat/reply.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chat/reply_internal.h"

/* A block of the answer: from `open` to `close` (NULL: to the end of its JSON value, else of the answer). It may occur if the template
 * contains `sign`. */
typedef struct block {
    const char *open, *close;
    reply_body body;
    const char *sign;
    const char *also; /* ends it, too; NULL = nothing */
} block;

#define BAR "\xEF\xBD\x9C" /* DeepSeek's wide bar, and its word separator */
#define SEP "\xE2\x96\x81"

static const block blocks[] = {
    {"<think>", "</think>", BODY_REASONING, "</think>"},
    {"<|START_THINKING|>", "<|END_THINKING|>", BODY_REASONING, "<|START_THINKING|>"},
    {"<|channel|>", "<|message|>", BODY_CHANNEL, "<|channel|>"},
    {"<|start|>assistant", "", BODY_SKIP, "<|channel|>"},
    {"<|end|>", "", BODY_SKIP, "<|channel|>"},
    {"<|return|>", "", BODY_SKIP, "<|channel|>"},
    {"<|call|>", "", BODY_SKIP, "<|channel|>"},
    {"<|START_RESPONSE|>", "", BODY_SKIP, "<|START_RESPONSE|>"},
    {"<|END_RESPONSE|>", "", BODY_SKIP, "<|START_RESPONSE|>"},
    {"<|START_TEXT|>", "", BODY_SKIP, "<|START_TEXT|>"},
    {"<|END_TEXT|>", "", BODY_SKIP, "<|START_TEXT|>"},
    {"<response>", "", BODY_SKIP, "<response>"},
    {"</response>", "", BODY_SKIP, "<response>"},
    {"<tool_call>", "</tool_call>", BODY_TAGGED, "<tool_call>"},
    {"<function=", "</function>", BODY_FUNCTION, "<function"},
    {"[TOOL_CALLS]", NULL, BODY_MISTRAL, "[TOOL_CALLS]"},
    {"<|python_tag|>", NULL, BODY_JSON, "<|python_tag|>"},
    {"<" BAR "tool" SEP "calls" SEP "begin" BAR ">", "<" BAR "tool" SEP "calls" SEP "end" BAR ">", BODY_DEEPSEEK, "tool" SEP "calls" SEP "begin"},
    {"<" BAR "DSML" BAR "function_calls>", "</" BAR "DSML" BAR "function_calls>", BODY_INVOKE, BAR "DSML" BAR},
    {"<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", BODY_KIMI, "<|tool_calls_section_begin|>"},
    {"<minimax:tool_call>", "</minimax:tool_call>", BODY_INVOKE, "minimax:tool_call"},
    {"<|START_ACTION|>", "<|END_ACTION|>", BODY_JSON, "<|START_ACTION|>"},
    {"Action:\n```json", "```", BODY_JSON, "Action:"},
    {"Action: ```json", "```", BODY_JSON, "Action:"},
    {"<|tool_call|>", NULL, BODY_JSON, "<|tool_call|>"},
};
enum { N_BLOCKS = sizeof blocks / sizeof blocks[0], MAX_NAME = 128 };

/* Of blocks that no marker opens. */
static const block plain_json = {"", NULL, BODY_JSON, NULL};
static const block analysis = {"", "<|end|>", BODY_REASONING, NULL};
static const block channel_call = {"", "<|call|>", BODY_ARGUMENTS, NULL, "<|end|>"};
static const block open_reasoning = {"", "</think>", BODY_REASONING, NULL};

struct reply_parser {
    reply_fn emit;
    void *user;
    const json_t *tools;
    bool enabled[N_BLOCKS];
    bool first[256];   /* bytes that begin an enabled marker */
    bool starts_plain; /* an answer that begins with { or [ may be a call */
    const block *in;   /* NULL: in text */
    buf opened;        /* what stood for the block's beginning, should it be text after all */
    buf pending;       /* not yet handed on */
    size_t at;         /* bytes of it that were looked at */
    bool had_text;     /* text that is not white space */
    buf space;         /* white space that waits for what follows */
    char name[MAX_NAME];
    /* JSON in the block that is collected. */
    bool tracks, in_string, escaped;
    size_t depth;
    bool failed;
};

bool reply_knows_reasoning(const char *chat_template) {
    for (size_t i = 0; i < N_BLOCKS && chat_template; i++)
        if ((blocks[i].body == BODY_REASONING || blocks[i].body == BODY_CHANNEL) && strstr(chat_template, blocks[i].sign)) return true;
    return false;
}

reply_parser *reply_open(const reply_options *options, reply_fn emit, void *user) {
    reply_parser *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->emit = emit;
    p->user = user;
    p->tools = json_array_size(options->tools) ? options->tools : NULL;
    bool has_calls = false;
    for (size_t i = 0; i < N_BLOCKS; i++) {
        const block *b = &blocks[i];
        bool reasoning = b->body == BODY_REASONING || b->body == BODY_CHANNEL || b->body == BODY_SKIP;
        p->enabled[i] = options->chat_template && strstr(options->chat_template, b->sign) && (reasoning ? options->reasoning : p->tools != NULL);
        if (p->enabled[i]) p->first[(unsigned char)b->open[0]] = true;
        has_calls = has_calls || (p->enabled[i] && !reasoning && b->body != BODY_FUNCTION) ||
                    (p->enabled[i] && b->body == BODY_CHANNEL);
        if (p->enabled[i] && strcmp(b->open, "<|python_tag|>") == 0) has_calls = false; /* Llama 3 says it without a marker, too */
    }
    p->starts_plain = p->tools && (options->only_json || !has_calls);
    if (options->in_reasoning && options->reasoning) p->in = &open_reasoning;
    return p;
}

void reply_close(reply_parser **handle) {
    reply_parser *p = *handle;
    if (p == NULL) return;
    *handle = NULL;
    buf_free(&p->opened);
    buf_free(&p->pending);
    buf_free(&p->space);
    free(p);
}

/* ---- handing on --------------------------------------------------------------------------------------------------------- */

static void hand_on(reply_parser *p, reply_kind kind, const char *text, size_t n_bytes) {
    if (n_bytes) p->emit(p->user, &(reply_event){kind, text, n_bytes, NULL});
}

/* Text or reasoning, without white space around it. */
static void hand_on_trimmed(reply_parser *p, reply_kind kind, const char *text, size_t n_bytes) {
    size_t n = n_bytes, first = 0;
    if (!p->had_text)
        while (first < n && reply_is_space(text[first])) first++;
    while (n > first && reply_is_space(text[n - 1])) n--;
    if (n > first) {
        if (p->space.n_bytes) hand_on(p, kind, p->space.data, p->space.n_bytes);
        buf_clear(&p->space);
        hand_on(p, kind, text + first, n - first);
        p->had_text = true;
    }
    if (n_bytes > n) buf_append(&p->space, text + n, n_bytes - n);
    if (!p->had_text) buf_clear(&p->space);
}

static void leave_block(reply_parser *p) {
    if (p->in && p->in->body == BODY_REASONING) { /* white space behind it is not the answer's */
        p->had_text = false;
        buf_clear(&p->space);
    }
    p->in = NULL;
    buf_clear(&p->opened);
    p->at = 0;
}

/* The first n bytes are done with. */
static void consume(reply_parser *p, size_t n) {
    buf_consume(&p->pending, n);
    p->at = 0;
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------- */

static void enter(reply_parser *p, const block *b) {
    p->in = b;
    p->in_string = p->escaped = false;
    p->depth = 0;
    p->at = 0;
    p->tracks = b->body != BODY_INVOKE && b->body != BODY_TAGGED && b->body != BODY_FUNCTION && b->body != BODY_MISTRAL;
    if (b->body == BODY_REASONING) {
        p->had_text = false;
        buf_clear(&p->space);
    }
    if (b->body == BODY_SKIP) p->in = NULL;
}

/* gpt-oss: "analysis", "final", "commentary to=functions.NAME <|constrain|>json". */
static void read_channel(reply_parser *p, const char *header, size_t n_bytes) {
    static const char to[] = "to=functions.";
    const char *name = memmem(header, n_bytes, to, strlen(to));
    leave_block(p);
    if (name && p->tools) {
        name += strlen(to);
        size_t n = 0;
        while (n + 1 < MAX_NAME && name + n < header + n_bytes && !reply_is_space(name[n]) && name[n] != '<') n++;
        memcpy(p->name, name, n);
        p->name[n] = '\0';
        enter(p, &channel_call);
    } else if (n_bytes >= 8 && memcmp(header, "analysis", 8) == 0) {
        enter(p, &analysis);
    }
}

/* The block's body is text[n_bytes]; `close` is what ended it. */
static void end_block(reply_parser *p, const char *text, size_t n_bytes, const char *close) {
    call_list calls = {0};
    const block *b = p->in;
    if (b->body == BODY_CHANNEL) {
        read_channel(p, text, n_bytes);
        return;
    }
    if (reply_read_calls(&calls, b->body, text, n_bytes, p->name, p->tools)) {
        const char *at = calls.bytes.data;
        for (size_t i = 0; i < calls.n; i++) {
            const char *arguments = at + strlen(at) + 1;
            p->emit(p->user, &(reply_event){REPLY_CALL, arguments, strlen(arguments), at});
            at = arguments + strlen(arguments) + 1;
        }
        buf_clear(&p->space);
        p->had_text = false; /* line ends between calls are not the answer's */
    } else {
        hand_on_trimmed(p, REPLY_TEXT, p->opened.data ? p->opened.data : "", p->opened.n_bytes);
        hand_on_trimmed(p, REPLY_TEXT, text, n_bytes);
        hand_on_trimmed(p, REPLY_TEXT, close, strlen(close));
    }
    if (calls.bytes.failed) p->failed = true;
    buf_free(&calls.bytes);
    leave_block(p);
}

/* Follows the JSON of a block by one byte; true when a value has ended. */
static bool track(reply_parser *p, char c) {
    if (!p->tracks) { /* where nothing else comes first, from the first bracket on */
        bool late = p->in->body == BODY_TAGGED || p->in->body == BODY_FUNCTION || p->in->body == BODY_MISTRAL;
        bool begins = c == '{' || (c == '[' && (p->in->body == BODY_TAGGED || (p->in->body == BODY_MISTRAL && p->at < 2)));
        if (p->in->body == BODY_TAGGED && !reply_is_space(c) && !begins && p->depth == 0) p->depth = SIZE_MAX; /* tags: never */
        if (p->in->body == BODY_FUNCTION && c == '<') p->depth = SIZE_MAX;
        if (!late || !begins || p->depth == SIZE_MAX) return false;
        p->tracks = true;
        p->depth = 0;
    }
    if (p->in_string) {
        if (p->escaped)
            p->escaped = false;
        else if (c == '\\')
            p->escaped = true;
        else if (c == '"')
            p->in_string = false;
    } else if (c == '{' || c == '[') {
        p->depth++;
    } else if (p->depth > 0 && c == '"') {
        p->in_string = true;
    } else if (p->depth > 0 && (c == '}' || c == ']')) {
        return --p->depth == 0;
    }
    return false;
}

typedef enum match { MATCH_NO, MATCH_PART, MATCH_WHOLE } match;

static match match_at(const buf *text, size_t at, const char *marker) {
    size_t n = strlen(marker), left = text->n_bytes - at;
    if (memcmp(text->data + at, marker, n < left ? n : left) != 0) return MATCH_NO;
    return n <= left ? MATCH_WHOLE : MATCH_PART;
}

/* The first n bytes that are pending, and then `close`, are the rest of the block. */
static void cut_block(reply_parser *p, size_t n, const char *close) {
    const size_t n_all = n + strlen(close);
    buf body = p->pending;
    p->pending = BUF_INIT;
    if (body.n_bytes > n_all) buf_append(&p->pending, body.data + n_all, body.n_bytes - n_all);
    end_block(p, body.data ? body.data : "", n, close);
    buf_free(&body);
}

/* Looks on in a block that is collected. True = it has ended. */
static bool collect(reply_parser *p) {
    const char *closes[2] = {p->in->close, p->in->also};
    for (; p->at < p->pending.n_bytes; p->at++) {
        char c = p->pending.data[p->at];
        for (int i = 0; i < 2 && !(p->tracks && p->in_string); i++) {
            match m = closes[i] && c == closes[i][0] ? match_at(&p->pending, p->at, closes[i]) : MATCH_NO;
            if (m == MATCH_PART) return false;
            if (m == MATCH_NO) continue;
            cut_block(p, p->at, closes[i]);
            return true;
        }
        if (!track(p, c) || p->in->close) continue;
        cut_block(p, p->at + 1, "");
        return true;
    }
    return false;
}

/* Reasoning goes on to its end. True = it has ended. */
static bool reason(reply_parser *p) {
    for (; p->at < p->pending.n_bytes; p->at++) {
        if (p->pending.data[p->at] != p->in->close[0]) continue;
        match m = match_at(&p->pending, p->at, p->in->close);
        if (m == MATCH_NO) continue;
        hand_on_trimmed(p, REPLY_REASONING, p->pending.data, p->at);
        consume(p, p->at + (m == MATCH_WHOLE ? strlen(p->in->close) : 0));
        if (m == MATCH_WHOLE) leave_block(p);
        return m == MATCH_WHOLE;
    }
    hand_on_trimmed(p, REPLY_REASONING, p->pending.data, p->pending.n_bytes);
    consume(p, p->pending.n_bytes);
    return false;
}

/* ---- text --------------------------------------------------------------------------------------------------------------- */

/* The block that begins at `at`, the longest marker first; *part = one may begin there. */
static const block *block_at(const reply_parser *p, size_t at, bool *part) {
    const block *found = NULL;
    *part = false;
    for (size_t i = 0; i < N_BLOCKS; i++) {
        if (!p->enabled[i]) continue;
        match m = match_at(&p->pending, at, blocks[i].open);
        if (m == MATCH_PART) *part = true;
        if (m == MATCH_WHOLE && (found == NULL || strlen(blocks[i].open) > strlen(found->open))) found = &blocks[i];
    }
    return found;
}

/* True = a block was opened, or a marker passed over. */
static bool scan_text(reply_parser *p) {
    for (; p->at < p->pending.n_bytes; p->at++) {
        char c = p->pending.data[p->at];
        bool part = false;
        if (p->starts_plain && !p->had_text && !reply_is_space(c)) {
            p->starts_plain = false;
            if (c == '{' || c == '[') {
                consume(p, p->at);
                enter(p, &plain_json);
                return true;
            }
        }
        if (!p->first[(unsigned char)c]) continue;
        const block *b = block_at(p, p->at, &part);
        if (b == NULL && !part) continue;
        hand_on_trimmed(p, REPLY_TEXT, p->pending.data, p->at);
        consume(p, p->at);
        if (b == NULL) return false;
        buf_clear(&p->opened);
        buf_append(&p->opened, b->open, strlen(b->open));
        consume(p, strlen(b->open));
        enter(p, b);
        return true;
    }
    hand_on_trimmed(p, REPLY_TEXT, p->pending.data, p->pending.n_bytes);
    consume(p, p->pending.n_bytes);
    return false;
}

static bool is_fine(const reply_parser *p) { return !p->failed && !p->pending.failed && !p->space.failed && !p->opened.failed; }

static bool step(reply_parser *p) {
    if (p->pending.n_bytes == 0 || !is_fine(p)) return false;
    if (p->in == NULL) return scan_text(p);
    return p->in->body == BODY_REASONING ? reason(p) : collect(p);
}

bool reply_push(reply_parser *p, const char *text, size_t n_bytes) {
    buf_append(&p->pending, text, n_bytes);
    while (step(p)) {}
    return is_fine(p);
}

bool reply_finish(reply_parser *p) {
    while (p->in && p->in->body != BODY_REASONING && is_fine(p)) cut_block(p, p->pending.n_bytes, ""); /* it is all there is */
    if (p->pending.n_bytes) hand_on_trimmed(p, p->in ? REPLY_REASONING : REPLY_TEXT, p->pending.data, p->pending.n_bytes);
    if (p->in == NULL && p->had_text && p->space.n_bytes) hand_on(p, REPLY_TEXT, p->space.data, p->space.n_bytes);
    consume(p, p->pending.n_bytes);
    buf_clear(&p->space);
    return is_fine(p);
}
