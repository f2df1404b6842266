/* The methods that Python's values have: str, list, tuple, dict, range, numbers, and Jinja's loop and cycler. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_builtin.h"
#include "chat/jinja_eval.h"
#include "chat/jinja_text.h"

#define METHOD(name) static int name(render *r, const value *self, const value *argv, const call_arguments *all, value *out)
#define UNUSED_ALL (void)r, (void)self, (void)argv, (void)all, (void)out

const jinja_builtin *builtin_find(const builtin_table *table, const char *name, size_t n_bytes) {
    for (size_t i = 0; i < table->n; i++) {
        const char *row = table->rows[i].name;
        if (row[0] == name[0] && strlen(row) == n_bytes && memcmp(row, name, n_bytes) == 0) return &table->rows[i];
    }
    return NULL;
}

int argument_int(render *r, const value *argument, const char *what, int64_t missing, int64_t *out) {
    *out = missing;
    if (argument->type == V_MISSING || value_as_int(argument, out)) return 0;
    if (is_undefined(argument)) return value_raise_undefined(r, argument);
    RAISE(r, "'%s' object cannot be interpreted as an integer (%s)", value_type_name(argument), what);
}

int argument_text(render *r, const value *argument, const char *what, value *out) {
    if (!is_string(argument)) RAISE(r, "%s must be str, not %s", what, value_type_name(argument));
    *out = *argument;
    return 0;
}

/* A piece of `whole`, markup if that is. */
static value piece(const value *whole, size_t start, size_t end) {
    value v = value_text(whole->text + start, end - start);
    v.flags = whole->flags;
    return v;
}

/* ---- case and stripping ---- */

static int map_case(render *r, const value *self, text_case to, value *out) {
    text_sink s = SINK(r);
    text_map_case(&s, self->text, self->n_bytes, to);
    TRY(sink_finish(&s, out));
    out->flags = self->flags;
    return 0;
}

METHOD(str_upper) {
    UNUSED_ALL;
    return map_case(r, self, CASE_UPPER, out);
}
METHOD(str_lower) {
    UNUSED_ALL;
    return map_case(r, self, CASE_LOWER, out);
}
METHOD(str_title) {
    UNUSED_ALL;
    return map_case(r, self, CASE_TITLE, out);
}
METHOD(str_swapcase) {
    UNUSED_ALL;
    return map_case(r, self, CASE_SWAP, out);
}
METHOD(str_capitalize) {
    UNUSED_ALL;
    return map_case(r, self, CASE_CAPITALIZE, out);
}

static int strip(render *r, const value *self, const value *chars, bool left, bool right, value *out) {
    size_t start, end;
    if (argument_given(chars) && !is_string(chars)) RAISE(r, "strip arg must be None or str");
    TRY(render_charge(r, argument_given(chars) ? (size_t)self->n_bytes / 4 * (chars->n_bytes / 16 + 1) : self->n_bytes / 8));
    text_strip(self, argument_given(chars) ? chars : NULL, left, right, &start, &end);
    *out = piece(self, start, end);
    return 0;
}

METHOD(str_strip) {
    UNUSED_ALL;
    return strip(r, self, &argv[0], true, true, out);
}
METHOD(str_lstrip) {
    UNUSED_ALL;
    return strip(r, self, &argv[0], true, false, out);
}
METHOD(str_rstrip) {
    UNUSED_ALL;
    return strip(r, self, &argv[0], false, true, out);
}

static bool starts_with(const value *v, const value *with) {
    return v->n_bytes >= with->n_bytes && memcmp(v->text, with->text, with->n_bytes) == 0;
}
static bool ends_with(const value *v, const value *with) {
    return v->n_bytes >= with->n_bytes && memcmp(v->text + v->n_bytes - with->n_bytes, with->text, with->n_bytes) == 0;
}

METHOD(str_removeprefix) {
    value prefix;
    UNUSED_ALL;
    TRY(argument_text(r, &argv[0], "removeprefix() argument", &prefix));
    *out = piece(self, starts_with(self, &prefix) ? prefix.n_bytes : 0, self->n_bytes);
    return 0;
}

METHOD(str_removesuffix) {
    value suffix;
    UNUSED_ALL;
    TRY(argument_text(r, &argv[0], "removesuffix() argument", &suffix));
    *out = piece(self, 0, self->n_bytes - (ends_with(self, &suffix) ? suffix.n_bytes : 0));
    return 0;
}

/* ---- searching ---- */

/* The bytes of self[start:end] (code points, as in a slice); *first gets the index of the first. False: start is past the end.
 */
static int search_bounds(render *r, const value *self, const value *start, const value *end, int64_t *first, size_t bounds[2],
                         bool *valid) {
    int64_t n = (int64_t)utf8_count(self->text, self->n_bytes), from, to;
    TRY(argument_int(r, start->type == V_NONE ? &(value){0} : start, "start", 0, &from));
    TRY(argument_int(r, end->type == V_NONE ? &(value){0} : end, "end", n, &to));
    TRY(render_charge(r, self->n_bytes / 4));
    from = from < 0 ? (from + n < 0 ? 0 : from + n) : from;
    to = to < 0 ? (to + n < 0 ? 0 : to + n) : to > n ? n : to;
    *valid = from <= n && from <= to;
    *first = from;
    bounds[0] = text_offset(self->text, self->n_bytes, (size_t)(*valid ? from : 0));
    bounds[1] = *valid ? text_offset(self->text, self->n_bytes, (size_t)to) : 0;
    return 0;
}

/* Code point index of argv[0] in self, searched from the left or the right; -1 when absent. */
static int find_text(render *r, const value *self, const value *argv, bool from_right, int64_t *out) {
    int64_t first;
    size_t bounds[2], at = SIZE_MAX;
    bool valid;
    value needle;
    TRY(argument_text(r, &argv[0], "must be str: the argument", &needle));
    TRY(search_bounds(r, self, &argv[1], &argv[2], &first, bounds, &valid));
    *out = -1;
    if (!valid || bounds[1] - bounds[0] < needle.n_bytes) return 0;
    if (from_right) {
        for (size_t i = bounds[1] - needle.n_bytes + 1; at == SIZE_MAX && i-- > bounds[0];) {
            if (needle.n_bytes && self->text[i] != needle.text[0]) continue;
            TRY(render_charge(r, 1 + needle.n_bytes / 64));
            if (memcmp(self->text + i, needle.text, needle.n_bytes) == 0) at = i;
        }
    } else {
        at = text_find(self->text, bounds[1], bounds[0], needle.text, needle.n_bytes);
    }
    if (at != SIZE_MAX) *out = first + (int64_t)utf8_count(self->text + bounds[0], at - bounds[0]);
    return 0;
}

static int find_method(render *r, const value *self, const value *argv, bool from_right, bool required, value *out) {
    int64_t index;
    TRY(find_text(r, self, argv, from_right, &index));
    if (required && index < 0) RAISE(r, "substring not found");
    *out = value_int(index);
    return 0;
}

METHOD(str_find) {
    UNUSED_ALL;
    return find_method(r, self, argv, false, false, out);
}
METHOD(str_rfind) {
    UNUSED_ALL;
    return find_method(r, self, argv, true, false, out);
}
METHOD(str_index) {
    UNUSED_ALL;
    return find_method(r, self, argv, false, true, out);
}
METHOD(str_rindex) {
    UNUSED_ALL;
    return find_method(r, self, argv, true, true, out);
}

METHOD(str_count) {
    int64_t first, n = 0;
    size_t bounds[2];
    bool valid;
    value needle;
    UNUSED_ALL;
    TRY(argument_text(r, &argv[0], "must be str: the argument", &needle));
    TRY(search_bounds(r, self, &argv[1], &argv[2], &first, bounds, &valid));
    if (valid && needle.n_bytes == 0) n = (int64_t)utf8_count(self->text + bounds[0], bounds[1] - bounds[0]) + 1;
    for (size_t at = bounds[0]; valid && needle.n_bytes; at += needle.n_bytes, n++) {
        TRY(render_charge(r, 1 + needle.n_bytes / 16));
        at = text_find(self->text, bounds[1], at, needle.text, needle.n_bytes);
        if (at == SIZE_MAX) break;
    }
    *out = value_int(n);
    return 0;
}

static int edge_method(render *r, const value *self, const value *argv, bool at_end, value *out) {
    int64_t first;
    size_t bounds[2];
    bool valid, hit = false;
    const value *what = &argv[0];
    size_t n = what->type == V_TUPLE ? what->list->n : 1;
    TRY(search_bounds(r, self, &argv[1], &argv[2], &first, bounds, &valid));
    value range = piece(self, bounds[0], valid ? bounds[1] : bounds[0]);
    for (size_t i = 0; i < n; i++) {
        const value *one = what->type == V_TUPLE ? &what->list->items[i] : what;
        if (!is_string(one))
            RAISE(r, "%s first arg must be str or a tuple of str, not %s", at_end ? "endswith" : "startswith",
                  value_type_name(one));
        hit = hit || (valid && (at_end ? ends_with(&range, one) : starts_with(&range, one)));
    }
    *out = value_bool(hit);
    return render_charge(r, n);
}

METHOD(str_startswith) {
    UNUSED_ALL;
    return edge_method(r, self, argv, false, out);
}
METHOD(str_endswith) {
    UNUSED_ALL;
    return edge_method(r, self, argv, true, out);
}

int text_replace(render *r, const value *text, const value *old, const value *new, int64_t count, value *out) {
    text_sink s = SINK(r);
    size_t at = 0;
    TRY(render_charge(r, text->n_bytes / 64));
    if (old->n_bytes == 0) { /* between all code points */
        for (; count != 0; count--) {
            uint32_t c;
            sink_append(&s, new->text, new->n_bytes);
            if (at >= text->n_bytes) break;
            size_t n = utf8_decode(text->text + at, text->n_bytes - at, &c);
            sink_append(&s, text->text + at, n);
            at += n;
            TRY(render_charge(r, 1));
        }
    }
    while (old->n_bytes && count != 0) {
        TRY(render_charge(r, 1 + old->n_bytes / 16)); /* a search prepares its needle */
        size_t hit = text_find(text->text, text->n_bytes, at, old->text, old->n_bytes);
        if (hit == SIZE_MAX) break;
        sink_append(&s, text->text + at, hit - at);
        sink_append(&s, new->text, new->n_bytes);
        at = hit + old->n_bytes;
        count--;
        TRY(render_charge(r, 1));
    }
    if (s.data == NULL && !s.failed) { /* nothing replaced, or by nothing at the very start */
        *out = piece(text, at, text->n_bytes);
        return 0;
    }
    sink_append(&s, text->text + at, text->n_bytes - at);
    TRY(sink_finish(&s, out));
    out->flags = text->flags;
    return 0;
}

METHOD(str_replace) {
    int64_t count;
    value old, new;
    UNUSED_ALL;
    TRY(argument_text(r, &argv[0], "replace() argument 1", &old));
    TRY(argument_text(r, &argv[1], "replace() argument 2", &new));
    TRY(argument_int(r, &argv[2], "count", -1, &count));
    if (self->flags & VALUE_SAFE) TRY(value_escape(r, &new, &new));
    return text_replace(r, self, &old, &new, count, out);
}

/* ---- splitting and joining ---- */

static int split_spaces(render *r, const value *self, int64_t limit, value_list *l) {
    size_t at = 0, n;
    uint32_t c;
    for (;;) {
        for (; at < self->n_bytes; at += n) {
            n = utf8_decode(self->text + at, self->n_bytes - at, &c);
            if (!text_is_space(c)) break;
        }
        if (at >= self->n_bytes) return 0;
        size_t from = at;
        if (limit >= 0 && (int64_t)l->n >= limit)
            return list_push(r, l, piece(self, from, self->n_bytes)); /* the rest as it is */
        for (; at < self->n_bytes; at += n) {
            n = utf8_decode(self->text + at, self->n_bytes - at, &c);
            if (text_is_space(c)) break;
        }
        TRY(list_push(r, l, piece(self, from, at)));
    }
}

static int rsplit_spaces(render *r, const value *self, int64_t limit, value_list *l) {
    size_t at = self->n_bytes, start;
    for (;;) {
        while (at > 0 && text_is_space(text_previous(self->text, at, &start))) at = start;
        if (at == 0) return 0;
        size_t end = at;
        if (limit >= 0 && (int64_t)l->n >= limit) return list_push(r, l, piece(self, 0, end));
        while (at > 0 && !text_is_space(text_previous(self->text, at, &start))) at = start;
        TRY(list_push(r, l, piece(self, at, end)));
    }
}

static int split_text(render *r, const value *self, const value *separator, int64_t limit, value_list *l) {
    size_t at = 0;
    while (limit < 0 || (int64_t)l->n < limit) {
        TRY(render_charge(r, separator->n_bytes / 16));
        size_t hit = text_find(self->text, self->n_bytes, at, separator->text, separator->n_bytes);
        if (hit == SIZE_MAX) break;
        TRY(list_push(r, l, piece(self, at, hit)));
        at = hit + separator->n_bytes;
    }
    return list_push(r, l, piece(self, at, self->n_bytes));
}

static int rsplit_text(render *r, const value *self, const value *separator, int64_t limit, value_list *l) {
    size_t end = self->n_bytes, n = separator->n_bytes, i = end;
    while (i >= n && (limit < 0 || (int64_t)l->n < limit)) {
        i -= 1;
        if (i + 1 < n) break;
        size_t start = i + 1 - n;
        if (self->text[start] == separator->text[0]) TRY(render_charge(r, 1 + n / 64));
        if (memcmp(self->text + start, separator->text, n) != 0) continue;
        TRY(list_push(r, l, piece(self, i + 1, end)));
        end = i = start;
    }
    return list_push(r, l, piece(self, 0, end));
}

static int split(render *r, const value *self, const value *argv, bool from_right, value *out) {
    int64_t limit;
    TRY(argument_int(r, &argv[1], "maxsplit", -1, &limit));
    TRY(list_new(r, V_LIST, 0, out));
    TRY(render_charge(r, self->n_bytes / 8));
    if (!argument_given(&argv[0])) {
        TRY(from_right ? rsplit_spaces(r, self, limit, out->list) : split_spaces(r, self, limit, out->list));
    } else {
        if (!is_string(&argv[0])) RAISE(r, "must be str or None, not %s", value_type_name(&argv[0]));
        if (argv[0].n_bytes == 0) RAISE(r, "empty separator");
        TRY(from_right ? rsplit_text(r, self, &argv[0], limit, out->list) : split_text(r, self, &argv[0], limit, out->list));
    }
    for (size_t i = 0, k = out->list->n; from_right && i + 1 < k; i++) {
        value swap = out->list->items[i];
        out->list->items[i] = out->list->items[--k];
        out->list->items[k] = swap;
    }
    return 0;
}

METHOD(str_split) {
    UNUSED_ALL;
    return split(r, self, argv, false, out);
}
METHOD(str_rsplit) {
    UNUSED_ALL;
    return split(r, self, argv, true, out);
}

static bool is_line_end(uint32_t c) {
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

int text_split_lines(render *r, const value *text, bool keep_ends, value *out) {
    size_t from = 0, n;
    TRY(list_new(r, V_LIST, 0, out));
    TRY(render_charge(r, text->n_bytes / 4));
    for (size_t i = 0; i < text->n_bytes; i += n) {
        uint32_t c;
        n = utf8_decode(text->text + i, text->n_bytes - i, &c);
        if (!is_line_end(c)) continue;
        size_t end = i;
        if (c == '\r' && i + 1 < text->n_bytes && text->text[i + 1] == '\n') n = 2;
        TRY(list_push(r, out->list, piece(text, from, keep_ends ? i + n : end)));
        from = i + n;
    }
    return from < text->n_bytes ? list_push(r, out->list, piece(text, from, text->n_bytes)) : 0;
}

METHOD(str_splitlines) {
    UNUSED_ALL;
    return text_split_lines(r, self, argument_truth(&argv[0], false), out);
}

METHOD(str_join) {
    value items;
    text_sink s = SINK(r);
    UNUSED_ALL;
    if (!value_iterable(&argv[0])) RAISE(r, "can only join an iterable");
    TRY(value_to_list(r, &argv[0], &items));
    for (size_t i = 0; i < items.list->n; i++) {
        value item = items.list->items[i];
        if (!is_string(&item)) RAISE(r, "sequence item %zu: expected str instance, %s found", i, value_type_name(&item));
        if (self->flags & VALUE_SAFE) TRY(value_escape(r, &item, &item));
        if (i) sink_append(&s, self->text, self->n_bytes);
        sink_append(&s, item.text, item.n_bytes);
    }
    TRY(sink_finish(&s, out));
    out->flags = self->flags;
    return 0;
}

static int partition(render *r, const value *self, const value *argv, bool from_right, value *out) {
    value separator;
    size_t at = SIZE_MAX;
    TRY(argument_text(r, &argv[0], "separator", &separator));
    if (separator.n_bytes == 0) RAISE(r, "empty separator");
    for (size_t from = 0, hit; from_right || at == SIZE_MAX; from = hit + 1) {
        TRY(render_charge(r, 1 + separator.n_bytes / 16));
        hit = text_find(self->text, self->n_bytes, from, separator.text, separator.n_bytes);
        if (hit == SIZE_MAX) break;
        at = hit;
    }
    TRY(list_new(r, V_TUPLE, 3, out));
    value *items = out->list->items;
    out->list->n = 3;
    bool found = at != SIZE_MAX;
    if (!found) at = from_right ? 0 : self->n_bytes;
    items[0] = piece(self, 0, at);
    items[1] = found ? separator : value_text("", 0);
    items[2] = piece(self, at + (found ? separator.n_bytes : 0), self->n_bytes);
    return render_charge(r, self->n_bytes / 16);
}

METHOD(str_partition) {
    UNUSED_ALL;
    return partition(r, self, argv, false, out);
}
METHOD(str_rpartition) {
    UNUSED_ALL;
    return partition(r, self, argv, true, out);
}

/* ---- padding ---- */

static int pad(render *r, const value *self, const value *argv, int before_of_two, value *out) {
    int64_t width, n = (int64_t)utf8_count(self->text, self->n_bytes);
    value fill = value_text(" ", 1);
    TRY(argument_int(r, &argv[0], "width", 0, &width));
    TRY(render_charge(r, self->n_bytes / 8));
    if (argv[1].type != V_MISSING) fill = argv[1];
    if (!is_string(&fill) || utf8_count(fill.text, fill.n_bytes) != 1)
        RAISE(r, "The fill character must be exactly one character long");
    int64_t total = width > n ? width - n : 0;
    /* Python's center puts the odd blank left when both the padding and the width are odd. */
    int64_t before = before_of_two == 0 ? 0 : before_of_two == 2 ? total : total / 2 + (total & width & 1);
    text_sink s = SINK(r);
    sink_repeat(&s, fill.text, fill.n_bytes, (size_t)before);
    sink_append(&s, self->text, self->n_bytes);
    sink_repeat(&s, fill.text, fill.n_bytes, (size_t)(total - before));
    TRY(sink_finish(&s, out));
    out->flags = self->flags;
    return 0;
}

METHOD(str_ljust) {
    UNUSED_ALL;
    return pad(r, self, argv, 0, out);
}
METHOD(str_center) {
    UNUSED_ALL;
    return pad(r, self, argv, 1, out);
}
METHOD(str_rjust) {
    UNUSED_ALL;
    return pad(r, self, argv, 2, out);
}

METHOD(str_zfill) {
    int64_t width, n = (int64_t)utf8_count(self->text, self->n_bytes);
    UNUSED_ALL;
    TRY(argument_int(r, &argv[0], "width", 0, &width));
    size_t sign = self->n_bytes && (self->text[0] == '-' || self->text[0] == '+');
    text_sink s = SINK(r);
    sink_append(&s, self->text, sign);
    sink_repeat(&s, "0", 1, width > n ? (size_t)(width - n) : 0);
    sink_append(&s, self->text + sign, self->n_bytes - sign);
    return sink_finish(&s, out);
}

METHOD(str_expandtabs) {
    int64_t size, column = 0;
    text_sink s = SINK(r);
    UNUSED_ALL;
    TRY(argument_int(r, &argv[0], "tabsize", 8, &size));
    TRY(render_charge(r, self->n_bytes / 2));
    for (size_t i = 0; i < self->n_bytes; i++) {
        char c = self->text[i];
        if (c == '\t') {
            int64_t n = size > 0 ? size - column % size : 0;
            sink_repeat(&s, " ", 1, (size_t)n);
            column += n;
        } else {
            sink_putc(&s, c);
            column = c == '\n' || c == '\r' ? 0 : column + (((unsigned char)c & 0xC0) != 0x80);
        }
    }
    return sink_finish(&s, out);
}

METHOD(str_format) {
    (void)argv;
    return format_braces(r, self, all, NULL, out);
}

METHOD(str_format_map) {
    UNUSED_ALL;
    if (argv[0].type != V_DICT) RAISE(r, "format_map() argument must be a mapping, not %s", value_type_name(&argv[0]));
    return format_braces(r, self, all, argv[0].dict, out);
}

#define CLASS_METHOD(name, class)                                                                                              \
    METHOD(name) {                                                                                                             \
        UNUSED_ALL;                                                                                                            \
        *out = value_bool(text_is(self->text, self->n_bytes, class));                                                          \
        return render_charge(r, self->n_bytes / 4);                                                                            \
    }
CLASS_METHOD(str_isalpha, CLASS_ALPHA)
CLASS_METHOD(str_isdigit, CLASS_DIGIT)
CLASS_METHOD(str_isdecimal, CLASS_DECIMAL)
CLASS_METHOD(str_isnumeric, CLASS_NUMERIC)
CLASS_METHOD(str_isalnum, CLASS_ALNUM)
CLASS_METHOD(str_isspace, CLASS_SPACE)
CLASS_METHOD(str_isupper, CLASS_UPPER)
CLASS_METHOD(str_islower, CLASS_LOWER)
CLASS_METHOD(str_istitle, CLASS_TITLE)
CLASS_METHOD(str_isascii, CLASS_ASCII)
CLASS_METHOD(str_isprintable, CLASS_PRINTABLE)

METHOD(str_isidentifier) {
    UNUSED_ALL;
    *out = value_bool(self->n_bytes && text_is(self->text, self->n_bytes, CLASS_IDENTIFIER));
    return 0;
}

/* ---- lists, tuples and ranges ---- */

static int sequence_list(render *r, const value *self, value *out) {
    if (self->type != V_RANGE) {
        *out = *self;
        return 0;
    }
    return value_to_list(r, self, out);
}

METHOD(seq_index) {
    value items;
    int64_t from, to;
    UNUSED_ALL;
    TRY(sequence_list(r, self, &items));
    int64_t n = (int64_t)items.list->n;
    TRY(argument_int(r, &argv[1], "start", 0, &from));
    TRY(argument_int(r, &argv[2], "stop", n, &to));
    from = from < 0 ? (from + n < 0 ? 0 : from + n) : from;
    to = to < 0 ? to + n : to > n ? n : to;
    for (int64_t i = from; i < to; i++) {
        bool equal;
        TRY(value_equal(r, &items.list->items[i], &argv[0], &equal));
        if (!equal) continue;
        *out = value_int(i);
        return 0;
    }
    text_sink s = SINK(r);
    value text;
    TRY(value_repr(&s, &argv[0]));
    TRY(sink_finish(&s, &text));
    if (self->type == V_TUPLE) RAISE(r, "tuple.index(x): x not in tuple");
    RAISE(r, "%.*s is not in %s", (int)(text.n_bytes < 200 ? text.n_bytes : 200), text.text, value_type_name(self));
}

METHOD(seq_count) {
    value items;
    int64_t n = 0;
    UNUSED_ALL;
    TRY(sequence_list(r, self, &items));
    for (size_t i = 0; i < items.list->n; i++) {
        bool equal;
        TRY(value_equal(r, &items.list->items[i], &argv[0], &equal));
        n += equal;
    }
    *out = value_int(n);
    return 0;
}

/* ---- methods that change their object: see eval_callee ---- */

METHOD(list_append) {
    UNUSED_ALL;
    *out = value_none();
    return list_push(r, self->list, argv[0]);
}

METHOD(list_extend) {
    value items;
    UNUSED_ALL;
    TRY(value_to_list(r, &argv[0], &items));
    for (size_t i = 0; i < items.list->n; i++) TRY(list_push(r, self->list, items.list->items[i]));
    *out = value_none();
    return 0;
}

METHOD(list_insert) {
    int64_t at, n = (int64_t)self->list->n;
    UNUSED_ALL;
    TRY(argument_int(r, &argv[0], "index", 0, &at));
    at = at < 0 ? (at + n < 0 ? 0 : at + n) : at > n ? n : at;
    TRY(list_push(r, self->list, argv[1]));
    value *items = self->list->items;
    memmove(items + at + 1, items + at, (size_t)(n - at) * sizeof *items);
    items[at] = argv[1];
    *out = value_none();
    return render_charge(r, (size_t)(n - at) / 8);
}

METHOD(list_pop) {
    int64_t at, n = (int64_t)self->list->n;
    UNUSED_ALL;
    TRY(argument_int(r, &argv[0], "index", -1, &at));
    if (n == 0) RAISE(r, "pop from empty list");
    if (at < 0) at += n;
    if (at < 0 || at >= n) RAISE(r, "pop index out of range");
    value *items = self->list->items;
    *out = items[at];
    memmove(items + at, items + at + 1, (size_t)(n - at - 1) * sizeof *items);
    self->list->n--;
    return render_charge(r, (size_t)(n - at) / 8);
}

METHOD(dict_pop) {
    value *found;
    UNUSED_ALL;
    TRY(dict_find(r, self->dict, &argv[0], &found));
    if (found == NULL && argv[1].type == V_MISSING) RAISE(r, "pop(): the dict has no such key");
    *out = found ? *found : argv[1];
    return found ? dict_remove(r, self->dict, &argv[0]) : 0;
}

METHOD(dict_setdefault) {
    value *found, none = value_none();
    UNUSED_ALL;
    TRY(dict_find(r, self->dict, &argv[0], &found));
    *out = found ? *found : argv[1].type == V_MISSING ? none : argv[1];
    return found ? 0 : dict_set(r, self->dict, &argv[0], out);
}

METHOD(dict_update) {
    value other;
    (void)argv;
    TRY(builtin_call(r, function_find("dict", 4), NULL, all, &other));
    for (size_t i = 0; i < other.dict->n; i++)
        TRY(dict_set(r, self->dict, &other.dict->entries[i].key, &other.dict->entries[i].item));
    *out = value_none();
    return 0;
}

METHOD(seq_copy) {
    UNUSED_ALL;
    return value_to_list(r, self, out);
}

/* ---- dicts ---- */

METHOD(dict_get) {
    value *found = NULL;
    UNUSED_ALL;
    TRY(dict_find(r, self->dict, &argv[0], &found));
    *out = found ? *found : argv[1].type == V_MISSING ? value_none() : argv[1];
    return 0;
}

static int dict_view(render *r, const value *self, uint8_t what, value *out) {
    TRY(list_new(r, V_VIEW, self->dict->n, out));
    out->flags = what;
    for (size_t i = 0; i < self->dict->n; i++) {
        const dict_entry *e = &self->dict->entries[i];
        value item = what == VALUE_KEYS ? e->key : e->item;
        if (what == VALUE_ITEMS) {
            TRY(list_new(r, V_TUPLE, 2, &item));
            item.list->items[0] = e->key;
            item.list->items[1] = e->item;
            item.list->n = 2;
        }
        TRY(list_push(r, out->list, item));
    }
    return 0;
}

METHOD(dict_keys) {
    UNUSED_ALL;
    return dict_view(r, self, VALUE_KEYS, out);
}
METHOD(dict_values) {
    UNUSED_ALL;
    return dict_view(r, self, VALUE_VALUES, out);
}
METHOD(dict_items) {
    UNUSED_ALL;
    return dict_view(r, self, VALUE_ITEMS, out);
}

METHOD(dict_copy) {
    UNUSED_ALL;
    TRY(dict_new(r, out));
    for (size_t i = 0; i < self->dict->n; i++)
        TRY(dict_set(r, out->dict, &self->dict->entries[i].key, &self->dict->entries[i].item));
    return 0;
}

/* ---- numbers ---- */

METHOD(int_bit_length) {
    int64_t i = 0, n = 0;
    UNUSED_ALL;
    value_as_int(self, &i);
    for (uint64_t u = i < 0 ? (uint64_t)0 - (uint64_t)i : (uint64_t)i; u; u >>= 1) n++;
    *out = value_int(n);
    return 0;
}

METHOD(number_conjugate) {
    UNUSED_ALL;
    *out = *self;
    return 0;
}

METHOD(float_is_integer) {
    UNUSED_ALL;
    *out = value_bool(isfinite(self->real) && floor(self->real) == self->real);
    return 0;
}

/* ---- Jinja's own ---- */

METHOD(loop_cycle) {
    (void)argv;
    return jinja_loop_cycle(r, self->loop, all, out);
}

METHOD(loop_changed) {
    (void)argv;
    return jinja_loop_changed(r, self->loop, all, out);
}

METHOD(cycler_next) {
    UNUSED_ALL;
    *out = self->cycler->items[self->cycler->position];
    self->cycler->position = (self->cycler->position + 1) % self->cycler->n;
    return 0;
}

METHOD(cycler_reset) {
    UNUSED_ALL;
    self->cycler->position = 0;
    *out = value_none();
    return 0;
}

static const jinja_builtin string_methods[] = {
    {"strip", str_strip, "chars", 0},
    {"lstrip", str_lstrip, "chars", 0},
    {"rstrip", str_rstrip, "chars", 0},
    {"split", str_split, "sep maxsplit", 0},
    {"rsplit", str_rsplit, "sep maxsplit", 0},
    {"splitlines", str_splitlines, "keepends", 0},
    {"join", str_join, "iterable", 1},
    {"startswith", str_startswith, "prefix start end", 1},
    {"endswith", str_endswith, "suffix start end", 1},
    {"replace", str_replace, "old new count", 2},
    {"upper", str_upper, "", 0},
    {"lower", str_lower, "", 0},
    {"title", str_title, "", 0},
    {"capitalize", str_capitalize, "", 0},
    {"swapcase", str_swapcase, "", 0},
    {"casefold", str_lower, "", 0},
    {"find", str_find, "sub start end", 1},
    {"rfind", str_rfind, "sub start end", 1},
    {"index", str_index, "sub start end", 1},
    {"rindex", str_rindex, "sub start end", 1},
    {"count", str_count, "sub start end", 1},
    {"removeprefix", str_removeprefix, "prefix", 1},
    {"removesuffix", str_removesuffix, "suffix", 1},
    {"partition", str_partition, "sep", 1},
    {"rpartition", str_rpartition, "sep", 1},
    {"ljust", str_ljust, "width fillchar", 1},
    {"rjust", str_rjust, "width fillchar", 1},
    {"center", str_center, "width fillchar", 1},
    {"zfill", str_zfill, "width", 1},
    {"expandtabs", str_expandtabs, "tabsize", 0},
    {"format", str_format, "*", 0},
    {"format_map", str_format_map, "mapping", 1},
    {"isalpha", str_isalpha, "", 0},
    {"isdigit", str_isdigit, "", 0},
    {"isdecimal", str_isdecimal, "", 0},
    {"isnumeric", str_isnumeric, "", 0},
    {"isalnum", str_isalnum, "", 0},
    {"isspace", str_isspace, "", 0},
    {"isupper", str_isupper, "", 0},
    {"islower", str_islower, "", 0},
    {"istitle", str_istitle, "", 0},
    {"isascii", str_isascii, "", 0},
    {"isprintable", str_isprintable, "", 0},
    {"isidentifier", str_isidentifier, "", 0},
};
static const jinja_builtin list_methods[] = {
    {"index", seq_index, "value start stop", 1},
    {"count", seq_count, "value", 1},
    {"copy", seq_copy, "", 0},
};
static const jinja_builtin tuple_methods[] = {{"index", seq_index, "value start stop", 1}, {"count", seq_count, "value", 1}};
static const jinja_builtin dict_methods[] = {
    {"get", dict_get, "key default", 1}, {"items", dict_items, "", 0}, {"keys", dict_keys, "", 0},
    {"values", dict_values, "", 0},      {"copy", dict_copy, "", 0},
};
static const jinja_builtin int_methods[] = {{"bit_length", int_bit_length, "", 0}, {"conjugate", number_conjugate, "", 0}};
static const jinja_builtin float_methods[] = {{"is_integer", float_is_integer, "", 0}, {"conjugate", number_conjugate, "", 0}};
static const jinja_builtin loop_methods[] = {{"cycle", loop_cycle, "*", 0}, {"changed", loop_changed, "*", 0}};
static const jinja_builtin cycler_methods[] = {{"next", cycler_next, "", 0}, {"reset", cycler_reset, "", 0}};

static const jinja_builtin list_mutators[] = {
    {"append", list_append, "object", 1},
    {"extend", list_extend, "iterable", 1},
    {"insert", list_insert, "index object", 2},
    {"pop", list_pop, "index", 0},
};
static const jinja_builtin dict_mutators[] = {
    {"pop", dict_pop, "key default", 1},
    {"setdefault", dict_setdefault, "key default", 1},
    {"update", dict_update, "*", 0},
};

#define TABLE(rows)                                                                                                            \
    { rows, sizeof(rows) / sizeof(rows)[0] }
static const builtin_table methods[] = {
    [V_STRING] = TABLE(string_methods),
    [V_LIST] = TABLE(list_methods),
    [V_TUPLE] = TABLE(tuple_methods),
    [V_RANGE] = TABLE(tuple_methods),
    [V_DICT] = TABLE(dict_methods),
    [V_INT] = TABLE(int_methods),
    [V_BOOL] = TABLE(int_methods),
    [V_FLOAT] = TABLE(float_methods),
    [V_LOOP] = TABLE(loop_methods),
    [V_CYCLER] = TABLE(cycler_methods),
    [V_BLOCK] = {NULL, 0},
};

const jinja_builtin *method_find(const value *object, const char *name, size_t n_bytes) {
    return n_bytes ? builtin_find(&methods[object->type], name, n_bytes) : NULL;
}

const jinja_builtin *mutator_find(const value *object, const value *name) {
    static const builtin_table of_list = TABLE(list_mutators), of_dict = TABLE(dict_mutators);
    return name->n_bytes ? builtin_find(object->type == V_LIST ? &of_list : &of_dict, name->text, name->n_bytes) : NULL;
}
