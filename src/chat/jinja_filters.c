/* Filters over texts and single values. Those over sequences are in jinja_list_filters.c. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_builtin.h"
#include "chat/jinja_text.h"

#define FILTER(name) static int name(render *r, const value *self, const value *argv, const call_arguments *all, value *out)
#define UNUSED_ALL (void)r, (void)self, (void)argv, (void)all, (void)out

/* ---- texts ---- */

static int call_method(render *r, const value *v, const char *name, const value *arguments, size_t n, value *out) {
    value text;
    value items[2] = {0};
    for (size_t i = 0; i < n && i < 2; i++) items[i] = arguments[i];
    call_arguments a = {.items = items, .n = n};
    TRY(value_to_text(r, v, &text));
    return builtin_call(r, method_find(&text, name, strlen(name)), &text, &a, out);
}

FILTER(filter_upper) {
    UNUSED_ALL;
    return call_method(r, self, "upper", NULL, 0, out);
}
FILTER(filter_lower) {
    UNUSED_ALL;
    return call_method(r, self, "lower", NULL, 0, out);
}
FILTER(filter_capitalize) {
    UNUSED_ALL;
    return call_method(r, self, "capitalize", NULL, 0, out);
}
FILTER(filter_trim) {
    UNUSED_ALL;
    return call_method(r, self, "strip", argv, argument_given(&argv[0]), out);
}

FILTER(filter_center) {
    value width = argv[0].type == V_MISSING ? value_int(80) : argv[0];
    UNUSED_ALL;
    return call_method(r, self, "center", &width, 1, out);
}

static bool begins_word_after(uint32_t c) {
    return text_is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
}

/* Unlike str.title, words begin after white space and -({[< only. */
FILTER(filter_title) {
    value text;
    text_sink s = SINK(r);
    UNUSED_ALL;
    TRY(value_to_text(r, self, &text));
    for (size_t i = 0; i < text.n_bytes;) {
        uint32_t c;
        size_t n = utf8_decode(text.text + i, text.n_bytes - i, &c), end = i + n;
        text_map_case(&s, text.text + i, n, CASE_UPPER);
        bool separators = begins_word_after(c);
        i = end;
        while (end < text.n_bytes) { /* the rest of the word, or of the separators */
            n = utf8_decode(text.text + end, text.n_bytes - end, &c);
            if (begins_word_after(c) != separators) break;
            end += n;
        }
        text_map_case(&s, text.text + i, end - i, CASE_LOWER);
        i = end;
    }
    return sink_finish(&s, out);
}

FILTER(filter_string) {
    UNUSED_ALL;
    return value_to_text(r, self, out);
}
FILTER(filter_escape) {
    UNUSED_ALL;
    return value_escape(r, self, out);
}

FILTER(filter_forceescape) {
    value text;
    UNUSED_ALL;
    TRY(value_to_text(r, self, &text));
    text.flags = 0;
    return value_escape(r, &text, out);
}

FILTER(filter_safe) {
    UNUSED_ALL;
    TRY(value_to_text(r, self, out));
    out->flags |= VALUE_SAFE;
    return 0;
}

FILTER(filter_replace) {
    value text, old, new;
    int64_t count;
    UNUSED_ALL;
    TRY(value_to_text(r, self, &text));
    TRY(value_to_text(r, &argv[0], &old));
    TRY(value_to_text(r, &argv[1], &new));
    TRY(argument_int(r, argv[2].type == V_NONE ? &(value){0} : &argv[2], "count", -1, &count));
    if (!r->autoescape) {
        text.flags = 0;
    } else if (((old.flags | new.flags) & VALUE_SAFE) && !(text.flags & VALUE_SAFE)) {
        TRY(value_escape(r, &text, &text));
    }
    if (text.flags & VALUE_SAFE) TRY(value_escape(r, &new, &new));
    return text_replace(r, &text, &old, &new, count, out);
}

FILTER(filter_format) {
    UNUSED_ALL;
    value text, arguments;
    TRY(value_to_text(r, self, &text));
    if (all->n && all->n_keywords) RAISE(r, "can't handle positional and keyword arguments at the same time");
    if (all->n_keywords) {
        TRY(dict_new(r, &arguments));
        for (size_t i = 0; i < all->n_keywords; i++)
            TRY(dict_set(r, arguments.dict, &all->keywords[i].name, &all->keywords[i].item));
    } else {
        TRY(list_new(r, V_TUPLE, all->n, &arguments));
        for (size_t i = 0; i < all->n; i++) TRY(list_push(r, arguments.list, all->items[i]));
    }
    return format_percent(r, &text, &arguments, out);
}

FILTER(filter_indent) {
    UNUSED_ALL;
    text_sink s = SINK(r);
    value text, lines, newline = value_text("\n", 1), by;
    bool first = argument_truth(&argv[1], false), blank = argument_truth(&argv[2], false);
    int64_t width;
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (!is_string(self)) return value_arithmetic(r, OP_ADD, self, &newline, &text); /* Python's error */
    if (is_string(&argv[0])) {
        by = argv[0];
    } else {
        text_sink blanks = SINK(r);
        TRY(argument_int(r, &argv[0], "width", 4, &width));
        sink_repeat(&blanks, " ", 1, width > 0 ? (size_t)width : 0);
        TRY(sink_finish(&blanks, &by));
    }
    TRY(value_concat(r, self, &newline, &text));
    TRY(text_split_lines(r, &text, false, &lines));
    for (size_t i = 0; i < lines.list->n; i++) {
        const value *line = &lines.list->items[i];
        if (i) sink_putc(&s, '\n');
        if (i ? blank || line->n_bytes : first) sink_append(&s, by.text, by.n_bytes);
        sink_append(&s, line->text, line->n_bytes);
    }
    TRY(sink_finish(&s, out));
    out->flags = self->flags;
    return 0;
}

FILTER(filter_truncate) {
    UNUSED_ALL;
    int64_t length, leeway, n;
    value end = argv[2].type == V_MISSING ? value_text("...", 3) : argv[2], cut, start = value_none(), stop;
    TRY(argument_int(r, &argv[0], "length", 255, &length));
    TRY(argument_int(r, argv[3].type == V_NONE ? &(value){0} : &argv[3], "leeway", 5, &leeway));
    if (!is_string(&end)) RAISE(r, "truncate() end must be str, not %s", value_type_name(&end));
    int64_t n_end = (int64_t)utf8_count(end.text, end.n_bytes);
    if (length < n_end) RAISE(r, "expected length >= %lld, got %lld", (long long)n_end, (long long)length);
    if (leeway < 0) RAISE(r, "expected leeway >= 0, got %lld", (long long)leeway);
    TRY(value_length(r, self, &n));
    if (n <= length + leeway) {
        *out = *self;
        return 0;
    }
    if (!is_string(self)) RAISE(r, "truncate() works on str, not %s", value_type_name(self));
    stop = value_int(length - n_end);
    TRY(value_slice(r, self, &start, &stop, NULL, &cut));
    if (!argument_truth(&argv[1], false)) { /* not inside a word */
        for (size_t i = cut.n_bytes; i-- > 0;)
            if (cut.text[i] == ' ') {
                cut.n_bytes = (uint32_t)i;
                break;
            }
    }
    return value_concat(r, &cut, &end, out);
}

FILTER(filter_wordcount) {
    value text;
    int64_t n = 0;
    bool inside = false;
    UNUSED_ALL;
    TRY(value_to_text(r, self, &text));
    TRY(render_charge(r, text.n_bytes / 2));
    for (size_t i = 0; i < text.n_bytes;) {
        uint32_t c;
        i += utf8_decode(text.text + i, text.n_bytes - i, &c);
        bool word = text_is_word(c);
        n += word && !inside;
        inside = word;
    }
    *out = value_int(n);
    return 0;
}

/* One line of wordwrap: words are moved to a new line when they do not fit, and cut when longer than a line. */
static int wrap_line(text_sink *s, const value *line, int64_t width, bool cut, bool hyphens, const value *newline) {
    size_t at = 0, start = 0, end = 0; /* the output line so far: [start, end) */
    int64_t used = 0;
    bool first = true;
    while (at < line->n_bytes) {
        size_t from = at;
        bool blank = line->text[at] == ' ' || line->text[at] == '\t';
        while (at < line->n_bytes && (line->text[at] == ' ' || line->text[at] == '\t') == blank) {
            bool hyphen = hyphens && line->text[at] == '-' && at > from && isalpha((unsigned char)line->text[at - 1]) &&
                          at + 1 < line->n_bytes && isalpha((unsigned char)line->text[at + 1]);
            at++;
            if (hyphen) break;
        }
        int64_t n = (int64_t)utf8_count(line->text + from, at - from);
        bool cuts = cut && n > width && !blank;
        if (cuts && used > 0 && used < width) { /* the line's remaining room takes the word's beginning */
            size_t part = text_offset(line->text + from, at - from, (size_t)(width - used));
            from = end += part;
            n -= width - used;
            used = width;
        }
        if (used + n > width && used > 0) { /* finish the line, without the blanks at its end */
            while (end > start && (line->text[end - 1] == ' ' || line->text[end - 1] == '\t')) end--;
            if (!first) sink_append(s, newline->text, newline->n_bytes);
            sink_append(s, line->text + start, end - start);
            first = false;
            used = 0;
        }
        if (used == 0 && blank && !first) continue; /* no line begins with the blanks it was broken at */
        if (used == 0) start = from;
        while (cut && n > width && width > 0 && !blank) {
            size_t part = text_offset(line->text + from, at - from, (size_t)width);
            if (!first) sink_append(s, newline->text, newline->n_bytes);
            sink_append(s, line->text + from, part);
            first = false;
            from += part;
            n -= width;
            start = from;
        }
        end = at;
        used += n;
        TRY(render_charge(s->r, 1));
    }
    while (end > start && (line->text[end - 1] == ' ' || line->text[end - 1] == '\t')) end--;
    if (used > 0 && end > start) {
        if (!first) sink_append(s, newline->text, newline->n_bytes);
        sink_append(s, line->text + start, end - start);
    }
    return s->failed;
}

FILTER(filter_wordwrap) {
    UNUSED_ALL;
    value lines, text, newline = argument_given(&argv[2]) ? argv[2] : value_text("\n", 1);
    int64_t width;
    text_sink s = SINK(r);
    TRY(argument_int(r, &argv[0], "width", 79, &width));
    TRY(argument_text(r, self, "wordwrap() text", &text));
    TRY(argument_text(r, &newline, "wrapstring", &newline));
    if (width <= 0) RAISE(r, "invalid width %lld (must be > 0)", (long long)width);
    TRY(text_split_lines(r, &text, false, &lines));
    TRY(render_charge(r, text.n_bytes / 2));
    for (size_t i = 0; i < lines.list->n; i++) {
        if (i) sink_append(&s, newline.text, newline.n_bytes);
        TRY(wrap_line(&s, &lines.list->items[i], width, argument_truth(&argv[1], true), argument_truth(&argv[3], true),
                      &newline));
    }
    return sink_finish(&s, out);
}

/* ---- HTML and URLs ---- */

static const struct {
    const char *name;
    uint32_t code_point;
} entities[] = {{"amp;", '&'}, {"lt;", '<'}, {"gt;", '>'}, {"quot;", '"'}, {"apos;", '\''}, {"nbsp;", 0xA0}, {"copy;", 0xA9}};

/* The character that an entity at text[at] ('&') stands for; *n gets its length, 0 when it is none. */
static uint32_t read_entity(const char *text, size_t n_bytes, size_t at, size_t *n) {
    *n = 0;
    if (at + 3 < n_bytes && text[at + 1] == '#') {
        bool hex = text[at + 2] == 'x' || text[at + 2] == 'X';
        uint32_t c = 0;
        size_t i = at + 2 + hex, from = i;
        for (; i < n_bytes && i < from + 8 && (hex ? isxdigit((unsigned char)text[i]) : isdigit((unsigned char)text[i])); i++)
            c = c * (hex ? 16 : 10) + (uint32_t)(isdigit((unsigned char)text[i]) ? text[i] - '0' : (text[i] | 32) - 'a' + 10);
        if (i > from && i < n_bytes && text[i] == ';') *n = i + 1 - at;
        return c;
    }
    for (size_t k = 0; k < sizeof entities / sizeof entities[0]; k++) {
        size_t length = strlen(entities[k].name);
        if (n_bytes - at - 1 < length || memcmp(text + at + 1, entities[k].name, length) != 0) continue;
        *n = length + 1;
        return entities[k].code_point;
    }
    return 0;
}

/* Text without comments and tags, white space collapsed, entities resolved. */
FILTER(filter_striptags) {
    value text, bare;
    text_sink stripped = SINK(r), s = SINK(r);
    UNUSED_ALL;
    bool no_comment_end = false, no_tag_end = false;
    TRY(value_to_text(r, self, &text));
    for (size_t i = 0; i < text.n_bytes;) {
        bool comment = !no_comment_end && text.n_bytes - i >= 4 && memcmp(text.text + i, "<!--", 4) == 0;
        size_t end = SIZE_MAX;
        if (comment) end = text_find(text.text, text.n_bytes, i, "-->", 3);
        no_comment_end = no_comment_end || (comment && end == SIZE_MAX);
        bool closed = end != SIZE_MAX;
        if (!closed && text.text[i] == '<' && !no_tag_end) {
            end = text_find(text.text, text.n_bytes, i, ">", 1);
            no_tag_end = end == SIZE_MAX;
        }
        if (end == SIZE_MAX)
            sink_putc(&stripped, text.text[i++]);
        else
            i = end + (closed ? 3 : 1);
        TRY(render_charge(r, 1));
    }
    TRY(sink_finish(&stripped, &bare));
    TRY(render_charge(r, bare.n_bytes));
    bool space = false;
    for (size_t i = 0, n; i < bare.n_bytes; i += n) {
        uint32_t c;
        n = utf8_decode(bare.text + i, bare.n_bytes - i, &c);
        if (text_is_space(c)) {
            space = true;
            continue;
        }
        if (space && s.n) sink_putc(&s, ' ');
        space = false;
        size_t entity = 0;
        if (c == '&') c = read_entity(bare.text, bare.n_bytes, i, &entity);
        if (entity)
            sink_code_point(&s, c);
        else
            sink_append(&s, bare.text + i, n);
        if (entity) n = entity;
    }
    return sink_finish(&s, out);
}

static void quote_url(text_sink *s, const value *text, bool query) {
    if (!s->failed) s->failed = render_charge(s->r, text->n_bytes / 2);
    for (size_t i = 0; i < text->n_bytes; i++) {
        unsigned char c = (unsigned char)text->text[i];
        if (isalnum(c) || (c && strchr("_.-~", c)) || (c == '/' && !query))
            sink_putc(s, (char)c);
        else if (c == ' ' && query)
            sink_putc(s, '+');
        else
            sink_printf(s, "%%%02X", c);
    }
}

FILTER(filter_urlencode) {
    UNUSED_ALL;
    text_sink s = SINK(r);
    value text, pairs;
    if (is_string(self) || !value_iterable(self)) {
        TRY(value_to_text(r, self, &text));
        quote_url(&s, &text, false);
        return sink_finish(&s, out);
    }
    if (self->type == V_DICT) {
        call_arguments none = {0};
        TRY(builtin_call(r, method_find(self, "items", 5), self, &none, &pairs));
    } else {
        TRY(value_to_list(r, self, &pairs));
    }
    for (size_t i = 0; i < pairs.list->n; i++) {
        value pair;
        TRY(value_to_list(r, &pairs.list->items[i], &pair));
        if (pair.list->n != 2) RAISE(r, "urlencode expects pairs of a key and a value");
        for (size_t k = 0; k < 2; k++) {
            TRY(value_to_text(r, &pair.list->items[k], &text));
            if (i || k) sink_putc(&s, k ? '=' : '&');
            quote_url(&s, &text, true);
        }
    }
    return sink_finish(&s, out);
}

FILTER(filter_xmlattr) {
    UNUSED_ALL;
    text_sink s = SINK(r);
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (self->type != V_DICT) RAISE(r, "'%s' object has no attribute 'items'", value_type_name(self));
    for (size_t i = 0; i < self->dict->n; i++) {
        const dict_entry *e = &self->dict->entries[i];
        value key, item;
        if (e->item.type == V_NONE || is_undefined(&e->item)) continue;
        if (!is_string(&e->key)) RAISE(r, "expected string or bytes-like object, got '%s'", value_type_name(&e->key));
        for (size_t k = 0; k < e->key.n_bytes; k++)
            if (strchr(" \t\n\r\f\v/>=", e->key.text[k]) && e->key.text[k]) {
                text_sink name = SINK(r);
                TRY(value_repr(&name, &e->key));
                TRY(sink_finish(&name, &key));
                RAISE(r, "Invalid character in attribute name: %.*s", (int)(key.n_bytes < 200 ? key.n_bytes : 200), key.text);
            }
        TRY(value_escape(r, &e->key, &key));
        TRY(value_escape(r, &e->item, &item));
        if (s.n || argument_truth(&argv[0], true)) sink_putc(&s, ' ');
        sink_append(&s, key.text, key.n_bytes);
        sink_puts(&s, "=\"");
        sink_append(&s, item.text, item.n_bytes);
        sink_putc(&s, '"');
    }
    TRY(sink_finish(&s, out));
    if (r->autoescape) out->flags |= VALUE_SAFE;
    return 0;
}

/* Links for words that are addresses: http(s)://..., www...., mailto: and plain e-mail addresses. */
FILTER(filter_urlize) {
    UNUSED_ALL;
    value text, escaped;
    int64_t limit;
    text_sink s = SINK(r);
    TRY(argument_int(r, argv[0].type == V_NONE ? &(value){0} : &argv[0], "trim_url_limit", -1, &limit));
    TRY(value_to_text(r, self, &text));
    TRY(value_escape(r, &text, &escaped));
    TRY(render_charge(r, escaped.n_bytes));
    for (size_t i = 0, end; i < escaped.n_bytes; i = end) {
        bool blank = isspace((unsigned char)escaped.text[i]);
        for (end = i; end < escaped.n_bytes && (isspace((unsigned char)escaped.text[end]) != 0) == blank; end++) {
        }
        size_t from = i, to = end;
        while (!blank && from < to && escaped.text[from] == '(') from++;
        while (!blank && to > from && strchr(".,)", escaped.text[to - 1])) to--;
        value word = value_text(escaped.text + from, to - from);
        bool http = (word.n_bytes > 7 && memcmp(word.text, "http://", 7) == 0) ||
                    (word.n_bytes > 8 && memcmp(word.text, "https://", 8) == 0);
        bool www = word.n_bytes > 4 && memcmp(word.text, "www.", 4) == 0;
        const char *at = memchr(word.text, '@', word.n_bytes);
        bool mail = !http && !www && at && at > word.text && memchr(at, '.', (size_t)(word.text + word.n_bytes - at));
        sink_append(&s, escaped.text + i, from - i);
        if (http || www || mail) {
            bool prefixed = mail && word.n_bytes > 7 && memcmp(word.text, "mailto:", 7) == 0;
            size_t skip = prefixed ? 7 : 0, shown = word.n_bytes - skip;
            if (limit >= 0) shown = text_offset(word.text + skip, shown, (size_t)limit);
            sink_puts(&s, mail ? (prefixed ? "<a href=\"" : "<a href=\"mailto:") : www ? "<a href=\"https://" : "<a href=\"");
            sink_append(&s, word.text, word.n_bytes);
            sink_puts(&s, mail ? "\">" : "\" rel=\"noopener\">");
            sink_append(&s, word.text + skip, shown);
            sink_puts(&s, shown < word.n_bytes - skip ? "...</a>" : "</a>");
        } else {
            sink_append(&s, word.text, word.n_bytes);
        }
        sink_append(&s, escaped.text + to, end - to);
        TRY(render_charge(r, 1));
    }
    TRY(sink_finish(&s, out));
    if (r->autoescape) out->flags |= VALUE_SAFE;
    return 0;
}

/* ---- numbers ---- */

/* The text of a number without blanks around it and underscores between digits; false when it cannot be one. */
static bool clean_number(const value *v, char *out, size_t capacity) {
    size_t start, end, n = 0;
    text_strip(v, NULL, true, true, &start, &end);
    for (size_t i = start; i < end; i++) {
        char c = v->text[i];
        if (c == '_') {
            if (i == start || i + 1 == end || !isalnum((unsigned char)v->text[i - 1]) ||
                !isalnum((unsigned char)v->text[i + 1]))
                return false;
            continue;
        }
        if (n + 1 >= capacity || c == '\0' || isspace((unsigned char)c)) return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return n > 0;
}

static bool parse_double(const value *v, double *out) {
    char text[512], *end;
    if (!clean_number(v, text, sizeof text) || strpbrk(text, "xXpP(")) return false;
    *out = strtod(text, &end);
    return *end == '\0' && end != text;
}

static bool parse_integer(const value *v, int64_t base, value *out) {
    char text[512], *end;
    if (!clean_number(v, text, sizeof text)) return false;
    const char *p = text + (text[0] == '-' || text[0] == '+');
    char prefix = p[0] == '0' ? (char)(p[1] | 32) : 0;
    int implied = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' && base != 16 ? 2 : 0;
    if (implied && (base == 0 || base == implied)) {
        p += 2;
        base = implied;
    } else if (base == 0) {
        base = 10;
        if (p[0] == '0' && strspn(p, "0") != strlen(p)) return false;
    }
    if (!isalnum((unsigned char)*p)) return false;
    errno = 0;
    unsigned long long magnitude = strtoull(p, &end, (int)base);
    if (*end) return false;
    bool negative = text[0] == '-';
    if (errno == ERANGE || magnitude > (unsigned long long)INT64_MAX + negative) {
        double d = base == 10 ? strtod(p, NULL) : (double)magnitude;
        *out = (value){.type = V_FLOAT, .flags = VALUE_INTEGRAL, .real = negative ? -d : d};
    } else {
        *out = value_int(negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude);
    }
    return true;
}

static int truncate_double(render *r, double d, value *out) {
    if (isinf(d)) RAISE(r, "cannot convert float infinity to integer");
    d = trunc(d);
    *out = d > -9.2e18 && d < 9.2e18 ? value_int((int64_t)d) : (value){.type = V_FLOAT, .flags = VALUE_INTEGRAL, .real = d};
    return 0;
}

FILTER(filter_int) {
    UNUSED_ALL;
    int64_t base;
    double d;
    *out = argv[0].type == V_MISSING ? value_int(0) : argv[0];
    TRY(argument_int(r, &argv[1], "base", 10, &base));
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (is_string(self)) {
        if (base != 0 && (base < 2 || base > 36)) return 0;
        if (parse_integer(self, base, out)) return 0;
        if (parse_double(self, &d) && isfinite(d)) return truncate_double(r, d, out);
        return 0;
    }
    if (self->type == V_FLOAT) {
        if (isnan(self->real)) return 0;
        return truncate_double(r, self->real, out);
    }
    int64_t i;
    if (value_as_int(self, &i)) *out = value_int(i);
    return 0;
}

FILTER(filter_float) {
    UNUSED_ALL;
    double d;
    *out = argv[0].type == V_MISSING ? value_float(0) : argv[0];
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (is_string(self) ? parse_double(self, &d) : value_as_double(self, &d)) *out = value_float(d);
    return 0;
}

FILTER(filter_abs) {
    UNUSED_ALL;
    int64_t i;
    if (is_undefined(self)) return value_raise_undefined(r, self);
    if (self->type == V_FLOAT) {
        *out = *self;
        out->real = fabs(self->real);
        return 0;
    }
    if (!value_as_int(self, &i)) RAISE(r, "bad operand type for abs(): '%s'", value_type_name(self));
    *out = value_int(i);
    return i < 0 ? value_negate(r, self, out) : 0;
}

/* Half to even, as Python rounds; digits before the point for a negative precision. */
static double round_double(double d, int64_t precision) {
    if (!isfinite(d) || precision > 300) return d;
    if (precision >= 0) {
        char text[700];
        snprintf(text, sizeof text, "%.*f", (int)precision, d);
        return strtod(text, NULL);
    }
    if (precision < -308) return copysign(0, d);
    long double unit = powl(10, (long double)-precision);
    return (double)(rintl((long double)d / unit) * unit);
}

static int64_t round_integer(int64_t i, int64_t precision) {
    if (precision >= 0) return i;
    if (precision < -18) return 0;
    int64_t unit = 1;
    for (; precision < 0; precision++) unit *= 10;
    int64_t rest = i % unit, down = i - rest;
    if (rest < 0) {
        rest += unit;
        down -= unit;
    }
    bool up = rest > unit - rest || (rest == unit - rest && (down / unit) % 2 != 0);
    return up ? down + unit : down;
}

FILTER(filter_round) {
    UNUSED_ALL;
    int64_t precision, i;
    double d;
    bool ceiling = text_equals(&argv[1], "ceil"), floors = text_equals(&argv[1], "floor");
    TRY(argument_int(r, &argv[0], "precision", 0, &precision));
    if (argv[1].type != V_MISSING && !ceiling && !floors && !text_equals(&argv[1], "common"))
        RAISE(r, "method must be common, ceil or floor");
    if (!value_as_double(self, &d)) {
        if (is_undefined(self) && (ceiling || floors)) return value_raise_undefined(r, self);
        RAISE(r, "type %s doesn't define __round__ method", value_type_name(self));
    }
    if (ceiling || floors) {
        double scale = pow(10, (double)precision), scaled = d * scale;
        if (!isfinite(scaled)) RAISE(r, "cannot convert float %s to integer", isnan(scaled) ? "NaN" : "infinity");
        *out = value_float((ceiling ? ceil(scaled) : floor(scaled)) / scale);
    } else if (value_as_int(self, &i)) {
        *out = value_int(round_integer(i, precision));
    } else {
        *out = value_float(round_double(d, precision));
    }
    return 0;
}

FILTER(filter_filesizeformat) {
    UNUSED_ALL;
    static const char *const units[2][8] = {{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"},
                                            {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    bool binary = argument_truth(&argv[0], false);
    double d, base = binary ? 1024 : 1000, unit = base * base;
    text_sink s = SINK(r);
    if (!(is_string(self) ? parse_double(self, &d) : value_as_double(self, &d)))
        RAISE(r, "could not convert %s to float", value_type_name(self));
    if (d == 1) {
        sink_puts(&s, "1 Byte");
    } else if (d < base) {
        sink_printf(&s, "%.0f Bytes", trunc(d));
    } else {
        int i = 0;
        for (; i < 7 && d >= unit; i++) unit *= base;
        sink_printf(&s, "%.1f %s", base * d / unit, units[binary][i]);
    }
    return sink_finish(&s, out);
}

/* ---- any value ---- */

FILTER(filter_default) {
    UNUSED_ALL;
    bool replace = is_undefined(self) || (argument_truth(&argv[1], false) && !value_truth(self));
    *out = !replace ? *self : argv[0].type == V_MISSING ? value_text("", 0) : argv[0];
    return 0;
}

FILTER(filter_length) {
    int64_t n;
    UNUSED_ALL;
    TRY(value_length(r, self, &n));
    *out = value_int(n);
    return 0;
}

/* An attribute proper, never an item. */
FILTER(filter_attr) {
    UNUSED_ALL;
    value name;
    TRY(argument_text(r, &argv[0], "attribute name", &name));
    if (self->type == V_DICT && method_find(self, name.text, name.n_bytes) == NULL)
        return value_undefined_name(r, self, &name, out);
    return value_get_attribute(r, self, &name, out);
}

static int json_indent(render *r, const value *indent, json_style *style) {
    int64_t width = 0;
    if (!argument_given(indent)) return 0;
    style->indented = true;
    if (is_string(indent)) {
        style->indent = *indent;
        return 0;
    }
    text_sink s = SINK(r);
    TRY(argument_int(r, indent, "indent", 0, &width));
    sink_repeat(&s, " ", 1, width > 0 ? (size_t)width : 0);
    return sink_finish(&s, &style->indent);
}

FILTER(filter_tojson) {
    UNUSED_ALL;
    text_sink s = SINK(r);
    json_style style = {.ascii = argument_truth(&argv[0], false), .sort_keys = argument_truth(&argv[3], false)};
    TRY(json_indent(r, &argv[1], &style));
    style.item_separator = style.indented ? value_text(",", 1) : value_text(", ", 2);
    style.key_separator = value_text(": ", 2);
    if (argument_given(&argv[2])) {
        value pair;
        TRY(value_to_list(r, &argv[2], &pair));
        if (pair.list->n != 2 || !is_string(&pair.list->items[0]) || !is_string(&pair.list->items[1]))
            RAISE(r, "separators must be a pair of strings (between items, after keys)");
        style.item_separator = pair.list->items[0];
        style.key_separator = pair.list->items[1];
    }
    TRY(json_write(&s, self, &style));
    return sink_finish(&s, out);
}

/* Not in Jinja; some published templates expect it of their host. */
FILTER(filter_from_json) {
    UNUSED_ALL;
    value text;
    TRY(argument_text(r, self, "the JSON object", &text));
    TRY(render_charge(r, text.n_bytes));
    return json_read(r, text.text, text.n_bytes, "from_json", out);
}

/* pprint: a repr with sorted keys, broken after items where it does not fit in 80 columns. */
static int pretty(text_sink *s, const value *v, size_t indent, size_t after);

static int sorted_dict(render *r, const value *v, value *out) {
    value yes = value_bool(false), no[3] = {value_bool(true), value_literal("key"), yes};
    call_arguments a = {.items = no, .n = 3};
    return builtin_call(r, filter_find("dictsort", 8), v, &a, out);
}

static int pretty_repr(render *r, const value *v, value *out) {
    text_sink s = SINK(r);
    value sorted, copy = *v;
    if (v->type == V_DICT && v->dict->n > 1 && sorted_dict(r, v, &sorted) == 0) {
        TRY(dict_new(r, &copy));
        for (size_t i = 0; i < sorted.list->n; i++) {
            const value *pair = sorted.list->items[i].list->items;
            TRY(dict_set(r, copy.dict, &pair[0], &pair[1]));
        }
    }
    TRY(value_repr(&s, &copy));
    return sink_finish(&s, out);
}

static int pretty_items(text_sink *s, const value *v, size_t indent, size_t after) {
    render *r = s->r;
    value pairs = *v;
    bool dict = v->type == V_DICT;
    if (dict) TRY(sorted_dict(r, v, &pairs));
    sink_putc(s, dict ? '{' : v->type == V_LIST ? '[' : '(');
    for (size_t i = 0; i < pairs.list->n; i++) {
        bool last = i + 1 == pairs.list->n;
        const value *item = &pairs.list->items[i];
        size_t column = indent + 1;
        if (i) {
            sink_puts(s, ",\n");
            sink_repeat(s, " ", 1, column);
        }
        if (dict) {
            value key;
            TRY(pretty_repr(r, &item->list->items[0], &key));
            sink_append(s, key.text, key.n_bytes);
            sink_puts(s, ": ");
            column += utf8_count(key.text, key.n_bytes) + 2;
            item = &item->list->items[1];
        }
        TRY(pretty(s, item, column, last ? after + 1 : 1));
    }
    sink_puts(s, dict ? "}" : v->type == V_LIST ? "]" : pairs.list->n == 1 ? ",)" : ")");
    return s->failed;
}

static int pretty(text_sink *s, const value *v, size_t indent, size_t after) {
    value text;
    TRY(render_enter(s->r));
    TRY(pretty_repr(s->r, v, &text));
    bool compound = v->type == V_LIST || v->type == V_TUPLE || v->type == V_DICT;
    if (compound && utf8_count(text.text, text.n_bytes) + indent + after > 80)
        TRY(pretty_items(s, v, indent, after));
    else
        sink_append(s, text.text, text.n_bytes);
    s->r->depth--;
    return s->failed;
}

FILTER(filter_pprint) {
    text_sink s = SINK(r);
    UNUSED_ALL;
    TRY(pretty(&s, self, 0, 0));
    return sink_finish(&s, out);
}

static const jinja_builtin rows[] = {
    {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"trim", filter_trim, "chars", 0},
    {"default", filter_default, "default_value boolean", 0},
    {"d", filter_default, "default_value boolean", 0},
    {"length", filter_length, "", 0},
    {"count", filter_length, "", 0},
    {"upper", filter_upper, "", 0},
    {"lower", filter_lower, "", 0},
    {"capitalize", filter_capitalize, "", 0},
    {"title", filter_title, "", 0},
    {"string", filter_string, "", 0},
    {"replace", filter_replace, "old new count", 2},
    {"indent", filter_indent, "width first blank", 0},
    {"int", filter_int, "default base", 0},
    {"float", filter_float, "default", 0},
    {"abs", filter_abs, "", 0},
    {"round", filter_round, "precision method", 0},
    {"safe", filter_safe, "", 0},
    {"escape", filter_escape, "", 0},
    {"e", filter_escape, "", 0},
    {"forceescape", filter_forceescape, "", 0},
    {"format", filter_format, "*", 0},
    {"center", filter_center, "width", 0},
    {"truncate", filter_truncate, "length killwords end leeway", 0},
    {"wordcount", filter_wordcount, "", 0},
    {"wordwrap", filter_wordwrap, "width break_long_words wrapstring break_on_hyphens", 0},
    {"striptags", filter_striptags, "", 0},
    {"urlencode", filter_urlencode, "", 0},
    {"urlize", filter_urlize, "trim_url_limit nofollow target rel extra_schemes", 0},
    {"xmlattr", filter_xmlattr, "autospace", 0},
    {"filesizeformat", filter_filesizeformat, "binary", 0},
    {"pprint", filter_pprint, "", 0},
    {"attr", filter_attr, "name", 1},
    {"from_json", filter_from_json, "", 0},
};

static const builtin_table table = {rows, sizeof rows / sizeof rows[0]};

const jinja_builtin *filter_find(const char *name, size_t n_bytes) {
    if (n_bytes == 0) return NULL;
    const jinja_builtin *b = builtin_find(&table, name, n_bytes);
    return b ? b : builtin_find(&list_filters, name, n_bytes);
}
