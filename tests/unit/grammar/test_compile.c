/* What the notations mean: texts that a compiled grammar takes and refuses, what is refused at compilation and how, bounds on
 * hostile input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "grammar/grammar.h"

typedef enum notation { SCHEMA, REGEX, GBNF } notation;

static int compile(notation kind, grammar **g, const char *text, weir_error *err) {
    if (kind == SCHEMA) return grammar_compile_json_schema(g, text, strlen(text), err);
    if (kind == REGEX) return grammar_compile_regex(g, text, strlen(text), err);
    return grammar_compile_gbnf(g, text, strlen(text), err);
}

static bool matches(const grammar *g, const char *text, size_t n_bytes) {
    grammar_state *s = NULL;
    weir_error err;
    assert_int_equal(grammar_state_open(&s, g, &err), 0);
    bool alive = true;
    for (size_t i = 0; i < n_bytes && alive; i++) {
        uint32_t next[8];
        grammar_next_bytes(s, next);
        const int result = grammar_advance(s, text + i, 1, &err);
        const unsigned char byte = (unsigned char)text[i];
        assert_int_equal(result, next[byte / 32] >> byte % 32 & 1);
        alive = result == 1;
    }
    const bool result = alive && grammar_can_end(s);
    grammar_state_close(&s);
    return result;
}

/* `texts`: "+text" is to be taken, "-text" refused. */
typedef struct meaning {
    notation kind;
    const char *text;
    const char *texts[14];
} meaning;

static void check_meanings(const meaning *meanings, size_t n) {
    for (size_t i = 0; i < n; i++) {
        weir_error err = {0};
        grammar *g = NULL;
        if (compile(meanings[i].kind, &g, meanings[i].text, &err) < 0)
            fail_msg("%s: %s: %s: %s", meanings[i].text, weir_code_name(err.code), err.place, err.message);
        for (size_t k = 0; k < 14 && meanings[i].texts[k]; k++) {
            const char *text = meanings[i].texts[k];
            if (matches(g, text + 1, strlen(text + 1)) != (text[0] == '+'))
                fail_msg("%s: '%s' is %s", meanings[i].text, text + 1, text[0] == '+' ? "refused" : "taken");
        }
        grammar_close(&g);
    }
}

static void regexes_mean_what_fullmatch_means(void **unused) {
    (void)unused;
    static const meaning meanings[] = {
        {REGEX, "a{2,3}?b*", {"+aa", "+aaabb", "-a", "-aaaa"}},
        {REGEX, "^a|b$|^c$", {"+a", "+b", "+c", "-ab"}},
        {REGEX, "(^a|x)b$", {"+ab", "+xb", "-b"}},
        {REGEX, "$^|x", {"+", "+x", "-xx"}},
        {REGEX, "a*^b", {"+b", "-ab"}},
        {REGEX, "\\Aab\\Z", {"+ab", "-abb"}},
        {REGEX, "\\d", {"+7", "+\xd9\xa3", "-x"}},
        {REGEX, "\\w+", {"+a_1", "+\xc3\xa9\xe6\x97\xa5", "- ", "--"}},
        {REGEX, "[^\\W\\d]+", {"+ab", "-a1"}},
        {REGEX, "[]a]+", {"+]a", "-["}},
        {REGEX, "[a\\-z]+", {"+a-z", "-b"}},
        {REGEX, "[+--]", {"++", "+,", "+-", "-."}},
        {REGEX, "(?P<x>a)(?:b)(?#no)c", {"+abc", "-ab"}},
        {REGEX, "x{,2}", {"+", "+xx", "-xxx"}},
        {REGEX, "x{a}", {"+x{a}", "-x"}},
        {REGEX, "\\101\\x42\\u0043\\U00000044", {"+ABCD", "-ABC"}},
        {REGEX, "(a|b)*a(a|b){12}", {"+abbbbbbbbbbbb", "-bbbbbbbbbbbbb"}},
        {REGEX, "", {"+", "-a"}},
        {REGEX, "a||b", {"+", "+a", "+b", "-ab"}},
        {REGEX, ".", {"+\xf0\x9f\x98\x80", "-\n", "-\xf0\x9f\x98", "-\xff"}},
    };
    check_meanings(meanings, sizeof meanings / sizeof meanings[0]);
}

static void gbnf_means_what_llama_cpp_means(void **unused) {
    (void)unused;
    static const meaning meanings[] = {
        {GBNF, "root ::= a b # comment\na ::= \"x\"*\nb ::= [^x\\n]{2}", {"+xxyz", "+yz", "-xyx", "-y"}},
        {GBNF, "root ::= \"a\" |\n  \"b\"\n\nc ::= root", {"+a", "+b", "-c"}},
        {GBNF, "root ::= (\"a\"\n \"b\")+", {"+ab", "+abab", "-a"}},
        {GBNF, "root ::= \"\\x41\\u00e9\\U0001F600\"", {"+A\xc3\xa9\xf0\x9f\x98\x80", "-A"}},
        {GBNF, "root ::= .{2}", {"+a\n", "+\xc3\xa9\xc3\xa9", "-a", "-\xc3\xa9"}},
        {GBNF, "root ::= \"a\" root \"b\" | \"a\" root | \"\"", {"+", "+aab", "+aaab", "-abb", "-ba"}},
        {GBNF, "root ::= x y x\nx ::= \"a\"?\ny ::= x x \"b\"?", {"+", "+aaaa", "+aaab", "+aaaba", "-aaaaa", "-bb"}},
        {GBNF, "root ::= [a-]+", {"+a-", "-b"}},
        {GBNF, "root ::= \"a\"{3,1000}", {"+aaa", "-aa"}},
    };
    check_meanings(meanings, sizeof meanings / sizeof meanings[0]);
}

static void schemas_mean_what_the_standard_says(void **unused) {
    (void)unused;
    static const meaning meanings[] = {
        {SCHEMA, "true", {"+1", "+{\"a\":[null]}", "+\"x\"", "-", "-nul"}},
        {SCHEMA, "{\"type\":[\"string\",\"null\"]}", {"+\"\"", "+null", "-1"}},
        {SCHEMA,
         "{\"type\":\"number\",\"minimum\":-1.5,\"exclusiveMaximum\":2.25}",
         {"+-1.5", "+-1.50", "+2.249", "+0", "+2", "+-0.7", "-2.25", "--1.51", "-3", "-2.250", "--2", "+2.2"}},
        {SCHEMA,
         "{\"type\":\"number\",\"exclusiveMinimum\":0,\"maximum\":1}",
         {"+1", "+1.0", "+0.001", "-0", "-0.0", "-1.01", "--1", "--0"}},
        {SCHEMA,
         "{\"type\":\"integer\",\"minimum\":-12,\"maximum\":105}",
         {"+-12", "+-3", "+0", "+99", "+105", "--13", "-106", "-200", "-1000"}},
        {SCHEMA, "{\"type\":\"integer\",\"maximum\":-5}", {"+-5", "+-123456", "--4", "-0", "-5"}},
        {SCHEMA, "{\"type\":\"integer\",\"minimum\":1.5,\"exclusiveMaximum\":4}", {"+2", "+3", "-1", "-4"}},
        {SCHEMA, "{\"type\":\"number\",\"multipleOf\":0.25}", {"+1", "+0.5", "+0.75", "+0.750", "-0.3", "-0.251", "+-2.25"}},
        {SCHEMA, "{\"type\":\"number\",\"multipleOf\":0.01,\"minimum\":0}", {"+1.25", "+3", "+0.1", "-0.001", "--1"}},
        {SCHEMA, "{\"type\":\"integer\",\"multipleOf\":7,\"minimum\":100}", {"+105", "-98", "-101"}},
        {SCHEMA, "{\"type\":\"string\",\"pattern\":\"b\"}", {"+\"abc\"", "+\"b\"", "-\"a\"", "-\"\""}},
        {SCHEMA, "{\"type\":\"string\",\"pattern\":\"^a|b$\",\"minLength\":2}", {"+\"ax\"", "+\"xb\"", "-\"a\"", "-\"xx\""}},
        {SCHEMA,
         "{\"allOf\":[{\"pattern\":\"^a\"},{\"pattern\":\"z$\"}],\"type\":\"string\",\"maxLength\":3}",
         {"+\"az\"", "+\"abz\"", "-\"abbz\"", "-\"a\""}},
        {SCHEMA, "{\"type\":\"string\",\"pattern\":\"^\\\"\\\\n$\"}", {"+\"\\\"\\n\"", "-\"\""}},
        {SCHEMA,
         "{\"type\":\"string\",\"format\":\"date\"}",
         {"+\"2024-02-29\"", "-\"2023-02-29\"", "-\"1900-02-29\"", "-\"2024-04-31\""}},
        {SCHEMA,
         "{\"type\":\"string\",\"format\":\"date-time\"}",
         {"+\"2024-01-31T23:59:59.5+05:30\"", "-\"2024-01-31T24:00:00Z\"", "-\"2024-01-31\""}},
        {SCHEMA, "{\"type\":\"string\",\"maxLength\":70000,\"minLength\":1}", {"+\"abc\"", "-\"\""}},
        {SCHEMA,
         "{\"type\":\"object\",\"patternProperties\":{\"^x\":{\"type\":\"integer\"}},\"additionalProperties\":false}",
         {"+{}", "+{\"xa\":1}", "-{\"a\":1}", "-{\"xa\":\"\"}"}},
        {SCHEMA,
         "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"null\"}},\"patternProperties\":{\"b$\":{\"type\":\"integer\"}}"
         ",\"additionalProperties\":{\"type\":\"string\"}}",
         {"+{\"a\":null,\"cb\":1,\"d\":\"\"}", "-{\"a\":1}", "-{\"d\":1}", "-{\"db\":\"\"}", "-{\"d\":\"\",\"a\":\"\"}"}},
        {SCHEMA,
         "{\"type\":\"object\",\"required\":[\"q\"],\"properties\":{\"a\":true}}",
         {"+{\"q\":[]}", "+{\"a\":1,\"q\":2}", "-{\"a\":1}"}},
        {SCHEMA,
         "{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{},\"c\":{}},\"minProperties\":2,\"maxProperties\":2}",
         {"+{\"a\":1,\"c\":2}", "-{\"b\":1}", "-{\"a\":1,\"b\":2,\"c\":3}"}},
        {SCHEMA,
         "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"}],\"items\":{\"type\":\"string\"},\"maxItems\":3}",
         {"+[]", "+[1]", "+[1,\"a\",\"b\"]", "-[1,2]", "-[1,\"\",\"\",\"\"]"}},
        {SCHEMA,
         "{\"items\":[{\"type\":\"integer\"}],\"additionalItems\":false,\"type\":\"array\"}",
         {"+[]", "+[1]", "-[1,2]"}},
        {SCHEMA,
         "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":3,\"maxItems\":500}",
         {"+[1,2,3]", "-[1,2]"}},
        {SCHEMA, "{\"type\":\"integer\",\"not\":{\"type\":\"string\"}}", {"+1"}},
        {SCHEMA, "{\"type\":\"string\",\"not\":{\"enum\":[\"a\",\"b\"]}}", {"+\"c\"", "+\"\"", "-\"a\"", "-\"b\""}},
        {SCHEMA, "{\"enum\":[1,\"a\",null],\"type\":[\"string\",\"null\"]}", {"+\"a\"", "+null", "-1"}},
        {SCHEMA,
         "{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{}},\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
         {"+{\"a\":1}", "+{\"b\":1}", "-{}", "-{\"a\":1,\"b\":1}"}},
        {SCHEMA,
         "{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{}},\"anyOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}]}",
         {"+{\"a\":1}", "+{\"b\":1}", "-{}", "+{\"a\":1,\"b\":1}"}},
        {SCHEMA, "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"string\"}]}", {"+1", "+\"\"", "-null"}},
        {SCHEMA,
         "{\"oneOf\":[{\"type\":\"string\",\"pattern\":\"^a\"},{\"type\":\"string\",\"pattern\":\"b$\"}]}",
         {"+\"a\"", "+\"b\"", "-\"ab\"", "-\"c\""}},
        {SCHEMA, "{\"$ref\":\"#/$defs/a~1b%25\",\"$defs\":{\"a/b%\":{\"type\":\"null\"}}}", {"+null", "-1"}},
        {SCHEMA, "{\"$ref\":\"#here\",\"$defs\":{\"x\":{\"$anchor\":\"here\",\"type\":\"null\"}}}", {"+null", "-1"}},
        {SCHEMA,
         "{\"type\":\"object\",\"properties\":{\"t\":{\"$ref\":\"#\"}},\"additionalProperties\":false}",
         {"+{}", "+{\"t\":{\"t\":{}}}", "-{\"t\":1}"}},
        {SCHEMA, "{\"type\":\"object\",\"properties\":{\"a\":false,\"b\":{}}}", {"+{\"b\":1}", "-{\"a\":1}"}},
        {SCHEMA, "{\"const\":1.5}", {"+1.5", "-1"}},
        {SCHEMA, "{\"type\":\"string\"}", {"+\"\\ud83d\\ude00\"", "-\"\\ud83d\"", "-\"\\ude00\"", "-\"\x01\"", "-\"\xff\""}},
    };
    check_meanings(meanings, sizeof meanings / sizeof meanings[0]);
}

typedef struct refusal {
    notation kind;
    const char *text;
    int code;
    const char *place, *word; /* in the message */
} refusal;

static void what_cannot_be_is_refused_by_name(void **unused) {
    (void)unused;
    static const refusal refusals[] = {
        {REGEX, "(?=a)", WEIR_E_UNSUPPORTED, NULL, "look-ahead"},
        {REGEX, "(?<!a)b", WEIR_E_UNSUPPORTED, NULL, "look-behind"},
        {REGEX, "(a)\\1", WEIR_E_UNSUPPORTED, NULL, "back-reference"},
        {REGEX, "\\bx", WEIR_E_UNSUPPORTED, NULL, "boundar"},
        {REGEX, "(?i)x", WEIR_E_UNSUPPORTED, NULL, "flags"},
        {REGEX, "a++", WEIR_E_UNSUPPORTED, NULL, "possessive"},
        {REGEX, "a**", WEIR_E_FORMAT, NULL, "repetition"},
        {REGEX, "(a", WEIR_E_FORMAT, NULL, ")"},
        {REGEX, "a)", WEIR_E_FORMAT, NULL, ")"},
        {REGEX, "[b-a]", WEIR_E_FORMAT, NULL, "range"},
        {REGEX, "a{3,2}", WEIR_E_FORMAT, NULL, "repetitions"},
        {REGEX, "a^b", WEIR_E_INVALID, NULL, "no text"},
        {REGEX, "x\\", WEIR_E_FORMAT, NULL, "backslash"},
        {REGEX, "[a", WEIR_E_FORMAT, NULL, "class"},
        {GBNF, "root ::= root \"a\" | \"b\"", WEIR_E_UNSUPPORTED, "root", "left recursion"},
        {GBNF, "root ::= x? root \"a\" | \"b\"\nx ::= \"c\"", WEIR_E_UNSUPPORTED, "root", "left recursion"},
        {GBNF, "root ::= missing", WEIR_E_FORMAT, "missing", "not defined"},
        {GBNF, "start ::= \"a\"", WEIR_E_FORMAT, "", "root"},
        {GBNF, "root ::= <[3]>", WEIR_E_UNSUPPORTED, "byte 9", "token"},
        {GBNF, "root ::= \"a\" root", WEIR_E_INVALID, "", "no text"},
        {SCHEMA, "{\"type\":\"array\",\"uniqueItems\":true}", WEIR_E_UNSUPPORTED, "", "uniqueItems"},
        {SCHEMA, "{\"properties\":{\"a\":{\"format\":\"idn-email\",\"type\":\"string\"}},\"type\":\"object\"}",
         WEIR_E_UNSUPPORTED, "/properties/a", "idn-email"},
        {SCHEMA, "{\"properties\":{\"a\":{\"pattern\":\"(?=x)\",\"type\":\"string\"}},\"type\":\"object\"}", WEIR_E_UNSUPPORTED,
         "/properties/a", "look-ahead"},
        {SCHEMA, "{\"$ref\":\"http://x/y\"}", WEIR_E_UNSUPPORTED, NULL, "http://x/y"},
        {SCHEMA, "{\"$ref\":\"#/nowhere\"}", WEIR_E_FORMAT, NULL, "nowhere"},
        {SCHEMA, "{\"$ref\":\"#\"}", WEIR_E_FORMAT, NULL, "itself"},
        {SCHEMA, "{\"type\":\"object\",\"oneOf\":[{\"properties\":{\"a\":{}}},{\"properties\":{\"b\":{}}}]}", WEIR_E_INVALID,
         NULL, "no text"},
        {SCHEMA,
         "{\"type\":\"object\",\"oneOf\":[{\"properties\":{\"a\":{},\"c\":{}}},{\"required\":[\"b\",\"a\"]}],\"properties\":{"
         "\"b\":{}}}",
         WEIR_E_UNSUPPORTED, NULL, "oneOf"},
        {SCHEMA, "{\"type\":\"text\"}", WEIR_E_FORMAT, NULL, "text"},
        {SCHEMA, "{\"type\":\"string\",\"enum\":[1]}", WEIR_E_INVALID, NULL, "no text"},
        {SCHEMA, "false", WEIR_E_INVALID, NULL, "no text"},
        {SCHEMA, "{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", WEIR_E_INVALID, NULL, "no text"},
        {SCHEMA, "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", WEIR_E_INVALID, NULL,
         "no text"},
        {SCHEMA, "[]", WEIR_E_FORMAT, NULL, "schema"},
        {SCHEMA, "{", WEIR_E_FORMAT, NULL, "JSON"},
    };
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const refusal *r = &refusals[i];
        weir_error err = {0};
        grammar *g = (grammar *)1;
        const int code = compile(r->kind, &g, r->text, &err);
        if (code != r->code || g != NULL || strstr(err.message, r->word) == NULL || (r->place && strcmp(r->place, err.place)))
            fail_msg("%s: %s at '%s': %s", r->text, weir_code_name(code), err.place, err.message);
    }
}

static char *repeated(const char *head, const char *middle, size_t n, const char *tail) {
    buf text = BUF_INIT;
    buf_puts(&text, head);
    for (size_t i = 0; i < n; i++) buf_puts(&text, middle);
    buf_puts(&text, tail);
    return buf_take(&text, NULL);
}

/* Whatever comes, the answer comes within a second (of processor time that this machine may be slow at: three here). */
static void bombs_are_bounded(void **unused) {
    (void)unused;
    const struct {
        notation kind;
        char *text;
    } bombs[] = {
        {REGEX, repeated("", "(a|b)*a(a|b){30}", 4, "")},
        {REGEX, repeated("", "(", 100000, "")},
        {REGEX, repeated("((((((a{100}){100}){100}){100}){100}){100})", "", 0, "")},
        {REGEX, repeated("", "\\w{1,1000}", 20, "")},
        {REGEX, repeated("", "a?", 3000, "")},
        {REGEX, repeated("(", "a?|", 20000, "b){2,900}")},
        {REGEX, repeated("^", "(.*)x$|^", 200, "$")},
        {GBNF, repeated("root ::= ", "(", 100000, "")},
        {GBNF, repeated("root ::= a{1000000}\na ::= b{1000000}\nb ::= \"x\"{1000000}", "", 0, "")},
        {GBNF, repeated("root ::= ", "x? ", 20000, "\nx ::= \"a\" root")},
        {GBNF, repeated("root ::= a a\na ::= b b | \"x\"\nb ::= c c | \"y\"\nc ::= \"z\" root | \"\"", "", 0, "")},
        {SCHEMA, repeated("", "{\"items\":", 1900, "{}")},
        {SCHEMA, repeated("{\"allOf\":[", "{\"anyOf\":[{\"minLength\":1},{\"maxLength\":2}]},", 30, "{}]}")},
        {SCHEMA, repeated("{\"type\":\"string\",\"allOf\":[", "{\"pattern\":\"a.{12}b\"},", 20, "{}]}")},
        {SCHEMA, repeated("{\"type\":\"string\",\"minLength\":4000000000}", "", 0, "")},
        {SCHEMA,
         repeated("{\"type\":\"array\",\"minItems\":4000000000,\"items\":{\"type\":\"string\",\"maxLength\":4000000000}}", "",
                  0, "")},
        {SCHEMA, repeated("{\"type\":\"object\",\"minProperties\":1000000}", "", 0, "")},
        {SCHEMA, repeated("{\"enum\":[", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",", 50000, "1]}")},
        {SCHEMA,
         repeated("{\"$defs\":{\"a\":{\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/a\"}]}},\"$ref\":\"#/$defs/a\"}",
                  "", 0, "")},
        {SCHEMA, repeated("{\"type\":\"number\",\"minimum\":1e300,\"maximum\":1e308,\"multipleOf\":1e-300}", "", 0, "")},
    };
    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++) {
        grammar *g = NULL;
        weir_error err = {0};
        /* Of the processor, so that a busy machine changes nothing. */
        const clock_t begin = clock();
        const int code = compile(bombs[i].kind, &g, bombs[i].text, &err);
        const int64_t took_us = (int64_t)(clock() - begin) * 1000000 / CLOCKS_PER_SEC;
        if (took_us > 3000000) fail_msg("%.60s...: %lld us", bombs[i].text, (long long)took_us);
        if (code < 0 && code != WEIR_E_LIMIT && code != WEIR_E_FORMAT && code != WEIR_E_UNSUPPORTED && code != WEIR_E_INVALID)
            fail_msg("%.60s...: %s", bombs[i].text, err.message);
        if (code == 0) { /* then it must work, in bounded time, too */
            grammar_state *s = NULL;
            assert_int_equal(grammar_state_open(&s, g, &err), 0);
            for (int k = 0; k < 500; k++) assert_true(grammar_advance(s, k % 3 ? "a" : "x", 1, &err) != WEIR_E_NOMEM);
            grammar_state_close(&s);
            if ((clock() - begin) / CLOCKS_PER_SEC >= 6) fail_msg("%.60s...: slow to match", bombs[i].text);
        }
        grammar_close(&g);
        free(bombs[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regexes_mean_what_fullmatch_means),
        cmocka_unit_test(gbnf_means_what_llama_cpp_means),
        cmocka_unit_test(schemas_mean_what_the_standard_says),
        cmocka_unit_test(what_cannot_be_is_refused_by_name),
        cmocka_unit_test(bombs_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
