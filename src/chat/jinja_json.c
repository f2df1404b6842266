/* JSON in (the variables of a rendering) and out (the tojson filter, in the style of Python's json.dumps). */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "chat/jinja_value.h"

/* ---- out ---- */

static void write_string(text_sink *s, const char *text, size_t n_bytes, bool ascii) {
    if (!s->failed) s->failed = render_charge(s->r, n_bytes / 4);
    if (s->failed) return;
    sink_putc(s, '"');
    for (size_t i = 0, n; i < n_bytes; i += n) {
        unsigned char b = (unsigned char)text[i];
        n = 1;
        static const char escapes[] = "\"\"\\\\\nn\rr\tt\bb\ff";
        const char *e = b < 0x80 ? strchr(escapes, b) : NULL;
        if (b && e && (e - escapes) % 2 == 0) {
            sink_putc(s, '\\');
            sink_putc(s, e[1]);
        } else if (b < 0x20 || (ascii && b == 0x7F)) {
            sink_printf(s, "\\u%04x", b);
        } else if (b < 0x80 || !ascii) {
            while (i + n < n_bytes && (unsigned char)text[i + n] >= 0x80 && !ascii) n++;
            sink_append(s, text + i, n);
        } else {
            uint32_t c;
            n = utf8_decode(text + i, n_bytes - i, &c);
            if (c >= 0x10000)
                sink_printf(s, "\\u%04x\\u%04x", 0xD7C0 + (c >> 10), 0xDC00 + (c & 0x3FF));
            else
                sink_printf(s, "\\u%04x", c);
        }
    }
    sink_putc(s, '"');
}

static void write_double(text_sink *s, double d) {
    if (isnan(d) || isinf(d))
        sink_puts(s, isnan(d) ? "NaN" : d < 0 ? "-Infinity" : "Infinity");
    else
        sink_double(s, d);
}

static void new_line(text_sink *s, const json_style *style, int level) {
    if (!style->indented) return;
    sink_putc(s, '\n');
    sink_repeat(s, style->indent.text, style->indent.n_bytes, (size_t)level);
}

static int write_value(text_sink *s, const value *v, const json_style *style, int level);

static int write_list(text_sink *s, const value_list *l, size_t from, const json_style *style, int level) {
    sink_putc(s, '[');
    for (size_t i = from; i < l->n; i++) {
        if (i > from) sink_append(s, style->item_separator.text, style->item_separator.n_bytes);
        new_line(s, style, level + 1);
        TRY(write_value(s, &l->items[i], style, level + 1));
    }
    if (l->n > from) new_line(s, style, level);
    sink_putc(s, ']');
    return s->failed;
}

static int write_key(text_sink *s, const value *key, const json_style *style) {
    value text;
    switch (key->type) {
    case V_STRING:
        write_string(s, key->text, key->n_bytes, style->ascii);
        return s->failed;
    case V_NONE:
        sink_puts(s, "\"null\"");
        return s->failed;
    case V_BOOL:
        sink_puts(s, key->boolean ? "\"true\"" : "\"false\"");
        return s->failed;
    case V_INT:
    case V_FLOAT:
        TRY(value_to_text(s->r, key, &text));
        write_string(s, text.text, text.n_bytes, style->ascii);
        return s->failed;
    default:
        RAISE(s->r, "keys must be str, int, float, bool or None, not %s", value_type_name(key));
    }
}

/* The entries of `d` in the order of their keys (insertion sort into a merge would be overkill: dicts here are small, and the
 * work is accounted for). */
static int sorted_entries(render *r, const value_dict *d, dict_entry **out) {
    dict_entry *e, *spare;
    ALLOC(r, e, d->n + 1);
    ALLOC(r, spare, d->n + 1);
    memcpy(e, d->entries, d->n * sizeof *e);
    for (size_t width = 1; width < d->n; width *= 2) {
        for (size_t low = 0; low < d->n; low += 2 * width) {
            size_t mid = low + width < d->n ? low + width : d->n, high = low + 2 * width < d->n ? low + 2 * width : d->n;
            for (size_t i = low, k = mid, n = low; n < high; n++) {
                int order = -1;
                if (i < mid && k < high) TRY(value_order(r, &e[k].key, &e[i].key, "<", &order));
                spare[n] = i < mid && (k >= high || order >= 0) ? e[i++] : e[k++];
            }
        }
        dict_entry *swap = e;
        e = spare;
        spare = swap;
    }
    *out = e;
    return 0;
}

static int write_dict(text_sink *s, const value_dict *d, const json_style *style, int level) {
    dict_entry *entries = d->entries;
    if (style->sort_keys && d->n > 1) TRY(sorted_entries(s->r, d, &entries));
    sink_putc(s, '{');
    for (size_t i = 0; i < d->n; i++) {
        if (i) sink_append(s, style->item_separator.text, style->item_separator.n_bytes);
        new_line(s, style, level + 1);
        TRY(write_key(s, &entries[i].key, style));
        sink_append(s, style->key_separator.text, style->key_separator.n_bytes);
        TRY(write_value(s, &entries[i].item, style, level + 1));
    }
    if (d->n) new_line(s, style, level);
    sink_putc(s, '}');
    return s->failed;
}

static int write_value(text_sink *s, const value *v, const json_style *style, int level) {
    render *r = s->r;
    TRY(render_charge(r, 1));
    switch (v->type) {
    case V_NONE:
        sink_puts(s, "null");
        return s->failed;
    case V_BOOL:
        sink_puts(s, v->boolean ? "true" : "false");
        return s->failed;
    case V_INT:
        sink_printf(s, "%lld", (long long)v->integer);
        return s->failed;
    case V_FLOAT:
        if (v->flags & VALUE_INTEGRAL)
            sink_printf(s, "%.0f", v->real);
        else
            write_double(s, v->real);
        return s->failed;
    case V_STRING:
        write_string(s, v->text, v->n_bytes, style->ascii);
        return s->failed;
    case V_LIST:
    case V_TUPLE:
    case V_ITERATOR:
    case V_VIEW:
    case V_DICT: {
        if (r->depth >= VALUE_MAX_DEPTH) return render_fail(r, WEIR_E_LIMIT, "a value nested too deep to be written as JSON");
        TRY(render_enter(r));
        size_t from = v->type == V_ITERATOR ? v->list->position : 0; /* lenient: Python refuses iterators and views */
        TRY(v->type == V_DICT ? write_dict(s, v->dict, style, level) : write_list(s, v->list, from, style, level));
        r->depth--;
        return 0;
    }
    default:
        RAISE(r, "Object of type %s is not JSON serializable", value_type_name(v));
    }
}

int json_write(text_sink *s, const value *v, const json_style *style) {
    return write_value(s, v, style, 0);
}

/* ---- in ---- */

static int from_json(render *r, const json_t *j, value *out);

static int object_from_json(render *r, const json_t *j, value *out) {
    TRY(dict_new(r, out));
    for (void *i = json_object_iter((json_t *)j); i; i = json_object_iter_next((json_t *)j, i)) {
        value key, item;
        TRY(value_copy_text(r, json_object_iter_key(i), strlen(json_object_iter_key(i)), &key));
        TRY(from_json(r, json_object_iter_value(i), &item));
        TRY(dict_set(r, out->dict, &key, &item));
    }
    return 0;
}

static int array_from_json(render *r, const json_t *j, value *out) {
    size_t n = json_array_size(j);
    TRY(list_new(r, V_LIST, n, out));
    for (size_t i = 0; i < n; i++) {
        value item;
        TRY(from_json(r, json_array_get(j, i), &item));
        TRY(list_push(r, out->list, item));
    }
    return 0;
}

/* jansson bounds the nesting of what it reads (2048), and so this recursion. */
static int from_json(render *r, const json_t *j, value *out) {
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return object_from_json(r, j, out);
    case JSON_ARRAY:
        return array_from_json(r, j, out);
    case JSON_STRING:
        return value_copy_text(r, json_string_value(j), json_string_length(j), out);
    case JSON_INTEGER:
        *out = value_int(json_integer_value(j));
        return 0;
    case JSON_REAL:
        *out = value_float(json_real_value(j));
        return 0;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = value_bool(json_is_true(j));
        return 0;
    default:
        *out = value_none();
        return 0;
    }
}

int json_read(render *r, const char *text, size_t n_bytes, const char *what, value *out) {
    json_error_t e;
    json_t *j = json_loadb(text, n_bytes, JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (j == NULL) {
        bool memory = json_error_code(&e) == json_error_out_of_memory, deep = json_error_code(&e) == json_error_stack_overflow;
        return error_set(r->err,
                         memory ? WEIR_E_NOMEM
                         : deep ? WEIR_E_LIMIT
                                : WEIR_E_INVALID,
                         what, "line %d, column %d of the JSON: %s", e.line, e.column, e.text);
    }
    int result = from_json(r, j, out);
    json_decref(j);
    return result;
}
