/* Answers in the notations of the templates: what comes out is the same whether the text comes whole, byte by byte or cut in two
 * anywhere; what is malformed comes out as text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/buf.h"
#include "chat/reply.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define BAR "\xEF\xBD\x9C"
#define SEP "\xE2\x96\x81"

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":"
    "\"integer\"}}}}},{\"type\":\"function\",\"function\":{\"name\":\"say\",\"parameters\":{\"type\":\"object\",\"properties\":{\"text\":{\"type\":\"string\"},"
    "\"loud\":{\"type\":\"boolean\"}}}}}]";

/* Events as one text: pieces of one kind are joined. T(...) text, R(...) reasoning, C name(...) call. */
typedef struct seen {
    buf out;
    int last;
} seen;

static void note(void *user, const reply_event *e) {
    seen *s = user;
    assert_true(e->n_bytes > 0);
    if (e->kind == REPLY_CALL) {
        buf_printf(&s->out, "%sC %s(%.*s)", s->last >= 0 ? ")" : "", e->name, (int)e->n_bytes, e->text);
        s->last = -1;
        return;
    }
    if (s->last != (int)e->kind) buf_printf(&s->out, "%s%s", s->last >= 0 ? ")" : "", e->kind == REPLY_TEXT ? "T(" : "R(");
    s->last = (int)e->kind;
    buf_append(&s->out, e->text, e->n_bytes);
}

/* The text in pieces of `size` bytes, the first of `first`. */
static char *events_of(const reply_options *options, const char *text, size_t n, size_t first, size_t size) {
    seen s = {.last = -1};
    reply_parser *p = reply_open(options, note, &s);
    assert_non_null(p);
    for (size_t at = 0, step = first; at < n; at += step, step = size) {
        if (step == 0) step = 1;
        if (step > n - at) step = n - at;
        char *copy = malloc(step); /* so that reading beyond it is seen */
        memcpy(copy, text + at, step);
        assert_true(reply_push(p, copy, step));
        free(copy);
    }
    assert_true(reply_finish(p));
    reply_close(&p);
    if (s.last >= 0) buf_putc(&s.out, ')');
    buf_reserve(&s.out, 1);
    return buf_take(&s.out, NULL);
}

static const struct {
    const char *chat_template, *text, *wanted;
    bool in_reasoning, only_json;
} cases[] = {
    /* Hermes, Qwen */
    {"<tool_call>", "Hi.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 2.50}}\n</tool_call>", "T(Hi.)C add({\"a\": 1, \"b\": 2.50})"},
    {"<tool_call>", "<tool_call>\n{\"name\":\"add\",\"arguments\":{}}\n</tool_call>\n<tool_call>\n{\"arguments\":{\"text\":\"</tool_call>\\\"\"},\"name\":\"say\"}\n</tool_call>\n",
     "C add({})C say({\"text\":\"</tool_call>\\\"\"})"},
    {"<tool_call>", "<tool_call>{\"name\":\"add\",\"arguments\":\"{\\\"a\\\":1}\"}</tool_call>", "C add({\"a\":1})"},
    {"<tool_call>", "<tool_call>{\"name\":\"add\"}", "C add({})"}, /* the end of the answer is its end */
    {"<tool_call>", "<tool_call>{\"name\":\"add\",\"arguments\":{\"a\":1}", "T(<tool_call>{\"name\":\"add\",\"arguments\":{\"a\":1})"},
    {"<tool_call>", "<tool_call>{\"name\":\"rm\",\"arguments\":{}}</tool_call> ok", "T(<tool_call>{\"name\":\"rm\",\"arguments\":{}}</tool_call> ok)"},
    {"<tool_call>", "<tool_call>nonsense, {[</tool_call>x", "T(<tool_call>nonsense, {[</tool_call>x)"},
    {"<tool_call>", "a < b, <tool, <tool_cal", "T(a < b, <tool, <tool_cal)"},
    {"<tool_call>", "no call  \n", "T(no call  \n)"},
    {"<tool_call>", "{\"name\":\"add\",\"arguments\":{}}", "T({\"name\":\"add\",\"arguments\":{}})"}, /* not this template's notation */
    {"", "<tool_call>{\"name\":\"add\"}</tool_call>", "T(<tool_call>{\"name\":\"add\"}</tool_call>)"},
    /* reasoning */
    {"<think></think><tool_call>", "<think>\nHm <tool_call> \n</think>\n\nYes.", "R(Hm <tool_call>)T(Yes.)"},
    {"<think></think><tool_call>", "Hm.\n</think>\n<tool_call>{\"name\":\"add\",\"arguments\":{}}</tool_call>", "R(Hm.)C add({})", .in_reasoning = true},
    {"<think></think>", "<think></think>\n\nYes.", "T(Yes.)"},
    {"<think></think>", "<think>never ends </thin", "R(never ends </thin)"},
    {"<|START_THINKING|><|START_RESPONSE|>", "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>", "R(Hm)T(Yes)"},
    {"<think></think><response><|tool_call|>", "<think>Hm</think><response>Yes</response>", "R(Hm)T(Yes)"},
    /* Qwen3-Coder */
    {"<tool_call><function=", "<tool_call>\n<function=say>\n<parameter=text>\ntwo\nlines {\"\n</parameter>\n<parameter=loud>\ntrue\n</parameter>\n</function>\n</tool_call>",
     "C say({\"text\":\"two\\nlines {\\\"\",\"loud\":true})"},
    {"<tool_call><function=", "<function=say>\n<parameter=text>12</parameter></function>", "C say({\"text\":\"12\"})"},
    {"<tool_call><function=", "<tool_call><function=say><parameter=text>x</function></tool_call>", "T(<tool_call><function=say><parameter=text>x</function></tool_call>)"},
    /* GLM */
    {"<tool_call>", "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>x</arg_value>\n</tool_call>", "C add({\"a\":1,\"b\":\"x\"})"},
    {"<tool_call>", "<tool_call>add</tool_call>", "C add({})"},
    /* Llama 3, functionary */
    {"<|python_tag|>", "{\"name\": \"add\", \"parameters\": {\"a\": \"1\"}}", "C add({\"a\": \"1\"})"},
    {"<|python_tag|>", "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}", "C add({})"},
    {"<|python_tag|>", " {\"name\": \"none\", \"parameters\": {}}", "T({\"name\": \"none\", \"parameters\": {}})"},
    {"<|python_tag|>", "{\"answer\": 42}", "T({\"answer\": 42})"},
    {"<function=", "<function=add>{\"a\": 1}</function><function=say>{\"text\":\"</function>\"}</function>", "C add({\"a\": 1})C say({\"text\":\"</function>\"})"},
    /* Mistral */
    {"[TOOL_CALLS]", "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"}, {\"name\":\"say\",\"arguments\":{\"text\":\"]\"}}]",
     "C add({\"a\": 1})C say({\"text\":\"]\"})"},
    {"[TOOL_CALLS]", "Fine. [TOOL_CALLS]add[CALL_ID]123456789[ARGS]{\"a\": 1}[TOOL_CALLS]say[ARGS]{}", "T(Fine.)C add({\"a\": 1})C say({})"},
    {"[TOOL_CALLS]", "[TOOL_CALLS]what?", "T([TOOL_CALLS]what?)"},
    /* DeepSeek */
    {"<" BAR "tool" SEP "calls" SEP "begin" BAR ">",
     "<" BAR "tool" SEP "calls" SEP "begin" BAR "><" BAR "tool" SEP "call" SEP "begin" BAR ">function<" BAR "tool" SEP "sep" BAR ">add\n```json\n{\"a\": 1}\n```<" BAR
     "tool" SEP "call" SEP "end" BAR ">\n<" BAR "tool" SEP "call" SEP "begin" BAR ">function<" BAR "tool" SEP "sep" BAR ">say\n```json\n{}\n```<" BAR "tool" SEP "call" SEP
     "end" BAR "><" BAR "tool" SEP "calls" SEP "end" BAR ">",
     "C add({\"a\": 1})C say({})"},
    {"<" BAR "tool" SEP "calls" SEP "begin" BAR ">",
     "<" BAR "tool" SEP "calls" SEP "begin" BAR "><" BAR "tool" SEP "call" SEP "begin" BAR ">add<" BAR "tool" SEP "sep" BAR ">{\"a\":1}<" BAR "tool" SEP "call" SEP "end" BAR
     "><" BAR "tool" SEP "calls" SEP "end" BAR ">",
     "C add({\"a\":1})"},
    {"<" BAR "DSML" BAR "invoke>",
     "<" BAR "DSML" BAR "function_calls>\n<" BAR "DSML" BAR "invoke name=\"say\">\n<" BAR "DSML" BAR "parameter name=\"text\" string=\"true\">a<b</" BAR "DSML" BAR
     "parameter>\n</" BAR "DSML" BAR "invoke>\n</" BAR "DSML" BAR "function_calls>",
     "C say({\"text\":\"a<b\"})"},
    /* gpt-oss */
    {"<|channel|>", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>", "R(Hm.)T(Yes.)"},
    {"<|channel|>",
     "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\":1}<|call|>", "R(Hm.)C add({\"a\":1})"},
    {"<|channel|>", "<|channel|>commentary to=functions.add<|message|>{\"a\":1}", "C add({\"a\":1})"},
    {"<|channel|>", "<|channel|>commentary to=functions.add<|message|>{\"a\":", "T({\"a\":)"},
    {"<|channel|>", "<|channel|>commentary<|message|>I will add.<|end|>", "T(I will add.)"},
    /* Kimi, MiniMax, Command R, Granite */
    {"<|tool_calls_section_begin|>",
     "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|><|tool_call_begin|>functions.say:1"
     "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
     "C add({\"a\": 1})C say({})"},
    {"<minimax:tool_call>", "<minimax:tool_call>\n<invoke name=\"add\">\n<parameter name=\"a\">1</parameter>\n</invoke>\n<invoke name=\"say\">\n</invoke>\n</minimax:tool_call>",
     "C add({\"a\":1})C say({})"},
    {"<|START_ACTION|>", "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"add\", \"parameters\": {\"a\": 1}}\n]<|END_ACTION|>", "C add({\"a\": 1})"},
    {"Action:", "Action:\n```json\n[{\"tool_name\": \"say\", \"parameters\": {\"text\": \"```\"}}]\n```", "C say({\"text\": \"```\"})"},
    {"<|tool_call|>", "<|tool_call|>[{\"name\": \"add\", \"arguments\": {\"a\": 1}}]", "C add({\"a\": 1})"},
    /* plain JSON */
    {NULL, "{\"name\":\"add\",\"arguments\":{\"a\":1}}", "C add({\"a\":1})"},
    {NULL, "{\"tool_calls\": [{\"name\":\"add\",\"arguments\":{}}, {\"function\":{\"name\":\"say\",\"arguments\":{}}}]}", "C add({})C say({})"},
    {NULL, "[{\"name\":\"add\",\"parameters\":{}}]", "C add({})"},
    {NULL, "{\"name\":\"add\",\"arguments\":[1]}", "T({\"name\":\"add\",\"arguments\":[1]})"},
    {"<tool_call>", "{\"name\":\"add\",\"arguments\":{}}", "C add({})", .only_json = true},
};

static void every_split_gives_the_same(void **state) {
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const reply_options options = {.chat_template = cases[i].chat_template, .tools = tools, .reasoning = true, .in_reasoning = cases[i].in_reasoning,
                                       .only_json = cases[i].only_json};
        size_t n = strlen(cases[i].text);
        for (size_t cut = 0; cut <= n + 2; cut++) {
            /* cut in two anywhere; byte by byte; by threes */
            char *got = events_of(&options, cases[i].text, n, cut > n ? 1 : cut, cut == n + 1 ? 1 : cut == n + 2 ? 3 : n);
            if (strcmp(got, cases[i].wanted) != 0) fail_msg("case %zu, cut %zu: %s\nwanted %s", i, cut, got, cases[i].wanted);
            free(got);
        }
    }
    json_decref(tools);
}

/* Without tools and without reasoning everything is text. */
static void nothing_is_looked_for_unasked(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const reply_options options = {.chat_template = cases[i].chat_template};
        seen s = {.last = -1};
        reply_parser *p = reply_open(&options, note, &s);
        const char *text = cases[i].text;
        assert_true(reply_push(p, text, strlen(text)) && reply_finish(p));
        while (*text == ' ' || *text == '\n') text++;
        assert_int_equal(s.last, REPLY_TEXT);
        assert_memory_equal(s.out.data + 2, text, strlen(text));
        buf_free(&s.out);
        reply_close(&p);
    }
}

/* Hostile answers cost no more for each byte than others. */
static void time_is_linear(void **state) {
    (void)state;
    static const char *const units[] = {"<tool_call>{\"name\":\"x\"}</tool_call>", "<tool_call", "{\"a\":[", "<tool_call><function=say><parameter=text>", "<think>", "[TOOL_CALLS][", "    \n"};
    json_t *tools = json_loads(tools_text, 0, NULL);
    const reply_options options = {.chat_template = "<tool_call><function=[TOOL_CALLS]<think></think>", .tools = tools, .reasoning = true};
    for (size_t i = 0; i < COUNT(units); i++) {
        enum { N_BYTES = 1 << 20 };
        seen s = {.last = -1};
        reply_parser *p = reply_open(&options, note, &s);
        clock_t start = clock();
        for (size_t n = 0; n < N_BYTES; n += strlen(units[i])) assert_true(reply_push(p, units[i], strlen(units[i])));
        assert_true(reply_finish(p));
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 5) fail_msg("'%s' for a MiB takes %.1f s", units[i], seconds);
        reply_close(&p);
        buf_free(&s.out);
    }
    json_decref(tools);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_same),
        cmocka_unit_test(nothing_is_looked_for_unasked),
        cmocka_unit_test(time_is_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
