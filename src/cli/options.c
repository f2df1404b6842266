/* See options.h. */
#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"

enum { MAX_ROWS = 128, MAX_WORD = 64, HELP_COLUMN = 36, HELP_WIDTH = 110 };

static const option *row_at(const command *c, size_t index) {
    for (size_t g = 0; g < COMMAND_MAX_GROUPS && c->groups[g]; g++) {
        if (index < c->groups[g]->n_rows) return &c->groups[g]->rows[index];
        index -= c->groups[g]->n_rows;
    }
    return NULL;
}

void options_variable(const option *o, char out[64]) {
    size_t n = (size_t)snprintf(out, 64, "WEIR_%s", o->name);
    for (size_t i = 0; i < n && i < 63; i++) out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

const char *options_nearest(const char *word, const char *const *names, size_t n) {
    nearest near;
    nearest_begin(&near, word, strlen(word));
    for (size_t i = 0; i < n; i++) nearest_try(&near, names[i]);
    return near.best;
}

static int unknown_option(const command *c, const char *argument, weir_error *err) {
    const char *names[2 * MAX_ROWS];
    size_t n = 0;
    const option *o;
    for (size_t i = 0; n + 2 <= 2 * MAX_ROWS && (o = row_at(c, i)) != NULL; i++) {
        names[n++] = o->name;
        if (o->other_name) names[n++] = o->other_name;
    }
    char word[MAX_WORD + 1];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(argument, "="), argument);
    const char *bare = word + strspn(word, "-");
    const char *near = options_nearest(bare, names, n);
    if (near) FAIL(err, WEIR_E_INVALID, "", "unknown option %s; did you mean --%s?", word, near);
    FAIL(err, WEIR_E_INVALID, "", "unknown option %s; --help lists the options", word);
}

/* ---- values ----------------------------------------------------------------------------------------------------------- */

static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *at = choices; *at;) {
        size_t length = strcspn(at, "|");
        if (length == n && memcmp(at, text, n) == 0) return true;
        at += length + (at[length] == '|');
    }
    return false;
}

static int check_range(const option *o, double value, const char *text, const char *place, weir_error *err) {
    if (o->min == 0 && o->max == 0) return 0;
    FAIL_IF(value < o->min || value > o->max, err, WEIR_E_INVALID, place, "%s is out of range; it must be from %.15g to %.15g",
            text, o->min, o->max);
    return 0;
}

/* `place` names the option or the variable that the text comes from. */
static int set_value(const option *o, const char *text, const char *place, settings *s, weir_error *err) {
    char *member = (char *)s + o->offset, *end = NULL;
    errno = 0;
    switch (o->type) {
    case OPTION_SWITCH: {
        bool on = is_choice("1|true|yes|on", text);
        FAIL_IF(!on && !is_choice("0|false|no|off|", text) && *text, err, WEIR_E_INVALID, place,
                "\"%s\" is neither true nor false", text);
        *(bool *)member = on;
        return 0;
    }
    case OPTION_INTEGER: {
        long long value = strtoll(text, &end, 10);
        FAIL_IF(end == text || *end || errno || isspace((unsigned char)*text), err, WEIR_E_INVALID, place,
                "\"%s\" is not a whole number", text);
        TRY(check_range(o, (double)value, text, place, err));
        *(int64_t *)member = value;
        return 0;
    }
    case OPTION_NUMBER: {
        double value = strtod(text, &end);
        FAIL_IF(end == text || *end || !isfinite(value) || isspace((unsigned char)*text), err, WEIR_E_INVALID, place,
                "\"%s\" is not a number", text);
        TRY(check_range(o, value, text, place, err));
        *(double *)member = value;
        return 0;
    }
    case OPTION_TEXT:
        FAIL_IF(o->choices && !is_choice(o->choices, text), err, WEIR_E_INVALID, place, "\"%s\" is none of %s", text,
                o->choices);
        *(const char **)member = text;
        return 0;
    case OPTION_LIST: {
        option_list *list = (option_list *)(void *)member;
        FAIL_IF(list->n == OPTIONS_MAX_LIST, err, WEIR_E_INVALID, place, "given more than %d times", OPTIONS_MAX_LIST);
        list->items[list->n++] = text;
        return 0;
    }
    }
    return 0;
}

/* ---- parsing ---------------------------------------------------------------------------------------------------------- */

static bool names_option(const option *o, const char *word, size_t n, bool is_long) {
    const char *names[2] = {is_long ? o->name : o->short_name, is_long ? o->other_name : NULL};
    for (int i = 0; i < 2; i++) {
        if (names[i] && strlen(names[i]) == n && memcmp(names[i], word, n) == 0) return true;
    }
    return false;
}

/* The option that argument `text` names; *value gets what follows "=", or NULL. */
static const option *find_option(const command *c, const char *text, size_t *index, const char **value) {
    bool is_long = text[1] == '-';
    const char *word = text + 1 + is_long;
    size_t n = is_long ? strcspn(word, "=") : strlen(word);
    *value = is_long && word[n] == '=' ? word + n + 1 : NULL;
    const option *o;
    for (*index = 0; (o = row_at(c, *index)) != NULL; (*index)++) {
        if (names_option(o, word, n, is_long)) return o;
    }
    return NULL;
}

static int apply_defaults(const command *c, settings *s, bool *seen, weir_error *err) {
    const option *o;
    for (size_t i = 0; (o = row_at(c, i)) != NULL; i++) {
        if (o->fallback) TRY(set_value(o, o->fallback, o->name, s, err));
        if (c->strict) continue;
        char variable[64];
        options_variable(o, variable);
        const char *text = getenv(variable);
        if (text == NULL || *text == '\0') continue;
        TRY(set_value(o, text, variable, s, err));
        if (i < MAX_ROWS) seen[i] = true;
    }
    return 0;
}

static int add_argument(const command *c, const char *text, settings *s, weir_error *err) {
    FAIL_IF(c->arguments == NULL, err, WEIR_E_INVALID, "", "unexpected argument \"%s\"", text);
    FAIL_IF(s->n_arguments == OPTIONS_MAX_ARGUMENTS, err, WEIR_E_INVALID, "", "more than %d arguments", OPTIONS_MAX_ARGUMENTS);
    s->arguments[s->n_arguments++] = text;
    return 0;
}

int options_parse(const command *c, int argc, char **argv, settings *s, weir_error *err) {
    bool seen[MAX_ROWS] = {false}, given[MAX_ROWS] = {false};
    memset(s, 0, sizeof *s);
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return 1;
    }
    TRY(apply_defaults(c, s, seen, err));
    for (int i = 0; i < argc; i++) {
        const char *text = argv[i], *value;
        size_t index;
        if (strcmp(text, "--") == 0) {
            for (i++; i < argc; i++) TRY(add_argument(c, argv[i], s, err));
            break;
        }
        if (text[0] != '-' || text[1] == '\0') {
            TRY(add_argument(c, text, s, err));
            continue;
        }
        const option *o = find_option(c, text, &index, &value);
        if (o == NULL) return unknown_option(c, text, err);
        if (index < MAX_ROWS) {
            FAIL_IF(c->strict && given[index], err, WEIR_E_INVALID, text, "given more than once");
            seen[index] = given[index] = true;
        }
        if (o->type == OPTION_SWITCH) {
            FAIL_IF(c->strict && value, err, WEIR_E_INVALID, text, "takes no value");
            TRY(set_value(o, value ? value : "true", text, s, err));
            continue;
        }
        if (value == NULL) {
            FAIL_IF(i + 1 == argc, err, WEIR_E_INVALID, text, "needs a value: %s", o->value);
            value = argv[++i];
        }
        TRY(set_value(o, value, text, s, err));
    }
    const option *o;
    for (size_t i = 0; i < MAX_ROWS && (o = row_at(c, i)) != NULL; i++) {
        FAIL_IF(o->required && !seen[i], err, WEIR_E_INVALID, "", "--%s %s is missing", o->name, o->value);
    }
    return 0;
}

/* ---- help ------------------------------------------------------------------------------------------------------------- */

/* Words of `text` in lines of HELP_WIDTH, each after the first indented to HELP_COLUMN; the first begins at `column`. */
static void put_wrapped(buf *out, const char *text, size_t column) {
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column + n > HELP_WIDTH && column > HELP_COLUMN) {
            buf_printf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        buf_append(out, text, n);
        column += n;
        text += n;
        if (*text == ' ') {
            if (column < HELP_WIDTH) buf_putc(out, ' ');
            column++;
            text++;
        }
    }
    buf_putc(out, '\n');
}

static void put_option(buf *out, const command *c, const option *o) {
    size_t start = out->n_bytes;
    buf_puts(out, "  ");
    if (o->short_name) buf_printf(out, "-%s, ", o->short_name);
    buf_printf(out, "--%s", o->name);
    if (o->other_name) buf_printf(out, ", --%s", o->other_name);
    if (o->type != OPTION_SWITCH) buf_printf(out, " %s", o->value);
    size_t column = out->n_bytes - start;
    if (column + 2 > HELP_COLUMN) {
        buf_printf(out, "\n%*s", HELP_COLUMN, "");
    } else {
        buf_printf(out, "%*s", (int)(HELP_COLUMN - column), "");
    }
    buf help = BUF_INIT;
    char variable[64];
    options_variable(o, variable);
    buf_puts(&help, o->help);
    if (o->choices) buf_printf(&help, "; one of %s", o->choices);
    if (o->fallback && *o->fallback) buf_printf(&help, " (default %s)", o->fallback);
    if (!c->strict) buf_printf(&help, " [%s]", variable);
    if (!help.failed) put_wrapped(out, help.data, HELP_COLUMN);
    buf_free(&help);
}

void options_help(const command *c, const char *program, buf *out) {
    buf_printf(out, "Usage: %s [OPTION...]%s%s\n\n%s\n", program, c->arguments ? " " : "", c->arguments ? c->arguments : "",
               c->summary);
    if (c->details) buf_printf(out, "\n%s\n", c->details);
    for (size_t g = 0; g < COMMAND_MAX_GROUPS && c->groups[g]; g++) {
        buf_printf(out, "\n%s\n", c->groups[g]->title);
        for (size_t i = 0; i < c->groups[g]->n_rows; i++) put_option(out, c, &c->groups[g]->rows[i]);
    }
    if (!c->strict) buf_puts(out, "\nThe environment variable in brackets stands for an option that is not given.\n");
}
